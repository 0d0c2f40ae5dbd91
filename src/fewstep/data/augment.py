"""Augmentation that does not leak into generated images: random transforms, of which labels inform the network.

The pipe of StyleGAN2-ADA (Karras et al., 2020, App. B) with the labels of EDM (Karras et al., 2022, App. F.2): the
network learns the images as they are under the label zero, and uses the transformed ones to learn from less data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core.method import Batch
from fewstep.core.noise import expand

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""The orthonormal low-pass of the wavelet sym6: halving the resolution with it undoes doubling exactly."""

FIXED_POINT = -0.25
"""The fixed point of rotation, scaling and stretching: pixels to the right of and below the centre of the image.

It is not intended: EDM's resampling misses the centre by half a pixel of the doubled grid. The published networks have
learned their labels from images that were transformed about this point.
"""


@dataclass(frozen=True)
class AugmentPipe:
    """Random transforms of images, with labels that tell the network which were applied.

    Each operation is applied to each image with probability `p` times its own number, in the order below. For each operation
    whose number is positive the label has the columns in parentheses, which are zero where it was not applied. z is a standard
    normal number. The defaults are EDM's; their label has 9 columns.

    `xflip` to `translate_int` are exact on pixels. `scale` to `translate_frac` are geometric, about `FIXED_POINT`; they are
    composed, and the image is resampled once. The others change colours; grey images get the effect on grey: none of hue and
    saturation, the negative for lumaflip.

    Args:
        p: probability of each operation, from 0 to 1; a tensor () where it is adapted during training.
        xflip: mirror left to right, by a fair coin (1 column: the coin).
        yflip: mirror top to bottom, by a fair coin (1: the coin).
        rotate_int: quarter turns (2: mirrored left to right, top to bottom; the image is transposed if one of them is).
        translate_int: shift to the right and upwards by up to 1/8 of the image, continued by its mirror image (2: the shift
            divided by 1/8 of width, height).
        scale: by 2^(0.2 z) (1: z).
        rotate_frac: by theta in (-pi, pi) (2: cos theta - 1, sin theta).
        aniso: stretch by 2^(0.2 z) along an angle r, and by the inverse across; r is random half of the time, else 0
            (2: z cos r, z sin r).
        translate_frac: to the right and downwards by z/8 of width and height (2: z of each).
        brightness: + 0.2 z (1: z).
        contrast: times 2^(0.5 z) (1: z).
        lumaflip: reflection of the luma axis, by a fair coin (1: the coin).
        hue: rotation about the luma axis by theta in (-pi, pi) (2: cos theta - 1, sin theta).
        saturation: colourfulness times 2^z (1: z).

    Raises:
        ValueError: p is not a probability.
    """

    p: float | Tensor = 0.12
    xflip: float = 1e8
    yflip: float = 1.0
    rotate_int: float = 0.0
    translate_int: float = 0.0
    scale: float = 1.0
    rotate_frac: float = 1.0
    aniso: float = 1.0
    translate_frac: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    lumaflip: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        # a tensor is a buffer of ADA, and would have to be waited for
        if not isinstance(self.p, Tensor) and not 0 <= self.p <= 1:
            raise ValueError(f"p is a probability, from 0 to 1; got {self.p}")

    @property
    def label_dim(self) -> int:
        """The number of columns of the label."""
        return sum(width for name, width in WIDTHS.items() if getattr(self, name) > 0)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its images transformed, and labels (B, label_dim) of how; a function of torch's random stream."""
        x, labels = self.pixels(batch.image)
        matrix, more = self.geometry(x)
        x, labels = resample(x, matrix) if more else x, labels + more
        matrix, more = self.colours(x)
        x, labels = recolour(x, matrix) if more else x, labels + more
        return Batch(x, batch.label, torch.cat(labels, dim=1) if labels else x.new_zeros(len(x), 0))

    def exact(self, batch: Batch) -> Batch:
        """The batch with the pixel-exact operations applied alone; the other columns of the label are zero."""
        x, labels = self.pixels(batch.image)
        done = sum(column.shape[1] for column in labels)
        return Batch(x, batch.label, torch.cat([*labels, x.new_zeros(len(x), self.label_dim - done)], dim=1))

    def on(self, name: str, values: Tensor) -> Tensor:
        """The magnitudes (B, ...) of an operation, zero for the images that it leaves alone."""
        chosen = torch.rand(len(values), device=values.device) < getattr(self, name) * self.p
        return values * chosen.reshape(-1, *[1] * (values.ndim - 1))

    def pixels(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The images after the pixel-exact operations, and their columns."""
        n, labels = len(x), []
        for name, dim in (("xflip", 3), ("yflip", 2)):
            if getattr(self, name) > 0:
                coin = self.on(name, torch.randint(2, (n,), device=x.device))
                x, labels = mirror(x, coin, dim), [*labels, coin[:, None].to(x.dtype)]
        if self.rotate_int > 0:
            turns = self.on("rotate_int", torch.randint(4, (n,), device=x.device))
            across, down = (turns == 1) | (turns == 2), (turns == 2) | (turns == 3)
            x = mirror(mirror(x, across, 3), down, 2)
            x = torch.where(expand(across ^ down, x) > 0, x.mT, x)
            labels = [*labels, torch.stack([across, down], dim=1).to(x.dtype)]
        if self.translate_int > 0:
            size = constant((x.shape[3], x.shape[2]), x.device) / 8
            shift = self.on("translate_int", (size * (2 * torch.rand(n, 2, device=x.device) - 1)).round())
            # to the right and upwards, as EDM counts it
            x = roll_mirrored(roll_mirrored(x, shift[:, 0], 3), -shift[:, 1], 2)
            labels = [*labels, (shift / size).to(x.dtype)]
        return x, labels

    def geometry(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Maps (B, 3, 3) from pixels of the result to pixels of `x`, as `resample` takes them, and the columns."""
        n, labels = len(x), []
        matrix = torch.eye(3, device=x.device).expand(n, 3, 3)
        if self.scale > 0:
            z = self.on("scale", torch.randn(n, device=x.device))
            matrix = matrix @ stretch(-0.2 * z, -0.2 * z)
            labels += [z[:, None]]
        if self.rotate_frac > 0:
            theta = self.on("rotate_frac", angle(x))
            matrix = matrix @ rotation(theta)
            labels += [torch.stack([theta.cos() - 1, theta.sin()], dim=1)]
        if self.aniso > 0:
            z, r = self.on("aniso", torch.randn(n, device=x.device)), stretch_angle(x)
            matrix = matrix @ rotation(-r) @ stretch(-0.2 * z, 0.2 * z) @ rotation(r)
            labels += [torch.stack([z * r.cos(), z * r.sin()], dim=1)]
        if self.translate_frac > 0:
            z = self.on("translate_frac", torch.randn(n, 2, device=x.device))
            matrix = matrix @ shift(-z * constant((x.shape[3], x.shape[2]), x.device) / 8)
            labels += [z]
        return matrix, [column.to(x.dtype) for column in labels]

    def colours(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Affine maps (B, 4, 4) of RGB and the columns; each operation multiplies from the left."""
        n, labels = len(x), []
        eye = torch.eye(4, device=x.device)
        matrix = eye.expand(n, 4, 4)
        luma = constant((1.0, 1.0, 1.0, 0.0), x.device) / math.sqrt(3)
        grey = luma.outer(luma)
        if self.brightness > 0:
            z = self.on("brightness", torch.randn(n, device=x.device))
            offset = torch.zeros(4, 4, device=x.device)
            offset[:3, 3] = 0.2
            matrix = (eye + z[:, None, None] * offset) @ matrix
            labels += [z[:, None]]
        if self.contrast > 0:
            z = self.on("contrast", torch.randn(n, device=x.device))
            factors = torch.stack([2 ** (0.5 * z)] * 3 + [torch.ones_like(z)], dim=1)
            matrix = factors.diag_embed() @ matrix
            labels += [z[:, None]]
        if self.lumaflip > 0:
            coin = self.on("lumaflip", torch.randint(2, (n,), device=x.device)).float()
            matrix = (eye - 2 * coin[:, None, None] * grey) @ matrix
            labels += [coin[:, None]]
        if self.hue > 0:
            theta = self.on("hue", angle(x))
            matrix = luma_rotation(theta) @ matrix
            labels += [torch.stack([theta.cos() - 1, theta.sin()], dim=1)]
        if self.saturation > 0:
            z = self.on("saturation", torch.randn(n, device=x.device))
            matrix = (grey + (eye - grey) * 2 ** z[:, None, None]) @ matrix
            labels += [z[:, None]]
        return matrix, [column.to(x.dtype) for column in labels]


WIDTHS = {
    "xflip": 1,
    "yflip": 1,
    "rotate_int": 2,
    "translate_int": 2,
    "scale": 1,
    "rotate_frac": 2,
    "aniso": 2,
    "translate_frac": 2,
    "brightness": 1,
    "contrast": 1,
    "lumaflip": 1,
    "hue": 2,
    "saturation": 1,
}
"""Columns of the label for each operation."""


def angle(x: Tensor) -> Tensor:
    """Uniform angles (B,)."""
    return math.pi * (2 * torch.rand(len(x), device=x.device) - 1)


def stretch_angle(x: Tensor) -> Tensor:
    """Angles (B,), uniform for half of the images and 0 for the others."""
    return angle(x) * (torch.rand(len(x), device=x.device) < 0.5)


def mirror(x: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """The images of `chosen` (B,) mirrored along `dim`."""
    return torch.where(chosen.bool()[:, None, None, None], x.flip(dim), x)


def roll_mirrored(x: Tensor, shift: Tensor, dim: int) -> Tensor:
    """Images moved by whole pixels (B,) along `dim`, and continued beyond their edge by their mirror image."""
    size = x.shape[dim]
    index = torch.arange(size, device=x.device) - shift.long()[:, None]
    index = (size - 1 - (size - 1 - index).abs()).abs()
    index = index[:, None, None, :] if dim == 3 else index[:, None, :, None]
    return x.gather(dim, index.expand(x.shape))


def affine(rows: list[list[Tensor]]) -> Tensor:
    """A batch of matrices (B, n, n) from their entries (B,)."""
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def stretch(x: Tensor, y: Tensor) -> Tensor:
    """diag(2^x, 2^y, 1)."""
    return torch.stack([2**x, 2**y, torch.ones_like(x)], dim=1).diag_embed()


def rotation(theta: Tensor) -> Tensor:
    one, zero, cos, sin = torch.ones_like(theta), torch.zeros_like(theta), theta.cos(), theta.sin()
    return affine([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])


def shift(by: Tensor) -> Tensor:
    """By (B, 2)."""
    one, zero = torch.ones(len(by), device=by.device), torch.zeros(len(by), device=by.device)
    return affine([[one, zero, by[:, 0]], [zero, one, by[:, 1]], [zero, zero, one]])


def luma_rotation(theta: Tensor) -> Tensor:
    """Rotations of RGB about (1, 1, 1) / sqrt 3 (B, 4, 4), by Rodrigues' formula."""
    one, zero = torch.ones_like(theta), torch.zeros_like(theta)
    cos, sin = theta.cos(), theta.sin() / math.sqrt(3)
    same, rest = (1 + 2 * cos) / 3, (1 - cos) / 3
    return affine(
        [
            [same, rest - sin, rest + sin, zero],
            [rest + sin, same, rest - sin, zero],
            [rest - sin, rest + sin, same, zero],
            [zero, zero, zero, one],
        ]
    )


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept may serve where there are gradients
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers (n,), copied to a device once: each copy waits for it. Nothing writes into them."""
    return torch.tensor(values, device=device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def doubling(size: int, device: torch.device) -> Tensor:
    """From a line of pixels to one period of its infinite mirror image at twice the resolution: (4 (size - 1), size)."""
    period = 2 * (size - 1)
    place = torch.arange(period)[:, None]
    fine = (2 * place + torch.arange(len(SYM6))) % (2 * period)
    source = torch.where(place < size, place, period - place).expand(fine.shape)
    result = torch.zeros(2 * period, size).index_put_((fine, source), torch.tensor(SYM6), accumulate=True)
    return result.to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def halving(size: int, device: torch.device) -> Tensor:
    """From a line of twice the resolution, as long as the filter needs it, to pixels: (size, 2 size + 10)."""
    place = torch.arange(size)[:, None]
    fine = 2 * place + torch.arange(len(SYM6))
    result = torch.zeros(size, 2 * size + len(SYM6) - 2)
    return result.scatter_(1, fine, torch.tensor(SYM6).expand(fine.shape)).to(device)


def resample(x: Tensor, matrix: Tensor) -> Tensor:
    """Images resampled by affine maps.

    The images are doubled in resolution, sampled bilinearly, and halved again; the identity changes nothing but rounding.
    Beyond its edge an image is continued by its mirror image without end, so that no result depends on the rest of the batch.
    (EDM pads by at most one mirror image and continues with zeros.) Computed in float32 at least.

    Args:
        x: images (B, C, H, W).
        matrix: maps (B, 3, 3) from pixels of the result to pixels of `x`, both relative to `FIXED_POINT`.

    Returns:
        Images (B, C, H, W) of the type of `x`.

    Raises:
        ValueError: a side has less than 2 pixels.
    """
    height, width = x.shape[2:]
    if min(height, width) < 2:
        raise ValueError(f"resampling needs images of at least 2 x 2 pixels; got {width} x {height}")
    image = x.to(torch.promote_types(x.dtype, torch.float32))
    fine = doubling(height, x.device).to(image) @ image @ doubling(width, x.device).to(image).T
    fine = F.pad(fine, (0, 1, 0, 1), mode="circular")
    # pixel i lies at 2 i + middle of the fine grid
    middle, more = (len(SYM6) - 1) / 2, len(SYM6) - 2
    down, across = (torch.arange(2 * size + more, device=x.device) for size in (height, width))
    u = (across - middle - width + 1) / 2 - FIXED_POINT
    v = (down - middle - height + 1) / 2 - FIXED_POINT
    shape = (len(v), len(u))
    grid = torch.stack([u.expand(shape), v[:, None].expand(shape), torch.ones(shape, device=x.device)])
    place = torch.einsum("bij,jhw->bhwi", matrix[:, :2], grid) + FIXED_POINT
    size = constant((width, height), x.device)
    period = 4 * (size - 1)
    place = (2 * place + size - 1 + middle) % period
    sampled = F.grid_sample(fine, (2 * place / period - 1).to(image), mode="bilinear", align_corners=True)
    return (halving(height, x.device).to(image) @ sampled @ halving(width, x.device).to(image).T).to(x.dtype)


def recolour(x: Tensor, matrix: Tensor) -> Tensor:
    """Affine maps (B, 4, 4) of RGB; grey images get their effect on grey."""
    if x.shape[1] not in (1, 3):
        raise ValueError(f"colours are changed in grey or RGB images; got {x.shape[1]} channels")
    matrix = matrix.to(x.dtype)[:, :3]
    if x.shape[1] == 1:
        mean = matrix.mean(1)
        return x * expand(mean[:, :3].sum(1), x) + expand(mean[:, 3], x)
    return torch.einsum("bij,bjhw->bihw", matrix[..., :3], x) + matrix[..., 3, None, None]
