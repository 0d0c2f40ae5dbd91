"""ImageNet at 512x512, as latents of 4x64x64: 1.28 million images in 1,000 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import fewstep as fs
from fewstep.recipes import _edm2
from fewstep.recipes._edm import Dtype


def teacher(
    data: Path,
    *,
    cond: bool = True,
    size: Literal["xxs", "xs", "s", "m", "l", "xl", "xxl"] = "s",
    lr: float | None = None,
    batch_size: int = 2048,
    micro_batch: int | None = None,
    until: int | None = None,
    dtype: Dtype = "auto",
    seed: int = 0,
) -> fs.Run:
    """EDM2 on latents of ImageNet at 512x512, in its sizes (Karras et al., 2024).

    FID with 63 network evaluations (paper): 3.53 (xs), 2.56 (s), 2.25 (m), 2.06 (l), 1.96 (xl), 1.91 (xxl); with
    guidance by a network without classes 2.91, 2.23, 2.01, 1.88, 1.85, 1.81.

    Args:
        data: zip of latents, as EDM2 stores them.
        cond: with classes; without them as the guide of guidance.
        size: of the network.
        lr: reference learning rate; that of the size if left out.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all; that of the size if left out.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of weights, data order and noise.
    """
    from fewstep.data.codec import StabilityVAE
    from fewstep.data.latents import LatentData, LatentStream

    latents, codec = LatentData(data), StabilityVAE()
    if latents.shape != (4, 64, 64):
        raise ValueError(f"{data}: this recipe is for latents of 4 x 64 x 64; got {latents.shape}")
    return _edm2.train(
        LatentStream(latents, codec, seed=seed),
        codec,
        f"img512-{size}",
        cond=cond,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
    )
