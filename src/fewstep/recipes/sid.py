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
    """Score identity distillation. Without `data`, classes are drawn evenly."""

    data: str | None = None
    """Image zip or folder, of which only the labels are used; classes are drawn evenly if unset."""
    micro_batch: int | None = 16
    """Images at a time on a device. It does not change the result."""
    until: int | None = None
    """Training images in all. If unset: 800 million for a teacher with classes, 500 million for one without."""
    alpha: float = 1.2
    """Weight in the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores."""
    steps: int = 1
    """Steps of the generator."""
    augment: float = 0.12
    """Probability of each augmentation except mirroring, which has 1/2, of what the fake score trains on; 0 for none, as a
    teacher that was trained without needs it."""
    dropout: float | None = 0.13
    """Dropout probability of fake score and generator; the teacher's if unset."""
    lr: float = 1e-5
    """Learning rate of both networks."""
    glr: float | None = None
    """Learning rate of the generator; `lr` if unset."""
    g_beta1: float = 0.0
    """First moment of the generator's Adam."""
    eps: float = 1e-6
    """Epsilon of Adam."""
    init_sigma: float = 2.5
    """Noise level from which the generator makes images."""
    tmax: float = 800
    """The scores are compared at the noise levels of steps 0 to tmax of 1000; sigma is 80 at step 0."""
    lsg: float | None = 100.0
    """Factor of the generator's SiD loss, to which Adam is nearly invariant; the paper's for the size of EDM2 if unset."""
    ema: int = 500_000
    """Half-life of the average of weights, in images (SiD counts millions)."""
    p_mean: float = -1.2
    """Mean of the logarithm of the noise level at which the fake score trains."""
    p_std: float = 1.2
    """Standard deviation of the logarithm of the noise level at which the fake score trains."""
    shape: Fixed[tuple[int, int, int]] = (3, 32, 32)
    """Shape of an image; teachers of another shape are refused."""
    uncertainty: Fixed[bool | None] = None
    """Weigh the losses by the teacher's log-variance head; as the teacher has one if unset."""
    method_name: ClassVar[str] = "SiD"

    def resolved(self) -> Self:
        if self.until is not None:
            return self
        return dataclasses.replace(self, until=800_000_000 if fs.load(self.teacher).num_classes else 500_000_000)

    def parts(self) -> Parts:
        from fewstep.data.augment import AugmentPipe
        from fewstep.distill.players import uniform_levels

        if not 0 < self.tmax <= 1000:
            raise ValueError(f"--tmax is a step of a thousand, above 0 and at most 1000; got {self.tmax:g}")
        denoiser = self.opened(self.teacher)
        pipe = AugmentPipe(self.augment) if self.augment else None
        if pipe is not None and not getattr(denoiser.net.config, "augment_dim", 0):
            raise ValueError(
                f"{self.teacher} was trained without augmentation, so its copies cannot take augmentation labels: use --augment 0"
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
            card=fs.card(self.teacher).student(f"{self.method_name}, alpha {self.alpha:g}"),
        )

    def method(self, teacher: fs.Denoiser, **options: Any) -> fs.Method:
        return fs.distill.SiD(teacher, **options)

    def opened(self, path: Path) -> fs.Denoiser:
        """A model for images of `shape`, with this recipe's dropout in training."""
        denoiser = fs.load(path)
        if denoiser.shape != self.shape:
            raise ValueError(
                f"{path}: this recipe is for models of images of shape {self.shape}; this one makes {denoiser.shape}"
            )
        denoiser.dtype = self.torch_dtype()
        if self.dropout is not None:
            config = dataclasses.replace(denoiser.net.config, dropout=self.dropout)
            net = type(denoiser.net)(config)
            net.load_state_dict(denoiser.net.state_dict(), assign=True)
            denoiser.net = net.eval()
        return denoiser


@dataclass(frozen=True, kw_only=True)
class SiDA(SiD):
    """SiD with an adversarial loss: the fake score also discriminates real from generated images."""

    data: str = REQUIRED
    """Zip or folder of the images that generated ones are discriminated from."""
    micro_batch: int | None = 32
    """Images at a time on a device. The adversarial terms are averaged over them, so it is a setting of the method."""
    alpha: float = 1.0
    lsd: float = 1.0
    """Weight of the discriminator in the fake score's loss."""
    lsg_gan: float = 0.01
    """Weight of the adversarial term in the generator's loss."""
    clip: Fixed[float | None] = 1.0
    """Bound of each entry of the fake score's gradient."""
    method_name: ClassVar[str] = "SiDA"

    def method(self, teacher: fs.Denoiser, **options: Any) -> fs.Method:
        return fs.distill.SiDA(teacher, disc_weight=self.lsd, gan_weight=self.lsg_gan, clip=self.clip, **options)


@dataclass(frozen=True, kw_only=True)
class SiD2A(SiDA):
    """SiDA whose generator starts from a student by SiD."""

    student: Path = REQUIRED
    """Model or run folder of a student by SiD, where the generator starts."""
    method_name: ClassVar[str] = "SiD2A"

    def method(self, teacher: fs.Denoiser, **options: Any) -> fs.Method:
        generator = self.opened(self.student)
        if generator.levels is None:
            raise ValueError(
                f"{self.student} is no student: it denoises at every noise level, as a teacher does. Give one that SiD "
                "made, or start from the teacher: the recipe sida"
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
    """Students of EDM2 on latents of ImageNet-512: what is unset is the paper's for the size."""

    size: Size = "s"
    """Size of the teacher. By size, micro-batches have 64 (xs, s), 32 (m, l), 16 (xl) or 2 (xxl) images."""

    def resolved(self) -> Self:
        from fewstep.io.model_folder import read_config
        from fewstep.nets import sizes

        assert isinstance(self, SiD)
        if self.size not in SIZES:
            raise ValueError(f"--size: the sizes of this recipe are {', '.join(SIZES)}; got {self.size!r}")
        row = SIZES[self.size]
        found = read_config(self.teacher)["network"].get("model_channels")
        expected = sizes.edm2(self.size).model_channels
        if found != expected:
            raise ValueError(
                f"{self.teacher} is {found} channels wide, EDM2-{self.size.upper()} {expected}; give the --size of the "
                "teacher"
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
