"""Your own data sets of a few hundred to a few ten thousand images: teacher and students."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Distillation, Dtype, Parts
from fewstep.recipes.digits import DigitsDMD2, DigitsGDD, DigitsNCVSD, DigitsSiD, DigitsSiDA, DigitsTeacher
from fewstep.recipes.edm import Teacher
from fewstep.recipes.sid import with_dropout

if TYPE_CHECKING:
    from torch import nn

NETWORKS = {
    16: {"channel_mult": (1, 2), "num_blocks": 2, "attn_resolutions": (8,)},
    32: {"channel_mult": (2, 2, 2), "num_blocks": 3, "attn_resolutions": (16,)},
    64: {"channel_mult": (1, 2, 2, 2), "num_blocks": 3, "attn_resolutions": (16,)},
    128: {"channel_mult": (1, 1, 2, 2, 2), "num_blocks": 2, "attn_resolutions": (16,)},
}
"""DDPM++ for images up to this many pixels a side: 4, 11, 13 and 11 million parameters with 64 channels."""
EDM_LENGTH = 200e6
"""Training images of EDM on CIFAR-10."""
WIDTHS = (48, 32, 24)
"""Channels of networks for a short training, the widest first."""


@dataclass(frozen=True, kw_only=True)
class Small(Teacher):
    """EDM for your own images. Preconditioning and noise levels follow the measured standard deviation of the data, the
    network (DDPM++) follows the image size, and dropout the number of images. Two power-function EMAs allow fewstep ema."""

    data: str = REQUIRED
    """Training images: a folder, zip, or any other source that fewstep data pack reads. Images of several sizes are cropped
    to squares and packed into the cache, as fewstep data stats proposes."""
    resolution: int | None = None
    """Side of the images in pixels, up to 128; others are resized. If unset, as fewstep data stats proposes: 64, or 32 or 16
    for smaller images; equal squares up to 128 pixels a side stay as they are."""
    until: int = 10_000_000
    augment: float = 0.15
    """Probability of each augmentation (mirroring always has 1/2); 0 turns augmentation off."""
    lr: float = 4e-4
    """Peak learning rate of Adam; warm-up over the first 5 % of training, decay to 0 over the last 20 %."""
    cbase: int = 64
    """Base number of channels of the network. With --hours, fewer (48, 32 or 24) if the time is short."""
    fitted: ClassVar[tuple[str, ...]] = ("cbase",)

    def smaller(self, run: fs.Run, until: int) -> Self | None:
        """With fewer channels, if the network would see fewer images than between the digits' teacher and CIFAR-10's."""
        enough = between(count(run.method), DigitsTeacher.until, EDM_LENGTH)
        narrower = next((n for n in WIDTHS if n < self.cbase), None)
        return None if until >= enough or narrower is None else dataclasses.replace(self, cbase=narrower)

    def expected(self, run: fs.Run) -> str:
        n, seen = len(run.data.data), f"this run trains on {run.until:,}"
        if n < 1_000:
            return (
                f"a network that sees {n:,} images {run.until / n:,.0f} times learns many of them by heart; fewer than about "
                "1,000 are too few for new ones. Compare samples with their nearest training images"
            )
        if n < 20_000:
            return f"EDM reached FID 1.96 on the 15,803 images of AFHQv2 after 200 million training images; {seen}"
        return f"EDM reached FID 1.97 on CIFAR-10 (50,000 images) after 200 million training images; {seen}"

    def parts(self) -> Parts:
        import torch

        from fewstep.core.precondition import EDM
        from fewstep.data.augment import AugmentPipe
        from fewstep.data.prepare import prepared
        from fewstep.data.stats import stats
        from fewstep.nets.song import SongConfig, SongUNet

        if self.resolution is not None and not 8 <= self.resolution <= max(NETWORKS):
            raise ValueError(f"--resolution must be 8 to {max(NETWORKS)} pixels; got {self.resolution}")
        images = fs.images(prepared(self.data, side=self.resolution))
        channels, height, width = images.shape
        larger = [size for size in NETWORKS if size >= width]
        if height != width or not larger:
            raise ValueError(
                f"{self.data}: this recipe is for square images up to {max(NETWORKS)} pixels a side; got {width}x{height}. "
                "First: fewstep data pack SOURCE OUT.zip --resolution 64x64 --transform center-crop"
            )
        proposal = stats(images)["proposal"]
        pipe = AugmentPipe(self.augment) if self.augment else None
        stream = fs.ImageStream(images, seed=self.seed)
        target, about = self.target(stream, pipe)
        torch.manual_seed(self.seed)
        net = SongUNet(
            SongConfig(
                width,
                in_channels=channels,
                out_channels=channels,
                label_dim=images.num_classes if self.cond else 0,
                augment_dim=pipe.label_dim if pipe else 0,
                dropout=0.25 if len(images) < 20_000 else 0.1,
                model_channels=self.cbase,
                **NETWORKS[min(larger)],
            )
        )
        denoiser = fs.Denoiser(net, precondition=EDM(proposal["sigma_data"]), dtype=self.torch_dtype())
        objective = fs.DenoisingLoss(fs.LogNormal(**proposal["noise"]), target=target, augment=pipe)
        until = self.until
        adam = fs.Adam(self.lr, rampup=until / 20, cooldown=until / 5, until=until, loss_scale=self.loss_scale())
        return Parts(
            fs.Pretraining(denoiser, objective),
            stream,
            {"denoiser": adam},
            ema=(fs.PowerFunction(0.10), fs.PowerFunction(0.05)),
            snapshots=20,
            card=fs.Card(method=f"EDM{about}"),
        )


PARAMETERS = 420_000, 55_700_000
"""Parameters of the networks of the digits and of CIFAR-10."""


def between(parameters: int, digits: float, published: float) -> float:
    """A setting for a network of this size: log-linear from the digits' to that of CIFAR-10, constant outside."""
    small, large = PARAMETERS
    share = min(max(math.log(parameters / small) / math.log(large / small), 0.0), 1.0)
    return digits * (published / digits) ** share


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@dataclass(frozen=True, kw_only=True)
class OwnStudent(Distillation):
    """What students of small:teacher have in common: settings that follow from the teacher and the data.

    The digits' recipes work for a network of 0.42 M parameters, the published ones of CIFAR-10 for 55.7 M; both have the
    same networks (DDPM++) and losses. A setting that is unset lies between the two, linear in the logarithm of the number of
    parameters: larger networks need smaller steps and more of them. A family names the published ends (`published`); where
    its authors have none for such a network, they are those of SiD, which has the same players.

    The batch is 128 up to 16 pixels a side, as for the digits, and 256 above, as for CIFAR-10. A micro-batch has 2^17 pixels
    (32 images of 64x64), which bounds the memory. Precision is float32, as published for CIFAR-10: the losses are small
    differences of two networks. Images are cropped, resized and packed to the shape that the teacher makes.
    """

    data: str = REQUIRED
    """Training images: what the teacher was trained on. Images of other sizes are packed as for small:teacher."""
    batch_size: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Images per training step, over all devices; if unset, 128 up to 16 pixels a side, else 256."""
    micro_batch: int | None = None
    """Images per forward pass on a device (gradient accumulation); if unset, 131,072 pixels' worth."""
    until: int | None = None
    """Total number of training images; if unset, it follows from the size of the teacher."""
    dtype: Dtype = "float32"
    lr: float | None = None
    """Learning rate of the generator; if unset, it follows from the size of the teacher."""
    published: ClassVar[Mapping[str, float]] = {}  # at the size of CIFAR-10's network
    dropout: ClassVar[float] = 0.0  # of the players that train

    def resolved(self) -> Self:
        from fewstep.data.prepare import prepared

        denoiser = fs.load(self.teacher)
        channels, height, side = denoiser.shape
        if height != side or side > max(NETWORKS) or channels not in (1, 3):
            raise ValueError(
                f"{self.teacher}: this recipe is for teachers of grey or RGB squares up to {max(NETWORKS)} pixels a side; got "
                f"{denoiser.shape}"
            )
        batch = self.batch_size or (128 if side <= 16 else 256)
        chosen = {**self.defaults(denoiser), "batch_size": batch}
        chosen["until"] = max(1, round(chosen["until"] / batch)) * batch
        settings = {name: value for name, value in chosen.items() if getattr(self, name) is None}
        micro = self.micro_batch or min(batch, 2 ** int(math.log2(max(1, 2**17 / side**2))))
        data = prepared(self.data, side=side, channels=channels)
        return dataclasses.replace(self, **settings, micro_batch=micro if batch % micro == 0 else None, data=data)

    def defaults(self, teacher: fs.Denoiser) -> dict[str, Any]:
        """Settings that follow from the teacher's size; the digits' end is the default of the family of the digits."""
        n, family = count(teacher.net), next(c for c in type(self).__mro__ if not issubclass(c, OwnStudent))
        return {name: between(n, getattr(family, name), end) for name, end in self.published.items()}

    def parts(self) -> Parts:
        """As the digits' family, with an average and snapshots for a longer run."""
        parts = super().parts()
        product = parts.method.get_submodule(parts.method.product)
        half_life = between(count(product), 8_000, 500_000)
        ema = fs.HalfLife(round(half_life), rampup=0.25)
        return parts._replace(ema=ema, snapshots=10, checkpoint_seconds=300.0)

    def loaded_teacher(self) -> fs.Denoiser:
        return with_dropout(super().loaded_teacher(), self.dropout)

    def expected(self, run: fs.Run) -> str:
        return (
            "a student is at best about as good as its teacher; in the papers it came near it after 5 million (GDD) to 700 "
            f"million (SiD) training images, and this run has {run.until:,}. Measure both with fewstep eval"
        )


