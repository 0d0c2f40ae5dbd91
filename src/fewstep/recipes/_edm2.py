"""What EDM2's trainings share, and its table of sizes (Karras et al., 2024, Table 6)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import fewstep as fs
from fewstep.recipes._edm import Dtype, open_images

MI = 2**20


class Row(NamedTuple):
    """until: training images. lr: reference learning rate. The network, with its dropout, is `nets.sizes.edm2(size)`."""

    size: str
    until: int
    lr: float


class Set(NamedTuple):
    """What the sizes have in common. decay: batches after which the learning rate falls. mean, std: of ln(sigma)."""

    decay: int
    mean: float
    std: float


PIXELS_64 = Set(35_000, -0.8, 1.6)
ROWS = {
    "img64-xs": Row("xs", 1024 * MI, 0.0120),
    "img64-s": Row("s", 1024 * MI, 0.0100),
    "img64-m": Row("m", 2048 * MI, 0.0090),
    "img64-l": Row("l", 1024 * MI, 0.0080),
    "img64-xl": Row("xl", 640 * MI, 0.0070),
}


def train(
    data: Path,
    row: str,
    *,
    lr: float | None,
    batch_size: int,
    micro_batch: int | None,
    until: int | None,
    dtype: Dtype,
    seed: int,
) -> fs.Run:
    """A training as in Karras et al. (2024): weights of fixed length, the learning rate falls as the inverse square root,
    the network weighs its loss, two averages by power functions. A snapshot is taken every 8 Mi images, as there.
    """
    import torch

    from fewstep.method import zero_nonfinite
    from fewstep.nets import sizes
    from fewstep.nets.edm2 import EDM2UNet, Uncertainty

    size, images_in_all, reference_lr = ROWS[row]
    decay, mean, std = PIXELS_64
    until = until or images_in_all
    images = open_images(data, 64, 3, cond=True)
    torch.manual_seed(seed)
    net = EDM2UNet(sizes.edm2(size, img_channels=3, label_dim=images.num_classes))
    denoiser = fs.Denoiser(net, dtype=getattr(torch, dtype), uncertainty=Uncertainty())
    adam = fs.Adam(lr or reference_lr, betas=(0.9, 0.99), rampup=10_000_000, reference=decay * batch_size)
    return fs.Run(
        fs.Pretraining(denoiser, fs.DenoisingLoss(fs.LogNormal(mean, std)), mend=zero_nonfinite),
        fs.ImageStream(images, seed=seed),
        {"denoiser": adam},
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        ema=(fs.PowerFunction(0.10), fs.PowerFunction(0.05)),
        seed=seed,
        snapshots=max(1, until // (8 * MI)),
        checkpoint_seconds=600.0,
        name=f"edm2-{row}",
        card=fs.Card(method="EDM2"),
    )
