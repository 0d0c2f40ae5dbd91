"""Operators that act along channels, rows and columns: super-resolution, colorization, blurs with real boundaries."""

# ruff: noqa: N802 - A, U, V are the names of the field

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fewstep.inverse.operator import Decomposed

Filter = Literal["bicubic", "average"]
Boundary = Literal["zeros", "symmetric", "replicate"]


def folded(positions: Tensor, n: int, boundary: Boundary) -> tuple[Tensor, Tensor]:
    """Where positions of any integer lie in a line of `n`, and whether they count.

    symmetric: the line is mirrored at the outer edges of its ends (dcba abcd dcba). replicate: its ends repeat.
    """
    if boundary == "symmetric":
        position = positions.remainder(2 * n)
        return torch.where(position < n, position, 2 * n - 1 - position), torch.ones_like(positions, dtype=torch.bool)
    inside = (positions >= 0) & (positions < n)
    return positions.clamp(0, n - 1), inside if boundary == "zeros" else torch.ones_like(inside)


def scattered(weights: Tensor, positions: Tensor, n: int, boundary: Boundary) -> Tensor:
    """The matrix (m, n) with `weights` (m, taps) at `positions` (m, taps)."""
    place, counts = folded(positions, n, boundary)
    return weights.new_zeros(len(weights), n).scatter_add_(1, place, weights * counts)


def bicubic_matrix(n: int, m: int) -> Tensor:
    """(m, n), float64: a line of `n` pixels to `m`, by Keys' cubic (a = -1/2), widened for reduction against aliasing.

    Mirrored at the ends, half a pixel outside. In the interior it is `interpolate(..., mode="bicubic", antialias=True)`.
    """
    scale = max(n / m, 1.0)
    taps = 2 * math.ceil(2 * scale) + 1
    centre = (torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5
    positions = centre.round().long()[:, None] + torch.arange(taps) - taps // 2
    t = ((positions - centre[:, None]) / scale).abs()
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))
    return scattered(weights / weights.sum(1, keepdim=True), positions, n, "symmetric")


def average_matrix(n: int, m: int) -> Tensor:
    """(m, n), float64: each of `m` pixels the mean of the part of the line of `n` that it covers."""
    edge = torch.arange(m, dtype=torch.float64)[:, None] * n / m
    left, right = edge, edge + n / m
    pixel = torch.arange(n, dtype=torch.float64)
    return (torch.minimum(right, pixel + 1) - torch.maximum(left, pixel)).clamp_min(0) * m / n


def blur_matrix(n: int, line: Tensor, boundary: Boundary) -> Tensor:
    """(n, n), float64: the convolution of a line of `n` pixels with an odd `line`, centred."""
    positions = torch.arange(n)[:, None] - torch.arange(len(line)) + len(line) // 2
    return scattered(line.double().expand(n, -1), positions, n, boundary)


