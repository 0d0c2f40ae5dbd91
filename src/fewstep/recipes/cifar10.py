"""CIFAR-10: 50,000 images of 32x32 pixels in 10 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import fewstep as fs
from fewstep.recipes import _edm, _gdd, _options, _sid
from fewstep.recipes._edm import Arch, Dtype
from fewstep.recipes._options import extended


@extended(_options.edm, _options.stable_target)
def teacher(
    data: Path,
    *,
    cond: bool = True,
    arch: Arch = "ddpmpp",
    dropout: float = 0.13,
    augment: float = 0.12,
    lr: float = 1e-3,
    batch_size: int = 512,
    micro_batch: int | None = None,
    until: int = 200_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """EDM on CIFAR-10 (Karras et al., 2022).

    FID with 35 network evaluations (paper): with classes 1.79 (ddpmpp), 1.79 (ncsnpp); without 1.97, 1.98; about 2 days
    on 8 V100, in float32.

    Args:
        data: image zip or folder.
        cond: with classes.
        arch: DDPM++, NCSN++ or ADM.
        dropout: probability.
        augment: probability of each augmentation but mirroring, which is a fair coin; 0 for none.
        lr: learning rate of Adam, after a warm-up of 10 million images.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; float16 comes with a dynamic loss
            scale; weights stay in float32.
        seed: of weights, data order and noise.
    """
    return _edm.train(
        data,
        _edm.network("cifar10-32x32-uncond", arch),
        cond=cond,
        dropout=dropout,
        augment=augment,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        half_life=500_000,
        dtype=dtype,
        seed=seed,
        name="cifar10-teacher",
        **more,
    )


@extended(_options.edm)
def stf(
    data: Path,
    *,
    stf: Literal["matched", "published"] = "matched",
    references: int = 1024,
    cond: bool = False,
    arch: Arch = "ncsnpp",
    dropout: float = 0.13,
    augment: float = 0.12,
    lr: float = 1e-3,
    batch_size: int = 512,
    micro_batch: int | None = None,
    until: int = 200_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """EDM on CIFAR-10 with the stable target field (Xu et al., 2023).

    FID with 35 network evaluations without classes (paper): 1.90 (ncsnpp), 1.92 (ddpmpp), with 1,024 references for 64
    images by the published rule: --stf published. By default only references of the same class and augmentation count, so
    that the target has no bias; but 37 % of the images, augmented by more than flips, then have none but themselves.

    Args:
        data: image zip or folder.
        stf: matched: references of the same class and augmentation count; published: all of them, as in the authors' code.
        references: images whose posterior mean is the target, those of the micro-batch included (the authors' --rbatch).
        cond: with classes.
        arch: DDPM++, NCSN++ or ADM.
        dropout: probability.
        augment: probability of each augmentation but mirroring, which is a fair coin; 0 for none.
        lr: learning rate of Adam, after a warm-up of 10 million images.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; float16 comes with a dynamic loss
            scale; weights stay in float32.
        seed: of weights, data order and noise.
    """
    return _edm.train(
        data,
        _edm.network("cifar10-32x32-uncond", arch),
        cond=cond,
        stf=stf,
        references=references,
        dropout=dropout,
        augment=augment,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        half_life=500_000,
        dtype=dtype,
        seed=seed,
        name="cifar10-stf",
        **more,
    )


@extended(_options.sid)
def sid(
    teacher: Path,
    data: Path | None = None,
    *,
    alpha: float = 1.2,
    augment: float = 0.12,
    lr: float = 1e-5,
    batch_size: int = 256,
    micro_batch: int | None = 16,
    until: int | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiD on CIFAR-10, for teachers with and without classes (Zhou et al., 2024).

    FID in one step (paper): 1.710 with classes, after 713 million images; 1.923 without, after 404 million.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, of which the labels count alone; left out, classes are drawn evenly.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        augment: probability of each augmentation but mirroring, which is a fair coin, of what the fake score trains on; 0
            for none, as a teacher without needs it.
        lr: learning rate of both networks.
        batch_size: images per step.
        micro_batch: images at a time on a device; it does not change the result.
        until: training images in all; left out, 800 million for a teacher with classes, else 500 million.
        dtype: of the networks' arithmetic, float32 as published, since the loss is a small difference of two networks.
        seed: of data order and noise.
    """
    return _sid.distil(
        teacher,
        data,
        (3, 32, 32),
        adversarial=False,
        dropout=0.13,
        augment=augment,
        half_life=500_000,
        eps=1e-8,
        alpha=alpha,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until if until is not None else 800_000_000 if fs.load(teacher).num_classes else 500_000_000,
        dtype=dtype,
        seed=seed,
        name="cifar10-sid",
        **more,
    )


@extended(_options.sid, _options.sida)
def sida(
    teacher: Path,
    data: Path,
    *,
    alpha: float = 1.0,
    augment: float = 0.12,
    lr: float = 1e-5,
    batch_size: int = 256,
    micro_batch: int | None = 32,
    until: int = 300_000_000,
    dtype: Dtype = "float32",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiDA on CIFAR-10, for teachers with and without classes (Zhou et al., 2025).

    The best FID of SiDA and SiD2A in one step (paper): 1.396 with classes, 1.499 without; the released models of SiDA saw 293 and
    218 million images. Published on 4 GPUs.

    Args:
        teacher: model or run folder of the teacher.
        data: zip or folder of the images that real and generated ones are told apart by.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        augment: probability of each augmentation but mirroring, which is a fair coin, of what the fake score trains on; 0
            for none, as a teacher without needs it.
        lr: learning rate of both networks.
        batch_size: images per step.
        micro_batch: images at a time on a device; the adversarial terms are averaged over them, so that they are part of
            the method.
        until: training images in all.
        dtype: of the networks' arithmetic, float32 as published, since the loss is a small difference of two networks.
        seed: of data order and noise.
    """
    return _sid.distil(
        teacher,
        data,
        (3, 32, 32),
        adversarial=True,
        dropout=0.13,
        augment=augment,
        half_life=500_000,
        eps=1e-8,
        alpha=alpha,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name="cifar10-sida",
        **more,
    )


@extended(_options.sid, _options.sida)
def sid2a(
    teacher: Path,
    student: Path,
    data: Path,
    *,
    alpha: float = 1.0,
    augment: float = 0.12,
    lr: float = 1e-5,
    batch_size: int = 256,
    micro_batch: int | None = 32,
    until: int = 100_000_000,
    dtype: Dtype = "float32",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiD2A on CIFAR-10: SiDA from a student by SiD, for teachers with and without classes (Zhou et al., 2025).

    The best FID of SiDA and SiD2A in one step (paper): 1.396 with classes, 1.499 without; the released models of SiD2A saw 39
    and 28 million images. Published on 4 GPUs.

    Args:
        teacher: model or run folder of the teacher.
        student: model or run folder of a student by SiD, where the generator starts.
        data: zip or folder of the images that real and generated ones are told apart by.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        augment: probability of each augmentation but mirroring, which is a fair coin, of what the fake score trains on; 0
            for none, as a teacher without needs it.
        lr: learning rate of both networks.
        batch_size: images per step.
        micro_batch: images at a time on a device; the adversarial terms are averaged over them, so that they are part of
            the method.
        until: training images in all.
        dtype: of the networks' arithmetic, float32 as published, since the loss is a small difference of two networks.
        seed: of data order and noise.
    """
    return _sid.distil(
        teacher,
        data,
        (3, 32, 32),
        adversarial=True,
        student=student,
        dropout=0.13,
        augment=augment,
        half_life=500_000,
        eps=1e-8,
        alpha=alpha,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name="cifar10-sid2a",
        **more,
    )


@extended(_options.gdd)
def gdd(
    teacher: Path,
    data: Path,
    *,
    weights: str,
    lr: float = 1e-4,
    disc_lr: float = 1e-4,
    batch_size: int = 256,
    micro_batch: int | None = 64,
    until: int = 5_000_000,
    dtype: Dtype = "auto",
    seed: int = 42,
    **more: Any,
) -> fs.Run:
    """GDD on CIFAR-10: a one-step generator by a GAN loss alone (Zheng & Yang, 2024).

    The discriminator sees through VGG16 and EfficientNet-Lite0. Its authors state the FID of GDD-I alone, 1.54.
    Published for the NCSN++ teachers (ve), with classes and without. FID favours a discriminator that knows ImageNet:
    report others as well.

    Args:
        teacher: model or run folder of the teacher, such as of cifar10:teacher with --arch ncsnpp --precond edm.
        data: image zip or folder.
        weights: of the feature networks: a folder with NAME.safetensors of each, or hub to fetch them once, as fewstep
            assets fetch does.
        lr: learning rate of the generator.
        disc_lr: learning rate of the discriminator, before the correction for its lazy penalty.
        batch_size: images per step.
        micro_batch: images at a time on a device, whose statistics the discriminator takes, so that they are part of the method.
        until: training images in all.
        dtype: of the generator's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of the discriminator, data order and noise.
    """
    return _gdd.distil(
        "cifar10",
        teacher,
        data,
        innate=False,
        weights=weights,
        lr=lr,
        disc_lr=disc_lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        **more,
    )


@extended(_options.gdd)
def gddi(
    teacher: Path,
    data: Path,
    *,
    weights: str,
    lr: float = 1e-4,
    disc_lr: float = 1e-4,
    batch_size: int = 256,
    micro_batch: int | None = 64,
    until: int = 5_000_000,
    dtype: Dtype = "auto",
    seed: int = 42,
    **more: Any,
) -> fs.Run:
    """GDD-I on CIFAR-10: as `cifar10:gdd`, with most convolutions frozen (Zheng & Yang, 2024).

    FID 1.54 (paper's abstract, of GDD-I), 1.56 (released model, measured again by its authors); about 5
    million images, 6 hours on 8 A100. Published for the NCSN++ teachers (ve), with classes and without. FID favours a
    discriminator that knows ImageNet: report others as well.

    Args:
        teacher: model or run folder of the teacher, such as of cifar10:teacher with --arch ncsnpp --precond edm.
        data: image zip or folder.
        weights: of the feature networks: a folder with NAME.safetensors of each, or hub to fetch them once, as fewstep
            assets fetch does.
        lr: learning rate of the generator.
        disc_lr: learning rate of the discriminator, before the correction for its lazy penalty.
        batch_size: images per step.
        micro_batch: images at a time on a device, whose statistics the discriminator takes, so that they are part of the method.
        until: training images in all.
        dtype: of the generator's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of the discriminator, data order and noise.
    """
    return _gdd.distil(
        "cifar10",
        teacher,
        data,
        innate=True,
        weights=weights,
        lr=lr,
        disc_lr=disc_lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        **more,
    )
