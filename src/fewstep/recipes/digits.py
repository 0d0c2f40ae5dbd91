"""The built-in data set: 1,797 handwritten digits of 8x8 pixels. Small enough for a laptop without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fewstep as fs
from fewstep.recipes import gdd
from fewstep.recipes.base import REQUIRED, Distillation, Dtype, Fixed, Parts
from fewstep.recipes.edm import Teacher


@dataclass(frozen=True, kw_only=True)
class DigitsTeacher(Teacher):
    """EDM with a DDPM++ network, of 0.42 M parameters by default."""

    data: str = "digits"
    until: int = 89_600
    dtype: Dtype = "float32"
    cbase: int = 24
    """Base number of channels."""
    p_mean: float = -1.2
    """Mean of ln(sigma)."""
    p_std: float = 1.2
    """Standard deviation of ln(sigma)."""
    lr: float = 3e-3
    """Peak learning rate of Adam."""

    def parts(self) -> Parts:
        import torch

        from fewstep.nets.song import SongConfig, SongUNet

        images = fs.images(self.data)
        channels, resolution, _ = images.shape
        stream = fs.ImageStream(images, seed=self.seed)
        target, about = self.target(stream)
        torch.manual_seed(self.seed)
        net = SongUNet(
            SongConfig(
                resolution,
                in_channels=channels,
                out_channels=channels,
                label_dim=images.num_classes if self.cond else 0,
                model_channels=self.cbase,
                channel_mult=(1, 2),
                num_blocks=1,
                attn_resolutions=(4,),
                dropout=0.0,
            )
        )
        loss = fs.DenoisingLoss(fs.LogNormal(self.p_mean, self.p_std), target=target)
        until = self.until
        adam = fs.Adam(
            self.lr,
            betas=(0.9, 0.99),
            rampup=0.05 * until,
            cooldown=0.5 * until,
            until=until,
            loss_scale=self.loss_scale(),
        )
        return Parts(
            fs.Pretraining(fs.Denoiser(net, dtype=self.torch_dtype()), loss),
            stream,
            {"denoiser": adam},
            ema=fs.HalfLife(20_000),
            snapshots=4,
            card=fs.Card(method=f"EDM{about}", license="Apache-2.0"),
            checkpoint_seconds=60.0,
        )


@dataclass(frozen=True, kw_only=True)
class Student(Distillation):
    """Distillation with learning-rate warm-up, and decay to 0 at the end."""

    data: str = "digits"
    until: int = 57_600
    dtype: Dtype = "float32"
    lr: float = 3e-4
    """Learning rate of the generator."""
    momentum: Fixed[float] = 0.0
    """Adam beta1."""
    cooldown: Fixed[float] = 0.5
    """Share of the training, at its end, over which learning rates decay."""

    def adam(self, lr: float) -> fs.Adam:
        until = self.until
        return fs.Adam(
            lr,
            betas=(self.momentum, 0.99),
            rampup=0.05 * until,
            cooldown=self.cooldown * until,
            until=until,
            loss_scale=self.loss_scale(),
        )

    def student_parts(self, method: fs.Method, about: str, optimizers: dict[str, fs.Adam]) -> Parts:
        return Parts(
            method,
            fs.ImageStream(fs.images(self.data), seed=self.seed),
            optimizers,
            ema=fs.HalfLife(8_000, rampup=0.25),
            snapshots=4,
            card=self.card(about),
            checkpoint_seconds=60.0,
        )


@dataclass(frozen=True, kw_only=True)
class ScoreStudent(Student):
    """Distillation with a fake score."""

    fake_lr: float = 1e-3
    """Learning rate of the fake score."""

    def score_parts(self, method: fs.Method, about: str) -> Parts:
        return self.student_parts(
            method, about, {"fake_score": self.adam(self.fake_lr), "generator": self.adam(self.lr)}
        )


@dataclass(frozen=True, kw_only=True)
class DigitsSiD(ScoreStudent):
    """SiD; uses only the labels of the data."""

    alpha: float = 1.2
    """Alpha in the SiD loss: the squared score difference enters with the factor 1 - alpha."""

    def parts(self) -> Parts:
        return self.score_parts(fs.distill.SiD(self.loaded_teacher(), alpha=self.alpha), f"SiD, alpha {self.alpha:g}")


@dataclass(frozen=True, kw_only=True)
class DigitsSiDA(DigitsSiD):
    """SiDA: the fake score also discriminates real from generated images."""

    gan_weight: float = 0.5
    """Weight of the adversarial loss in the generator's loss; SiD's loss has weight 100."""
    warmup: int = 6_400
    """Training images after which the adversarial loss is switched on. Until then, a generator that starts from a student is
    not trained."""

    def parts(self) -> Parts:
        method = fs.distill.SiDA(
            self.loaded_teacher(), alpha=self.alpha, gan_weight=self.gan_weight, gates=(0, self.warmup)
        )
        return self.score_parts(method, f"SiDA, alpha {self.alpha:g}")


@dataclass(frozen=True, kw_only=True)
class DigitsSiD2A(DigitsSiDA):
    """SiDA from a SiD student (SiD2A)."""

    student: Path = REQUIRED
    """Model or run folder of the SiD student that initializes the generator."""

    def parts(self) -> Parts:
        generator = fs.load(self.student)
        generator.dtype = self.torch_dtype()
        method = fs.distill.SiDA(
            self.loaded_teacher(),
            generator=generator,
            alpha=self.alpha,
            gan_weight=self.gan_weight,
            gates=(self.warmup, self.warmup),
        )
        return self.score_parts(method, f"SiD2A, alpha {self.alpha:g}")


@dataclass(frozen=True, kw_only=True)
class DigitsDMD2(ScoreStudent):
    """DMD2, for one or several sampling steps."""

    levels: tuple[float, ...] = (2.5,)
    """Noise levels of the student's sampling steps, largest first."""
    ratio: int = 1
    """Fake score updates per generator update."""
    gan_weight: float = 0.3
    """Weight of the adversarial loss in the generator's loss."""
    disc_weight: float = 2.0
    """Weight of the discriminator loss in the fake score's loss."""
    until: int = 53_760
    lr: float = 3.5e-4
    fake_lr: float = 2e-3
    momentum: Fixed[float] = 0.5
    cooldown: Fixed[float] = 0.85

    def parts(self) -> Parts:
        import torch

        torch.manual_seed(self.seed)
        method = fs.distill.DMD2(
            self.loaded_teacher(),
            levels=self.levels,
            ratio=self.ratio,
            gan_weight=self.gan_weight,
            disc_weight=self.disc_weight,
        )
        return self.score_parts(method, f"DMD2, {len(self.levels)} step(s)")


