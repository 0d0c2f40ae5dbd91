"""EDM2's teachers, on pixels and on latents, and their table of sizes (Karras et al., 2024, Table 6)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import fewstep as fs
from fewstep.recipes.base import REQUIRED, Fixed, Parts, Row
from fewstep.recipes.edm import Teacher, open_images

if TYPE_CHECKING:
    from fewstep.data.latents import LatentStream

MI = 2**20
Size = Literal["xxs", "xs", "s", "m", "l", "xl", "xxl"]


class SizeRow(NamedTuple):
    """until: training images. lr: reference learning rate."""

    until: int
    lr: float


SIZES = {
    "img512-xxs": SizeRow(2048 * MI, 0.0170),
    "img512-xs": SizeRow(2048 * MI, 0.0120),
    "img512-s": SizeRow(2048 * MI, 0.0100),
    "img512-m": SizeRow(2048 * MI, 0.0090),
    "img512-l": SizeRow(1792 * MI, 0.0080),
    "img512-xl": SizeRow(1280 * MI, 0.0070),
    "img512-xxl": SizeRow(896 * MI, 0.0065),
    "img64-xs": SizeRow(1024 * MI, 0.0120),
    "img64-s": SizeRow(1024 * MI, 0.0100),
    "img64-m": SizeRow(2048 * MI, 0.0090),
    "img64-l": SizeRow(1024 * MI, 0.0080),
    "img64-xl": SizeRow(640 * MI, 0.0070),
    "ffhq256-xs": SizeRow(64 * MI, 0.0120),
    "ffhq256-s": SizeRow(64 * MI, 0.0100),
}
"""The network of a row, with its dropout, is `nets.sizes.edm2(size)`. FFHQ: the teachers of NCVSD (Peng et al., 2025)."""


@dataclass(frozen=True, kw_only=True)
class EDM2(Teacher):
    """EDM2: weights of fixed length, inverse-square-root learning rate, learned loss weighting, and two power-function EMAs
    for post-hoc reconstruction."""

    data: str = REQUIRED
    batch_size: int = REQUIRED
    cond: bool = REQUIRED
    until: int | None = None
    """Total number of training images; if unset, the published number for the size."""
    size: Size = REQUIRED
    """Network size."""
    channels: int | None = None
    """Base number of channels; if unset, that of the size."""
    dropout: float | None = None
    """Dropout probability; if unset, that of the size."""
    lr: float | None = None
    """Reference learning rate; if unset, that of the size."""
    p_mean: float = REQUIRED
    """Mean of log(sigma) in training."""
    p_std: float = REQUIRED
    """Standard deviation of log(sigma) in training."""
    decay: float = REQUIRED
    """Number of batches after which the learning rate decays."""
    rampup: Fixed[int] = REQUIRED
    """Images over which the learning rate rises."""
    snapshot: Fixed[int] = REQUIRED
    """Images between two snapshots."""
    preset: Fixed[str] = REQUIRED
    """The rows of `SIZES` for the data set."""
    shape: Fixed[tuple[int, int, int]] = REQUIRED
    """Shape of an image, or of a latent."""

    def resolved(self) -> Self:
        known = {key.partition("-")[2]: row for key, row in SIZES.items() if key.startswith(f"{self.preset}-")}
        if self.size not in known:
            raise ValueError(f"--size must be one of {', '.join(known)} for this data set; got {self.size!r}")
        row = known[self.size]
        until, lr = (row.until if self.until is None else self.until), (row.lr if self.lr is None else self.lr)
        return dataclasses.replace(self, until=until, lr=lr)

    def parts(self) -> Parts:
        from fewstep.core.codec import Pixels
        from fewstep.core.method import zero_nonfinite
        from fewstep.data.latents import LatentStream
        from fewstep.nets import sizes
        from fewstep.nets.edm2 import EDM2UNet, Uncertainty

        stream = self.stream()
        images = stream.data
        if self.cond and images.labels is None:
            raise ValueError(f"{images.name} has no classes; train without them: --no-cond")
        config = sizes.edm2(
            self.size,
            img_resolution=images.shape[1],
            img_channels=images.shape[0],
            label_dim=images.num_classes if self.cond else 0,
        )
        changes = {"model_channels": self.channels, "dropout": self.dropout}
        net = EDM2UNet(dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None}))
        target, about = self.target(stream)
        codec = stream.codec if isinstance(stream, LatentStream) else Pixels()
        denoiser = fs.Denoiser(net, dtype=self.torch_dtype(), uncertainty=Uncertainty(), codec=codec)
        assert self.lr is not None
        adam = fs.Adam(
            self.lr,
            betas=(0.9, 0.99),
            rampup=self.rampup,
            reference=self.decay * self.batch_size,
            loss_scale=self.loss_scale(),
        )
        objective = fs.DenoisingLoss(fs.LogNormal(self.p_mean, self.p_std), target=target)
        return Parts(
            fs.Pretraining(denoiser, objective, clean=zero_nonfinite),
            stream,
            {"denoiser": adam},
            ema=(fs.PowerFunction(0.10), fs.PowerFunction(0.05)),
            snapshots=self.snapshots(self.snapshot),
            card=fs.Card(method=f"EDM2{about}"),
        )

    def stream(self) -> fs.ImageStream | LatentStream:
        """The training data, if it has the shape that the recipe is for."""
        from fewstep.data.codec import StabilityVAE
        from fewstep.data.latents import LatentData, LatentStream

        channels, resolution, _ = self.shape
        if channels == 3:
            return fs.ImageStream(open_images(self.data, resolution, channels, cond=self.cond), seed=self.seed)
        latents = LatentData(self.data)
        if latents.shape != self.shape:
            expected = " x ".join(map(str, self.shape))
            raise ValueError(f"{self.data}: this recipe needs latents of shape {expected}; got {latents.shape}")
        return LatentStream(latents, StabilityVAE(), seed=self.seed)


ROWS = {
    "imagenet64:edm2": Row(
        EDM2(
            name="edm2-img64-{size}",
            preset="img64",
            shape=(3, 64, 64),
            cond=True,
            size="s",
            batch_size=2048,
            p_mean=-0.8,
            p_std=1.6,
            decay=35_000,
            rampup=10_000_000,
            snapshot=8 * MI,
        ),
        "EDM2 on ImageNet at 64x64, in its sizes (Karras et al., 2024).",
        "FID with 63 network evaluations (paper): 1.58 (s), 1.43 (m), 1.33 (l), 1.33 (xl).",
    ),
    "imagenet512:teacher": Row(
        EDM2(
            name="edm2-img512-{size}",
            preset="img512",
            shape=(4, 64, 64),
            cond=True,
            size="s",
            batch_size=2048,
            p_mean=-0.4,
            p_std=1.0,
            decay=70_000,
            rampup=10_000_000,
            snapshot=8 * MI,
        ),
        "EDM2 on latents of ImageNet at 512x512, in its sizes (Karras et al., 2024).",
        "FID with 63 network evaluations (paper): 3.53 (xs), 2.56 (s), 2.25 (m), 2.06 (l), 1.96 (xl), 1.91 (xxl); with "
        "guidance by a network without classes (--no-cond) 2.91, 2.23, 2.01, 1.88, 1.85, 1.81.",
    ),
    "ffhq256:teacher": Row(
        EDM2(
            name="edm2-ffhq256-{size}",
            preset="ffhq256",
            shape=(3, 256, 256),
            cond=False,
            size="xs",
            batch_size=128,
            p_mean=-0.8,
            p_std=1.6,
            decay=35_000,
            rampup=1_000_000,
            snapshot=MI,
        ),
        "EDM2 on the pixels of FFHQ at 256x256: the teacher of ffhq256:ncvsd (Peng et al., 2025); no FID is published.",
        "For images as fewstep data pack --transform center-crop-dhariwal --resolution 256x256 makes them.",
    ),
}
