"""SiD, SiDA and SiD2A (Zhou et al., 2024, 2025), from EDM's teachers; those of EDM2's are in `sid_edm2`.

The settings are those of the published scripts, of which these were corrected: SiDA of AFHQv2 was given the images of FFHQ;
SiD on ImageNet-64 under the newer code had the values of `cond` and `alpha` exchanged and a discriminator; some SiD2A
scripts could not start. Their float16 with fixed factors is bfloat16 here, where the hardware has it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Distillation, Dtype, Fixed, Parts, Row


@dataclass(frozen=True, kw_only=True)
class SiD(Distillation):
    """Score identity distillation (SiD). It needs no images."""

    data: str | None = None
    """Image zip or folder; only its labels are used. If unset, classes are drawn uniformly."""
    batch_size: int = REQUIRED
    micro_batch: int | None = REQUIRED
    """Images per forward pass on a device (gradient accumulation); does not change the result."""
    until: int | None = REQUIRED
    """Total number of training images; if unset, 800 million for a class-conditional teacher, else 500 million."""
    dtype: Dtype = REQUIRED
    alpha: float = REQUIRED
    """Alpha in the SiD loss: the squared score difference enters with the factor 1 - alpha."""
    steps: int = 1
    """Sampling steps of the generator."""
    augment: float = REQUIRED
    """Probability of each augmentation of the fake score's training images (mirroring always has 1/2). Set 0 for a teacher
    that was trained without augmentation."""
    dropout: float | None = REQUIRED
    """Dropout probability of fake score and generator; if unset, the teacher's."""
    lr: float = REQUIRED
    """Learning rate of fake score and generator."""
    glr: float | None = None
    """Learning rate of the generator; if unset, --lr."""
    g_beta1: float = REQUIRED
    """Adam beta1 of the generator."""
    eps: float = REQUIRED
    """Adam epsilon."""
    init_sigma: float = 2.5
    """Noise level of the generator's input."""
    tmax: float = 800
    """Last of the 1,000 time steps at which scores are compared; step 0 is sigma = 80."""
    lsg: float | None = REQUIRED
    """Weight of the generator's SiD loss (Adam is nearly invariant to it); if unset, the paper's for the EDM2 size."""
    ema: int = REQUIRED
    """EMA half-life in images (SiD counts in millions)."""
    p_mean: float = REQUIRED
    """Mean of log(sigma) in training the fake score."""
    p_std: float = REQUIRED
    """Standard deviation of log(sigma) in training the fake score."""
    shape: Fixed[tuple[int, int, int]] = REQUIRED
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
        return denoiser if self.dropout is None else with_dropout(denoiser, self.dropout)


def with_dropout(denoiser: fs.Denoiser, p: float) -> fs.Denoiser:
    """The denoiser, changed in place so that its copies train with this probability of dropout."""
    net = type(denoiser.net)(dataclasses.replace(denoiser.net.config, dropout=p))
    net.load_state_dict(denoiser.net.state_dict(), assign=True)
    denoiser.net = net.eval()
    return denoiser


@dataclass(frozen=True, kw_only=True)
class SiDA(SiD):
    """SiD with an adversarial loss (SiDA): the fake score also discriminates real from generated images."""

    data: str = REQUIRED
    """Real images: zip or folder."""
    micro_batch: int | None = REQUIRED
    """Images per forward pass on a device. The adversarial terms are averaged over them, so it affects the result."""
    lsd: float = REQUIRED
    """Weight of the discriminator loss in the fake score's loss."""
    lsg_gan: float = 0.01
    """Weight of the adversarial loss in the generator's loss."""
    clip: Fixed[float | None] = REQUIRED
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


CIFAR10: dict[str, Any] = {
    "shape": (3, 32, 32),
    "batch_size": 256,
    "dtype": "float32",
    "augment": 0.12,
    "dropout": 0.13,
    "lr": 1e-5,
    "eps": 1e-8,
    "lsg": 100.0,
    "ema": 500_000,
    "p_mean": -1.2,
    "p_std": 1.2,
}
FACES: dict[str, Any] = {
    "shape": (3, 64, 64),
    "batch_size": 512,
    "dtype": "auto",
    "augment": 0.15,
    "dropout": 0.05,
    "eps": 1e-6,
    "lsg": 100.0,
    "ema": 500_000,
    "p_mean": -1.2,
    "p_std": 1.2,
}
IMAGENET64: dict[str, Any] = {
    "shape": (3, 64, 64),
    "batch_size": 8192,
    "dtype": "auto",
    "augment": 0.0,
    "dropout": 0.1,
    "lr": 4e-6,
    "eps": 1e-6,
    "lsg": 100.0,
    "ema": 2_000_000,
    "p_mean": -1.2,
    "p_std": 1.2,
}
ADVERSARIAL: dict[str, Any] = {"lsd": 1.0, "clip": 1.0}

BEST = "The best FID of SiDA and SiD2A in one step"

