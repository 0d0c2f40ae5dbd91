"""FFHQ: 70,000 faces, here of 256x256 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import fewstep as fs
from fewstep.recipes import _edm, _edm2, _ncvsd, _options
from fewstep.recipes._edm import Dtype
from fewstep.recipes._options import extended


@extended(_options.edm2, _options.stable_target)
def teacher(
    data: Path,
    *,
    cond: bool = False,
    size: Literal["xs", "s"] = "xs",
    lr: float | None = None,
    batch_size: int = 128,
    micro_batch: int | None = None,
    until: int | None = None,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """EDM2 on the pixels of FFHQ at 256x256: the teacher of `ffhq256:ncvsd` (Peng et al., 2025); no FID is published.

    Args:
        data: image zip or folder, as `fewstep data pack --transform center-crop-dhariwal --resolution 256x256` makes it.
        cond: with classes, if the images have some.
        size: of the network.
        lr: reference learning rate; that of the size if left out.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all; 64 Mi if left out.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of weights, data order and noise.
    """
    from fewstep.core.codec import Pixels

    images = _edm.open_images(data, 256, 3, cond=cond)
    return _edm2.train(
        fs.ImageStream(images, seed=seed),
        Pixels(),
        f"ffhq256-{size}",
        cond=cond,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        **more,
    )


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
