"""One pass over images, and results that carry their protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.metrics.distribution import Moments, frechet_distance
from fewstep.metrics.extractors import Extractor, Pixels

BATCH = 256
SMALL = 10_000


class Images(Protocol):
    """A finite set of real images, as `fewstep.data.images` opens it."""

    name: str
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Result:
    """A figure and how it was measured. protocol: all that another measurement must share to be compared."""

    metric: str
    value: float
    n: int
    protocol: dict[str, Any] = field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def moments(images: Iterable[NDArray[np.uint8]], extractor: Extractor) -> Moments:
    """Moments of the features of images (C, H, W) uint8, of this rank's images only."""
    total: Moments | None = None
    for batch in stacked(images):
        features = extractor(batch)
        if not features.isfinite().all():
            raise ValueError(
                f"the {extractor.name} features of an image are not finite; check the images and the extractor"
            )
        total = total or Moments(features.shape[1])
        total.update(features)
    if total is None:
        raise ValueError("there are no images to measure")
    return total


def stacked(images: Iterable[NDArray[np.uint8]]) -> Iterator[torch.Tensor]:
    batch: list[NDArray[np.uint8]] = []
    for image in images:
        batch.append(image)
        if len(batch) == BATCH:
            yield torch.from_numpy(np.stack(batch))
            batch = []
    if batch:
        yield torch.from_numpy(np.stack(batch))


def evaluate(
    images: Iterable[NDArray[np.uint8]], reference: Images, *, protocol: dict[str, Any] | None = None
) -> list[Result]:
    """The Frechet distance in pixel space between images (C, H, W) uint8, of all ranks, and a reference set.

    protocol: how the images were made (model, seeds, sampler, NFE); the rest is added.
    """
    extractor = Pixels()
    made = moments(images, extractor)
    made.merge_ranks()
    real = moments((reference[i] for i in range(len(reference))), extractor)
    if made.sum.shape != real.sum.shape:
        raise ValueError(
            f"the images have {len(made.sum)} pixels, those of the reference {reference.name} {len(real.sum)} "
            f"{reference.shape}; compare images of one size"
        )
    value = frechet_distance(*made.compute(), *real.compute())
    n = int(made.n)
    note = {"note": f"{n:,} images: biased upwards, compare at equal n only"} if n < SMALL else {}
    full = {
        **(protocol or {}),
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "range": "[-1, 1]"},
        "reference": {"name": reference.name, "n": len(reference), "sha256": reference.fingerprint},
        "covariance": "unbiased, float64",
        "fewstep": version("fewstep"),
        **note,
    }
    return [Result("fd_pixels", value, n, full)]
