"""The built-in data set: 1,797 handwritten digits of 8x8 pixels. Small enough for a laptop without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import fewstep as fs
from fewstep.recipes import _edm, _gdd, _options
from fewstep.recipes._options import extended

Features = Literal["both", "classifier", "encoder"]


@extended(_options.stable_target)
def teacher(
    data: str = "digits",
    *,
    lr: float = 3e-3,
    batch_size: int = 128,
    until: int = 89_600,
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """A class-conditional EDM teacher (DDPM++ of 0.42 M parameters).

    Args:
        data: image zip or folder, or the built-in digits.
        lr: learning rate of Adam.
        batch_size: images per step.
        until: training images in all.
        seed: of weights, data order and noise.
    """
    import torch

    from fewstep.nets.song import SongConfig, SongUNet

    images = fs.images(data)
    channels, resolution, _ = images.shape
    stream = fs.ImageStream(images, seed=seed)
    target, about = _edm.target(stream, more["stf"], more["references"])
    torch.manual_seed(seed)
    net = SongUNet(
        SongConfig(
            resolution,
            in_channels=channels,
            out_channels=channels,
            label_dim=images.num_classes,
            model_channels=24,
            channel_mult=(1, 2),
            num_blocks=1,
            attn_resolutions=(4,),
            dropout=0.0,
        )
    )
    return fs.Run(
        fs.Pretraining(fs.Denoiser(net), fs.DenoisingLoss(target=target)),
        stream,
        {"denoiser": fs.Adam(lr, betas=(0.9, 0.99), rampup=0.05 * until, cooldown=0.5 * until, until=until)},
        batch_size=batch_size,
        until=until,
        ema=fs.HalfLife(20_000),
        seed=seed,
        snapshots=4,
        name="teacher",
        card=fs.Card(method=f"EDM{about}", license="Apache-2.0"),
    )


def _student(
    method: fs.Method,
    teacher: Path,
    data: str,
    words: str,
    *,
    rates: dict[str, float],
    batch_size: int,
    until: int,
    seed: int,
    momentum: float = 0.0,
    cooldown: float = 0.5,
) -> fs.Run:
    """A distillation whose rates warm up, and fall to 0 within the last share `cooldown`.

    words: for the card. momentum: Adam's.
    """

    def adam(rate: float) -> fs.Adam:
        return fs.Adam(rate, betas=(momentum, 0.99), rampup=0.05 * until, cooldown=cooldown * until, until=until)

    return fs.Run(
        method,
        fs.ImageStream(fs.images(data), seed=seed),
        {name: adam(rate) for name, rate in rates.items()},
        batch_size=batch_size,
        until=until,
        ema=fs.HalfLife(8_000, rampup=0.25),
        seed=seed,
        snapshots=4,
        name="student",
        card=fs.card(teacher).student(words),
    )


def sid(
    teacher: Path,
    data: str = "digits",
    *,
    alpha: float = 1.2,
    lr: float = 3e-4,
    fake_lr: float = 1e-3,
    batch_size: int = 128,
    until: int = 57_600,
    seed: int = 0,
) -> fs.Run:
    """A one-step student by score identity distillation; uses the labels of the data only.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, or the built-in digits.
        alpha: of the SiD loss.
        lr: learning rate of the generator.
        fake_lr: learning rate of the fake score, which has to keep up with the generator.
        batch_size: images per step.
        until: training images in all.
        seed: of data order and noise.
    """
    return _student(
        fs.distill.SiD(fs.load(teacher), alpha=alpha),
        teacher,
        data,
        f"SiD, alpha {alpha:g}",
        rates={"fake_score": fake_lr, "generator": lr},
        batch_size=batch_size,
        until=until,
        seed=seed,
    )


def sida(
    teacher: Path,
    data: str = "digits",
    *,
    alpha: float = 1.2,
    gan_weight: float = 0.5,
    warmup: int = 6_400,
    lr: float = 3e-4,
    fake_lr: float = 1e-3,
    batch_size: int = 128,
    until: int = 57_600,
    seed: int = 0,
) -> fs.Run:
    """A one-step student by adversarial score identity distillation, whose fake score also tells real from generated images.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, or the built-in digits.
        alpha: of the SiD loss.
        gan_weight: of the adversarial term, against 100 of SiD's.
        warmup: training images before the adversarial term enters.
        lr: learning rate of the generator.
        fake_lr: learning rate of the fake score, which has to keep up with the generator.
        batch_size: images per step.
        until: training images in all.
        seed: of data order and noise.
    """
    method = fs.distill.SiDA(fs.load(teacher), alpha=alpha, gan_weight=gan_weight, gates=(0, warmup))
    return _student(
        method,
        teacher,
        data,
        f"SiDA, alpha {alpha:g}",
        rates={"fake_score": fake_lr, "generator": lr},
        batch_size=batch_size,
        until=until,
        seed=seed,
    )


def sid2a(
    teacher: Path,
    student: Path,
    data: str = "digits",
    *,
    alpha: float = 1.2,
    gan_weight: float = 0.5,
    warmup: int = 2_560,
    lr: float = 3e-4,
    fake_lr: float = 1e-3,
    batch_size: int = 128,
    until: int = 25_600,
    seed: int = 0,
) -> fs.Run:
    """SiD2A: as `digits:sida`, from a student by SiD.

    Args:
        teacher: model or run folder of the teacher.
        student: model or run folder of a student by SiD, where the generator starts.
        data: image zip or folder, or the built-in digits.
        alpha: of the SiD loss.
        gan_weight: of the adversarial term, against 100 of SiD's.
        warmup: training images before the generator moves, by both terms.
        lr: learning rate of the generator.
        fake_lr: learning rate of the fake score, which has to keep up with the generator.
        batch_size: images per step.
        until: training images in all.
        seed: of data order and noise.
    """
    generator, gates = fs.load(student), (warmup, warmup)
    method = fs.distill.SiDA(fs.load(teacher), generator=generator, alpha=alpha, gan_weight=gan_weight, gates=gates)
    return _student(
        method,
        teacher,
        data,
        f"SiD2A, alpha {alpha:g}",
        rates={"fake_score": fake_lr, "generator": lr},
        batch_size=batch_size,
        until=until,
        seed=seed,
    )


def dmd2(
    teacher: Path,
    data: str = "digits",
    *,
    levels: tuple[float, ...] = (2.5,),
    ratio: int = 1,
    gan_weight: float = 0.3,
    disc_weight: float = 2.0,
    lr: float = 3.5e-4,
    fake_lr: float = 2e-3,
    batch_size: int = 128,
    until: int = 53_760,
    seed: int = 0,
) -> fs.Run:
    """A one- or few-step student by improved distribution matching distillation.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, or the built-in digits.
        levels: noise levels from which the student makes images, largest first; one for each step.
        ratio: steps of the fake score for one of the generator.
        gan_weight: of the adversarial term in the generator's loss.
        disc_weight: of the discriminator's in that of the fake score.
        lr: learning rate of the generator.
        fake_lr: learning rate of the fake score and its discriminator.
        batch_size: images per step.
        until: training images in all.
        seed: of new weights, data order and noise.
    """
    import torch

    torch.manual_seed(seed)
    method = fs.distill.DMD2(
        fs.load(teacher), levels=levels, ratio=ratio, gan_weight=gan_weight, disc_weight=disc_weight
    )
    return _student(
        method,
        teacher,
        data,
        f"DMD2, {len(levels)} step(s)",
        rates={"fake_score": fake_lr, "generator": lr},
        batch_size=batch_size,
        until=until,
        seed=seed,
        momentum=0.5,
        cooldown=0.85,
    )


def ncvsd(
    teacher: Path,
    data: str = "digits",
    *,
    gamma: float = 1.4,
    fused: bool = True,
    gan_weight: float = 0.0,
    gan_start: int = 0,
    lr: float = 4.5e-4,
    fake_lr: float = 1.8e-3,
    discriminator_lr: float = 4.5e-4,
    batch_size: int = 64,
    until: int = 48_640,
    seed: int = 0,
) -> fs.Run:
    """A generative denoiser by noise conditional variational score distillation: for one step, for many, for restoration.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, or the built-in digits.
        gamma: by how much of its level an observation is made noisier; with the paper's 0.414 so short a training leaves
            the draws of one observation too much alike.
        fused: the fake score sees observation and noisy image together, as the teacher does.
        gan_weight: of the adversarial term, 0 for none: in so short a training its discriminator stays at chance, and takes
            two fifths of the time.
        gan_start: training images before the adversarial term enters.
        lr: learning rate of the generator.
        fake_lr: learning rate of the fake score, which has to keep up with the generator.
        discriminator_lr: learning rate of the discriminator.
        batch_size: images per step.
        until: training images in all.
        seed: of new weights, data order and noise.
    """
    import torch

    from fewstep.distill.ncvsd import KarrasGrid

    def adam(rate: float) -> fs.Adam:
        return fs.Adam(rate, betas=(0.5, 0.99), rampup=0.05 * until, cooldown=0.85 * until, until=until)

    torch.manual_seed(seed)
    method = fs.distill.NCVSD(
        fs.load(teacher),
        gamma=gamma,
        levels=(2.5,),
        centred=True,
        observed=KarrasGrid(sigma_min=0.25, sigma_max=20.0),  # above, all look alike; below, nothing is left to draw
        noise=fs.LogNormal(-0.4, 1.0),
        fused=fused,
        gan_weight=gan_weight,
        gan_start=gan_start,
    )
    return fs.Run(
        method,
        fs.ImageStream(fs.images(data), seed=seed),
        {"fake_score": adam(fake_lr), "generator": adam(lr)}
        | ({"discriminator": adam(discriminator_lr)} if gan_weight else {}),
        batch_size=batch_size,
        until=until,
        ema=fs.HalfLife(8_000, rampup=0.25),
        seed=seed,
        snapshots=4,
        name="student",
        card=fs.card(teacher).student("NCVSD"),
    )


def gdd(
    teacher: Path,
    data: str = "digits",
    *,
    features: Features = "both",
    innate: bool = False,
    lr: float = 3e-4,
    disc_lr: float = 5e-4,
    batch_size: int = 64,
    until: int = 57_600,
    seed: int = 0,
) -> fs.Run:
    """A one-step student by a GAN loss alone, which starts from the teacher and learns from the data.

    Its discriminator sees through features that need no download, where GDD has networks trained on ImageNet.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, or the built-in digits.
        features: of the discriminator: a small classifier of the data, trained first, the encoder of the teacher, or both.
        innate: freeze most convolutions, as GDD-I does.
        lr: learning rate of the generator.
        disc_lr: learning rate of the discriminator.
        batch_size: images per step.
        until: training images in all.
        seed: of new weights, data order and noise.
    """
    import torch

    from fewstep.distill.gdd import GDD, INNATE, EncoderFeatures
    from fewstep.nets.projected import ProjectedDiscriminator

    denoiser, images = _gdd.matching(teacher, data)
    stream = fs.ImageStream(images, seed=seed)
    networks = [] if features == "encoder" else [_gdd.trained_classifier(stream, seed=seed)]
    networks += [] if features == "classifier" else [EncoderFeatures(denoiser, 0.2)]
    torch.manual_seed(seed)
    judge = ProjectedDiscriminator(networks, num_classes=denoiser.num_classes, width=32, seed=seed)
    schedule = {"rampup": 0.02 * until, "cooldown": 0.5 * until, "until": until}
    return fs.Run(
        GDD(denoiser, judge, freeze=INNATE if innate else ()),
        stream,
        {"generator": fs.Adam(lr, betas=(0.0, 0.99), **schedule), "discriminator": _gdd.lazy(disc_lr, **schedule)},
        batch_size=batch_size,
        until=until,
        ema=fs.HalfLife(8_000, rampup=0.25),
        seed=seed,
        snapshots=4,
        name="student",
        card=fs.card(teacher).student(f"{'GDD-I' if innate else 'GDD'}, discriminator on {judge.sees}"),
    )


def gddi(
    teacher: Path,
    data: str = "digits",
    *,
    features: Features = "both",
    lr: float = 1e-3,
    disc_lr: float = 5e-4,
    batch_size: int = 64,
    until: int = 51_200,
    seed: int = 0,
) -> fs.Run:
    """As `digits:gdd`, with most convolutions of the generator frozen.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, or the built-in digits.
        features: of the discriminator: a small classifier of the data, trained first, the encoder of the teacher, or both.
        lr: learning rate of the generator.
        disc_lr: learning rate of the discriminator.
        batch_size: images per step.
        until: training images in all.
        seed: of new weights, data order and noise.
    """
    return gdd(
        teacher,
        data,
        features=features,
        innate=True,
        lr=lr,
        disc_lr=disc_lr,
        batch_size=batch_size,
        until=until,
        seed=seed,
    )
