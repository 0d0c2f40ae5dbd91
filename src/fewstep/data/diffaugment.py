"""Augmentation of what a discriminator sees, real and generated alike, so that it learns from little data.

Everything here is differentiable in the images, for the generator learns through it, and a function of torch's random
stream.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core.method import Batch
from fewstep.core.noise import expand
from fewstep.data.augment import AugmentPipe


@dataclass(frozen=True)
class DiffAugment:
    """Colour, translation and cutout of every image (Zhao et al., 2020, arXiv 2006.10738); zero leaves an operation out.

    brightness: adds a number from +-brightness. saturation: distances to the mean of the channels are multiplied by
    1 +- saturation. contrast: distances to the mean of the image by 1 +- contrast. translation: by up to this share of
    the side, in whole pixels, zeros beyond the edge. cutout: a square of this share of the side becomes zero; its centre
    is any pixel.
    """

    brightness: float = 0.5
    saturation: float = 1.0
    contrast: float = 0.5
    translation: float = 0.125
    cutout: float = 0.2

    def __call__(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) for images of the same shape."""
        if self.brightness:
            x = x + expand(around(x, self.brightness), x)
        if self.saturation:
            mean = x.mean(1, keepdim=True)
            x = mean + (x - mean) * expand(1 + around(x, self.saturation), x)
        if self.contrast:
            mean = x.mean((1, 2, 3), keepdim=True)
            x = mean + (x - mean) * expand(1 + around(x, self.contrast), x)
        if self.translation:
            x = translate(x, self.translation)
        if self.cutout:
            x = cut(x, self.cutout)
        return x


def around(x: Tensor, reach: float) -> Tensor:
    """Uniform numbers (B,) from -reach to reach."""
    return reach * (2 * torch.rand(len(x), device=x.device) - 1)


def places(x: Tensor, dim: int) -> Tensor:
    """The pixels along `dim`, in a shape that broadcasts against `x`: (1, 1, H, 1) or (1, 1, 1, W)."""
    shape = [1, 1, 1, 1]
    shape[dim] = -1
    return torch.arange(x.shape[dim], device=x.device).view(shape)


def translate(x: Tensor, share: float) -> Tensor:
    """Images moved by whole pixels, up to `share` of each side, with zeros beyond the edge."""
    for dim in (2, 3):
        reach = int(share * x.shape[dim] + 0.5)
        source = places(x, dim) - torch.randint(-reach, reach + 1, (len(x), 1, 1, 1), device=x.device)
        inside = (source >= 0) & (source < x.shape[dim])
        x = x.gather(dim, source.clamp(0, x.shape[dim] - 1).expand(x.shape)) * inside
    return x


def cut(x: Tensor, share: float) -> Tensor:
    """Images with a square of `share` of each side set to zero, cut off at the edges."""
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    for dim in (2, 3):
        size = int(share * x.shape[dim] + 0.5)
        centre = torch.randint(x.shape[dim] + 1 - size % 2, (len(x), 1, 1, 1), device=x.device)
        offset = places(x, dim) - (centre - size // 2)
        inside = inside & (offset >= 0) & (offset < size)
    return x * ~inside


BGC = AugmentPipe(
    p=0.0, xflip=1, yflip=0, rotate_int=1, translate_int=1, brightness=1, contrast=1, lumaflip=1, hue=1, saturation=1
)
"""The operations that StyleGAN2-ADA found best: pixel-exact, geometric, colour."""

BG = dataclasses.replace(BGC, brightness=0, contrast=0, lumaflip=0, hue=0, saturation=0)
"""The same without colours."""


class ADA(nn.Module):
    """Adaptive augmentation (Karras et al., 2020, arXiv 2006.06676, Sec. 3.2): a pipe whose probability p follows overfitting.

    The sign of the discriminator's logits on real images, in the mean, is 0 where it cannot tell and 1 where it has
    learnt them by heart. Every `interval` steps p moves by interval * images / `speed` towards more augmentation if the
    mean sign lies above `target`, else towards less, within [0, 1].

    pipe: the operations; its own p is not used. target: of the mean sign. speed: images in which p can go from 0 to 1.
    The probability and the figures since its last move are buffers, so a resumed run goes on exactly.
    """

    p: Tensor
    sign: Tensor
    steps: Tensor

    def __init__(
        self, pipe: AugmentPipe = BGC, *, target: float = 0.6, interval: int = 4, speed: float = 500_000
    ) -> None:
        super().__init__()
        self.pipe, self.target, self.interval, self.speed = pipe, target, interval, speed
        for name in ("p", "sign", "steps"):
            self.register_buffer(name, torch.zeros(()))

    def extra_repr(self) -> str:
        return f"{self.pipe}, target={self.target:g}, interval={self.interval}, speed={self.speed:g}"

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) for images of the same shape."""
        return dataclasses.replace(self.pipe, p=self.p)(Batch(x)).image

    @torch.no_grad()
    def follow(self, sign: Tensor, images: int) -> None:
        """Take note of the mean sign (), after a step of `images` images; p moves when it is due."""
        self.sign += sign / self.interval
        self.steps += 1
        due = self.steps >= self.interval
        stride = self.interval * images / self.speed
        moved = (self.p + stride * (self.sign - self.target).sign()).clamp(0, 1)
        self.p.copy_(torch.where(due, moved, self.p))
        for buffer in (self.sign, self.steps):
            buffer.mul_(~due)
