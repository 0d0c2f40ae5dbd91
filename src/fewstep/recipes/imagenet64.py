"""ImageNet at 64x64: 1.28 million images in 1,000 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import fewstep as fs
from fewstep.recipes import _edm, _edm2, _gdd, _ncvsd, _options, _sid
from fewstep.recipes._edm import Arch, Dtype
from fewstep.recipes._options import extended


@extended(_options.edm, _options.stable_target)
def teacher(
    data: Path,
    *,
    cond: bool = True,
    arch: Arch = "adm",
    dropout: float = 0.10,
    augment: float = 0.0,
    lr: float = 1e-4,
    batch_size: int = 4096,
    micro_batch: int | None = None,
    until: int = 2_500_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """EDM's ADM network on ImageNet at 64x64 (Karras et al., 2022).

    FID with 511 network evaluations of the stochastic sampler (paper): 1.36; about 13 days on 32 A100, in float16.

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
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of weights, data order and noise.
    """
    return _edm.train(
        data,
        _edm.network("imagenet-64x64-cond", arch),
        cond=cond,
        dropout=dropout,
        augment=augment,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        half_life=50_000_000,
        snapshot=10_000_000,
        dtype=dtype,
        seed=seed,
        name="imagenet64-teacher",
        **more,
    )


@extended(_options.edm2, _options.stable_target)
def edm2(
    data: Path,
    *,
    size: Literal["xs", "s", "m", "l", "xl"] = "s",
    lr: float | None = None,
    batch_size: int = 2048,
    micro_batch: int | None = None,
    until: int | None = None,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """EDM2 on ImageNet at 64x64, in its sizes (Karras et al., 2024).

    FID with 63 network evaluations (paper): 1.58 (s), 1.43 (m), 1.33 (l), 1.33 (xl).

    Args:
        data: image zip or folder.
        size: of the network.
        lr: reference learning rate; that of the size if left out.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all; that of the size if left out.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of weights, data order and noise.
    """
    from fewstep.core.codec import Pixels

    images = _edm.open_images(data, 64, 3, cond=True)
    return _edm2.train(
        fs.ImageStream(images, seed=seed),
        Pixels(),
        f"img64-{size}",
        cond=True,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        **more,
    )


@extended(_options.sid)
def sid(
    teacher: Path,
    data: Path | None = None,
    *,
    alpha: float = 1.2,
    lr: float = 4e-6,
    batch_size: int = 8192,
    micro_batch: int | None = 16,
    until: int = 1_000_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiD on ImageNet at 64x64 (Zhou et al., 2024).

    FID in one step (paper): 1.524, after 939 million images.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, of which the labels count alone; left out, classes are drawn evenly.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        lr: learning rate of both networks.
        batch_size: images per step.
        micro_batch: images at a time on a device; it does not change the result.
        until: training images in all.
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of data order and noise.
    """
    return _sid.distil(
        teacher,
        data,
        (3, 64, 64),
        adversarial=False,
        dropout=0.1,
        half_life=2_000_000,
        alpha=alpha,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name="imagenet64-sid",
        **more,
    )


