"""Feature extractors: uint8 images (B, C, H, W) -> features (B, D) float64, with a name and a fingerprint for protocols."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fewstep.data.codec import Pixels as PixelCodec


class Extractor(Protocol):
    name: str
    sha256: str | None

    def __call__(self, images: Tensor, /) -> Tensor: ...


class Pixels:
    """The pixels themselves in [-1, 1], flattened: for tiny images, where no network is needed."""

    name = "pixels"
    sha256 = None

    def __call__(self, images: Tensor) -> Tensor:
        return PixelCodec().encode(images).flatten(1).to(torch.float64)
