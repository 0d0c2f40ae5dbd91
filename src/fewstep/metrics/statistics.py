"""What metrics need of one set of images, gathered in one pass in which each extractor sees each image once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.metrics.catalog import SPLITS, Need
from fewstep.metrics.distribution import Moments, Samples, ScoreSums
from fewstep.metrics.extractors import Extractor, Features
from fewstep.metrics.sources import ImageSource, batches, prefetched
from fewstep.runtime.distributed import rank, world_size
from fewstep.runtime.files import new_file, write_tensors
from fewstep.runtime.progress import Progress

SAVE_SECONDS = 60.0
Running = Moments | Samples | ScoreSums


class Statistics:
    """Moments, features and scores of a set of images, for all `needs` of it. n: images over all ranks, if known.

    Features that several metrics want of different numbers of images are kept once, of the largest.
    """

    def __init__(self, needs: Iterable[Need], n: int | None) -> None:
        self.n, self.seen = n, 0
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
            running = Moments(dim)
        elif limit is None:
            raise ValueError("kernel distances, neighbours and scores need to know the number of images; give n")
        else:
            running = Samples(limit, dim) if need.of == "samples" else ScoreSums(limit, dim, SPLITS)
        self.running[need] = running
        return running

    def merge_ranks(self) -> None:
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

    def state(self) -> dict[str, Tensor]:
        return {
            f"{i}/{name}": tensor
            for i, need in enumerate(self.largest)
            if need in self.running
            for name, tensor in self.running[need].state().items()
        }


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


class Saved:
    """The state of a pass in a file of this rank; nothing at all without a folder.

    identity: all that decides the statistics; a file that was written under another identity is not touched.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        said = {**identity, "fewstep": version("fewstep"), "rank": rank(), "world": world_size()}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
        self.path = None if folder is None else folder / f"evaluation-{digest[:16]}-{rank()}.safetensors"
        self.time = time.monotonic()

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """Images of this rank that were done, and the state after them."""
        if self.path is None or not self.path.is_file():
            return 0, {}
        try:
            with safe_open(self.path, framework="pt") as file:
                done = int((file.metadata() or {})["done"])
                return done, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self.path}, the state of an interrupted evaluation, is damaged ({error}); remove it to begin anew"
            ) from error

    def save(self, statistics: Statistics, *, every: float = 0.0) -> None:
        """Write the state, if the last time was `every` seconds ago."""
        if self.path is None or time.monotonic() - self.time < every:
            return
        with new_file(self.path) as partial:
            write_tensors(partial, statistics.state(), metadata={"done": str(statistics.seen)})
        self.time = time.monotonic()


def restore(statistics: Statistics, state: Mapping[str, Tensor], done: int) -> None:
    """Continue from a saved state."""
    wide = {"moments": "sum", "samples": "features", "scores": "marginal"}
    for i, (need, limit) in enumerate(statistics.largest.items()):
        statistics.start(need, limit, state[f"{i}/{wide[need.of]}"].shape[-1])
    for name, tensor in statistics.state().items():
        tensor.copy_(state[name])
    statistics.seen = done


class Pass:
    """One pass over a source. `begin` looks at its first images, so that mistakes show at once; `finish` does the rest."""

    def __init__(
        self,
        source: ImageSource,
        needs: Sequence[Need],
        extractors: Mapping[str, Extractor],
        *,
        batch_size: int,
        saved: Saved,
    ) -> None:
        self.source, self.batch_size, self.saved = source, batch_size, saved
        self.extractors = {name: extractors[name] for name in dict.fromkeys(need.extractor for need in needs)}
        self.statistics = Statistics(needs, source.n)

    def begin(self) -> None:
        done, state = self.saved.load()
        if done:
            restore(self.statistics, state, done)
        made = batches(self.source.make(done), self.batch_size)
        self.batches = prefetched(made) if self.source.overlap else made
        first = next(self.batches, None)
        if first is not None:
            self.add(first)
        elif not done:
            raise ValueError("there are no images to measure")

    def add(self, images: Tensor) -> None:
        start = self.statistics.seen
        index = rank() + torch.arange(start, start + len(images)) * world_size()
        features = {name: extract(extractor, images) for name, extractor in self.extractors.items()}
        check_finite(features, index, self.source)
        self.statistics.update(features, index)

    def finish(self, description: str | None = None) -> Statistics:
        """The statistics of this rank's images. description: of the progress that is shown; None shows nothing."""
        n, seen = self.source.n, self.statistics.seen
        total = 0 if n is None else len(range(rank(), n, world_size()))
        progress = Progress(description, total=total, done=seen) if description and n is not None else None
        with progress or nullcontext():
            for images in self.batches:
                self.add(images)
                self.saved.save(self.statistics, every=SAVE_SECONDS)
                if progress:
                    progress.update(self.statistics.seen)
        if n is not None and self.statistics.seen != total:
            raise ValueError(f"expected {total} images on this rank; the source gave {self.statistics.seen}")
        if self.statistics.seen != seen:
            self.saved.save(self.statistics)
        return self.statistics
