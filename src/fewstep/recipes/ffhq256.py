"""FFHQ: 70,000 faces, here of 256x256 pixels."""

from __future__ import annotations

from pathlib import Path

import fewstep as fs
from fewstep.recipes import _ncvsd
from fewstep.recipes._edm import Dtype


def ncvsd(
    teacher: Path,
    data: Path,
    *,
    lr: float | None = None,
    batch_size: int = 128,
    micro_batch: int | None = None,
    until: int = 4 * _ncvsd.MI,
    dtype: Dtype = "auto",
    seed: int = 0,
) -> fs.Run:
    """NCVSD from EDM2-XS on FFHQ at 256x256, for restoration by PnP-GD (Peng et al., 2025); no FID is published.

    Sampled with --ts 0,39, 0,14,39 or 0,10,20,30,39.

    Args:
        teacher: model or run folder of the teacher, EDM2 of the same size.
        data: image zip or folder, without classes.
        lr: reference learning rate of the fake score, of which generator and discriminator have 1 %; that of the size if
            left out.
        batch_size: images per step.
        micro_batch: images at a time on a device; the paper's for the size if left out; it does not change the result.
        until: training images in all.
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of new weights, data order and noise.
    """
    return _ncvsd.distil(
        "ffhq256",
        "xs",
        teacher,
        data,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
    )
