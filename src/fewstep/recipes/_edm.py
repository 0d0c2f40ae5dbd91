"""What EDM's trainings share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import fewstep as fs

if TYPE_CHECKING:
    from fewstep.nets.adm import ADMConfig
    from fewstep.nets.song import SongConfig
    from fewstep.objectives import Target

Arch = Literal["ddpmpp", "ncsnpp"]
Precond = Literal["edm", "vp", "ve"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


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


def network(name: str, arch: Arch | Literal["adm"] = "adm") -> SongConfig | ADMConfig:
    """The published network of that name; `vp` and `ve` there mean DDPM++ and NCSN++."""
    from fewstep.nets.sizes import EDM_SIZES

    return EDM_SIZES[f"edm-{name}-{ {'ddpmpp': 'vp', 'ncsnpp': 've', 'adm': 'adm'}[arch] }"]


def train(
    data: Path,
    shape: SongConfig | ADMConfig,
    *,
    cond: bool,
    precond: Precond = "edm",
    references: int | None = None,
    dropout: float,
    augment: float,
    lr: float,
    batch_size: int,
    micro_batch: int | None,
    until: int,
    half_life: float,
    dtype: Dtype,
    seed: int,
    name: str,
) -> fs.Run:
    """A training as in Karras et al. (2022), App. F: Adam with a warm-up of 10 million images, an average with ramp-up.

    shape: of the network; classes, dropout and augmentation are set here. references: of the stable target field, None for
    the clean image. augment: p of the pipe. half_life: of the average, in images. A snapshot is taken every 2.5 million
    images, as there.
    """
    import torch

    from fewstep.data.augment import AugmentPipe
    from fewstep.nets.adm import ADMConfig, ADMUNet
    from fewstep.nets.song import SongUNet
    from fewstep.objectives import StableTarget, VPTime, clean, edm_weight, inverse_variance
    from fewstep.precision import chosen_dtype
    from fewstep.precondition import EDM, VE, VP

    images = open_images(data, shape.img_resolution, shape.in_channels, cond=cond)
    stream = fs.ImageStream(images, seed=seed)
    pipe = AugmentPipe(augment) if augment else None
    config = dataclasses.replace(
        shape,
        label_dim=images.num_classes if cond else 0,
        augment_dim=pipe.label_dim if pipe else 0,
        dropout=dropout,
    )
    precondition, noise, weight = {
        "edm": (EDM(), fs.LogNormal(-1.2, 1.2), edm_weight),
        "vp": (VP(), VPTime(), inverse_variance),
        "ve": (VE(), fs.LogUniform(), inverse_variance),
    }[precond]
    target: Target = clean if references is None else StableTarget(stream, references, augment=pipe)
    torch.manual_seed(seed)
    net = ADMUNet(config) if isinstance(config, ADMConfig) else SongUNet(config)
    denoiser = fs.Denoiser(net, precondition=precondition, dtype=chosen_dtype(dtype))
    return fs.Run(
        fs.Pretraining(denoiser, fs.DenoisingLoss(noise, weight=weight, target=target, augment=pipe)),
        stream,
        {"denoiser": fs.Adam(lr, rampup=10_000_000, loss_scale=loss_scale(dtype))},
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        ema=fs.HalfLife(half_life),
        seed=seed,
        snapshots=max(1, until // 2_500_000),
        checkpoint_seconds=600.0,
        name=name,
        card=fs.Card(method=precond.upper() + ("" if references is None else f", stable target of {references}")),
    )
