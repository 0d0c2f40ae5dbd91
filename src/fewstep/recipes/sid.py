"""SiD, SiDA and SiD2A (Zhou et al., 2024, 2025), from EDM's teachers and from EDM2's on latents of ImageNet-512.

The settings are those of the published scripts, of which these were corrected: SiDA of AFHQv2 was given the images of FFHQ;
SiD on ImageNet-64 under the newer code had the values of `cond` and `alpha` exchanged and a discriminator; some SiD2A
scripts could not start. Their float16 with fixed factors is bfloat16 here, where the hardware has it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Distillation, Fixed, Parts
from fewstep.recipes.edm2 import Size


@dataclass(frozen=True, kw_only=True)
class SiD(Distillation):
    """Score identity distillation (SiD). It needs no images."""

    data: str | None = None
    """Image zip or folder; only its labels are used. If unset, classes are drawn uniformly."""
    micro_batch: int | None = 16
    """Images per forward pass on a device (gradient accumulation); does not change the result."""
    until: int | None = None
    """Total number of training images; if unset, 800 million for a class-conditional teacher, else 500 million."""
    alpha: float = 1.2
    """Alpha in the SiD loss: the squared score difference enters with the factor 1 - alpha."""
    steps: int = 1
    """Sampling steps of the generator."""
    augment: float = 0.12
    """Probability of each augmentation of the fake score's training images (mirroring always has 1/2). Set 0 for a teacher
    that was trained without augmentation."""
    dropout: float | None = 0.13
    """Dropout probability of fake score and generator; if unset, the teacher's."""
    lr: float = 1e-5
    """Learning rate of fake score and generator."""
    glr: float | None = None
    """Learning rate of the generator; if unset, --lr."""
    g_beta1: float = 0.0
    """Adam beta1 of the generator."""
    eps: float = 1e-6
    """Adam epsilon."""
    init_sigma: float = 2.5
    """Noise level of the generator's input."""
    tmax: float = 800
    """Last of the 1,000 time steps at which scores are compared; step 0 is sigma = 80."""
    lsg: float | None = 100.0
    """Weight of the generator's SiD loss (Adam is nearly invariant to it); if unset, the paper's for the EDM2 size."""
    ema: int = 500_000
    """EMA half-life in images (SiD counts in millions)."""
    p_mean: float = -1.2
    """Mean of log(sigma) in training the fake score."""
    p_std: float = 1.2
    """Standard deviation of log(sigma) in training the fake score."""
    shape: Fixed[tuple[int, int, int]] = (3, 32, 32)
    """Image shape; a teacher of another shape is rejected."""
    uncertainty: Fixed[bool | None] = None
    """Weight the losses with the teacher's log-variance head; if unset, whenever the teacher has one."""
    method_name: ClassVar[str] = "SiD"

    def resolved(self) -> Self:
        if self.until is not None:
            return self
        return dataclasses.replace(self, until=800_000_000 if fs.load(self.teacher).num_classes else 500_000_000)

    def parts(self) -> Parts:
        from fewstep.data.augment import AugmentPipe
        from fewstep.distill.players import uniform_levels

        if not 0 < self.tmax <= 1000:
            raise ValueError(f"--tmax must be above 0 and at most 1000; got {self.tmax:g}")
        denoiser = self.opened(self.teacher)
        pipe = AugmentPipe(self.augment) if self.augment else None
        if pipe is not None and not getattr(denoiser.net.config, "augment_dim", 0):
            raise ValueError(
                f"{self.teacher} was trained without augmentation, so its copies cannot take augmentation labels: --augment 0"
            )
        method = self.method(
            denoiser,
            alpha=self.alpha,
            levels=uniform_levels(self.init_sigma, self.steps),
            noise=fs.KarrasUniform(t_max=self.tmax / 1000),
            objective=fs.DenoisingLoss(fs.LogNormal(self.p_mean, self.p_std), augment=pipe),
            uncertainty=self.uncertainty,
            loss_scale=100.0 if self.lsg is None else self.lsg,
        )
        adam = fs.Adam(self.lr, betas=(0.0, 0.999), eps=self.eps, loss_scale=self.loss_scale())
        lr = self.lr if self.glr is None else self.glr
        return Parts(
            method,
            self.stream(denoiser),
            {"fake_score": adam, "generator": dataclasses.replace(adam, lr=lr, betas=(self.g_beta1, 0.999))},
            ema=fs.HalfLife(self.ema),
            snapshots=self.snapshots(2_500_000),
            card=self.card(f"{self.method_name}, alpha {self.alpha:g}"),
        )

    def method(self, teacher: fs.Denoiser, **options: Any) -> fs.Method:
        return fs.distill.SiD(teacher, **options)

    def opened(self, path: Path) -> fs.Denoiser:
        """A model for images of `shape`, with this recipe's dropout in training."""
        denoiser = fs.load(path)
        if denoiser.shape != self.shape:
            raise ValueError(f"{path}: this recipe needs a model of images of shape {self.shape}; got {denoiser.shape}")
        denoiser.dtype = self.torch_dtype()
        if self.dropout is not None:
            config = dataclasses.replace(denoiser.net.config, dropout=self.dropout)
            net = type(denoiser.net)(config)
            net.load_state_dict(denoiser.net.state_dict(), assign=True)
            denoiser.net = net.eval()
        return denoiser


