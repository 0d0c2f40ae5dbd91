"""Published networks by name: the pretrained EDM networks and their baselines, and the sizes of EDM2.

The names are those of the published files, so that a converted file and a network built here agree in every shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.song import SongConfig, SongUNet, ncsnpp
from fewstep.precondition import EDM, IDDPM, VE, VP, Precondition

Config = SongConfig | ADMConfig | EDM2Config


def network(config: Config) -> nn.Module:
    """A new network of the given configuration."""
    match config:
        case SongConfig():
            return SongUNet(config)
        case ADMConfig():
            return ADMUNet(config)
        case EDM2Config():
            return EDM2UNet(config)


@dataclass(frozen=True)
class Size:
    """A network and its preconditioning. logvar_channels: width of the log-variance head, 0 for none."""

    config: Config
    precondition: Precondition = EDM()
    logvar_channels: int = 0

    def denoiser(self, *, dtype: torch.dtype = torch.float32) -> Denoiser:
        """A new denoiser that computes in `dtype`."""
        uncertainty = Uncertainty(self.logvar_channels) if self.logvar_channels else None
        return Denoiser(network(self.config), precondition=self.precondition, dtype=dtype, uncertainty=uncertainty)


CIFAR10 = {"img_resolution": 32, "augment_dim": 9, "channel_mult": (2, 2, 2), "dropout": 0.13}
FACES = {"img_resolution": 64, "augment_dim": 9, "channel_mult": (1, 2, 2, 2)}

EDM_SIZES: dict[str, Size] = {
    "edm-cifar10-32x32-cond-vp": Size(SongConfig(**CIFAR10, label_dim=10)),
    "edm-cifar10-32x32-cond-ve": Size(ncsnpp(**CIFAR10, label_dim=10)),
    "edm-cifar10-32x32-uncond-vp": Size(SongConfig(**CIFAR10)),
    "edm-cifar10-32x32-uncond-ve": Size(ncsnpp(**CIFAR10)),
    "edm-ffhq-64x64-uncond-vp": Size(SongConfig(**FACES, dropout=0.05)),
    "edm-ffhq-64x64-uncond-ve": Size(ncsnpp(**FACES, dropout=0.05)),
    "edm-afhqv2-64x64-uncond-vp": Size(SongConfig(**FACES, dropout=0.25)),
    "edm-afhqv2-64x64-uncond-ve": Size(ncsnpp(**FACES, dropout=0.25)),
    "edm-imagenet-64x64-cond-adm": Size(ADMConfig(64, label_dim=1000)),
    "baseline-cifar10-32x32-uncond-vp": Size(SongConfig(32), VP()),
    "baseline-cifar10-32x32-uncond-ve": Size(ncsnpp(32), VE(sigma_min=0.02, sigma_max=100)),
    "baseline-imagenet-64x64-cond-adm": Size(ADMConfig(64, out_channels=6, label_dim=1000), IDDPM()),
}
"""The pretrained networks of Karras et al. (2022) and the ones they started from (their Table 1).

`vp` and `ve` in the names mean DDPM++ and NCSN++; the preconditioning is EDM's but for the baselines.
"""

EDM2_CHANNELS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}


def edm2(size: str, *, img_resolution: int = 64, img_channels: int = 4, label_dim: int = 1000) -> Size:
    """EDM2 in one of its sizes, "xxs" to "xxl"; from "m" on it trains with dropout (Karras et al., 2024, Table 6)."""
    if size not in EDM2_CHANNELS:
        raise ValueError(f"EDM2 comes in the sizes {', '.join(EDM2_CHANNELS)}; got {size!r}")
    channels = EDM2_CHANNELS[size]
    config = EDM2Config(
        img_resolution, img_channels, label_dim, model_channels=channels, dropout=0.1 if channels >= 256 else 0.0
    )
    return Size(config, logvar_channels=128)


EDM2_SIZES: dict[str, Size] = {
    **{f"edm2-img512-{size}": edm2(size) for size in EDM2_CHANNELS},
    **{f"edm2-img512-{size}-uncond": edm2(size, label_dim=0) for size in ("xs", "s")},
    **{f"edm2-img64-{size}": edm2(size, img_channels=3) for size in ("xs", "s", "m", "l", "xl")},
}
"""EDM2 on ImageNet: 64x64x4 latents of 512x512 images, and 64x64 images."""

SIZES: dict[str, Size] = EDM_SIZES | EDM2_SIZES
