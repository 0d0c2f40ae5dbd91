"""What the distillations by SiD, SiDA and SiD2A share (Zhou et al., 2024, 2025).

The settings are those of the published scripts, of which these were corrected: SiDA of AFHQv2 was given the images of FFHQ;
SiD on ImageNet-64 under the newer code had the values of `cond` and `alpha` exchanged and a discriminator; some SiD2A
scripts could not start. Their float16 with fixed factors is bfloat16 here, where the hardware has it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import fewstep as fs
from fewstep.recipes._edm import Dtype
from fewstep.recipes._edm import loss_scale as dynamic_scale

if TYPE_CHECKING:
    from fewstep.data.labels import LabelStream
    from fewstep.data.latents import LatentStream

Size = Literal["xs", "s", "m", "l", "xl", "xxl"]


def distil(
    teacher: Path,
    data: Path | None,
    shape: tuple[int, int, int],
    *,
    adversarial: bool,
    student: Path | None = None,
    alpha: float,
    steps: int = 1,
    init_sigma: float,
    tmax: float,
    lr: float,
    glr: float | None,
    beta1: float = 0.0,
    g_beta1: float | None,
    eps: float = 1e-6,
    dropout: float | None = None,
    augment: float = 0.0,
    noise: tuple[float, float] = (-1.2, 1.2),
    loss_scale: float = 100.0,
    lsg: float | None,
    half_life: float,
    ema: int | None,
    batch_size: int,
    micro_batch: int | None,
    until: int,
    dtype: Dtype,
    seed: int,
    name: str,
    lsd: float | None = None,
    lsg_gan: float = 0.01,
    **options: Any,
) -> fs.Run:
    """A run of SiD, or with `adversarial` of SiDA, or with a `student` of SiD, too, of SiD2A.

    data: None for classes without images, each equally often. shape: of an image. beta1, eps: of Adam; beta1 that of the
    generator's, unless `g_beta1` says another. dropout: of fake score and generator, None for the teacher's. augment: p of
    the pipe. noise: mean and std of ln sigma where the fake score trains. loss_scale: of the generator, unless `lsg` says
    another. half_life: of the average, in images, unless `ema` says another. options: of SiDA. The rest are options of
    `_options.sid`.
    """
    if not 0 < tmax <= 1000:
        raise ValueError(f"--tmax is a step of a thousand, above 0 and at most 1000; got {tmax:g}")
    from fewstep.data.augment import AugmentPipe
    from fewstep.distill import SiD, SiDA
    from fewstep.distill.players import uniform_levels
    from fewstep.runtime.precision import chosen_dtype

    denoiser = opened(teacher, shape, dropout, chosen_dtype(dtype))
    pipe = AugmentPipe(augment) if augment else None
    if pipe is not None and not getattr(denoiser.net.config, "augment_dim", 0):
        raise ValueError(
            f"{teacher} was trained without augmentation, so its copies cannot be told of any: --augment 0"
        )
    generator = None if student is None else opened(student, shape, dropout, denoiser.dtype)
    if generator is not None and generator.levels is None:
        raise ValueError(
            f"{student} is no student: it denoises at every noise level, as a teacher does. Give one that SiD made, or "
            "start from the teacher: the recipe sida"
        )
    if adversarial:
        options |= {"disc_weight": 1.0 if lsd is None else lsd, "gan_weight": lsg_gan}
    method = (SiDA if adversarial else SiD)(
        denoiser,
        generator=generator,
        alpha=alpha,
        levels=uniform_levels(init_sigma, steps),
        noise=fs.KarrasUniform(t_max=tmax / 1000),
        objective=fs.DenoisingLoss(fs.LogNormal(*noise), augment=pipe),
        loss_scale=loss_scale if lsg is None else lsg,
        **options,
    )
    words = ("SiDA" if student is None else "SiD2A") if adversarial else "SiD"
    adam = fs.Adam(lr, betas=(0.0, 0.999), eps=eps, loss_scale=dynamic_scale(dtype))
    beta1 = beta1 if g_beta1 is None else g_beta1
    theirs = dataclasses.replace(adam, lr=lr if glr is None else glr, betas=(beta1, 0.999))
    return fs.Run(
        method,
        stream(denoiser, data, seed),
        {"fake_score": adam, "generator": theirs},
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        ema=fs.HalfLife(half_life if ema is None else ema),
        seed=seed,
        snapshots=max(1, until // 2_500_000),
        checkpoint_seconds=600.0,
        name=name,
        card=fs.card(teacher).student(f"{words}, alpha {alpha:g}"),
    )


def opened(path: Path, shape: tuple[int, int, int], dropout: float | None, dtype: Any) -> fs.Denoiser:
    """A model for images of this shape, with another dropout in training."""
    denoiser = fs.load(path)
    if denoiser.shape != shape:
        raise ValueError(
            f"{path}: this recipe is for models of images of shape {shape}; this one makes {denoiser.shape}"
        )
    denoiser.dtype = dtype
    if dropout is not None:
        config = dataclasses.replace(denoiser.net.config, dropout=dropout)
        net = type(denoiser.net)(config)
        net.load_state_dict(denoiser.net.state_dict(), assign=True)
        denoiser.net = net.eval()
    return denoiser


def stream(denoiser: fs.Denoiser, data: Path | None, seed: int) -> fs.ImageStream | LatentStream | LabelStream:
    """The training data, in the units of the denoiser."""
    from fewstep.data.codec import StabilityVAE
    from fewstep.data.labels import LabelData, LabelStream
    from fewstep.data.latents import LatentData, LatentStream

    if data is None:
        return LabelStream(LabelData(denoiser.shape, denoiser.num_classes), seed=seed)
    if isinstance(denoiser.codec, StabilityVAE):
        return LatentStream(LatentData(data), denoiser.codec, seed=seed)
    return fs.ImageStream(fs.images(data), seed=seed)


class Row(NamedTuple):
    """Of a size of EDM2. micro_batch: images at a time. until: training images of SiD and SiDA. sid2a: those of SiD2A."""

    micro_batch: int
    until: int
    sid2a: int


EDM2_ROWS = {
    "xs": Row(64, 200_000_000, 30_000_000),
    "s": Row(64, 200_000_000, 80_000_000),
    "m": Row(32, 200_000_000, 200_000_000),
    "l": Row(32, 200_000_000, 55_000_000),
    "xl": Row(16, 200_000_000, 50_000_000),
    "xxl": Row(2, 100_000_000, 30_000_000),
}


def distil_edm2(
    teacher: Path,
    data: Path | None,
    size: Size,
    *,
    adversarial: bool,
    student: Path | None = None,
    uncertainty: bool = True,
    micro_batch: int | None,
    until: int | None,
    **settings: Any,
) -> fs.Run:
    """A run on latents of ImageNet-512, as `distil`; what is None comes from the row of the size."""
    from fewstep.io.model_folder import read_config
    from fewstep.nets import sizes

    row = EDM2_ROWS[size]
    found, expected = read_config(teacher)["network"].get("model_channels"), sizes.edm2(size).model_channels
    if found != expected:
        raise ValueError(
            f"{teacher} is {found} channels wide, EDM2-{size.upper()} {expected}; give the --size of the teacher"
        )
    if adversarial:
        settings |= {"lsd": 100.0 if settings["lsd"] is None else settings["lsd"], "clip": None}
    return distil(
        teacher,
        data,
        (4, 64, 64),
        adversarial=adversarial,
        student=student,
        uncertainty=uncertainty,
        noise=(-0.4, 1.0),
        half_life=2_000_000,
        micro_batch=row.micro_batch if micro_batch is None else micro_batch,
        until=until if until is not None else row.until if student is None else row.sid2a,
        **settings,
    )
