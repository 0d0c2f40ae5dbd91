"""All metrics of a set of images against a reference in one pass, each value with its protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.metrics.catalog import NEIGHBOURS, SPLITS, Metric, Need, parse
from fewstep.metrics.cost import check_cost
from fewstep.metrics.distribution import SUBSET, SUBSETS, frechet_at_infinity, frechet_distance, kernel_distance
from fewstep.metrics.extractors import NETWORKS, Extractor, extractor, identity, precision
from fewstep.metrics.neighbours import Overlap, overlap
from fewstep.metrics.protocol import SMALL, MetricResult
from fewstep.metrics.references import ReferenceData
from fewstep.metrics.sources import ImageSet, ImageSource, from_images
from fewstep.metrics.statistics import Pass, Statistics
from fewstep.runtime.distributed import barrier, sum_over_ranks, world_size
from fewstep.runtime.precision import tf32

BATCH = 64
SETTINGS: dict[str, dict[str, Any]] = {
    "frechet": {"covariance": "unbiased, float64"},
    "kernel": {"kernel": "(x y / D + 1)^3", "subsets": SUBSETS, "draw": "NumPy RandomState(2020)"},
    "score": {"splits": SPLITS, "logits": "without bias", "deviation": "over splits, not corrected"},
    "overlap": {"distance": "Euclidean, exact"},
    "cover": {"distance": "Euclidean, exact"},
}


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        metrics: names of metrics, such as "fid@50k" or "kid".
        extractors: extractors by name, instead of the built-in ones.
        batch_size: images at a time in a feature network.
        extrapolate: add the Frechet distances at infinitely many images (Chong & Forsyth, 2020).
        feature_dtype: precision in which the built-in networks convolve and multiply. Values of different precision cannot be
            compared.

    Example:
        >>> options = fs.metrics.Options(("fid@50k", "kid"), batch_size=128)
    """

    metrics: Sequence[str] = ("fd_pixels",)
    extractors: Mapping[str, Extractor] | None = None
    batch_size: int = BATCH
    extrapolate: bool = False
    feature_dtype: torch.dtype = torch.float32

    def parsed(self) -> list[Metric]:
        """Return the metrics of these names.

        Raises:
            ValueError: there is no such metric.
        """
        if not self.metrics:
            raise ValueError("no metric was given; name at least one, such as fid")
        return list(dict.fromkeys(parse(name) for name in self.metrics))

    def open_extractors(self, metrics: Iterable[Metric]) -> dict[str, Extractor]:
        """Return the extractors that metrics need; built-in ones are loaded here.

        Args:
            metrics: the metrics.

        Raises:
            ValueError: weights are missing, or a precision is asked for in which no extractor computes.
        """
        given = self.extractors or {}
        names = dict.fromkeys(metric.extractor for metric in metrics)
        found = {name: given[name] if name in given else extractor(name, self.feature_dtype) for name in names}
        asked = str(self.feature_dtype).removeprefix("torch.")
        if asked != "float32" and asked not in map(precision, found.values()):
            raise ValueError(
                f"features in {asked} are asked for, which the networks {', '.join(NETWORKS)} can give; these metrics "
                f"need {', '.join(found)}, with no choice of precision: leave it out"
            )
        return found


