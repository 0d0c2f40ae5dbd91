"""What metrics need of one set of images, gathered in one pass in which each extractor sees each image once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fewstep.metrics.catalog import SPLITS, Need
from fewstep.metrics.distribution import LowRankMoments, Moments, Samples, ScoreSums
from fewstep.metrics.extractors import Extractor, Features
from fewstep.metrics.sources import ImageSource, batches, prefetched
from fewstep.runtime.distributed import rank, sum_over_ranks, world_size
from fewstep.runtime.progress import Progress

Running = Moments | Samples | ScoreSums


class Statistics:
    """Moments, features and scores of a set of images, for all `needs` of it.

    Features that several metrics want of different numbers of images are kept once, of the largest.

    Args:
        needs: what the metrics ask for.
        n: images over all ranks, None if it is not known beforehand.
    """

    def __init__(self, needs: Iterable[Need], n: int | None) -> None:
        self.n, self.seen, self.total = n, 0, 0
        self.largest: dict[Need, int | None] = {}
        for need in needs:
            limit = n if need.limit is None else need.limit
            if need.of == "samples":
                need = need._replace(limit=None)
                limit = n if limit is None or n is None else max(limit, self.largest.get(need) or 0)
            self.largest[need] = limit
        self.running: dict[Need, Running] = {}

    def update(self, features: Mapping[str, Features], index: Tensor) -> None:
        """Add features by extractor and part, each (B, D), of the images at `index` (B,), increasing."""
        for need, limit in self.largest.items():
            values = part(features[need.extractor], need)
            running = self.running.get(need) or self.start(need, limit, values.shape[1])
            chosen = len(index) if limit is None else int((index < limit).sum())
            if chosen and isinstance(running, ScoreSums):
                running.update(values[:chosen], index[:chosen])
            elif chosen and not isinstance(running, ScoreSums):
                running.update(values[:chosen])
        self.seen += len(index)

    def start(self, need: Need, limit: int | None, dim: int) -> Running:
        if need.of == "moments":
            running = Moments(dim) if limit is None or limit > dim else LowRankMoments(limit, dim)
        elif limit is None:
            raise ValueError("kernel distances, neighbours and scores need to know the number of images beforehand")
        else:
            running = Samples(limit, dim) if need.of == "samples" else ScoreSums(limit, dim, SPLITS)
        self.running[need] = running
        return running

    def merge_ranks(self) -> None:
        total = torch.tensor(self.seen)
        sum_over_ranks([total])
        self.total = int(total)
        for running in self.running.values():
            running.merge_ranks()

    def __getitem__(self, need: Need) -> Any:
        """What was needed: (mean, covariance), features (n, D), or (mean, deviation) of the scores."""
        if need.of != "samples":
            return self.running[need].compute()
        samples = self.running[need._replace(limit=None)].compute()
        assert isinstance(samples, Tensor)
        return samples if need.limit is None else samples[: need.limit]

    def dims(self) -> Iterator[tuple[Need, int]]:
        for need, running in self.running.items():
            if isinstance(running, Moments):
                yield need, len(running.sum)
            elif isinstance(running, Samples):
                yield need, running.features.shape[1]


def part(features: Features, need: Need) -> Tensor:
    if need.part not in features:
        raise ValueError(f"the extractor {need.extractor} has no {need.part}; it has {', '.join(features)}")
    return features[need.part]


def extract(extractor: Extractor, images: Tensor) -> Features:
    """Features by part, each (B, D)."""
    found = extractor(images)
    parts = {"features": found} if isinstance(found, Tensor) else found
    if not isinstance(parts, Mapping):
        raise ValueError(
            f"the extractor {extractor.name} must return a tensor (B, D), here ({len(images)}, D), or a dict of them; it "
            f"returned a {type(found).__name__}"
        )
    for name, values in parts.items():
        if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(images):
            got = tuple(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise ValueError(
                f"the extractor {extractor.name} must give {name} (B, D), here ({len(images)}, D); got {got}"
            )
    return parts


def check_finite(features: Mapping[str, Features], index: Tensor, source: ImageSource) -> None:
    for extractor, parts in features.items():
        for name, values in parts.items():
            good = values.isfinite().all(1).cpu()
            if not good.all():
                first = source.name(int(index[int((~good).nonzero()[0])]))
                raise ValueError(
                    f"the {extractor} {name} of {first} are not finite; check the image, the weights and the precision"
                )


class Pass:
    """One pass over a source. Its first images are measured at once, so that mistakes show before the long work."""

    def __init__(
        self, source: ImageSource, needs: Sequence[Need], extractors: Mapping[str, Extractor], *, batch_size: int
    ) -> None:
        self.source = source
        self.extractors = {name: extractors[name] for name in dict.fromkeys(need.extractor for need in needs)}
        self.statistics = Statistics(needs, source.n)
        made = batches(source.make(), batch_size)
        self.batches = prefetched(made) if source.overlap else made
        first = next(self.batches, None)
        if first is None:
            raise ValueError("there are no images to measure")
        self.add(first)

    def add(self, images: Tensor) -> None:
        start = self.statistics.seen
        index = rank() + torch.arange(start, start + len(images)) * world_size()
        features = {name: extract(extractor, images) for name, extractor in self.extractors.items()}
        check_finite(features, index, self.source)
        self.statistics.update(features, index)

    def finish(self, description: str | None = None) -> Statistics:
        """The statistics of the images of all ranks.

        Args:
            description: of the progress that is shown; None shows nothing.
        """
        n, seen = self.source.n, self.statistics.seen
        total = 0 if n is None else len(range(rank(), n, world_size()))
        progress = Progress(description, total=total, done=seen) if description and n is not None else None
        with progress or nullcontext():
            for images in self.batches:
                self.add(images)
                if progress:
                    progress.update(self.statistics.seen)
        if n is not None and self.statistics.seen != total:
            raise ValueError(f"expected {total} images on this rank; the source gave {self.statistics.seen}")
        self.statistics.merge_ranks()
        return self.statistics
