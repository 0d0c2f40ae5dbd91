"""Your own data sets of a few hundred to a few ten thousand images."""

from __future__ import annotations

from dataclasses import dataclass

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Parts
from fewstep.recipes.edm import Teacher

NETWORKS = {
    16: {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 2, "attn_resolutions": (8,)},
    32: {"model_channels": 64, "channel_mult": (2, 2, 2), "num_blocks": 3, "attn_resolutions": (16,)},
    64: {"model_channels": 64, "channel_mult": (1, 2, 2, 2), "num_blocks": 3, "attn_resolutions": (16,)},
    128: {"model_channels": 64, "channel_mult": (1, 1, 2, 2, 2), "num_blocks": 2, "attn_resolutions": (16,)},
}
"""DDPM++ for images up to so many pixels a side: 3, 13, 12 and 9 million parameters."""


@dataclass(frozen=True, kw_only=True)
class Small(Teacher):
    """EDM for your own images. Preconditioning and noise levels follow the measured standard deviation of the data, the
    network (DDPM++) follows the image size, and dropout the number of images. Two power-function EMAs allow fewstep ema."""

    data: str = REQUIRED
    until: int = 10_000_000
    augment: float = 0.15
    """Probability of each augmentation (mirroring always has 1/2); 0 turns augmentation off."""
    lr: float = 4e-4
    """Peak learning rate of Adam; warm-up over the first 5 % of training, decay to 0 over the last 20 %."""

    def parts(self) -> Parts:
        import torch

        from fewstep.core.precondition import EDM
        from fewstep.data.augment import AugmentPipe
        from fewstep.data.stats import stats
        from fewstep.nets.song import SongConfig, SongUNet

        images = fs.images(self.data)
        channels, height, width = images.shape
        larger = [size for size in NETWORKS if size >= width]
        if height != width or not larger:
            raise ValueError(
                f"{self.data}: this recipe is for square images up to {max(NETWORKS)} pixels a side; got {width}x{height}. "
                "First: fewstep data pack SOURCE OUT.zip --resolution 64x64 --transform center-crop"
            )
        proposal = stats(images)["proposal"]
        pipe = AugmentPipe(self.augment) if self.augment else None
        stream = fs.ImageStream(images, seed=self.seed)
        target, about = self.target(stream, pipe)
        torch.manual_seed(self.seed)
        net = SongUNet(
            SongConfig(
                width,
                in_channels=channels,
                out_channels=channels,
                label_dim=images.num_classes if self.cond else 0,
                augment_dim=pipe.label_dim if pipe else 0,
                dropout=0.25 if len(images) < 20_000 else 0.1,
                **NETWORKS[min(larger)],
            )
        )
        denoiser = fs.Denoiser(net, precondition=EDM(proposal["sigma_data"]), dtype=self.torch_dtype())
        objective = fs.DenoisingLoss(fs.LogNormal(**proposal["noise"]), target=target, augment=pipe)
        until = self.until
        adam = fs.Adam(self.lr, rampup=until / 20, cooldown=until / 5, until=until, loss_scale=self.loss_scale())
        return Parts(
            fs.Pretraining(denoiser, objective),
            stream,
            {"denoiser": adam},
            ema=(fs.PowerFunction(0.10), fs.PowerFunction(0.05)),
            snapshots=20,
            card=fs.Card(method=f"EDM{about}"),
        )
