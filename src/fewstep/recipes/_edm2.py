"""What EDM2's trainings share, and its table of sizes (Karras et al., 2024, Table 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import fewstep as fs
from fewstep.recipes._edm import Dtype, loss_scale

if TYPE_CHECKING:
    from fewstep.data.codec import Codec
    from fewstep.data.latents import LatentStream

MI = 2**20


class Row(NamedTuple):
    """until: training images. lr: reference learning rate."""

    until: int
    lr: float


ROWS = {
    "img512-xxs": Row(2048 * MI, 0.0170),
    "img512-xs": Row(2048 * MI, 0.0120),
    "img512-s": Row(2048 * MI, 0.0100),
    "img512-m": Row(2048 * MI, 0.0090),
    "img512-l": Row(1792 * MI, 0.0080),
    "img512-xl": Row(1280 * MI, 0.0070),
    "img512-xxl": Row(896 * MI, 0.0065),
    "img64-xs": Row(1024 * MI, 0.0120),
    "img64-s": Row(1024 * MI, 0.0100),
    "img64-m": Row(2048 * MI, 0.0090),
    "img64-l": Row(1024 * MI, 0.0080),
    "img64-xl": Row(640 * MI, 0.0070),
}
"""The network of a row, with its dropout, is `nets.sizes.edm2(size)`."""

DECAY = {"img512": 70_000, "img64": 35_000}
"""Batches after which the learning rate falls."""

NOISE = {"img512": (-0.4, 1.0), "img64": (-0.8, 1.6)}
"""Mean and std of ln sigma."""


def train(
    stream: fs.ImageStream | LatentStream,
    codec: Codec,
    row: str,
    *,
    cond: bool,
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
    from fewstep.precision import chosen_dtype

    kind, size = row.split("-")
    images = stream.data
    if cond and images.labels is None:
        raise ValueError(f"{images.name} has no classes; train without them: --no-cond")
    reference = ROWS[row]
    until = reference.until if until is None else until
    torch.manual_seed(seed)
    net = EDM2UNet(sizes.edm2(size, img_channels=images.shape[0], label_dim=images.num_classes if cond else 0))
    denoiser = fs.Denoiser(net, dtype=chosen_dtype(dtype), uncertainty=Uncertainty(), codec=codec)
    adam = fs.Adam(
        reference.lr if lr is None else lr,
        betas=(0.9, 0.99),
        rampup=10_000_000,
        reference=DECAY[kind] * batch_size,
        loss_scale=loss_scale(dtype),
    )
    return fs.Run(
        fs.Pretraining(denoiser, fs.DenoisingLoss(fs.LogNormal(*NOISE[kind])), mend=zero_nonfinite),
        stream,
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
