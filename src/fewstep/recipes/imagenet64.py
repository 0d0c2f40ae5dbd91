"""ImageNet at 64x64: 1.28 million images in 1,000 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import fewstep as fs
from fewstep.recipes import _edm, _edm2
from fewstep.recipes._edm import Dtype


def teacher(
    data: Path,
    *,
    cond: bool = True,
    dropout: float = 0.10,
    augment: float = 0.0,
    lr: float = 1e-4,
    batch_size: int = 4096,
    micro_batch: int | None = None,
    until: int = 2_500_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
) -> fs.Run:
    """EDM's ADM network on ImageNet at 64x64 (Karras et al., 2022).

    FID with 511 network evaluations of the stochastic sampler (paper): 1.36; about 13 days on 32 A100, in float16.

    Args:
        data: image zip or folder.
        cond: with classes.
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
        _edm.network("imagenet-64x64-cond"),
        cond=cond,
        dropout=dropout,
        augment=augment,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        half_life=50_000_000,
        dtype=dtype,
        seed=seed,
        name="imagenet64-teacher",
    )


def edm2(
    data: Path,
    *,
    size: Literal["xs", "s", "m", "l", "xl"] = "s",
    lr: float | None = None,
    batch_size: int = 2048,
    micro_batch: int | None = None,
    until: int | None = None,
    dtype: Dtype = "auto",
    seed: int = 0,
) -> fs.Run:
    """EDM2 on ImageNet at 64x64, in its sizes (Karras et al., 2024).

    FID with 63 network evaluations (paper): 1.58 (s), 1.43 (m), 1.33 (l), 1.33 (xl).

    Args:
        data: image zip or folder.
        size: of the network.
        lr: reference learning rate; that of the size if left out.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all; that of the size if left out.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of weights, data order and noise.
    """
    from fewstep.data.codec import Pixels

    images = _edm.open_images(data, 64, 3, cond=True)
    return _edm2.train(
        fs.ImageStream(images, seed=seed),
        Pixels(),
        f"img64-{size}",
        cond=True,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
    )
