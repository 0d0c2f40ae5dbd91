"""Published networks by name: the pretrained EDM networks and their baselines, and the sizes of EDM2.

The names are those of the published files, so that a converted file and a network built here agree in every shape:
`SongUNet(EDM_SIZES["edm-cifar10-32x32-cond-vp"])`.
"""

from __future__ import annotations

from typing import Any

from fewstep.nets.adm import ADMConfig
from fewstep.nets.edm2 import EDM2Config
from fewstep.nets.song import SongConfig, ncsnpp

CIFAR10: dict[str, Any] = {"img_resolution": 32, "augment_dim": 9, "channel_mult": (2, 2, 2), "dropout": 0.13}
FACES: dict[str, Any] = {"img_resolution": 64, "augment_dim": 9, "channel_mult": (1, 2, 2, 2)}

EDM_SIZES: dict[str, SongConfig | ADMConfig] = {
    "edm-cifar10-32x32-cond-vp": SongConfig(**CIFAR10, label_dim=10),
    "edm-cifar10-32x32-cond-ve": ncsnpp(**CIFAR10, label_dim=10),
    "edm-cifar10-32x32-uncond-vp": SongConfig(**CIFAR10),
    "edm-cifar10-32x32-uncond-ve": ncsnpp(**CIFAR10),
    "edm-ffhq-64x64-uncond-vp": SongConfig(**FACES, dropout=0.05),
    "edm-ffhq-64x64-uncond-ve": ncsnpp(**FACES, dropout=0.05),
    "edm-afhqv2-64x64-uncond-vp": SongConfig(**FACES, dropout=0.25),
    "edm-afhqv2-64x64-uncond-ve": ncsnpp(**FACES, dropout=0.25),
    "edm-imagenet-64x64-cond-adm": ADMConfig(64, label_dim=1000),
    "baseline-cifar10-32x32-uncond-vp": SongConfig(32),
    "baseline-cifar10-32x32-uncond-ve": ncsnpp(32),
    "baseline-imagenet-64x64-cond-adm": ADMConfig(64, out_channels=6, label_dim=1000),
}
"""The pretrained networks of Karras et al. (2022) and the ones they started from (their Table 1).

`vp` and `ve` in the names mean DDPM++ and NCSN++. All are under EDM's preconditioning, but for the baselines: VP, VE
and iDDPM.
"""

EDM2_CHANNELS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}


def edm2(size: str, *, img_resolution: int = 64, img_channels: int = 4, label_dim: int = 1000) -> EDM2Config:
    """Return the configuration of EDM2 in one of its sizes (Karras et al., 2024a, Table 6); from "m" on it trains with dropout.

    Args:
        size: "xxs" to "xxl".
        img_resolution: side of the image or latent in pixels.
        img_channels: its channels.
        label_dim: number of classes, 0 for none.

    Raises:
        ValueError: there is no such size.
    """
    if size not in EDM2_CHANNELS:
        raise ValueError(f"EDM2 comes in the sizes {', '.join(EDM2_CHANNELS)}; got {size!r}")
    channels = EDM2_CHANNELS[size]
    dropout = 0.1 if channels >= EDM2_CHANNELS["m"] else 0.0
    return EDM2Config(img_resolution, img_channels, label_dim, model_channels=channels, dropout=dropout)


EDM2_SIZES: dict[str, EDM2Config] = {
    **{f"edm2-img512-{size}": edm2(size) for size in EDM2_CHANNELS},
    **{f"edm2-img512-{size}-uncond": edm2(size, label_dim=0) for size in ("xs", "s")},
    **{f"edm2-img64-{size}": edm2(size, img_channels=3) for size in ("xs", "s", "m", "l", "xl")},
}
"""EDM2 on ImageNet: 64x64x4 latents of 512x512 images, and 64x64 images. All are under EDM's preconditioning, with a
log-variance head `Uncertainty()`."""
