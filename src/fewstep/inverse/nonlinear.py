"""Operators that are not linear: phase retrieval, quantization, JPEG."""

# ruff: noqa: N802 - A, U, V are the names of the field

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.inverse.operator import Operator

# Recommendation ITU-T T.81, Annex K, table K.1: steps of the luminance at quality 50.
LUMINANCE = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""


class PhaseRetrieval(Operator):
    """Phase retrieval: the moduli of the Fourier transform of the zero-padded image (x + 1) / 2, orthonormal and centred.

    A sign, a shift and a reflection of the image may remain unknown: take several samples.

    Args:
        shape: shape of the images (C, H, W).
        oversampling: r adds r / 8 of the size on each side, so that 4 doubles it (NCVSD's).

    Raises:
        ValueError: the oversampling is negative.

    Example:
        >>> operator = fs.inverse.PhaseRetrieval((1, 8, 8))
        >>> y = operator(x0)
    """

    halves: Tensor

    def __init__(self, shape: tuple[int, int, int], oversampling: float = 4.0) -> None:
        super().__init__(shape)
        if not oversampling >= 0:
            raise ValueError(f"the oversampling must not be negative; got {oversampling}")
        self.pad = tuple(int(oversampling / 8 * n) for n in shape[1:])
        self.size = [n + 2 * p for n, p in zip(shape[1:], self.pad, strict=True)]
        place = torch.fft.ifftshift(torch.arange(self.size[0] * self.size[1]).view(self.size))
        both = torch.stack([place, place.flip(0, 1).roll((1, 1), (0, 1))])  # of a frequency, and of the opposite one
        self.register_buffer("halves", both[..., : self.size[1] // 2 + 1].flatten(1), persistent=False)

    def A(self, x: Tensor) -> Tensor:
        h, w = self.pad
        padded = F.pad((x + 1) / 2, (w, w, h, h))
        return torch.fft.fftshift(torch.fft.fft2(padded, norm="ortho"), dim=(-2, -1)).abs()

    def gradient(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the gradient, computed by transforms of half a spectrum.

        The image is real, so that only the even part of `y` has a gradient. The moduli do not depend on where the image lies in
        its frame; here it is the corner.
        """
        (height, width), size = self.shape[1:], self.size
        even = y.flatten(2)[..., self.halves].mean(2).view(*y.shape[:2], size[0], -1)

        def gradient(u: Tensor) -> Tensor:
            pixels = (u + 1) / 2
            phases = torch.fft.rfft2(pixels, s=size).sgn()
            fitted = torch.fft.irfft2(even * phases, s=size, norm="ortho")
            return (pixels - fitted[..., :height, :width]) / 2

        return gradient

    def curvature(self, x: Tensor) -> Tensor:
        """1/4: |A(u) - y|^2 / 2 is |u + 1|^2 / 8 less y |A(u)|, which is convex for moduli y >= 0."""
        return torch.full_like(x[:, :1, :1, :1], 0.25)

    def view(self, y: Tensor) -> Tensor:
        """Return ln(1 + y), scaled to its largest value."""
        logs = y.clamp_min(0).log1p()
        return 2 * logs / logs.amax((1, 2, 3), keepdim=True).clamp_min(1e-12) - 1


def rounded(x: Tensor) -> Tensor:
    """Return the nearest integers, with the gradient of the identity, as rounding itself is flat."""
    return x + (x.detach().round() - x.detach())


class Quantization(Operator):
    """Quantization: pixels of [-1, 1] rounded to 2^bits levels, with the gradient of the identity.

    Args:
        shape: shape of the images (C, H, W).
        bits: number of bits, 1 to 16.

    Raises:
        ValueError: the number of bits is out of range.

    Example:
        >>> operator = fs.inverse.Quantization((1, 8, 8), bits=3)
        >>> y = operator(x0)
    """

    def __init__(self, shape: tuple[int, int, int], bits: int = 3) -> None:
        super().__init__(shape)
        if not 1 <= bits <= 16:
            raise ValueError(f"quantization takes 1 to 16 bits; got {bits}")
        self.steps = 2**bits - 1

    def A(self, x: Tensor) -> Tensor:
        return rounded((x + 1) / 2 * self.steps) / self.steps * 2 - 1


class JPEG(Operator):
    """The loss of JPEG, each channel as luminance: the cosine transform of 8x8 blocks, rounded to the steps of `quality`.

    Images whose sides are not multiples of 8 are continued by their edges.

    Args:
        shape: shape of the images (C, H, W).
        quality: 1 to 100, as in the reference implementation of JPEG.

    Raises:
        ValueError: the quality is out of range.

    Example:
        >>> operator = fs.inverse.JPEG((1, 8, 8), quality=30)
        >>> y = operator(x0)
    """

    table: Tensor
    cosines: Tensor

    def __init__(self, shape: tuple[int, int, int], quality: int = 30) -> None:
        super().__init__(shape)
        if not 1 <= quality <= 100:
            raise ValueError(f"the quality of JPEG is 1 to 100; got {quality}")
        scale = 5000 / quality if quality < 50 else 200 - 2 * quality
        steps = torch.tensor([int(v) for v in LUMINANCE.split()], dtype=torch.float64).view(8, 8)
        self.register_buffer("table", ((steps * scale + 50) / 100).floor().clamp(1, 255))
        k, n = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
        cosines = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
        cosines[0] /= math.sqrt(2)
        self.register_buffer("cosines", cosines)

    def A(self, x: Tensor) -> Tensor:
        _, height, width = self.shape
        pixels = F.pad(x * 127.5 - 0.5, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = pixels.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
        D, table = self.cosines.to(x), self.table.to(x)
        coefficients = rounded(D @ blocks @ D.T / table) * table
        back = (D.T @ coefficients @ D).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        return (back[:, :, :height, :width] + 0.5) / 127.5