ROWS = {
    "cifar10:sid": Row(
        SiD(name="cifar10-sid", alpha=1.2, g_beta1=0.0, micro_batch=16, until=None, **CIFAR10),
        "SiD on CIFAR-10, for teachers with and without classes (Zhou et al., 2024).",
        "FID in one step (paper): 1.710 with classes, after 713 million images; 1.923 without, after 404 million. In "
        "float32 as published, since the loss is a small difference of two networks.",
    ),
    "cifar10:sida": Row(
        SiDA(name="cifar10-sida", alpha=1.0, g_beta1=0.0, micro_batch=32, until=300_000_000, **CIFAR10, **ADVERSARIAL),
        "SiDA on CIFAR-10, for teachers with and without classes (Zhou et al., 2025).",
        f"{BEST} (paper): 1.396 with classes, 1.499 without; the released models of SiDA saw 293 and 218 million images. "
        "Published on 4 GPUs.",
    ),
    "cifar10:sid2a": Row(
        SiD2A(
            name="cifar10-sid2a", alpha=1.0, g_beta1=0.0, micro_batch=32, until=100_000_000, **CIFAR10, **ADVERSARIAL
        ),
        "SiD2A on CIFAR-10: SiDA from a SiD student, for teachers with and without classes (Zhou et al., 2025).",
        f"{BEST} (paper): 1.396 with classes, 1.499 without; the released models of SiD2A saw 39 and 28 million images. "
        "Published on 4 GPUs.",
    ),
    "ffhq:sid": Row(
        SiD(name="ffhq-sid", alpha=1.2, lr=1e-5, g_beta1=0.9, micro_batch=32, until=500_000_000, **FACES),
        "SiD on FFHQ at 64x64 (Zhou et al., 2024).",
        "FID in one step (paper): 1.550, after 498 million images, with alpha 1.2: the released model, from which SiD2A "
        "starts, has it in its name, and so has the script of the paper. A script of the newer code has 1, as AFHQv2 needs.",
    ),
    "ffhq:sida": Row(
        SiDA(
            name="ffhq-sida", alpha=1.0, lr=1e-5, g_beta1=0.0, micro_batch=64, until=200_000_000, **FACES, **ADVERSARIAL
        ),
        "SiDA on FFHQ at 64x64 (Zhou et al., 2025).",
        f"{BEST} (paper): 1.040; the released model of SiDA saw 186 million images.",
    ),
    "ffhq:sid2a": Row(
        SiD2A(
            name="ffhq-sid2a",
            alpha=1.0,
            lr=1e-5,
            g_beta1=0.0,
            micro_batch=64,
            until=100_000_000,
            **FACES,
            **ADVERSARIAL,
        ),
        "SiD2A on FFHQ at 64x64: SiDA from a SiD student (Zhou et al., 2025).",
        f"{BEST} (paper): 1.040; the released model of SiD2A saw 169 million images.",
    ),
    "afhqv2:sid": Row(
        SiD(name="afhqv2-sid", alpha=1.0, lr=5e-6, g_beta1=0.0, micro_batch=32, until=500_000_000, **FACES),
        "SiD on AFHQv2 at 64x64 (Zhou et al., 2024).",
        "FID in one step (paper): 1.628, after 372 million images.",
    ),
    "afhqv2:sida": Row(
        SiDA(
            name="afhqv2-sida",
            alpha=1.0,
            lr=5e-6,
            g_beta1=0.0,
            micro_batch=64,
            until=200_000_000,
            **FACES,
            **ADVERSARIAL,
        ),
        "SiDA on AFHQv2 at 64x64 (Zhou et al., 2025).",
        f"{BEST} (paper): 1.276; the released model of SiDA saw 127 million images. The published script took its real "
        "images from FFHQ; give it AFHQv2.",
    ),
    "afhqv2:sid2a": Row(
        SiD2A(
            name="afhqv2-sid2a",
            alpha=1.0,
            lr=5e-6,
            g_beta1=0.0,
            micro_batch=64,
            until=100_000_000,
            **FACES,
            **ADVERSARIAL,
        ),
        "SiD2A on AFHQv2 at 64x64: SiDA from a SiD student (Zhou et al., 2025).",
        f"{BEST} (paper): 1.276; the released model of SiD2A saw 175 million images. The published script took its real "
        "images from FFHQ; give it AFHQv2.",
    ),
    "imagenet64:sid": Row(
        SiD(name="imagenet64-sid", alpha=1.2, g_beta1=0.0, micro_batch=16, until=1_000_000_000, **IMAGENET64),
        "SiD on ImageNet at 64x64 (Zhou et al., 2024).",
        "FID in one step (paper): 1.524, after 939 million images.",
    ),
    "imagenet64:sida": Row(
        SiDA(
            name="imagenet64-sida",
            alpha=1.0,
            g_beta1=0.0,
            micro_batch=32,
            until=300_000_000,
            **IMAGENET64,
            **ADVERSARIAL,
        ),
        "SiDA on ImageNet at 64x64 (Zhou et al., 2025).",
        f"{BEST} (paper): 1.110; the released model of SiDA saw 249 million images.",
    ),
    "imagenet64:sid2a": Row(
        SiD2A(
            name="imagenet64-sid2a",
            alpha=1.0,
            g_beta1=0.0,
            micro_batch=32,
            until=100_000_000,
            **IMAGENET64,
            **ADVERSARIAL,
        ),
        "SiD2A on ImageNet at 64x64: SiDA from a SiD student (Zhou et al., 2025).",
        f"{BEST} (paper): 1.110; the released model of SiD2A saw 29 million images.",
    ),
}
