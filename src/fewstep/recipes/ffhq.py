"""FFHQ: 70,000 faces, here of 64x64 pixels."""

from __future__ import annotations

from pathlib import Path

import fewstep as fs
from fewstep.recipes import _edm
from fewstep.recipes._edm import Arch, Dtype


def teacher(
    data: Path,
    *,
    arch: Arch = "ddpmpp",
    dropout: float = 0.05,
    augment: float = 0.15,
    lr: float = 2e-4,
    batch_size: int = 256,
    micro_batch: int | None = None,
    until: int = 200_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
) -> fs.Run:
    """EDM on FFHQ at 64x64 (Karras et al., 2022).

    FID with 79 network evaluations (paper): 2.39 (ddpmpp), 2.53 (ncsnpp); about 4 days on 8 V100, in float32.

    Args:
        data: image zip or folder.
        arch: DDPM++ or NCSN++.
        dropout: probability.
        augment: probability of each augmentation but mirroring, which is a fair coin; 0 for none.
        lr: learning rate of Adam, after a warm-up of 10 million images.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of weights, data order and noise.
    """
    return _edm.train(
        data,
        _edm.network("ffhq-64x64-uncond", arch),
        cond=False,
        dropout=dropout,
        augment=augment,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        half_life=500_000,
        dtype=dtype,
        seed=seed,
        name="ffhq-teacher",
    )
