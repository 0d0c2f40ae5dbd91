"""How far two sets of images overlap, from nearest neighbours among their features: exact, in tiles of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.runtime.distributed import device

ROWS, COLUMNS = 1024, 4096


@dataclass(frozen=True)
class Overlap:
    """Shares of images: precision, recall (Kynkaanniemi et al., 2019), density, coverage (Naeem et al., 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


def tiles(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances in float64 between rows of a (n, D) and b (m, D), a tile at a time.

    float64, because |x|^2 + |y|^2 - 2 x y cancels: in float32 neighbours at close distances would change places.
    """
    for i in range(0, len(a), ROWS):
        x = a[i : i + ROWS].to(device(), torch.float64)
        for j in range(0, len(b), COLUMNS):
            y = b[j : j + COLUMNS].to(device(), torch.float64)
            square = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (x @ y.T)
            yield slice(i, i + len(x)), slice(j, j + len(y)), square.clamp_min_(0)


def radii(x: Tensor, k: int) -> Tensor:
    """Squared distances of each of x (n, D) to its k nearest neighbours, itself first; (n, k + 1) float64, ascending."""
    if len(x) <= k:
        raise ValueError(f"the {k}-th neighbour needs more than {k} images; got {len(x)}")
    nearest = torch.full((len(x), k + 1), torch.inf, dtype=torch.float64, device=device())
    for rows, _, square in tiles(x, x):
        joined = torch.cat([nearest[rows], square], dim=1)
        nearest[rows] = joined.topk(k + 1, dim=1, largest=False).values
    return nearest


def overlap(real: Tensor, fake: Tensor, ks: Sequence[int]) -> dict[int, Overlap]:
    """Overlap of features (n, D) and (m, D) for each k, from balls around each image that reach to its k-th neighbour.

    precision: share of fake in a ball of a real image; recall: of real in a ball of a fake one; density: balls of real
    images that a fake image is in, per k; coverage: share of real whose ball has a fake image. Balls are closed.
    """
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"the features of the two sets have {real.shape[1]} and {fake.shape[1]} dimensions")
    around_real, around_fake = radii(real, max(ks)), radii(fake, max(ks))
    counts = {k: torch.zeros(len(fake), dtype=torch.float64, device=device()) for k in ks}
    covered, recalled = ({k: torch.zeros(len(real), dtype=torch.bool, device=device()) for k in ks} for _ in range(2))
    for rows, columns, square in tiles(real, fake):
        for k in ks:
            inside = square <= around_real[rows, k, None]
            counts[k][columns] += inside.sum(0)
            covered[k][rows] |= inside.any(1)
            recalled[k][rows] |= (square <= around_fake[columns, k]).any(1)

    def share(hits: Tensor) -> float:
        return float(hits.double().mean())

    return {k: Overlap(share(n > 0), share(recalled[k]), share(n / k), share(covered[k])) for k, n in counts.items()}
