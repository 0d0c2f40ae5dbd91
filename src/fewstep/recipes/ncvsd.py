"""NCVSD from EDM2's teachers (Peng et al., 2025, arXiv 2506.09416).

The settings are those of the published presets, with these corrections: the discriminator's logits and its loss are in
float32, where theirs overflowed float16 in the reported sum; new weights and random draws are the same on every GPU or
follow the seed; dropout is off, also for teachers that had some, as there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Distillation, Fixed, Parts, Row
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


IMAGENET64: dict[str, Any] = {
    "s": SizeRow(192, 0.0100, 64),
    "m": SizeRow(256, 0.0090, 32),
    "l": SizeRow(320, 0.0080, 16),
}
SIZES = {
    "imagenet64": IMAGENET64,
    "imagenet512": {**IMAGENET64, "l": SizeRow(320, 0.0080, 8)},
    "ffhq256": {"xs": SizeRow(128, 0.0120, 16)},
}


@dataclass(frozen=True, kw_only=True)
class NCVSD(Distillation):
    """NCVSD: a generative denoiser for any number of steps, distilled from an EDM2 teacher."""

    data: str = REQUIRED
    batch_size: int = REQUIRED
    micro_batch: int | None = None
    """Images per forward pass on a device (gradient accumulation); does not change the result. If unset, the paper's for the
    size."""
    size: Literal["xs", "s", "m", "l"] = REQUIRED
    """Size of the teacher."""
    lr: float | None = None
    """Reference learning rate of the fake score; generator and discriminator use 1 % of it. If unset, that of the size."""
    p_mean: float = REQUIRED
    """Mean of log(sigma) at which scores are compared."""
    p_std: float = REQUIRED
    """Standard deviation of log(sigma) at which scores are compared."""
    decay: float = REQUIRED
    """Number of batches after which the learning rate decays."""
    rampup: Fixed[int] = REQUIRED
    """Warm-up of the learning rate, in images."""
    gan_start: int = REQUIRED
    """Training images after which the adversarial loss is switched on."""
    level: Fixed[int] = REQUIRED
    """Index of the noise level for one step."""
    scale: Fixed[float] = REQUIRED
    """Factor of the losses."""
    snapshot: Fixed[int] = REQUIRED
    """Images between two snapshots."""
    preset: Fixed[str] = REQUIRED
    """The rows of `SIZES` for the data set."""
    shape: Fixed[tuple[int, int, int]] = REQUIRED
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


IMAGENET: dict[str, Any] = {
    "size": "s",
    "batch_size": 2048,
    "until": 64 * MI,
    "rampup": 10_000_000,
    "gan_start": 16_778_000,
    "level": 12,
    "scale": 1.0,
    "snapshot": MI,
}

ROWS = {
    "imagenet64:ncvsd": Row(
        NCVSD(
            name="imagenet64-ncvsd-{size}",
            preset="imagenet64",
            shape=(3, 64, 64),
            p_mean=-0.8,
            p_std=1.6,
            decay=35_000,
            **IMAGENET,
        ),
        "NCVSD from EDM2 on ImageNet at 64x64: a generative denoiser for any number of steps (Peng et al., 2025).",
        "FID in 1, 2, 4 steps (reference repository): 3.13, 2.66, 2.14 (s), 3.04, 2.47, 1.92 (m), 2.96, 2.35, 1.53 (l); "
        "sampled with --ts 12,39, 10,22,39 and 0,10,20,30,39. Teachers by --size: post-hoc averages of std 0.075 (s), 0.060 "
        "(m), 0.040 (l).",
    ),
    "imagenet512:ncvsd": Row(
        NCVSD(
            name="imagenet512-ncvsd-{size}",
            preset="imagenet512",
            shape=(4, 64, 64),
            p_mean=-0.4,
            p_std=1.0,
            decay=70_000,
            **IMAGENET,
        ),
        "NCVSD from EDM2 on latents of ImageNet at 512x512: a generative denoiser for any number of steps (Peng et al., "
        "2025).",
        "FID in 1, 2, 4 steps (reference repository): 2.95, 2.60, 2.00 (s), 2.85, 2.08, 1.92 (m), 2.56, 2.03, 1.76 (l); "
        "sampled with --ts 12,39, 10,22,39 and 0,10,20,30,39. Teachers by --size: post-hoc averages of std 0.130 (s), 0.100 "
        "(m), 0.085 (l).",
    ),
    "ffhq256:ncvsd": Row(
        NCVSD(
            name="ffhq256-ncvsd-{size}",
            preset="ffhq256",
            shape=(3, 256, 256),
            size="xs",
            batch_size=128,
            until=4 * MI,
            p_mean=-0.8,
            p_std=1.6,
            decay=35_000,
            rampup=1_000_000,
            gan_start=1_049_000,
            level=0,
            scale=0.1,
            snapshot=64 * 1024,
        ),
        "NCVSD from EDM2-XS on FFHQ at 256x256, for restoration by PnP-GD (Peng et al., 2025); no FID is published.",
        "Sampled with --ts 0,39, 0,14,39 or 0,10,20,30,39.",
    ),
}
