"""Distances between two sets of images, from their features, and scores of one; streaming, in float64, merged over ranks.

Moments and ScoreSums have a size that does not depend on the number of images; Samples keep the features themselves.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewstep.runtime.distributed import device, rank, sum_over_ranks, world_size

SMALL_SIDE = 512
"""Up to here all singular values are computed from the matrix itself, above from its Gram matrix, in half of the time."""
ROWS = 4096
SUBSETS, SUBSET = 100, 1000
"""Of a kernel distance: how many subsets of how many images."""


def add_ranks(tensor: Tensor) -> None:
    """Sum a tensor over the ranks in place, piece by piece, on the device that the ranks talk through."""
    if world_size() > 1:
        for part in tensor.view(-1, tensor.shape[-1] if tensor.ndim else 1).split(ROWS):
            moved = part.to(device())
            sum_over_ranks([moved])
            part.copy_(moved)


class Moments:
    """Running mean and covariance of features (N, D), on this process's device: memory is independent of N."""

    def __init__(self, dim: int) -> None:
        self.n = torch.zeros((), dtype=torch.float64, device=device())
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device())
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device())

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        moments = cls(features.shape[1])
        for part in features.split(ROWS):
            moments.update(part)
        return moments

    def update(self, features: Tensor) -> None:
        """Add features (B, D)."""
        features = features.detach().to(self.sum.device, torch.float64)
        self.n += len(features)
        self.sum += features.sum(0)
        self.outer.addmm_(features.T, features)

    def merge_ranks(self) -> None:
        for tensor in (self.n, self.sum, self.outer):
            add_ranks(tensor)

    def state(self) -> dict[str, Tensor]:
        return {"n": self.n, "sum": self.sum, "outer": self.outer}

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D)."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images; got {int(self.n)}")
        n, total, outer = (t.cpu() for t in (self.n, self.sum, self.outer))
        mean = total / n
        return mean, (outer - n * mean.outer(mean)) / (n - 1)


class Samples:
    """The features of `n` images over all ranks, each (D,), float32, in the order of the images."""

    def __init__(self, n: int, dim: int) -> None:
        self.n, self.done = n, torch.zeros((), dtype=torch.int64)
        self.features = torch.zeros(len(range(rank(), n, world_size())), dim)

    def update(self, features: Tensor) -> None:
        """Add the features (B, D) of this rank's next images."""
        start = int(self.done)
        self.features[start : start + len(features)] = features.detach().to("cpu", torch.float32)
        self.done += len(features)

    def merge_ranks(self) -> None:
        if world_size() > 1:
            everything = torch.zeros(self.n, self.features.shape[1])
            everything[rank() :: world_size()] = self.features
            self.features = everything
            add_ranks(everything)

    def state(self) -> dict[str, Tensor]:
        return {"done": self.done, "features": self.features}

    def compute(self) -> Tensor:
        """Features (n, D)."""
        return self.features


