"""What the distillations by GDD and GDD-I share (Zheng & Yang, 2024, arXiv 2405.20750).

The settings are those of the published scripts, in which these were corrected or are without effect: the random projections
of the discriminator differed between GPUs and were drawn anew after a resume, together with the discriminator and its
optimizer; micro-batches smaller than a GPU's share were not accumulated; the average of ImageNet, of 50 million images,
never binds, since its ramp-up is shorter; augmentation is off, though GDD-I's scripts leave a strength behind. They ran on
4 GPUs, whose share of a batch is what batch norm and the sum over images see: it is the micro-batch here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import fewstep as fs
from fewstep.recipes._edm import Dtype, loss_scale

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
"""On which a classifier is trained on the spot."""


class Row(NamedTuple):
    """Of a data set. backbones: of the discriminator, beside EfficientNet-Lite0. half_life: of the average, in images."""

    shape: tuple[int, int, int]
    backbone: Literal["vgg", "deit"]
    half_life: float


ROWS = {
    "cifar10": Row((3, 32, 32), "vgg", 500_000),
    "afhqv2": Row((3, 64, 64), "deit", 500_000),
    "ffhq": Row((3, 64, 64), "deit", 500_000),
    "imagenet64": Row((3, 64, 64), "deit", 50_000_000),
}


def distil(
    row: str,
    teacher: Path,
    data: Path,
    *,
    innate: bool,
    weights: str,
    lr: float,
    disc_lr: float,
    freeze: int | None,
    backbone: Literal["deit", "vgg", "lite"] | None,
    r1_gamma: float,
    ema: int | None,
    batch_size: int,
    micro_batch: int | None,
    until: int,
    dtype: Dtype,
    seed: int,
) -> fs.Run:
    """A run of GDD, or of GDD-I if `innate`; with classes, in generator and discriminator, if the teacher has them.

    weights: of the feature networks, a folder of NAME.safetensors, or "hub" (see `fewstep.io.feature_networks.open_network`).
    dtype: of the generator; the discriminator computes in it if it is bfloat16, and in float32 otherwise.
    """
    import torch

    from fewstep.distill.gdd import GDD, check_start
    from fewstep.io.feature_networks import open_network
    from fewstep.nets.features import DEIT, EFFICIENTNET, VGG, PretrainedFeatures
    from fewstep.nets.projected import ProjectedDiscriminator
    from fewstep.runtime.precision import chosen_dtype

    shape, usual, half_life = ROWS[row]
    freeze = int(innate) if freeze is None else freeze
    denoiser, images = matching(teacher, data)
    check_start(denoiser)
    if denoiser.shape != shape:
        raise ValueError(
            f"{teacher}: this recipe is for models of images of shape {shape}; this one makes {denoiser.shape}"
        )
    denoiser.dtype = chosen_dtype(dtype)
    # in float16 the discriminator would need a loss scale of its own, and its penalty could overflow
    sight = torch.bfloat16 if denoiser.dtype == torch.bfloat16 else torch.float32
    place = "hub" if weights == "hub" else Path(weights)
    first = {"vgg": (VGG,), "deit": (DEIT,), "lite": ()}[backbone or usual]
    backbones = (*first, EFFICIENTNET)
    torch.manual_seed(seed)
    networks = [PretrainedFeatures(each, *open_network(each.name, place), seed=seed, dtype=sight) for each in backbones]
    judge = ProjectedDiscriminator(networks, num_classes=denoiser.num_classes, seed=seed)
    method = GDD(denoiser, judge, freeze=FREEZE[freeze], r1=r1_gamma, r1_every=R1_EVERY, loss_scale=batch_size / GPUS)
    words = ("GDD", "GDD-I")[freeze] if freeze < 2 else f"GDD, freeze {freeze}"
    return fs.Run(
        method,
        fs.ImageStream(images, seed=seed),
        {"generator": fs.Adam(lr, betas=(0.0, BETA), loss_scale=loss_scale(dtype)), "discriminator": lazy(disc_lr)},
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        ema=fs.HalfLife(half_life if ema is None else ema),
        seed=seed,
        snapshots=max(1, until // 250_000),
        checkpoint_seconds=600.0,
        name=f"{row}-{'gddi' if innate else 'gdd'}",
        card=fs.card(teacher).student(f"{words}, discriminator on {judge.sees}"),
    )


def lazy(lr: float, **schedule: float) -> fs.Adam:
    """The discriminator's Adam, corrected for a penalty that moves in every 16th step alone: its rate times 16/17, its
    beta to that power (Karras et al., 2020, App. B).
    """
    share = R1_EVERY / (R1_EVERY + 1)
    return fs.Adam(lr * share, betas=(0.0, BETA**share), **schedule)


def matching(teacher: Path, data: Path | str) -> tuple[fs.Denoiser, fs.ImageData]:
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