@dataclass(frozen=True, kw_only=True)
class OwnScoreStudent(OwnStudent):
    """With a fake score."""

    fake_lr: float | None = None
    """Learning rate of the fake score; if unset, it follows from the size of the teacher."""


@dataclass(frozen=True, kw_only=True)
class SmallSiD(OwnScoreStudent, DigitsSiD):  # pyright: ignore[reportIncompatibleVariableOverride]
    """SiD from small:teacher; uses only the labels of the data. Dropout is that of FFHQ and AFHQv2, whose teachers had 0.05
    and 0.25. Teachers with classes need longer, as published."""

    published: ClassVar[Mapping[str, float]] = {"lr": 1e-5, "fake_lr": 1e-5, "until": 404e6}
    dropout: ClassVar[float] = 0.05

    def defaults(self, teacher: fs.Denoiser) -> dict[str, Any]:
        chosen = super().defaults(teacher)
        if teacher.num_classes:
            chosen["until"] = between(count(teacher.net), DigitsSiD.until, 713e6)
        return chosen


@dataclass(frozen=True, kw_only=True)
class SmallSiDA(OwnScoreStudent, DigitsSiDA):  # pyright: ignore[reportIncompatibleVariableOverride]
    """SiDA from small:teacher."""

    gan_weight: float | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Weight of the adversarial loss in the generator's loss; SiD's loss has weight 100. If unset, it follows from the size
    of the teacher."""
    warmup: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Training images after which the adversarial loss is switched on; if unset, a ninth of the training, as for the digits,
    and at most 200,000, as published."""
    published: ClassVar[Mapping[str, float]] = {"lr": 1e-5, "fake_lr": 1e-5, "until": 300e6, "gan_weight": 0.01}
    dropout: ClassVar[float] = 0.05

    def resolved(self) -> Self:
        settled = super().resolved()
        assert settled.until is not None
        return (
            settled
            if self.warmup is not None
            else dataclasses.replace(settled, warmup=min(settled.until // 9, 200_000))
        )


@dataclass(frozen=True, kw_only=True)
class SmallDMD2(OwnScoreStudent, DigitsDMD2):  # pyright: ignore[reportIncompatibleVariableOverride]
    """DMD2 from small:teacher, for one or several sampling steps. Its authors have no network of the size of CIFAR-10's."""

    published: ClassVar[Mapping[str, float]] = {"lr": 1e-5, "fake_lr": 1e-5, "until": 300e6}


@dataclass(frozen=True, kw_only=True)
class SmallNCVSD(OwnScoreStudent, DigitsNCVSD):  # pyright: ignore[reportIncompatibleVariableOverride]
    """NCVSD from small:teacher: a generative denoiser for one step, many steps, and restoration. The length is the published
    one of EDM2-S; the learning rates published for EDM2 do not apply to networks without normalized weights."""

    discriminator_lr: float | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Learning rate of the discriminator; if unset, it follows from the size of the teacher."""
    published: ClassVar[Mapping[str, float]] = {
        "lr": 1e-5,
        "fake_lr": 1e-5,
        "discriminator_lr": 1e-5,
        "until": 64 * 2**20,
    }


@dataclass(frozen=True, kw_only=True)
class SmallGDD(OwnStudent, DigitsGDD):  # pyright: ignore[reportIncompatibleVariableOverride]
    """GDD from small:teacher: GAN loss only. The discriminator sees through the teacher's encoder, which needs no classes and
    no download. A few images are learnt by heart: at most 100 passes over the data, as published for CIFAR-10."""

    features: Literal["both", "classifier", "encoder"] = "encoder"
    disc_lr: float | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Learning rate of the discriminator; if unset, it follows from the size of the teacher."""
    published: ClassVar[Mapping[str, float]] = {"lr": 1e-4, "disc_lr": 1e-4, "until": 5e6}

    def resolved(self) -> Self:
        settled = super().resolved()
        assert settled.until is not None and settled.batch_size is not None
        passes = max(DigitsGDD.until, 100 * len(fs.images(settled.data)))
        if self.until is not None or settled.until <= passes:
            return settled
        return dataclasses.replace(settled, until=passes // settled.batch_size * settled.batch_size)
