"""What the distillations by NCVSD share (Peng et al., 2025, arXiv 2506.09416).

The settings are those of the published presets, with these corrections: the discriminator's logits and its loss are in
float32, where theirs overflowed float16 in the reported sum; new weights and random draws are the same on every GPU or
follow the seed; dropout is off, also for teachers that had some, as there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import fewstep as fs
from fewstep.recipes._edm import Dtype, loss_scale

if TYPE_CHECKING:
    from fewstep.data.latents import LatentStream

MI = 2**20
Size = Literal["s", "m", "l"]
GRID = 40
SLOW = 0.01
"""The learning rate of generator and discriminator, in units of the fake score's."""


class Row(NamedTuple):
    """channels: of the teacher. lr: reference learning rate of the fake score. micro_batch: images at a time on a device."""

    channels: int
    lr: float
    micro_batch: int


class Preset(NamedTuple):
    """shape: of an image. noise: mean and std of ln t. decay: batches after which the learning rate falls. rampup: images
    of its warm-up. gan_start: images before the adversarial term. index: of the level for one step. scale: of the losses.
    snapshot: images between two.
    """

    shape: tuple[int, int, int]
    rows: dict[str, Row]
    noise: tuple[float, float]
    decay: int
    rampup: int
    gan_start: int
    index: int
    scale: float
    snapshot: int


IMAGENET64 = {"s": Row(192, 0.0100, 64), "m": Row(256, 0.0090, 32), "l": Row(320, 0.0080, 16)}
IMAGENET512 = {**IMAGENET64, "l": Row(320, 0.0080, 8)}
PRESETS = {
    "imagenet64": Preset((3, 64, 64), IMAGENET64, (-0.8, 1.6), 35_000, 10_000_000, 16_778_000, 12, 1.0, MI),
    "imagenet512": Preset((4, 64, 64), IMAGENET512, (-0.4, 1.0), 70_000, 10_000_000, 16_778_000, 12, 1.0, MI),
    "ffhq256": Preset(
        (3, 256, 256), {"xs": Row(128, 0.0120, 16)}, (-0.8, 1.6), 35_000, 1_000_000, 1_049_000, 0, 0.1, 64 * 1024
    ),
}


def distil(
    preset: str,
    size: str,
    teacher: Path,
    data: Path,
    *,
    lr: float | None,
    batch_size: int,
    micro_batch: int | None,
    until: int,
    dtype: Dtype,
    seed: int,
) -> fs.Run:
    """A run of NCVSD from an EDM2 teacher, of the size that its preset names."""
    import torch

    from fewstep.distill.players import check_teacher
    from fewstep.nets.edm2 import EDM2UNet
    from fewstep.runtime.precision import chosen_dtype

    kind = PRESETS[preset]
    row = kind.rows[size]
    denoiser = fs.load(teacher)
    check_teacher(denoiser)
    if not isinstance(denoiser.net, EDM2UNet) or denoiser.net.config.model_channels != row.channels:
        raise ValueError(
            f"{teacher}: this recipe is for EDM2-{size.upper()}, {row.channels} channels wide; this is a "
            f"{type(denoiser.net).__name__} of {denoiser.net.config.model_channels}. Give the --size of the teacher, or write "
            "a recipe with fewstep.distill.NCVSD, which takes any teacher"
        )
    if denoiser.shape != kind.shape:
        raise ValueError(
            f"{teacher}: this recipe is for images of shape {kind.shape}; this model makes {denoiser.shape}"
        )
    denoiser.dtype = chosen_dtype(dtype)
    torch.manual_seed(seed)
    method = fs.distill.NCVSD(
        denoiser,
        levels=(fs.karras_sigmas(GRID)[kind.index].item(),),
        noise=fs.LogNormal(*kind.noise),
        gan_start=kind.gan_start,
        loss_scale=kind.scale,
    )

    def adam(factor: float) -> fs.Adam:
        return fs.Adam(
            factor * (row.lr if lr is None else lr),
            betas=(0.9, 0.99),
            rampup=kind.rampup,
            reference=kind.decay * batch_size,
            loss_scale=loss_scale(dtype),
        )

    return fs.Run(
        method,
        stream(denoiser, data, seed),
        {"fake_score": adam(1.0), "discriminator": adam(SLOW), "generator": adam(SLOW)},
        batch_size=batch_size,
        micro_batch=row.micro_batch if micro_batch is None else micro_batch,
        until=until,
        ema=(fs.PowerFunction(0.10), fs.PowerFunction(0.05)),
        seed=seed,
        snapshots=max(1, until // kind.snapshot),
        checkpoint_seconds=600.0,
        name=f"{preset}-ncvsd-{size}",
        card=fs.card(teacher).student("NCVSD"),
    )


def stream(denoiser: fs.Denoiser, data: Path, seed: int) -> fs.ImageStream | LatentStream:
    """The training data, in the units of the denoiser."""
    from fewstep.data.codec import StabilityVAE
    from fewstep.data.latents import LatentData, LatentStream

    if isinstance(denoiser.codec, StabilityVAE):
        return LatentStream(LatentData(data), denoiser.codec, seed=seed)
    return fs.ImageStream(fs.images(data), seed=seed)