@tf32(False)  # as a whole: images may be made on the side, and the process has one setting
def evaluate(
    images: ImageSource | Iterable[NDArray[np.uint8]],
    reference: ReferenceData | ImageSet,
    options: Options = Options(),
    *,
    protocol: Mapping[str, Any] | None = None,
) -> list[MetricResult]:
    """Measure images against a reference.

    Args:
        images: an `ImageSource`, such as `fs.generated(model, seeds)`, or any iterable of this rank's images (every
            world-th of all), uint8 (C, H, W).
        reference: real images, or their statistics.
        options: which metrics, and how they are computed.
        protocol: how the images were made (model, seeds, sampler, NFE, rounding). Extractor, reference and settings are
            added.

    Returns:
        One result for each value.

    Raises:
        ValueError: before the expensive part for too few images, missing weights, too little memory, or a reference that
            lacks statistics or was computed with another extractor; later for features that are not finite, with the
            name of the image.

    Example:
        >>> fs.evaluate(fs.generated(model, range(2000)), fs.images("digits"))
    """
    metrics = options.parsed()
    source = images if isinstance(images, ImageSource) else from_iterable(images)
    real = reference if isinstance(reference, ReferenceData) else ReferenceData.of(reference)
    check_counts(metrics, source.n, real)
    extractors = options.open_extractors(metrics)
    for name, used in extractors.items():
        check_extractor(used, real, name)

    made = {**source.protocol, **(protocol or {})}
    needs = fake_needs(metrics, extrapolate=options.extrapolate)
    current = Pass(source, needs, extractors, batch_size=options.batch_size)
    check_dims(current.statistics, real)
    check_cost(metrics, current.statistics, real)
    real = complete(real, metrics, extractors, options)
    check_dims(current.statistics, real)
    fake = current.finish("eval" if isinstance(images, ImageSource) else None)

    results = []
    overlaps: dict[Need, dict[int, Overlap]] = {}
    for metric in metrics:
        n = metric.limit or fake.total
        about = {
            **made,
            **measured_by(metric, extractors[metric.extractor], real, n),
            "fewstep": version("fewstep"),
            **note(metric, n),
        }
        if metric.kind in NEIGHBOURS and metric.need not in overlaps:  # of all k at once
            ks = sorted({other.k for other in metrics if other.k and other.need == metric.need})
            overlaps[metric.need] = overlap(real.samples[metric.extractor, metric.part], fake[metric.need], ks)
        values = compute(metric, fake, real, overlaps.get(metric.need, {}))
        results += [MetricResult(name, value, n, about) for name, value in values.items()]
        if options.extrapolate and metric.kind == "frechet":
            samples = fake[metric.need._replace(of="samples")]
            value = frechet_at_infinity(samples, *real.moments[metric.extractor, metric.part])
            extrapolated = {k: v for k, v in about.items() if k != "note"} | {
                "extrapolated": "15 sizes, linear in 1 / n"
            }
            results.append(MetricResult(f"{metric.name}_infinity", value, n, extrapolated))
    barrier()
    return results


def from_iterable(images: Iterable[NDArray[np.uint8]]) -> ImageSource:
    n = None
    if isinstance(images, Sized):
        counted = torch.tensor(len(images))
        sum_over_ranks([counted])
        n = int(counted)
    return ImageSource(n, lambda: images)


def fake_needs(metrics: Iterable[Metric], *, extrapolate: bool) -> list[Need]:
    needs = [metric.need for metric in metrics]
    if extrapolate:
        needs += [metric.need._replace(of="samples") for metric in metrics if metric.kind == "frechet"]
    return list(dict.fromkeys(needs))


def check_counts(metrics: Iterable[Metric], n: int | None, real: ReferenceData) -> None:
    for metric in metrics:
        if n is None and (metric.kind != "frechet" or metric.limit):
            raise ValueError(
                f"{metric.name} needs to know the number of images beforehand; give a list instead of an iterator"
            )
        if n is not None:
            metric.check(n)
        if metric.kind != "score" and real.images is not None:
            metric.check(len(real.images), "reference")
    if n is not None and n < world_size():
        raise ValueError(f"{n} images cannot be split over {world_size()} processes")


def check_extractor(used: Extractor, real: ReferenceData, name: str) -> None:
    """Raise ValueError if the reference was computed with different weights or in another precision."""
    known, mine = real.extractors.get(name), identity(used)
    if known is not None and known != mine:
        raise ValueError(
            f"the reference {real.name} was made with the {name} extractor {short(known)}, and this one is "
            f"{short(mine) if mine else 'without a hash'}; compute the reference again, or use its weights in the same precision"
        )


def short(known: str) -> str:
    """An `identity` with the beginning of its hash."""
    digest, *dtype = known.split(" in ")
    return " in ".join([f"{digest[:16]}...", *dtype])


def check_dims(fake: Statistics, real: ReferenceData) -> None:
    for need, dim in fake.dims():
        features = (need.extractor, need.part)
        known = [len(real.moments[features][0])] if features in real.moments and need.of == "moments" else []
        known += [real.samples[features].shape[1]] if features in real.samples and need.of == "samples" else []
        for other in known:
            if other != dim:
                raise ValueError(
                    f"the {need.extractor} {need.part} of the images have {dim} numbers, those of the reference "
                    f"{real.name} {other}; compare images of one size, with one extractor"
                )


