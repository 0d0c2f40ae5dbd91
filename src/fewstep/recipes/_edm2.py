"""What EDM2's trainings share, and its table of sizes (Karras et al., 2024, Table 6)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import fewstep as fs
from fewstep.recipes._edm import Dtype, loss_scale, target

if TYPE_CHECKING:
    from fewstep.core.codec import Codec
    from fewstep.core.objectives import Rule
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
    "ffhq256-xs": Row(64 * MI, 0.0120),
    "ffhq256-s": Row(64 * MI, 0.0100),
}
"""The network of a row, with its dropout, is `nets.sizes.edm2(size)`. FFHQ: the teachers of NCVSD (Peng et al., 2025)."""

DECAY = {"img512": 70_000, "img64": 35_000, "ffhq256": 35_000}
"""Batches after which the learning rate falls."""

RAMPUP = {"img512": 10_000_000, "img64": 10_000_000, "ffhq256": 1_000_000}
"""Images of the warm-up."""

NOISE = {"img512": (-0.4, 1.0), "img64": (-0.8, 1.6), "ffhq256": (-0.8, 1.6)}
"""Mean and std of ln sigma."""

SNAPSHOT = {"img512": 8 * MI, "img64": 8 * MI, "ffhq256": MI}
"""Images between two snapshots."""


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
    channels: int | None,
    dropout: float | None,
    p_mean: float | None,
    p_std: float | None,
    decay: float | None,
    stf: Rule | None,
    references: int,
    dtype: Dtype,
    seed: int,
) -> fs.Run:
    """A training as in Karras et al. (2024): weights of fixed length, the learning rate falls as the inverse square root,
    the network weighs its loss, two averages by power functions. What is None is the row's.
    """
    import torch

    from fewstep.core.method import zero_nonfinite
    from fewstep.nets import sizes
    from fewstep.nets.edm2 import EDM2UNet, Uncertainty
    from fewstep.runtime.precision import chosen_dtype

    kind, size = row.split("-")
    images = stream.data
    if cond and images.labels is None:
        raise ValueError(f"{images.name} has no classes; train without them: --no-cond")
    reference = ROWS[row]
    until = reference.until if until is None else until
    torch.manual_seed(seed)
    config = sizes.edm2(
        size,
        img_resolution=images.shape[1],
        img_channels=images.shape[0],
        label_dim=images.num_classes if cond else 0,
    )
    given = {"model_channels": channels, "dropout": dropout}
    net = EDM2UNet(dataclasses.replace(config, **{k: v for k, v in given.items() if v is not None}))
    mean, std = NOISE[kind]
    noise = fs.LogNormal(mean if p_mean is None else p_mean, std if p_std is None else p_std)
    wanted, about = target(stream, stf, references)
    denoiser = fs.Denoiser(net, dtype=chosen_dtype(dtype), uncertainty=Uncertainty(), codec=codec)
    adam = fs.Adam(
        reference.lr if lr is None else lr,
        betas=(0.9, 0.99),
        rampup=RAMPUP[kind],
        reference=(DECAY[kind] if decay is None else decay) * batch_size,
        loss_scale=loss_scale(dtype),
    )
    return fs.Run(
        fs.Pretraining(denoiser, fs.DenoisingLoss(noise, target=wanted), mend=zero_nonfinite),
        stream,
        {"denoiser": adam},
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        ema=(fs.PowerFunction(0.10), fs.PowerFunction(0.05)),
        seed=seed,
        snapshots=max(1, until // SNAPSHOT[kind]),
        checkpoint_seconds=600.0,
        name=f"edm2-{row}",
        card=fs.Card(method=f"EDM2{about}"),
    )