@dataclass(frozen=True, kw_only=True)
class SiDA(SiD):
    """SiD with an adversarial loss (SiDA): the fake score also discriminates real from generated images."""

    data: str = REQUIRED
    """Real images: zip or folder."""
    micro_batch: int | None = 32
    """Images per forward pass on a device. The adversarial terms are averaged over them, so it affects the result."""
    alpha: float = 1.0
    lsd: float = 1.0
    """Weight of the discriminator loss in the fake score's loss."""
    lsg_gan: float = 0.01
    """Weight of the adversarial loss in the generator's loss."""
    clip: Fixed[float | None] = 1.0
    """Limit of each entry of the fake score's gradient."""
    method_name: ClassVar[str] = "SiDA"

    def method(self, teacher: fs.Denoiser, **options: Any) -> fs.Method:
        return fs.distill.SiDA(teacher, disc_weight=self.lsd, gan_weight=self.lsg_gan, clip=self.clip, **options)


@dataclass(frozen=True, kw_only=True)
class SiD2A(SiDA):
    """SiDA whose generator is initialized with a SiD student (SiD2A)."""

    student: Path = REQUIRED
    """Model or run folder of the SiD student that initializes the generator."""
    method_name: ClassVar[str] = "SiD2A"

    def method(self, teacher: fs.Denoiser, **options: Any) -> fs.Method:
        generator = self.opened(self.student)
        if generator.levels is None:
            raise ValueError(
                f"{self.student} is a denoiser of all noise levels, not a student. Give a student that SiD trained, or use "
                "the recipe sida, which starts from the teacher"
            )
        return super().method(teacher, generator=generator, **options)


class SizeRow(NamedTuple):
    """micro_batch: images at a time. until: training images of SiD and SiDA. sid2a: those of SiD2A."""

    micro_batch: int
    until: int
    sid2a: int


SIZES = {
    "xs": SizeRow(64, 200_000_000, 30_000_000),
    "s": SizeRow(64, 200_000_000, 80_000_000),
    "m": SizeRow(32, 200_000_000, 200_000_000),
    "l": SizeRow(32, 200_000_000, 55_000_000),
    "xl": SizeRow(16, 200_000_000, 50_000_000),
    "xxl": SizeRow(2, 100_000_000, 30_000_000),
}


@dataclass(frozen=True, kw_only=True)
class OfEDM2:
    """Students of EDM2 on ImageNet-512 latents; unset settings take the paper's values for the size."""

    size: Size = "s"
    """Size of the teacher. It sets the default micro-batch: 64 (xs, s), 32 (m, l), 16 (xl) or 2 (xxl) images."""

    def resolved(self) -> Self:
        from fewstep.io.model_folder import read_config
        from fewstep.nets import sizes

        assert isinstance(self, SiD)
        if self.size not in SIZES:
            raise ValueError(f"--size must be one of {', '.join(SIZES)}; got {self.size!r}")
        row = SIZES[self.size]
        found = read_config(self.teacher)["network"].get("model_channels")
        expected = sizes.edm2(self.size).model_channels
        if found != expected:
            raise ValueError(
                f"{self.teacher} has {found} channels, EDM2-{self.size.upper()} has {expected}; set --size to the size of "
                "the teacher"
            )
        adversarial, two_stages = isinstance(self, SiDA), isinstance(self, SiD2A)
        until = row.sid2a if two_stages else row.until
        lsg = 50.0 if two_stages and self.size == "m" else 100.0
        return dataclasses.replace(
            self,
            micro_batch=row.micro_batch if self.micro_batch is None else self.micro_batch,
            until=until if self.until is None else self.until,
            lsg=lsg if self.lsg is None else self.lsg,
            uncertainty=not adversarial or self.size != "s",
        )


@dataclass(frozen=True, kw_only=True)
class SiDOfEDM2(OfEDM2, SiD):
    """SiD from EDM2."""


@dataclass(frozen=True, kw_only=True)
class SiDAOfEDM2(OfEDM2, SiDA):
    """SiDA from EDM2."""


@dataclass(frozen=True, kw_only=True)
class SiD2AOfEDM2(OfEDM2, SiD2A):
    """SiD2A from EDM2."""
