"""What EDM's trainings share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fewstep as fs

if TYPE_CHECKING:
    from fewstep.core.objectives import References, Rule, Target
    from fewstep.data.augment import AugmentPipe
    from fewstep.nets.adm import ADMConfig
    from fewstep.nets.song import SongConfig

Arch = Literal["ddpmpp", "ncsnpp", "adm"]
Precond = Literal["edm", "vp", "ve"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
STF_REFERENCES = 4096


def open_images(data: Path, resolution: int, channels: int, *, cond: bool) -> fs.ImageData:
    """The images, of the shape that the network is made for, and with classes if it needs them."""
    images = fs.images(data)
    if images.shape != (channels, resolution, resolution):
        raise ValueError(
            f"{data}: this recipe is for images of {channels} x {resolution} x {resolution}; got {images.shape}. Use "
            f"small:teacher, or: fewstep data pack SOURCE OUT.zip --resolution {resolution}x{resolution}"
        )
    if cond and images.labels is None:
        raise ValueError(f"{data} has no classes; train without them: --no-cond")
    return images


def loss_scale(name: Dtype) -> float | None:
    """Where the dynamic loss scale begins: float16 alone needs one."""
    return 2.0**16 if name == "float16" else None


def network(name: str, arch: Arch) -> SongConfig | ADMConfig:
    """The published network of that name, whose `vp` and `ve` mean DDPM++ and NCSN++, or EDM's default of an architecture
    that was not published for the data set.
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
    """EDM's options --cbase and --cres, such as "1,2,2,2", as those of a network."""
    result: dict[str, Any] = {}
    if cbase is not None:
        if cbase < 1:
            raise ValueError(f"--cbase is a number of channels, at least 1; got {cbase}")
        result["model_channels"] = cbase
    if cres is not None:
        words = [word.strip() for word in cres.split(",")]
        if not all(word.isdecimal() and int(word) for word in words):
            raise ValueError(f"--cres has a whole number from 1 on for each resolution, such as 1,2,2,2; got {cres!r}")
        result["channel_mult"] = tuple(int(word) for word in words)
    return result


def target(
    stream: References, rule: Rule | None, references: int, pipe: AugmentPipe | None = None
) -> tuple[Target, str]:
    """The training target for the options --stf and --references, and what a card says of it."""
    from fewstep.core.objectives import StableTarget, clean

    if rule is None:
        if references != STF_REFERENCES:
            raise ValueError("--references has no effect without --stf matched or --stf published")
        return clean, ""
    return StableTarget(stream, references, augment=pipe, rule=rule), f", stable target of {references} ({rule})"


def train(
    data: Path,
    shape: SongConfig | ADMConfig,
    *,
    cond: bool,
    precond: Precond,
    cbase: int | None,
    cres: str | None,
    xflip: bool,
    ema: int | None,
    stf: Rule | None,
    references: int,
    dropout: float,
    augment: float,
    lr: float,
    batch_size: int,
    micro_batch: int | None,
    until: int,
    half_life: float,
    snapshot: int = 2_500_000,
    dtype: Dtype,
    seed: int,
    name: str,
) -> fs.Run:
    """A training as in Karras et al. (2022), App. F: Adam with a warm-up of 10 million images, an average with ramp-up.

    shape: of the network; classes, dropout and augmentation are set here. augment: p of the pipe. half_life: of the
    average, in images, if `ema` is None. snapshot: images between two. The rest are options of `_options.edm` and
    `_options.stable_target`.
    """
    import torch

    from fewstep.core.objectives import VPTime, edm_weight, inverse_variance
    from fewstep.core.precondition import EDM, VE, VP
    from fewstep.data.augment import AugmentPipe
    from fewstep.nets.adm import ADMConfig, ADMUNet
    from fewstep.nets.song import SongUNet
    from fewstep.runtime.precision import chosen_dtype

    images = open_images(data, shape.img_resolution, shape.in_channels, cond=cond)
    stream = fs.ImageStream(images, seed=seed, flip=xflip)
    pipe = AugmentPipe(augment) if augment else None
    config = dataclasses.replace(
        shape,
        label_dim=images.num_classes if cond else 0,
        augment_dim=pipe.label_dim if pipe else 0,
        dropout=dropout,
        **widths(cbase, cres),
    )
    precondition, noise, weight = {
        "edm": (EDM(), fs.LogNormal(-1.2, 1.2), edm_weight),
        "vp": (VP(), VPTime(), inverse_variance),
        "ve": (VE(), fs.LogUniform(), inverse_variance),
    }[precond]
    wanted, about = target(stream, stf, references, pipe)
    torch.manual_seed(seed)
    net = ADMUNet(config) if isinstance(config, ADMConfig) else SongUNet(config)
    denoiser = fs.Denoiser(net, precondition=precondition, dtype=chosen_dtype(dtype))
    return fs.Run(
        fs.Pretraining(denoiser, fs.DenoisingLoss(noise, weight=weight, target=wanted, augment=pipe)),
        stream,
        {"denoiser": fs.Adam(lr, rampup=10_000_000, loss_scale=loss_scale(dtype))},
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        ema=fs.HalfLife(half_life if ema is None else ema),
        seed=seed,
        snapshots=max(1, until // snapshot),
        checkpoint_seconds=600.0,
        name=name,
        card=fs.Card(method=precond.upper() + about),
    )
