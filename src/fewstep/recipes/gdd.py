"""GDD and GDD-I (Zheng & Yang, 2024, arXiv 2405.20750).

The settings are those of the published scripts, in which these were corrected or have no effect: the random projections of
the discriminator differed between GPUs and were drawn again after a resume, together with the discriminator and its
optimizer; micro-batches smaller than a GPU's share were not accumulated; the average of ImageNet, of 50 million images,
never binds, since its ramp-up is shorter; augmentation is off, though GDD-I's scripts leave a strength behind. They ran on
4 GPUs, whose share of a batch is what batch norm and the sum over images see: it is the micro-batch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Distillation, Fixed, Parts, Row

if TYPE_CHECKING:
    from fewstep.distill.gdd import Role
    from fewstep.nets.features import Classifier

GPUS = 4
BETA = 0.99
R1_EVERY = 16
FREEZE: tuple[tuple[Role, ...], ...] = (
    (),
    ("conv0", "conv1", "proj"),
    ("conv0", "conv1", "proj", "qkv"),
    ("conv0", "conv1", "proj", "qkv", "skip"),
)
"""GDD's levels --freeze; the second is GDD-I."""
CLASSIFIER_IMAGES = 25_600
"""How many images train a classifier on the spot."""


@dataclass(frozen=True, kw_only=True)
class GDD(Distillation):
    """GAN loss only (GDD), class-conditional if the teacher is."""

    data: str = REQUIRED
    batch_size: int = REQUIRED
    micro_batch: int | None = REQUIRED
    """Images per forward pass on a device. The discriminator's batch norm uses them, so it affects the result."""
    seed: int = 42
    weights: str = REQUIRED
    """Weights of the feature networks: a folder with NAME.safetensors of each, or hub to download them once (as fewstep
    assets fetch does)."""
    freeze: Literal[0, 1, 2, 3] = REQUIRED
    """Frozen layers of the generator's U-Net blocks. 0: none (GDD); 1: convolutions and attention output (GDD-I); 2: also
    attention input (qkv); 3: also shortcuts."""
    backbone: Literal["deit", "vgg", "lite"] = REQUIRED
    """Second feature network besides EfficientNet-Lite0: deit (GDD's 0), vgg (GDD's 1), or lite for none."""
    r1_gamma: float = 1e-4
    """Weight of the R1 penalty."""
    lr: float = REQUIRED
    """Learning rate of the generator."""
    disc_lr: float = REQUIRED
    """Learning rate of the discriminator, before the correction for lazy regularization."""
    ema: int = REQUIRED
    """EMA half-life in images (GDD counts in millions)."""
    shape: Fixed[tuple[int, int, int]] = REQUIRED
    """Image shape; a teacher of another shape is rejected."""

    def parts(self) -> Parts:
        import torch

        from fewstep.distill.gdd import GDD, check_start
        from fewstep.io.feature_networks import open_network
        from fewstep.nets.discriminators import ProjectedDiscriminator
        from fewstep.nets.features import DEIT, EFFICIENTNET, VGG, PretrainedFeatures

        denoiser, images = matching(self.teacher, self.data)
        check_start(denoiser)
        if denoiser.shape != self.shape:
            raise ValueError(
                f"{self.teacher}: this recipe needs a model of images of shape {self.shape}; got {denoiser.shape}"
            )
        denoiser.dtype = self.torch_dtype()
        # in float16 the discriminator would need a loss scale of its own, and its penalty could overflow
        sight = torch.bfloat16 if denoiser.dtype == torch.bfloat16 else torch.float32
        place = "hub" if self.weights == "hub" else Path(self.weights)
        first = {"vgg": (VGG,), "deit": (DEIT,), "lite": ()}[self.backbone]
        networks = [
            PretrainedFeatures(each, *open_network(each.name, place), seed=self.seed, dtype=sight)
            for each in (*first, EFFICIENTNET)
        ]
        judge = ProjectedDiscriminator(networks, num_classes=denoiser.num_classes, seed=self.seed)
        method = GDD(
            denoiser,
            judge,
            freeze=FREEZE[self.freeze],
            r1=self.r1_gamma,
            r1_every=R1_EVERY,
            loss_scale=self.batch_size / GPUS,
        )
        words = ("GDD", "GDD-I")[self.freeze] if self.freeze < 2 else f"GDD, freeze {self.freeze}"
        return Parts(
            method,
            fs.ImageStream(images, seed=self.seed),
            {
                "generator": fs.Adam(self.lr, betas=(0.0, BETA), loss_scale=self.loss_scale()),
                "discriminator": lazy(self.disc_lr),
            },
            ema=fs.HalfLife(self.ema),
            snapshots=self.snapshots(250_000),
            card=self.card(f"{words}, discriminator on {judge.sees}"),
        )


def lazy(lr: float, **schedule: float) -> fs.Adam:
    """The discriminator's Adam, corrected for a penalty in every 16th step only: its rate times 16/17, its beta to that
    power (Karras et al., 2020, App. B).
    """
    share = R1_EVERY / (R1_EVERY + 1)
    return fs.Adam(lr * share, betas=(0.0, BETA**share), **schedule)


def matching(teacher: Path, data: str) -> tuple[fs.Denoiser, fs.ImageData]:
    """The teacher and the images, if the one could have been trained on the other."""
    from fewstep.distill.players import check_teacher

    denoiser, images = fs.load(teacher), fs.images(data)
    check_teacher(denoiser)
    if denoiser.shape != images.shape:
        raise ValueError(
            f"{teacher} makes images of shape {denoiser.shape}, {data} has {images.shape}; give the images that the teacher "
            "was trained on"
        )
    if denoiser.num_classes and (images.labels is None or images.num_classes != denoiser.num_classes):
        raise ValueError(
            f"{teacher} knows {denoiser.num_classes} classes, {data} has {images.num_classes or 'none'}; give the images "
            "that the teacher was trained on, or a teacher without classes"
        )
    return denoiser, images


