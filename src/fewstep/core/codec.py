"""What stands between stored images and the numbers that a denoiser sees; pixels are the common case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """Converts images (..., C, H, W) uint8 to the units of a denoiser and back."""

    def encode(self, image: Tensor, /) -> Tensor: ...
    def decode(self, x: Tensor, /) -> Tensor: ...
    def prepare(self, device: torch.device, /) -> None:
        """Load what the codec needs on a device, so that anything missing is reported before images are made."""
        ...


@dataclass(frozen=True)
class Pixels:
    """Pixels in [-1, 1]; `decode` inverts `encode` exactly, and truncates as EDM does: 0.5 is its rounding."""

    def encode(self, image: Tensor) -> Tensor:
        """uint8 (..., C, H, W) -> float32: image / 127.5 - 1."""
        if image.dtype != torch.uint8:
            raise ValueError(f"pixels are uint8 in [0, 255]; got {image.dtype}")
        return image.float() / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """float (..., C, H, W) -> uint8: trunc(clip(127.5 x + 128, 0, 255))."""
        return (x * 127.5 + 128).clip(0, 255).to(torch.uint8)

    def prepare(self, device: torch.device) -> None:
        """Pixels need nothing."""