class ScoreSums:
    """Inception Score, exp E_x KL(p(y | x) | p(y)), over consecutive splits of n images (Salimans et al., 2016)."""

    def __init__(self, n: int, classes: int, splits: int = 10) -> None:
        if n < splits:
            raise ValueError(f"the Inception Score has {splits} splits and needs as many images; got {n}")
        self.n, self.splits = n, splits
        self.count = torch.zeros(splits, dtype=torch.float64)
        self.marginal = torch.zeros(splits, classes, dtype=torch.float64)
        self.neg_entropy = torch.zeros(splits, dtype=torch.float64)

    def update(self, logits: Tensor, index: Tensor) -> None:
        """Add the logits (B, classes) of the images at `index` (B,), from 0 to n - 1."""
        log_p = logits.detach().to("cpu", torch.float64).log_softmax(1)
        p = log_p.exp()
        split = ((index + 1) * self.splits - 1) // self.n  # split s begins at floor(s n / splits)
        self.count.index_add_(0, split, torch.ones(len(p), dtype=torch.float64))
        self.marginal.index_add_(0, split, p)
        self.neg_entropy.index_add_(0, split, (p * log_p).nan_to_num(0).sum(1))  # 0 log 0 = 0

    def merge_ranks(self) -> None:
        for tensor in (self.count, self.marginal, self.neg_entropy):
            add_ranks(tensor)

    def state(self) -> dict[str, Tensor]:
        return {"count": self.count, "marginal": self.marginal, "neg_entropy": self.neg_entropy}

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation (not corrected for their number) over the splits."""
        p = self.marginal / self.count[:, None]
        scores = (self.neg_entropy / self.count - torch.xlogy(p, p).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))


def factor(cov: Tensor) -> Tensor:
    """A (D, r) of full column rank with A A^T = cov (D, D), symmetric positive semi-definite.

    Directions whose variance is rounding are left out: their roots would be 1e8 times larger than the rounding.
    """
    lower, failed = torch.linalg.cholesky_ex(cov)
    pivots = lower.diagonal().square()
    tiny = len(cov) * torch.finfo(cov.dtype).eps
    if not failed and pivots.min() > tiny * pivots.max():
        return lower
    values, vectors = torch.linalg.eigh(cov)
    kept = values > tiny * values.max().clamp_min(0)
    return vectors[:, kept] * values[kept].sqrt()


def singular_values(matrix: Tensor) -> Tensor:
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    if matrix.shape[1] <= SMALL_SIDE:
        return torch.linalg.svdvals(matrix)
    return torch.linalg.eigvalsh(matrix.T @ matrix).clamp_min(0).sqrt()


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) of two Gaussians (Dowson & Landau, 1982; Heusel et al., 2017).

    With S = A A^T the trace of the root is the sum of the singular values of A_a^T A_b: no root of a general matrix,
    nothing complex, and singular covariances are no special case.
    """
    mean_a, cov_a, mean_b, cov_b = (t.double() for t in (mean_a, cov_a, mean_b, cov_b))
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"the features of the two sets have {len(mean_a)} and {len(mean_b)} dimensions")
    if not all(t.isfinite().all() for t in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("a mean or covariance is not finite; check the features or the reference it was made from")
    root = singular_values(factor(cov_a).T @ factor(cov_b)).sum()
    shift = (mean_a - mean_b).square().sum()
    return float(shift + torch.trace(cov_a) + torch.trace(cov_b) - 2 * root)


def frechet_at_infinity(features: Tensor, mean: Tensor, cov: Tensor, points: int = 15) -> float:
    """The Frechet distance of features (n, D) to a Gaussian, extrapolated to n = infinity (Chong & Forsyth, 2020).

    The bias is a / n to first order: distances of `points` random subsets, of n / 10 to n images, are fitted by a line
    in 1 / size, whose value at 0 is returned.
    """
    n, draw = len(features), np.random.RandomState(0)  # its stream is frozen for ever
    if n < 10 * points:
        raise ValueError(f"the extrapolation needs at least {10 * points} images; got {n}")
    sizes = np.linspace(n / 10, n, points).astype(int)
    subsets = (features[torch.from_numpy(draw.permutation(n)[:size])] for size in sizes)
    distances = [frechet_distance(*Moments.of(subset).compute(), mean, cov) for subset in subsets]
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 2020
) -> tuple[float, float]:
    """Kernel distance of features (n, D) and (m, D): mean and standard deviation over random subsets.

    Squared maximum mean discrepancy, unbiased, under the kernel (x y / D + 1)^3 (Binkowski et al., 2018, section 4),
    for subsets of `size` or, of smaller sets, all images. The subsets are those that torch-fidelity draws.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the features of the two sets have {a.shape[1]} and {b.shape[1]} dimensions")
    size = min(size, len(a), len(b))
    if size < 2:
        raise ValueError(f"a kernel distance needs at least 2 images of each set; got {len(a)} and {len(b)}")
    draw = np.random.RandomState(seed)  # its stream is frozen for ever
    values = []
    for _ in range(subsets):
        x = a[torch.from_numpy(draw.choice(len(a), size, replace=False))].double()
        y = b[torch.from_numpy(draw.choice(len(b), size, replace=False))].double()
        values.append(squared_discrepancy(x, y))
    return float(np.mean(values)), float(np.std(values))


def squared_discrepancy(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of x (m, D) and y (m, D) under (x y / D + 1)^3."""
    m = len(x)
    xx, yy, xy = (p @ q.T / p.shape[1] + 1 for p, q in ((x, x), (y, y), (x, y)))
    xx, yy, xy = (k * k * k for k in (xx, yy, xy))  # pow is ten times slower
    within = sum(k.sum() - k.diagonal().sum() for k in (xx, yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())
