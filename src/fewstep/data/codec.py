"""Between stored images and the numbers that a denoiser sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
