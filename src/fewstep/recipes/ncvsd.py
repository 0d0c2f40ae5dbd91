"""NCVSD from EDM2's teachers (Peng et al., 2025, arXiv 2506.09416).

The settings are those of the published presets, with these corrections: the discriminator's logits and its loss are in
float32, where theirs overflowed float16 in the reported sum; new weights and random draws are the same on every GPU or
follow the seed; dropout is off, also for teachers that had some, as there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Distillation, Fixed, Parts
from fewstep.recipes.edm2 import MI

GRID = 40
"""Noise levels of the published grid, of which `level` is an index."""
SLOW = 0.01
"""The learning rate of generator and discriminator, in units of the fake score's."""


class SizeRow(NamedTuple):
    """channels: of the teacher. lr: reference learning rate of the fake score. micro_batch: images at a time on a device."""

    channels: int
    lr: float
    micro_batch: int


IMAGENET64 = {"s": SizeRow(192, 0.0100, 64), "m": SizeRow(256, 0.0090, 32), "l": SizeRow(320, 0.0080, 16)}
SIZES = {
    "imagenet64": IMAGENET64,
    "imagenet512": {**IMAGENET64, "l": SizeRow(320, 0.0080, 8)},
    "ffhq256": {"xs": SizeRow(128, 0.0120, 16)},
}


@dataclass(frozen=True, kw_only=True)
class NCVSD(Distillation):
    """NCVSD: a generative denoiser for any number of steps, distilled from an EDM2 teacher."""

    data: str = REQUIRED
    batch_size: int = 2048
    micro_batch: int | None = None
    """Images per forward pass on a device (gradient accumulation); does not change the result. If unset, the paper's for the
    size."""
    until: int = 64 * MI
    size: Literal["xs", "s", "m", "l"] = "s"
    """Size of the teacher."""
    lr: float | None = None
    """Reference learning rate of the fake score; generator and discriminator use 1 % of it. If unset, that of the size."""
    p_mean: float = -0.8
    """Mean of log(sigma) at which scores are compared."""
    p_std: float = 1.6
    """Standard deviation of log(sigma) at which scores are compared."""
    decay: float = 35_000
    """Number of batches after which the learning rate decays."""
    rampup: Fixed[int] = 10_000_000
    """Warm-up of the learning rate, in images."""
    gan_start: int = 16_778_000
    """Training images after which the adversarial loss is switched on."""
    level: Fixed[int] = 12
    """Index of the noise level for one step."""
    scale: Fixed[float] = 1.0
    """Factor of the losses."""
    snapshot: Fixed[int] = MI
    """Images between two snapshots."""
    preset: Fixed[str] = "imagenet64"
    """The rows of `SIZES` for the data set."""
    shape: Fixed[tuple[int, int, int]] = (3, 64, 64)
    """Image shape; a teacher of another shape is rejected."""

    def row(self) -> SizeRow:
        known = SIZES[self.preset]
        if self.size not in known:
            raise ValueError(f"--size must be one of {', '.join(known)}; got {self.size!r}")
        return known[self.size]

    def resolved(self) -> Self:
        row = self.row()
        micro_batch = row.micro_batch if self.micro_batch is None else self.micro_batch
        return dataclasses.replace(self, lr=row.lr if self.lr is None else self.lr, micro_batch=micro_batch)

    def parts(self) -> Parts:
        denoiser = self.checked_teacher()
        method = fs.distill.NCVSD(
            denoiser,
            levels=(fs.karras_sigmas(GRID)[self.level].item(),),
            noise=fs.LogNormal(self.p_mean, self.p_std),
            gan_start=self.gan_start,
            loss_scale=self.scale,
        )
        assert self.lr is not None
        adam = fs.Adam(
            self.lr,
            betas=(0.9, 0.99),
            rampup=self.rampup,
            reference=self.decay * self.batch_size,
            loss_scale=self.loss_scale(),
        )
        slow = dataclasses.replace(adam, lr=SLOW * self.lr)
        return Parts(
            method,
            self.stream(denoiser),
            {"fake_score": adam, "discriminator": slow, "generator": slow},
            ema=(fs.PowerFunction(0.10), fs.PowerFunction(0.05)),
            snapshots=self.snapshots(self.snapshot),
            card=self.card("NCVSD"),
        )

    def checked_teacher(self) -> fs.Denoiser:
        """The teacher, if it is an EDM2 of the size and of these images."""
        from fewstep.nets.edm2 import EDM2UNet

        denoiser, channels = self.loaded_teacher(), self.row().channels
        if not isinstance(denoiser.net, EDM2UNet) or denoiser.net.config.model_channels != channels:
            raise ValueError(
                f"{self.teacher}: this recipe is for EDM2-{self.size.upper()}, {channels} channels wide; this is a "
                f"{type(denoiser.net).__name__} of {denoiser.net.config.model_channels}. Give the --size of the teacher, or "
                "write a recipe with fewstep.distill.NCVSD, which takes any teacher"
            )
        if denoiser.shape != self.shape:
            raise ValueError(
                f"{self.teacher}: this recipe needs a model of images of shape {self.shape}; got {denoiser.shape}"
            )
        return denoiser
