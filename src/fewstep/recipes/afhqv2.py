"""AFHQv2: 15,000 faces of animals, here of 64x64 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fewstep as fs
from fewstep.recipes import _edm, _gdd, _options, _sid
from fewstep.recipes._edm import Arch, Dtype
from fewstep.recipes._options import extended


@extended(_options.edm, _options.stable_target)
def teacher(
    data: Path,
    *,
    arch: Arch = "ddpmpp",
    dropout: float = 0.25,
    augment: float = 0.15,
    lr: float = 2e-4,
    batch_size: int = 256,
    micro_batch: int | None = None,
    until: int = 200_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """EDM on AFHQv2 at 64x64 (Karras et al., 2022).

    FID with 79 network evaluations (paper): 1.96 (ddpmpp), 2.16 (ncsnpp); about 4 days on 8 V100, in float32.

    Args:
        data: image zip or folder.
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
        _edm.network("afhqv2-64x64-uncond", arch),
        cond=False,
        dropout=dropout,
        augment=augment,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        half_life=500_000,
        dtype=dtype,
        seed=seed,
        name="afhqv2-teacher",
        **more,
    )


@extended(_options.sid)
def sid(
    teacher: Path,
    data: Path | None = None,
    *,
    alpha: float = 1.0,
    augment: float = 0.15,
    lr: float = 5e-6,
    batch_size: int = 512,
    micro_batch: int | None = 32,
    until: int = 500_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiD on AFHQv2 at 64x64 (Zhou et al., 2024).

    FID in one step (paper): 1.628, after 372 million images.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, of which the labels count alone; left out, classes are drawn evenly.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        augment: probability of each augmentation but mirroring, which is a fair coin, of what the fake score trains on; 0
            for none, as a teacher without needs it.
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
        dropout=0.05,
        augment=augment,
        half_life=500_000,
        alpha=alpha,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name="afhqv2-sid",
        **more,
    )


@extended(_options.sid, _options.sida)
def sida(
    teacher: Path,
    data: Path,
    *,
    alpha: float = 1.0,
    augment: float = 0.15,
    lr: float = 5e-6,
    batch_size: int = 512,
    micro_batch: int | None = 64,
    until: int = 200_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiDA on AFHQv2 at 64x64 (Zhou et al., 2025).

    The best FID of SiDA and SiD2A in one step (paper): 1.276; the released model of SiDA saw 127 million images. The published
    script took its real images from FFHQ; give it AFHQv2.

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
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of data order and noise.
    """
    return _sid.distil(
        teacher,
        data,
        (3, 64, 64),
        adversarial=True,
        dropout=0.05,
        augment=augment,
        half_life=500_000,
        alpha=alpha,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name="afhqv2-sida",
        **more,
    )


@extended(_options.sid, _options.sida)
def sid2a(
    teacher: Path,
    student: Path,
    data: Path,
    *,
    alpha: float = 1.0,
    augment: float = 0.15,
    lr: float = 5e-6,
    batch_size: int = 512,
    micro_batch: int | None = 64,
    until: int = 100_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiD2A on AFHQv2 at 64x64: SiDA from a student by SiD (Zhou et al., 2025).

    The best FID of SiDA and SiD2A in one step (paper): 1.276; the released model of SiD2A saw 175 million images. The published
    script took its real images from FFHQ; give it AFHQv2.

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
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of data order and noise.
    """
    return _sid.distil(
        teacher,
        data,
        (3, 64, 64),
        adversarial=True,
        student=student,
        dropout=0.05,
        augment=augment,
        half_life=500_000,
        alpha=alpha,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name="afhqv2-sid2a",
        **more,
    )


@extended(_options.gdd)
def gdd(
    teacher: Path,
    data: Path,
    *,
    weights: str,
    lr: float = 2e-5,
    disc_lr: float = 4e-5,
    batch_size: int = 256,
    micro_batch: int | None = 64,
    until: int = 10_000_000,
    dtype: Dtype = "auto",
    seed: int = 42,
    **more: Any,
) -> fs.Run:
    """GDD on AFHQv2 at 64x64: a one-step generator by a GAN loss alone (Zheng & Yang, 2024).

    The discriminator sees through DeiT-B and EfficientNet-Lite0. FID 1.23 (paper's abstract), 1.24 (released model,
    measured again by its authors); about 7 million images. Published for the NCSN++ teacher (ve). FID favours a
    discriminator that knows ImageNet: report others as well.

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
        "afhqv2",
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
    lr: float = 2e-5,
    disc_lr: float = 4e-5,
    batch_size: int = 256,
    micro_batch: int | None = 64,
    until: int = 10_000_000,
    dtype: Dtype = "auto",
    seed: int = 42,
    **more: Any,
) -> fs.Run:
    """GDD-I on AFHQv2 at 64x64: as `afhqv2:gdd`, with most convolutions frozen (Zheng & Yang, 2024).

    Its authors state the FID of GDD alone, 1.23. Published for the NCSN++ teacher (ve). FID favours a discriminator
    that knows ImageNet: report others as well.

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
        "afhqv2",
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