@dataclass(frozen=True, kw_only=True)
class DigitsNCVSD(ScoreStudent):
    """NCVSD: a generative denoiser for one step, many steps, and restoration."""

    gamma: float = 1.4
    """The generator's input is noisier than the observation by the factor 1 + gamma. The paper's 0.414 needs longer
    training; otherwise samples from one observation are too similar."""
    fused: bool = True
    """Fuse observation and noisy image into one input of the fake score, as for the teacher."""
    gan_weight: float = 0.0
    """Weight of the adversarial loss; 0 turns it off. In so short a training the discriminator does not beat chance."""
    gan_start: int = 0
    """Training images after which the adversarial loss is switched on."""
    batch_size: int = 64
    until: int = 48_640
    lr: float = 4.5e-4
    fake_lr: float = 1.8e-3
    discriminator_lr: float = 4.5e-4
    """Learning rate of the discriminator."""
    momentum: Fixed[float] = 0.5
    cooldown: Fixed[float] = 0.85

    def parts(self) -> Parts:
        import torch

        from fewstep.distill.ncvsd import KarrasGrid

        torch.manual_seed(self.seed)
        method = fs.distill.NCVSD(
            self.loaded_teacher(),
            gamma=self.gamma,
            levels=(2.5,),
            centred=True,
            observed=KarrasGrid(
                sigma_min=0.25, sigma_max=20.0
            ),  # above, all look alike; below, nothing is left to draw
            noise=fs.LogNormal(-0.4, 1.0),
            fused=self.fused,
            gan_weight=self.gan_weight,
            gan_start=self.gan_start,
        )
        parts = self.score_parts(method, "NCVSD")
        more = {"discriminator": self.adam(self.discriminator_lr)} if self.gan_weight else {}
        return parts._replace(optimizers={**parts.optimizers, **more})


@dataclass(frozen=True, kw_only=True)
class DigitsGDD(Student):
    """GDD: GAN loss only, starting from the teacher. The discriminator's features need no download; published GDD uses
    networks trained on ImageNet."""

    features: Literal["both", "classifier", "encoder"] = "both"
    """Discriminator features: a small classifier, trained on the data first, the teacher's encoder, or both."""
    innate: bool = False
    """Freeze most convolutions (GDD-I)."""
    batch_size: int = 64
    disc_lr: float = 5e-4
    """Learning rate of the discriminator."""

    def parts(self) -> Parts:
        import torch

        from fewstep.distill.gdd import GDD, INNATE, EncoderFeatures
        from fewstep.nets.discriminators import ProjectedDiscriminator

        denoiser, images = gdd.matching(self.teacher, self.data)
        denoiser.dtype = self.torch_dtype()
        stream = fs.ImageStream(images, seed=self.seed)
        networks = [] if self.features == "encoder" else [gdd.trained_classifier(stream, seed=self.seed)]
        networks += [] if self.features == "classifier" else [EncoderFeatures(denoiser, 0.2)]
        torch.manual_seed(self.seed)
        judge = ProjectedDiscriminator(networks, num_classes=denoiser.num_classes, width=32, seed=self.seed)
        until = self.until
        schedule = {"rampup": 0.02 * until, "cooldown": self.cooldown * until, "until": until}
        generator = fs.Adam(self.lr, betas=(0.0, 0.99), loss_scale=self.loss_scale(), **schedule)
        return self.student_parts(
            GDD(denoiser, judge, freeze=INNATE if self.innate else ()),
            f"{'GDD-I' if self.innate else 'GDD'}, discriminator on {judge.sees}",
            {"generator": generator, "discriminator": gdd.lazy(self.disc_lr, **schedule)},
        )
