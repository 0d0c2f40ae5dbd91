"""Teachers: what all have in common, and EDM's (Karras et al., 2022)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Fixed, Parts, Recipe, Row

if TYPE_CHECKING:
    from fewstep.core.objectives import References, Target
    from fewstep.data.augment import AugmentPipe
    from fewstep.nets.adm import ADMConfig
    from fewstep.nets.song import SongConfig


@dataclass(frozen=True, kw_only=True)
class Teacher(Recipe):
    """Settings of every training of a diffusion model."""

    cond: bool = True
    """Train a class-conditional model; the data need labels."""
    stf: Literal["matched", "published"] | None = None
    """Regress on the stable target field (Xu et al., 2023) instead of the clean image. matched: average only over reference
    images of the same class and augmentation (unbiased); published: over all, as in the authors' code (--stf=1)."""
    references: int = 4096
    """With --stf: number of reference images over which the target is averaged, including the micro-batch (the authors'
    --rbatch)."""

    def target(self, stream: References, pipe: AugmentPipe | None = None) -> tuple[Target, str]:
        """The training target, and what the model card says about it."""
        from fewstep.core.objectives import StableTarget, clean

        if self.stf is None:
            if self.references != Teacher.references:
                raise ValueError("--references has no effect without --stf matched or --stf published")
            return clean, ""
        about = f", stable target of {self.references} ({self.stf})"
        return StableTarget(stream, self.references, augment=pipe, rule=self.stf), about


@dataclass(frozen=True, kw_only=True)
class EDM(Teacher):
    """EDM: Adam with a learning-rate warm-up of 10 million images, and an EMA of the weights with ramp-up (App. F)."""

    data: str = REQUIRED
    batch_size: int = REQUIRED
    cond: bool = REQUIRED
    arch: Literal["ddpmpp", "ncsnpp", "adm"] = REQUIRED
    """Network architecture: DDPM++, NCSN++ or ADM."""
    precond: Literal["edm", "vp", "ve"] = "edm"
    """Preconditioning, noise distribution and loss weighting: EDM's, or those of the VP or VE SDE."""
    cbase: int | None = None
    """Base number of channels; if unset, the architecture's default."""
    cres: str | None = None
    """Channel multipliers per resolution, such as 1,2,2,2; if unset, the default for the data set."""
    dropout: float = REQUIRED
    """Dropout probability."""
    augment: float = REQUIRED
    """Probability of each augmentation (mirroring always has 1/2); 0 turns augmentation off."""
    xflip: bool = False
    """Mirror each image left to right with probability 1/2, without conditioning the network on it."""
    lr: float = REQUIRED
    """Learning rate of Adam, after the warm-up."""
    ema: int = REQUIRED
    """EMA half-life in images (EDM counts in millions)."""
    snapshot: Fixed[int] = REQUIRED
    """Images between two snapshots."""
    network: Fixed[str] = REQUIRED
    """The published networks of the data set, of `nets.sizes.EDM_SIZES`."""

    def parts(self) -> Parts:
        from fewstep.core.objectives import VPTime, edm_weight, inverse_variance
        from fewstep.core.precondition import EDM, VE, VP
        from fewstep.data.augment import AugmentPipe
        from fewstep.nets.adm import ADMConfig, ADMUNet
        from fewstep.nets.song import SongUNet

        shape = network(self.network, self.arch)
        images = open_images(self.data, shape.img_resolution, shape.in_channels, cond=self.cond)
        stream = fs.ImageStream(images, seed=self.seed, flip=self.xflip)
        pipe = AugmentPipe(self.augment) if self.augment else None
        config = dataclasses.replace(
            shape,
            label_dim=images.num_classes if self.cond else 0,
            augment_dim=pipe.label_dim if pipe else 0,
            dropout=self.dropout,
            **widths(self.cbase, self.cres),
        )
        precondition, noise, weight = {
            "edm": (EDM(), fs.LogNormal(-1.2, 1.2), edm_weight),
            "vp": (VP(), VPTime(), inverse_variance),
            "ve": (VE(), fs.LogUniform(), inverse_variance),
        }[self.precond]
        target, about = self.target(stream, pipe)
        net = ADMUNet(config) if isinstance(config, ADMConfig) else SongUNet(config)
        denoiser = fs.Denoiser(net, precondition=precondition, dtype=self.torch_dtype())
        return Parts(
            fs.Pretraining(denoiser, fs.DenoisingLoss(noise, weight=weight, target=target, augment=pipe)),
            stream,
            {"denoiser": fs.Adam(self.lr, rampup=10_000_000, loss_scale=self.loss_scale())},
            ema=fs.HalfLife(self.ema),
            snapshots=self.snapshots(self.snapshot),
            card=fs.Card(method=self.precond.upper() + about),
        )