class Separable(Decomposed):
    """A linear operator along channels, rows and columns, on each of them by a matrix or not at all.

    Args:
        shape: shape of the images (C, H, W).
        channels: a matrix (c, C); None to keep the channels.
        rows: a matrix (h, H); None to keep the rows.
        columns: a matrix (w, W); None to keep the columns. The measurement has the shape (c, h, w).

    Raises:
        ValueError: a matrix has another shape or is not finite.

    Example:
        >>> operator = fs.inverse.Separable((1, 8, 8), rows=torch.eye(8)[::2].double())
        >>> y = operator(x0)
    """

    left: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: Tensor | None = None,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> None:
        super().__init__(shape)
        self.sizes: list[int] = []
        singular = torch.ones(1, dtype=torch.float64)
        for i, (n, matrix) in enumerate(zip(shape, (channels, rows, columns), strict=True)):
            matrix = torch.eye(n) if matrix is None else matrix
            if matrix.ndim != 2 or matrix.shape[1] != n or not matrix.isfinite().all():
                raise ValueError(
                    f"axis {i} of images {shape} needs a finite matrix (m, {n}); got {tuple(matrix.shape)}"
                )
            U, s, Vh = torch.linalg.svd(matrix.double(), full_matrices=True)
            self.sizes.append(len(matrix))
            self.register_buffer(f"left{i}", U)
            self.register_buffer(f"right{i}", Vh.T.contiguous())
            full = s.new_zeros(n)
            full[: len(s)] = s
            singular = (singular[..., None] * full).squeeze(0) if i == 0 else singular[..., None] * full
        self.keep_singular(singular)

    def along(self, x: Tensor, side: str, *, transpose: bool) -> Tensor:
        factors = [self.get_buffer(f"{side}{i}").to(x) for i in range(3)]
        c, h, w = (f.T if transpose else f for f in factors)
        x = torch.einsum("ij,bjhw->bihw", c, x) if len(c) > 1 else x * c
        return h @ x @ w.T

    def V(self, c: Tensor) -> Tensor:
        return self.along(c, "right", transpose=False)

    def V_adjoint(self, x: Tensor) -> Tensor:
        return self.along(x, "right", transpose=True)

    def U(self, c: Tensor) -> Tensor:
        kept = c[:, : self.sizes[0], : self.sizes[1], : self.sizes[2]]
        missing = [want - have for want, have in zip(self.sizes, kept.shape[1:], strict=True)]
        if any(missing):  # more measurements than pixels
            kept = torch.nn.functional.pad(kept, (0, missing[2], 0, missing[1], 0, missing[0]))
        return self.along(kept, "left", transpose=False)

    def U_adjoint(self, y: Tensor) -> Tensor:
        c = self.along(y, "left", transpose=True)[:, : self.shape[0], : self.shape[1], : self.shape[2]]
        missing = [want - have for want, have in zip(self.shape, c.shape[1:], strict=True)]
        return torch.nn.functional.pad(c, (0, missing[2], 0, missing[1], 0, missing[0]))


def smaller(size: int, factor: float) -> int:
    if not factor > 1 or round(size / factor) < 1:
        raise ValueError(
            f"super-resolution takes a factor above 1 that leaves at least a pixel of {size}; got {factor}"
        )
    return round(size / factor)


def super_resolution(shape: tuple[int, int, int], factor: float = 4, filter: Filter = "bicubic") -> Separable:
    """Return an operator that reduces images by a factor, to the nearest whole size.

    Args:
        shape: shape of the images (C, H, W).
        factor: factor of reduction, above 1; NCVSD's is 4.
        filter: "bicubic" (NCVSD's), or "average" for the mean of what a pixel covers.

    Returns:
        The operator.

    Raises:
        ValueError: the factor is not above 1, or leaves less than a pixel.

    Example:
        >>> operator = fs.inverse.super_resolution((1, 8, 8), 2)
    """
    matrix = {"bicubic": bicubic_matrix, "average": average_matrix}[filter]
    _, height, width = shape
    return Separable(shape, rows=matrix(height, smaller(height, factor)), columns=matrix(width, smaller(width, factor)))


def colorization(shape: tuple[int, int, int]) -> Separable:
    """Return an operator that averages the channels, to be undone by colorization.

    Args:
        shape: shape of the images (C, H, W).

    Returns:
        The operator.

    Raises:
        ValueError: the images have a single channel.

    Example:
        >>> operator = fs.inverse.colorization((3, 8, 8))
    """
    if shape[0] < 2:
        raise ValueError(f"colorization needs images with several channels; these have the shape {shape}")
    return Separable(shape, channels=torch.full((1, shape[0]), 1 / shape[0]))


def separable_blur(shape: tuple[int, int, int], line: Tensor, boundary: Boundary = "symmetric") -> Separable:
    """Return a blur along rows and along columns with a real boundary; its draws are exact in closed form.

    Args:
        shape: shape of the images (C, H, W).
        line: an odd number of weights (n,), such as `gaussian_line(0.8)`.
        boundary: "symmetric" mirrors the image at its edges, "replicate" repeats the edge, "zeros" continues it by zeros.

    Returns:
        The operator.

    Raises:
        ValueError: `line` does not have an odd number of weights.

    Example:
        >>> operator = fs.inverse.separable_blur((1, 8, 8), fs.inverse.gaussian_line(0.8))
    """
    _, height, width = shape
    if line.ndim != 1 or len(line) % 2 == 0:
        raise ValueError(f"expected an odd number of weights on a line; got the shape {tuple(line.shape)}")
    return Separable(shape, rows=blur_matrix(height, line, boundary), columns=blur_matrix(width, line, boundary))