def trained_classifier(stream: fs.ImageStream, *, seed: int) -> Classifier:
    """A small classifier of the data, trained here and now: a function of the data and the seed."""
    import torch

    from fewstep.distill.classification import Classification
    from fewstep.nets.features import Classifier

    torch.manual_seed(seed)
    method = Classification(Classifier(stream.data.shape, stream.data.num_classes))
    adam = fs.Adam(2e-3, betas=(0.9, 0.99), cooldown=CLASSIFIER_IMAGES / 2, until=CLASSIFIER_IMAGES)
    trainer = fs.Trainer(method, stream, {"classifier": adam}, batch_size=128, seed=seed)
    while trainer.nimg < CLASSIFIER_IMAGES:
        trainer.step()
    return method.classifier


CIFAR10: dict[str, Any] = {
    "shape": (3, 32, 32),
    "backbone": "vgg",
    "batch_size": 256,
    "micro_batch": 64,
    "until": 5_000_000,
    "lr": 1e-4,
    "disc_lr": 1e-4,
    "ema": 500_000,
}
FACES: dict[str, Any] = {
    "shape": (3, 64, 64),
    "backbone": "deit",
    "batch_size": 256,
    "micro_batch": 64,
    "until": 10_000_000,
    "lr": 2e-5,
    "disc_lr": 4e-5,
    "ema": 500_000,
}
IMAGENET64: dict[str, Any] = {
    "shape": (3, 64, 64),
    "backbone": "deit",
    "batch_size": 512,
    "micro_batch": 128,
    "until": 10_000_000,
    "lr": 8e-6,
    "disc_lr": 4e-5,
    "ema": 50_000_000,
}
CAUTION = "FID favours discriminators with ImageNet features; report other metrics as well."

ROWS = {
    "cifar10:gdd": Row(
        GDD(name="cifar10-gdd", freeze=0, **CIFAR10),
        "GDD on CIFAR-10: a one-step generator trained with a GAN loss only (Zheng & Yang, 2024).",
        "The discriminator sees through VGG16 and EfficientNet-Lite0. Its authors state the FID of GDD-I alone, 1.54. "
        "Published for the NCSN++ teachers (ve), such as of cifar10:teacher with --arch ncsnpp --precond edm, with classes "
        f"and without. {CAUTION}",
    ),
    "cifar10:gddi": Row(
        GDD(name="cifar10-gddi", freeze=1, **CIFAR10),
        "GDD-I on CIFAR-10: as cifar10:gdd, with most convolutions frozen (Zheng & Yang, 2024).",
        "FID 1.54 (paper's abstract, of GDD-I), 1.56 (released model, measured again by its authors); about 5 million "
        "images, 6 hours on 8 A100. Published for the NCSN++ teachers (ve), such as of cifar10:teacher with --arch ncsnpp "
        f"--precond edm, with classes and without. {CAUTION}",
    ),
    "ffhq:gdd": Row(
        GDD(name="ffhq-gdd", freeze=0, **FACES),
        "GDD on FFHQ at 64x64: a one-step generator trained with a GAN loss only (Zheng & Yang, 2024).",
        "The discriminator sees through DeiT-B and EfficientNet-Lite0. Its authors state the FID of GDD-I alone, 0.85. "
        f"Published for the NCSN++ teacher (ve). {CAUTION}",
    ),
    "ffhq:gddi": Row(
        GDD(name="ffhq-gddi", freeze=1, **FACES),
        "GDD-I on FFHQ at 64x64: as ffhq:gdd, with most convolutions frozen (Zheng & Yang, 2024).",
        "FID 0.85 (paper's abstract), 0.83 (released model, measured again by its authors); about 9 million images. "
        f"Published for the NCSN++ teacher (ve). {CAUTION}",
    ),
    "afhqv2:gdd": Row(
        GDD(name="afhqv2-gdd", freeze=0, **FACES),
        "GDD on AFHQv2 at 64x64: a one-step generator trained with a GAN loss only (Zheng & Yang, 2024).",
        "The discriminator sees through DeiT-B and EfficientNet-Lite0. FID 1.23 (paper's abstract), 1.24 (released model, "
        f"measured again by its authors); about 7 million images. Published for the NCSN++ teacher (ve). {CAUTION}",
    ),
    "afhqv2:gddi": Row(
        GDD(name="afhqv2-gddi", freeze=1, **FACES),
        "GDD-I on AFHQv2 at 64x64: as afhqv2:gdd, with most convolutions frozen (Zheng & Yang, 2024).",
        f"Its authors state the FID of GDD alone, 1.23. Published for the NCSN++ teacher (ve). {CAUTION}",
    ),
    "imagenet64:gdd": Row(
        GDD(name="imagenet64-gdd", freeze=0, **IMAGENET64),
        "GDD on ImageNet at 64x64: a one-step generator trained with a GAN loss only (Zheng & Yang, 2024).",
        "The discriminator sees through DeiT-B and EfficientNet-Lite0. Its authors state the FID of GDD-I alone, 1.16. "
        f"Published for the ADM teacher. {CAUTION}",
    ),
    "imagenet64:gddi": Row(
        GDD(name="imagenet64-gddi", freeze=1, **IMAGENET64),
        "GDD-I on ImageNet at 64x64: as imagenet64:gdd, with most convolutions frozen (Zheng & Yang, 2024).",
        "FID 1.16 (paper's abstract), 1.13 (released model, measured again by its authors); about 6 million images. "
        f"Published for the ADM teacher. {CAUTION}",
    ),
}
