"""Data sets of one's own, of a few hundred to a few ten thousand images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fewstep as fs
from fewstep.recipes import _edm, _options
from fewstep.recipes._edm import Dtype, loss_scale
from fewstep.recipes._options import extended

NETWORKS = {
    16: {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 2, "attn_resolutions": (8,)},
    32: {"model_channels": 64, "channel_mult": (2, 2, 2), "num_blocks": 3, "attn_resolutions": (16,)},
    64: {"model_channels": 64, "channel_mult": (1, 2, 2, 2), "num_blocks": 3, "attn_resolutions": (16,)},
    128: {"model_channels": 64, "channel_mult": (1, 1, 2, 2, 2), "num_blocks": 2, "attn_resolutions": (16,)},
}
"""DDPM++ for images up to so many pixels a side: 3, 13, 12 and 9 million parameters."""


@extended(_options.stable_target)
def teacher(
    data: Path,
    *,
    cond: bool = True,
    augment: float = 0.15,
    lr: float = 4e-4,
    batch_size: int = 128,
    micro_batch: int | None = None,
    until: int = 10_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
    **more: Any,
) -> fs.Run:
    """A first teacher for your own images, up to 128x128 pixels.

    What depends on the data is measured: the deviation of the pixels, by which network and noise levels are scaled, and
    the size, which picks a DDPM++. Few images get more dropout. Two averages are kept, so that the best can be found
    afterwards.

    Args:
        data: image zip or folder, square images of one size.
        cond: use the classes, if there are any.
        augment: probability of each augmentation but mirroring, which is a fair coin; 0 for none.
        lr: learning rate of Adam, after a warm-up of one twentieth of the training; it falls to 0 in the last fifth.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; float16 comes with a dynamic loss
            scale; weights stay in float32.
        seed: of weights, data order and noise.
    """
    import torch

    from fewstep.core.precondition import EDM
    from fewstep.data.augment import AugmentPipe
    from fewstep.data.prepare import stats
    from fewstep.nets.song import SongConfig, SongUNet
    from fewstep.runtime.precision import chosen_dtype

    images = fs.images(data)
    channels, height, width = images.shape
    larger = [size for size in NETWORKS if size >= width]
    if height != width or not larger:
        raise ValueError(
            f"{data}: this recipe is for square images up to {max(NETWORKS)} pixels a side; got {width}x{height}. First: "
            "fewstep data pack SOURCE OUT.zip --resolution 64x64 --transform center-crop"
        )
    proposal = stats(images)["proposal"]
    pipe = AugmentPipe(augment) if augment else None
    stream = fs.ImageStream(images, seed=seed)
    target, about = _edm.target(stream, more["stf"], more["references"], pipe)
    torch.manual_seed(seed)
    net = SongUNet(
        SongConfig(
            width,
            in_channels=channels,
            out_channels=channels,
            label_dim=images.num_classes if cond else 0,
            augment_dim=pipe.label_dim if pipe else 0,
            dropout=0.25 if len(images) < 20_000 else 0.1,
            **NETWORKS[min(larger)],
        )
    )
    denoiser = fs.Denoiser(net, precondition=EDM(proposal["sigma_data"]), dtype=chosen_dtype(dtype))
    objective = fs.DenoisingLoss(fs.LogNormal(**proposal["noise"]), target=target, augment=pipe)
    return fs.Run(
        fs.Pretraining(denoiser, objective),
        stream,
        {"denoiser": fs.Adam(lr, rampup=until / 20, cooldown=until / 5, until=until, loss_scale=loss_scale(dtype))},
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        ema=(fs.PowerFunction(0.10), fs.PowerFunction(0.05)),
        seed=seed,
        snapshots=20,
        checkpoint_seconds=600.0,
        name="small-teacher",
        card=fs.Card(method=f"EDM{about}"),
    )
