"""Distances between two sets of images, from their features, and scores of one; streaming, in float64, merged over ranks.

Moments and ScoreSums have a size that does not depend on the number of images; Samples keep the features themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.runtime.distributed import device, rank, sum_over_ranks, world_size
from fewstep.runtime.interruptible import interruptible

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

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D)."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images; got {int(self.n)}")
        n, total, outer = (t.cpu() for t in (self.n, self.sum, self.outer))
        mean = total / n
        return mean, (outer - n * mean.outer(mean)) / (n - 1)


@dataclass(frozen=True)
class LowRank:
    """The covariance of fewer images than dimensions, as a factor: it is rows^T rows.

    Attributes:
        rows: (n - 1, D), float64.
    """

    rows: Tensor

    @classmethod
    def of(cls, features: Tensor) -> LowRank:
        """The unbiased covariance of features (n, D): Helmert's contrasts of the images, scaled.

        They span what the n centred rows span, without the direction in which centring leaves nothing but rounding.
        """
        centred = features - features.mean(0)
        k = torch.arange(1, len(features), dtype=features.dtype)[:, None]
        rows = centred.cumsum(0)[:-1].addcmul_(centred[1:], k, value=-1)
        return cls(rows.div_((k * (k + 1) * (len(features) - 1)).sqrt()))

    def __len__(self) -> int:
        return self.rows.shape[1]

    def dense(self) -> Tensor:
        """(D, D)."""
        return self.rows.T @ self.rows


Covariance = Tensor | LowRank


class Samples:
    """The features of `n` images over all ranks, each (D,), in the order of the images."""

    def __init__(self, n: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        self.n, self.done = n, 0
        self.features = torch.zeros(len(range(rank(), n, world_size())), dim, dtype=dtype)

    def update(self, features: Tensor) -> None:
        """Add the features (B, D) of this rank's next images."""
        self.features[self.done : self.done + len(features)] = features.detach().to("cpu", self.features.dtype)
        self.done += len(features)

    def merge_ranks(self) -> None:
        if world_size() > 1:
            everything = torch.zeros(self.n, self.features.shape[1], dtype=self.features.dtype)
            everything[rank() :: world_size()] = self.features
            self.features = everything
            add_ranks(everything)

    def compute(self) -> Tensor:
        """Features (n, D)."""
        return self.features


class LowRankMoments(Samples):
    """Mean and covariance of features of at most as many images as dimensions: `Moments` in less memory and time."""

    def __init__(self, n: int, dim: int) -> None:
        super().__init__(n, dim, torch.float64)

    def compute(self) -> tuple[Tensor, LowRank]:  # pyright: ignore[reportIncompatibleMethodOverride] - a summary
        """Mean (D,) and unbiased covariance."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images; got {self.n}")
        return self.features.mean(0), LowRank.of(self.features)


def moments_of(features: Tensor) -> tuple[Tensor, Covariance]:
    """Mean (D,) and unbiased covariance of features (n, D), as a factor if n is at most D."""
    n, dim = features.shape
    if n > dim:
        return Moments.of(features).compute()
    moments = LowRankMoments(n, dim)
    moments.features = features.detach().to("cpu", torch.float64)
    return moments.compute()


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


def frechet_distance(mean_a: Tensor, cov_a: Covariance, mean_b: Tensor, cov_b: Covariance) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) of two Gaussians (Dowson & Landau, 1982; Heusel et al., 2017).

    With S = A A^T the trace of the root is the sum of the singular values of A_a^T A_b: no root of a general matrix,
    nothing complex, and singular covariances are no special case. Of n and m images in more than n and m dimensions
    A_a^T A_b is (n - 1, m - 1), however many dimensions there are.

    Args:
        mean_a: mean (D,) of the first Gaussian.
        cov_a: its covariance, (D, D) or `LowRank`.
        mean_b: mean (D,) of the second Gaussian.
        cov_b: its covariance.

    Raises:
        ValueError: the dimensions differ, or a number is not finite.
    """
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"the features of the two sets have {len(mean_a)} and {len(mean_b)} dimensions")
    parts = [c.rows.double() if isinstance(c, LowRank) else c.double() for c in (cov_a, cov_b)]
    mean_a, mean_b = mean_a.double(), mean_b.double()
    if not all(t.isfinite().all() for t in (mean_a, mean_b, *parts)):
        raise ValueError("a mean or covariance is not finite; check the features or the reference it was made from")

    def distance() -> float:
        factors, traces = [], []
        for cov, part in zip((cov_a, cov_b), parts, strict=True):
            low = isinstance(cov, LowRank)
            factors.append(part.T if low else factor(part))
            traces.append(part.square().sum() if low else torch.trace(part))
        root = singular_values(factors[0].T @ factors[1]).sum()
        return float((mean_a - mean_b).square().sum() + sum(traces) - 2 * root)

    return interruptible(distance)


def frechet_at_infinity(features: Tensor, mean: Tensor, cov: Covariance, points: int = 15) -> float:
    """The Frechet distance of features (n, D) to a Gaussian, extrapolated to n = infinity (Chong & Forsyth, 2020).

    The bias is a / n to first order: distances of `points` random subsets, of n / 10 to n images, are fitted by a line
    in 1 / size, whose value at 0 is returned.
    """
    n, draw = len(features), np.random.RandomState(0)  # its stream is frozen for ever
    if n < 10 * points:
        raise ValueError(f"the extrapolation needs at least {10 * points} images; got {n}")
    sizes = np.linspace(n / 10, n, points).astype(int)
    subsets = (features[torch.from_numpy(draw.permutation(n)[:size])] for size in sizes)
    distances = [frechet_distance(*moments_of(subset), mean, cov) for subset in subsets]
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
