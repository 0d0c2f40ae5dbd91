"""Distances between two sets of images, from their features; streaming, in float64, merged over ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.distributed import sum_over_ranks


class Moments:
    """Running mean and covariance of features (N, D): memory is independent of N."""

    def __init__(self, dim: int) -> None:
        self.n = torch.zeros((), dtype=torch.float64)
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        moments = cls(features.shape[1])
        moments.update(features)
        return moments

    def update(self, features: Tensor) -> None:
        """Add features (B, D)."""
        features = features.detach().to(self.sum.device, torch.float64)
        self.n += len(features)
        self.sum += features.sum(0)
        self.outer += features.T @ features

    def merge_ranks(self) -> None:
        sum_over_ranks([self.n, self.sum, self.outer])

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D)."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images; got {int(self.n)}")
        mean = self.sum / self.n
        return mean, (self.outer - self.n * mean.outer(mean)) / (self.n - 1)


def matrix_sqrt(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive semi-definite matrix; rounding below zero is cut."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) of two Gaussians (Dowson & Landau, 1982; Heusel et al., 2017).

    The trace of the root is the sum of square roots of the eigenvalues of S_a^1/2 S_b S_a^1/2, which is symmetric, so
    no root of a general matrix is needed and singular covariances are exact.
    """
    root = matrix_sqrt(cov_a.double())
    eigenvalues = torch.linalg.eigvalsh(root @ cov_b.double() @ root)
    shift = (mean_a.double() - mean_b.double()).square().sum()
    trace = torch.trace(cov_a.double()) + torch.trace(cov_b.double()) - 2 * eigenvalues.clamp_min(0).sqrt().sum()
    return float(shift + trace)