def open_images(data: str, resolution: int, channels: int, *, cond: bool) -> fs.ImageData:
    """The images, if they have the shape that the network is made for, and classes if it needs them."""
    images = fs.images(data)
    if images.shape != (channels, resolution, resolution):
        raise ValueError(
            f"{data}: this recipe needs images of shape {(channels, resolution, resolution)}; got {images.shape}. Use "
            f"small:teacher, or: fewstep data pack SOURCE OUT.zip --resolution {resolution}x{resolution}"
        )
    if cond and images.labels is None:
        raise ValueError(f"{data} has no classes; train without them: --no-cond")
    return images


def network(name: str, arch: str) -> SongConfig | ADMConfig:
    """The published network of a data set, or EDM's default of an architecture that was not published for it.

    The published `vp` and `ve` are DDPM++ and NCSN++.
    """
    from fewstep.nets.adm import ADMConfig
    from fewstep.nets.sizes import EDM_SIZES
    from fewstep.nets.song import SongConfig, ncsnpp

    words = {"ddpmpp": "vp", "ncsnpp": "ve", "adm": "adm"}
    if (published := EDM_SIZES.get(f"edm-{name}-{words[arch]}")) is not None:
        return published
    resolution = next(c.img_resolution for key, c in EDM_SIZES.items() if key.startswith(f"edm-{name}-"))
    if arch == "adm":
        return ADMConfig(resolution)
    return (SongConfig if arch == "ddpmpp" else ncsnpp)(img_resolution=resolution, channel_mult=(2, 2, 2))


def widths(cbase: int | None, cres: str | None) -> dict[str, Any]:
    """EDM's options --cbase and --cres as settings of a network."""
    result: dict[str, Any] = {}
    if cbase is not None:
        if cbase < 1:
            raise ValueError(f"--cbase must be at least 1; got {cbase}")
        result["model_channels"] = cbase
    if cres is not None:
        words = [word.strip() for word in cres.split(",")]
        if not all(word.isdecimal() and int(word) for word in words):
            raise ValueError(f"--cres needs one positive integer per resolution, such as 1,2,2,2; got {cres!r}")
        result["channel_mult"] = tuple(int(word) for word in words)
    return result


CIFAR10: dict[str, Any] = {
    "network": "cifar10-32x32-uncond",
    "batch_size": 512,
    "until": 200_000_000,
    "lr": 1e-3,
    "dropout": 0.13,
    "augment": 0.12,
    "ema": 500_000,
    "snapshot": 2_500_000,
}
FACES: dict[str, Any] = {
    "arch": "ddpmpp",
    "cond": False,
    "batch_size": 256,
    "until": 200_000_000,
    "lr": 2e-4,
    "augment": 0.15,
    "ema": 500_000,
    "snapshot": 2_500_000,
}

ROWS = {
    "cifar10:teacher": Row(
        EDM(name="cifar10-teacher", arch="ddpmpp", cond=True, **CIFAR10),
        "EDM on CIFAR-10 (Karras et al., 2022).",
        "FID with 35 network evaluations (paper): with classes 1.79 (ddpmpp), 1.79 (ncsnpp); without 1.97, 1.98; about 2 "
        "days on 8 V100, in float32.",
    ),
    "cifar10:stf": Row(
        EDM(name="cifar10-stf", arch="ncsnpp", cond=False, stf="matched", references=1024, **CIFAR10),
        "EDM on CIFAR-10 with the stable target field (Xu et al., 2023).",
        "FID with 35 network evaluations without classes (paper): 1.90 (ncsnpp), 1.92 (ddpmpp), with 1,024 references for "
        "64 images by the published rule: --stf published. By default only references of the same class and augmentation "
        "count, so that the target has no bias; but 37 % of the images, augmented by more than flips, then have none but "
        "themselves.",
    ),
    "ffhq:teacher": Row(
        EDM(name="ffhq-teacher", network="ffhq-64x64-uncond", dropout=0.05, **FACES),
        "EDM on FFHQ at 64x64 (Karras et al., 2022).",
        "FID with 79 network evaluations (paper): 2.39 (ddpmpp), 2.53 (ncsnpp); about 4 days on 8 V100, in float32.",
    ),
    "afhqv2:teacher": Row(
        EDM(name="afhqv2-teacher", network="afhqv2-64x64-uncond", dropout=0.25, **FACES),
        "EDM on AFHQv2 at 64x64 (Karras et al., 2022).",
        "FID with 79 network evaluations (paper): 1.96 (ddpmpp), 2.16 (ncsnpp); about 4 days on 8 V100, in float32.",
    ),
    "imagenet64:teacher": Row(
        EDM(
            name="imagenet64-teacher",
            network="imagenet-64x64-cond",
            arch="adm",
            cond=True,
            dropout=0.10,
            augment=0.0,
            lr=1e-4,
            batch_size=4096,
            until=2_500_000_000,
            ema=50_000_000,
            snapshot=10_000_000,
        ),
        "EDM's ADM network on ImageNet at 64x64 (Karras et al., 2022).",
        "FID with 511 network evaluations of the stochastic sampler (paper): 1.36; about 13 days on 32 A100, in float16.",
    ),
}
