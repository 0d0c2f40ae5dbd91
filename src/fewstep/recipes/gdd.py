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
from typing import TYPE_CHECKING, Literal

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Distillation, Fixed, Parts

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
    batch_size: int = 256
    micro_batch: int | None = 64
    """Images per forward pass on a device. The discriminator's batch norm uses them, so it affects the result."""
    until: int = 10_000_000
    seed: int = 42
    weights: str = REQUIRED
    """Weights of the feature networks: a folder with NAME.safetensors of each, or hub to download them once (as fewstep
    assets fetch does)."""
    freeze: Literal[0, 1, 2, 3] = 0
    """Frozen layers of the generator's U-Net blocks. 0: none (GDD); 1: convolutions and attention output (GDD-I); 2: also
    attention input (qkv); 3: also shortcuts."""
    backbone: Literal["deit", "vgg", "lite"] = "deit"
    """Second feature network besides EfficientNet-Lite0: deit (GDD's 0), vgg (GDD's 1), or lite for none."""
    r1_gamma: float = 1e-4
    """Weight of the R1 penalty."""
    lr: float = 2e-5
    """Learning rate of the generator."""
    disc_lr: float = 4e-5
    """Learning rate of the discriminator, before the correction for lazy regularization."""
    ema: int = 500_000
    """EMA half-life in images (GDD counts in millions)."""
    shape: Fixed[tuple[int, int, int]] = (3, 64, 64)
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