def lacking(metric: Metric, real: ReferenceData) -> bool:
    features = (metric.extractor, metric.part)
    if metric.kind == "score":
        return False
    return features not in (real.moments if metric.kind == "frechet" else real.samples)


def complete(
    real: ReferenceData,
    metrics: Sequence[Metric],
    extractors: Mapping[str, Extractor],
    options: Options,
    *,
    alone: bool = False,
) -> ReferenceData:
    """The reference with all arrays that the metrics need; what is missing is computed from its images.

    Moments are of all images that the reference stands for: where a file has both moments and images, the images are
    a sample, and only features of single images come from them.

    Args:
        alone: without images to compare with it, so that its cost was not checked with theirs.
    """
    needs = dict.fromkeys(metric.need._replace(limit=None) for metric in metrics if lacking(metric, real))
    if not needs:
        return real
    if real.images is None:
        wanted = ", ".join(metric.name for metric in metrics if lacking(metric, real))
        raise ValueError(
            f"the reference {real.name} lacks the statistics for {wanted}: it has {real.contents()}; make one with: "
            "fewstep eval reference DATA out.npz"
        )
    source = from_images(real.images)
    current = Pass(source, list(needs), extractors, batch_size=options.batch_size)
    if alone:
        check_cost(metrics, current.statistics, real)
    found = current.finish("reference")
    moments = {n[:2]: found[n] for n in needs if n.of == "moments"}
    samples = {n[:2]: found[n] for n in needs if n.of == "samples"}
    known = {name: identity(e) for name, e in extractors.items()}
    return replace(
        real,
        moments={**real.moments, **moments},
        samples={**real.samples, **samples},
        extractors={**known, **{k: v for k, v in real.extractors.items() if v is not None}},
    )


def make_reference(images: ImageSet, options: Options) -> ReferenceData:
    """Compute the statistics of all images of a set that metrics need.

    Args:
        images: the images.
        options: which metrics, and how they are computed.

    Returns:
        The reference, for `evaluate` and `save_reference`.

    Raises:
        ValueError: there is no such metric, or weights are missing.

    Example:
        >>> reference = fs.metrics.make_reference(fs.images("digits"), fs.metrics.Options(("fd_pixels",)))
    """
    metrics = options.parsed()
    for metric in metrics:
        metric.check(len(images), "reference")
    return complete(ReferenceData.of(images), metrics, options.open_extractors(metrics), options, alone=True)


def compute(metric: Metric, fake: Statistics, real: ReferenceData, overlaps: Mapping[int, Overlap]) -> dict[str, float]:
    """The values of one metric by name. overlaps: by k, for metrics of nearest neighbours."""
    features = (metric.extractor, metric.part)
    match metric.kind:
        case "frechet":
            mean, cov = fake[metric.need]
            values = (frechet_distance(mean, cov, *real.moments[features]),)
        case "kernel":
            values = kernel_distance(fake[metric.need], real.samples[features])
        case "score":
            values = fake[metric.need]
        case "overlap":
            values = (overlaps[metric.k].precision, overlaps[metric.k].recall)
        case "cover":
            values = (overlaps[metric.k].density, overlaps[metric.k].coverage)
    return dict(zip(metric.values, values, strict=True))


def measured_by(metric: Metric, used: Extractor, real: ReferenceData, n: int) -> dict[str, Any]:
    """The part of a protocol that another measurement must share."""
    extractor = {"name": used.name, "sha256": used.sha256, "part": metric.part, "resize": used.resize}
    if (dtype := precision(used)) != "float32":
        extractor["dtype"] = dtype
    settings = SETTINGS[metric.kind] | ({"k": metric.k} if metric.k else {})
    if metric.kind == "kernel":
        settings["size"] = min(SUBSET, n, len(real.samples[metric.extractor, metric.part]))
    about: dict[str, Any] = {"extractor": extractor, "settings": settings}
    if metric.kind == "score":
        return about
    reference = real.describe()
    if metric.kind != "frechet":
        reference["n"] = len(real.samples[metric.extractor, metric.part])
    return {**about, "reference": reference}


def note(metric: Metric, n: int) -> dict[str, str]:
    if n >= SMALL or metric.kind == "kernel":
        return {}
    bias = "biased upwards" if metric.kind == "frechet" else "depends on the number of images"
    return {"note": f"{n:,} images: {bias}, compare at equal n only"}
