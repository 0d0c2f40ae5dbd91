"""ImageNet at 512x512, as latents of 4x64x64: 1.28 million images in 1,000 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import fewstep as fs
from fewstep.recipes import _edm2, _ncvsd, _options, _sid
from fewstep.recipes._edm import Dtype
from fewstep.recipes._options import extended
from fewstep.recipes._sid import Size


@extended(_options.edm2, _options.stable_target)
def teacher(
    data: Path,
    *,
    cond: bool = True,
    size: Literal["xxs", "xs", "s", "m", "l", "xl", "xxl"] = "s",
    lr: float | None = None,
    batch_size: int = 2048,
    micro_batch: int | None = None,
    until: int | None = None,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """EDM2 on latents of ImageNet at 512x512, in its sizes (Karras et al., 2024).

    FID with 63 network evaluations (paper): 3.53 (xs), 2.56 (s), 2.25 (m), 2.06 (l), 1.96 (xl), 1.91 (xxl); with
    guidance by a network without classes 2.91, 2.23, 2.01, 1.88, 1.85, 1.81.

    Args:
        data: zip of latents, as EDM2 stores them.
        cond: with classes; without them as the guide of guidance.
        size: of the network.
        lr: reference learning rate; that of the size if left out.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all; that of the size if left out.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of weights, data order and noise.
    """
    from fewstep.data.codec import StabilityVAE
    from fewstep.data.latents import LatentData, LatentStream

    latents, codec = LatentData(data), StabilityVAE()
    if latents.shape != (4, 64, 64):
        raise ValueError(f"{data}: this recipe is for latents of 4 x 64 x 64; got {latents.shape}")
    return _edm2.train(
        LatentStream(latents, codec, seed=seed),
        codec,
        f"img512-{size}",
        cond=cond,
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
    size: Size = "s",
    alpha: float = 1.0,
    steps: int = 1,
    lr: float = 5e-5,
    batch_size: int = 2048,
    micro_batch: int | None = None,
    until: int | None = None,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiD from EDM2 on latents of ImageNet at 512x512 (Zhou et al., 2025).

    The released models saw 249, 192, 227, 204, 234 million images (xs to xl); their FID is not among the published figures
    known here. Teachers have FID 3.53 (xs) to 1.91 (xxl) without guidance; by --size they are post-hoc averages of std 0.135
    (xs), 0.130 (s), 0.100 (m), 0.085 (l, xl), 0.070 (xxl), as for SiDA and SiD2A.

    Args:
        teacher: model or run folder of the teacher.
        data: zip of latents, of which the labels count alone; left out, classes are drawn evenly.
        size: of the teacher.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        steps: of the generator.
        lr: learning rate of both networks.
        batch_size: images per step.
        micro_batch: images at a time on a device; the paper's for the size, 64 (xs, s), 32 (m, l), 16 or 2, if left out; it
            does not change the result.
        until: training images in all; the paper's for the size if left out.
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of data order and noise.
    """
    return _sid.distil_edm2(
        teacher,
        data,
        size,
        adversarial=False,
        alpha=alpha,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name=f"imagenet512-sid-{size}",
        **more,
    )


@extended(_options.sid, _options.sida)
def sida(
    teacher: Path,
    data: Path,
    *,
    size: Size = "s",
    alpha: float = 1.0,
    steps: int = 1,
    lr: float = 5e-5,
    batch_size: int = 2048,
    micro_batch: int | None = None,
    until: int | None = None,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiDA from EDM2 on latents of ImageNet at 512x512 (Zhou et al., 2025).

    The best FID of SiDA and SiD2A in one step, without guidance (paper): 2.156 (xs), 1.669 (s), 1.488 (m), 1.413 (l),
    1.379 (xl), 1.366 (xxl). The size s was trained without weights by log-variance, as here. Every step
    projects the weights of both networks to unit length; the published code did so for the generator alone, and for
    neither at the size s.

    Args:
        teacher: model or run folder of the teacher.
        data: zip of latents, as EDM2 stores them, that real and generated ones are told apart by.
        size: of the teacher.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        steps: of the generator.
        lr: learning rate of both networks.
        batch_size: images per step.
        micro_batch: images at a time on a device; the paper's for the size, 64 (xs, s), 32 (m, l), 16 or 2, if left out; the
            adversarial terms are averaged over them, so that they are part of the method.
        until: training images in all; the paper's for the size if left out.
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of data order and noise.
    """
    return _sid.distil_edm2(
        teacher,
        data,
        size,
        adversarial=True,
        uncertainty=size != "s",
        alpha=alpha,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name=f"imagenet512-sida-{size}",
        **more,
    )


@extended(_options.sid, _options.sida)
def sid2a(
    teacher: Path,
    student: Path,
    data: Path,
    *,
    size: Size = "s",
    alpha: float = 1.0,
    steps: int = 1,
    lr: float = 5e-5,
    batch_size: int = 2048,
    micro_batch: int | None = None,
    until: int | None = None,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """SiD2A from EDM2 on latents of ImageNet at 512x512: SiDA from a student by SiD (Zhou et al., 2025).

    The best FID of SiDA and SiD2A in one step, without guidance (paper): 2.156 (xs), 1.669 (s), 1.488 (m), 1.413 (l),
    1.379 (xl), 1.366 (xxl). As SiDA; the generator's loss of the size m has the factor 50 instead of 100. At the size xxl the
    authors started from a student of SiDA, after 78 million images, and not of SiD: give such a one as --student.

    Args:
        teacher: model or run folder of the teacher.
        student: model or run folder of a student by SiD, where the generator starts.
        data: zip of latents, as EDM2 stores them, that real and generated ones are told apart by.
        size: of the teacher.
        alpha: of the SiD loss: 1, or 1.2 to subtract 0.2 of the squared difference of the scores.
        steps: of the generator.
        lr: learning rate of both networks.
        batch_size: images per step.
        micro_batch: images at a time on a device; the paper's for the size, 64 (xs, s), 32 (m, l), 16 or 2, if left out; the
            adversarial terms are averaged over them, so that they are part of the method.
        until: training images in all; the paper's for the size if left out.
        dtype: of the networks' arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of data order and noise.
    """
    return _sid.distil_edm2(
        teacher,
        data,
        size,
        adversarial=True,
        student=student,
        uncertainty=size != "s",
        loss_scale=50.0 if size == "m" else 100.0,
        alpha=alpha,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        dtype=dtype,
        seed=seed,
        name=f"imagenet512-sid2a-{size}",
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
    """NCVSD from EDM2 on latents of ImageNet at 512x512: a generative denoiser for any number of steps (Peng et al., 2025).

    FID in 1, 2, 4 steps (reference repository): 2.95, 2.60, 2.00 (s), 2.85, 2.08, 1.92 (m), 2.56, 2.03, 1.76 (l); sampled
    with --ts 12,39, 10,22,39 and 0,10,20,30,39. Teachers by --size: post-hoc averages of std 0.130 (s), 0.100 (m), 0.085 (l).

    Args:
        teacher: model or run folder of the teacher, EDM2 of the same size.
        data: zip of latents, as EDM2 stores them.
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
        "imagenet512",
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
