"""What a Frechet distance costs, estimated before the work: covariances grow with the square of the dimensions."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from functools import lru_cache

import torch

from fewstep.metrics.catalog import Metric
from fewstep.metrics.references import ReferenceData
from fewstep.metrics.statistics import Statistics
from fewstep.runtime.memory import available

NEGLIGIBLE = 1e11
"""Operations that no machine needs seconds for."""
PATIENCE = 60.0
"""Seconds beyond which the cost is reported."""
INSTEAD = "features with fewer dimensions (fid has 2,048), smaller images, or fewer images need less"


def check_cost(metrics: Iterable[Metric], fake: Statistics, real: ReferenceData) -> None:
    """Warn of Frechet distances that take minutes; raise ValueError for those that do not fit into memory."""
    dims = {need: dim for need, dim in fake.dims() if need.of == "moments"}
    for metric in metrics:
        if (
            metric.kind != "frechet"
            or (dim := dims.get(metric.need) or dims.get(metric.need._replace(limit=None))) is None
        ):
            continue
        n = real.n  # behind the covariance, or to be summed up
        if n is not None and n > dim and (metric.extractor, metric.part) in real.moments:
            n = None
        operations, size = frechet_cost(dim, metric.limit or fake.n, n)
        if operations < NEGLIGIBLE:
            continue
        about = f"{metric.name} compares covariances of {dim:,} dimensions"
        free = available()
        if free is not None and size > free:
            raise ValueError(
                f"{about}, which take about {size / 2**30:,.1f} GiB of memory; {free / 2**30:,.1f} GiB are free: {INSTEAD}"
            )
        if (seconds := operations / speed()) > PATIENCE:
            warnings.warn(
                f"{about}: expect about {seconds / 60:,.0f} minutes and {size / 2**30:,.1f} GiB beside the features; "
                f"{INSTEAD}",
                stacklevel=3,
            )


def frechet_cost(dim: int, *counts: int | None) -> tuple[float, float]:
    """Operations and bytes for the distance between two sets of these sizes; None if the covariance is given."""
    ranks = [dim if n is None or n > dim else n for n in counts]
    size = sum(8.0 * dim * (2 * r if r < dim else 3 * dim) for r in ranks) + 2 * 8.0 * min(ranks) * max(ranks)
    operations = 2.0 * dim * ranks[0] * ranks[1] + 2.0 * max(ranks) * min(ranks) ** 2 + 6.0 * min(ranks) ** 3
    for n, rank in zip(counts, ranks, strict=True):
        if rank == dim:  # the covariance is summed up, and factored
            operations += 2.0 * (n or 0) * dim**2 + dim**3
    return operations, size


@lru_cache(maxsize=1)
def speed() -> float:
    """Operations a second of this machine, measured on a product of matrices in float64."""
    a = torch.randn(1024, 1024, dtype=torch.float64)
    began = time.perf_counter()
    for _ in range(3):
        torch.mm(a, a)
    return 3 * 2 * 1024**3 / (time.perf_counter() - began)