@extended(_options.sid, _options.sida)
def sida(
    teacher: Path,
    data: Path,
    *,
    alpha: float = 1.0,
    lr: float = 4e-6,
    batch_size: int = 8192,
    micro_batch: int | None = 32,
    until: int = 300_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiDA on ImageNet at 64x64 (Zhou et al., 2025).

    The best FID of SiDA and SiD2A in one step (paper): 1.110; the released model of SiDA saw 249 million images.

    Args:
        teacher: model or run folder of the teacher.
        data: zip or folder of the images that real and generated ones are told apart by.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        lr: learning rate of both networks.
        batch_size: images per step.
        micro_batch: images at a time on a device; the adversarial terms are averaged over them, so that they are part of
            the method.
        until: training images in all.
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of data order and noise.
    """
    return _sid.distil(
        teacher,
        data,
        (3, 64, 64),
        adversarial=True,
        dropout=0.1,
        half_life=2_000_000,
        alpha=alpha,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name="imagenet64-sida",
        **more,
    )


@extended(_options.sid, _options.sida)
def sid2a(
    teacher: Path,
    student: Path,
    data: Path,
    *,
    alpha: float = 1.0,
    lr: float = 4e-6,
    batch_size: int = 8192,
    micro_batch: int | None = 32,
    until: int = 100_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiD2A on ImageNet at 64x64: SiDA from a student by SiD (Zhou et al., 2025).

    The best FID of SiDA and SiD2A in one step (paper): 1.110; the released model of SiD2A saw 29 million images.

    Args:
        teacher: model or run folder of the teacher.
        student: model or run folder of a student by SiD, where the generator starts.
        data: zip or folder of the images that real and generated ones are told apart by.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        lr: learning rate of both networks.
        batch_size: images per step.
        micro_batch: images at a time on a device; the adversarial terms are averaged over them, so that they are part of
            the method.
        until: training images in all.
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of data order and noise.
    """
    return _sid.distil(
        teacher,
        data,
        (3, 64, 64),
        adversarial=True,
        student=student,
        dropout=0.1,
        half_life=2_000_000,
        alpha=alpha,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name="imagenet64-sid2a",
        **more,
    )


@extended(_options.gdd)
def gdd(
    teacher: Path,
    data: Path,
    *,
    weights: str,
    lr: float = 8e-6,
    disc_lr: float = 4e-5,
    batch_size: int = 512,
    micro_batch: int | None = 128,
    until: int = 10_000_000,
    dtype: Dtype = "auto",
    seed: int = 42,
    **more: Any,
) -> fs.Run:
    """GDD on ImageNet at 64x64: a one-step generator by a GAN loss alone (Zheng & Yang, 2024).

    The discriminator sees through DeiT-B and EfficientNet-Lite0. Its authors state the FID of GDD-I alone, 1.16.
    Published for the ADM teacher. FID favours a discriminator that knows ImageNet: report others as well.

    Args:
        teacher: model or run folder of the teacher.
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
        "imagenet64",
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
    lr: float = 8e-6,
    disc_lr: float = 4e-5,
    batch_size: int = 512,
    micro_batch: int | None = 128,
    until: int = 10_000_000,
    dtype: Dtype = "auto",
    seed: int = 42,
    **more: Any,
) -> fs.Run:
    """GDD-I on ImageNet at 64x64: as `imagenet64:gdd`, with most convolutions frozen (Zheng & Yang, 2024).

    FID 1.16 (paper's abstract), 1.13 (released model, measured again by its authors); about 6 million images. Published
    for the ADM teacher. FID favours a discriminator that knows ImageNet: report others as well.

    Args:
        teacher: model or run folder of the teacher.
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
        "imagenet64",
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


def ncvsd(
    teacher: Path,
    data: Path,
    *,
    size: _ncvsd.Size = "s",
    lr: float | None = None,
    batch_size: int = 2048,
    micro_batch: int | None = None,
    until: int = 64 * _ncvsd.MI,
    dtype: Dtype = "auto",
    seed: int = 0,
) -> fs.Run:
    """NCVSD from EDM2 on ImageNet at 64x64: a generative denoiser for any number of steps (Peng et al., 2025).

    FID in 1, 2, 4 steps (reference repository): 3.13, 2.66, 2.14 (s), 3.04, 2.47, 1.92 (m), 2.96, 2.35, 1.53 (l); sampled
    with --ts 12,39, 10,22,39 and 0,10,20,30,39. Teachers by --size: post-hoc averages of std 0.075 (s), 0.060 (m), 0.040 (l).

    Args:
        teacher: model or run folder of the teacher, EDM2 of the same size.
        data: image zip or folder.
        size: of the teacher.
        lr: reference learning rate of the fake score, of which generator and discriminator have 1 %; that of the size if
            left out.
        batch_size: images per step.
        micro_batch: images at a time on a device; the paper's for the size if left out; it does not change the result.
        until: training images in all.
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of new weights, data order and noise.
    """
    return _ncvsd.distil(
        "imagenet64",
        size,
        teacher,
        data,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
    )
