"""Every metric of a set of images against a reference, in one pass over them, each figure with its protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.distributed import barrier, sum_over_ranks, world_size
from fewstep.metrics.catalog import SPLITS, Metric, Need, parse
from fewstep.metrics.distribution import frechet_at_infinity, frechet_distance, kernel_distance
from fewstep.metrics.extractors import Extractor, extractor
from fewstep.metrics.neighbours import overlap
from fewstep.metrics.protocol import SMALL, Result
from fewstep.metrics.references import Reference
from fewstep.metrics.sources import Images, Source, from_images
from fewstep.metrics.statistics import Pass, Saved, Statistics

BATCH = 64
SETTINGS: dict[str, dict[str, Any]] = {
    "frechet": {"covariance": "unbiased, float64"},
    "kernel": {"kernel": "(x y / D + 1)^3", "subsets": 100, "size": 1000, "draw": "NumPy RandomState(2020)"},
    "score": {"splits": SPLITS, "logits": "without bias", "deviation": "over splits, not corrected"},
    "overlap": {"distance": "Euclidean, exact"},
    "cover": {"distance": "Euclidean, exact"},
}


@dataclass(frozen=True)
class Options:
    """How to measure. metrics: names as `catalog.parse` reads them. extractors: by name, instead of the built-in ones.

    batch_size: images at a time in a feature network. resume: folder in which an interrupted pass is kept, to continue
    from. extrapolate: add the Frechet distances' values at infinitely many images (Chong & Forsyth, 2020).
    """

    metrics: Sequence[str] = ("fd_pixels",)
    extractors: Mapping[str, Extractor] | None = None
    batch_size: int = BATCH
    resume: Path | None = None
    extrapolate: bool = False

    def parsed(self) -> list[Metric]:
        if not self.metrics:
            raise ValueError("no metric is asked for")
        return list(dict.fromkeys(parse(name) for name in self.metrics))

    def open_extractors(self, metrics: Iterable[Metric]) -> dict[str, Extractor]:
        """The extractors that metrics need; built-in ones are loaded here, which fails without their weights."""
        given = self.extractors or {}
        names = dict.fromkeys(metric.extractor for metric in metrics)
        return {name: given[name] if name in given else extractor(name) for name in names}


def evaluate(
    images: Source | Iterable[NDArray[np.uint8]],
    reference: Reference | Images,
    options: Options = Options(),
    *,
    protocol: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Measure images, uint8 (C, H, W), of all ranks, against a reference: one result for each figure.

    images: a `Source`, or any iterable of this rank's images (every world-th of all). protocol: how they were made
    (model, seeds, sampler, NFE, rounding); extractor, reference and settings are added. Raises ValueError before the
    expensive part for too few images, missing weights, and a reference that lacks what a metric needs or was made with
    another extractor; and for features that are not finite, naming the image.
    """
    metrics = options.parsed()
    source = images if isinstance(images, Source) else from_iterable(images)
    real = reference if isinstance(reference, Reference) else Reference.of(reference)
    check_counts(metrics, source.n, real)
    extractors = options.open_extractors(metrics)
    for name, used in extractors.items():
        check_extractor(used, real, name)

    made = {**source.protocol, **(protocol or {})}
    needs = fake_needs(metrics, extrapolate=options.extrapolate)
    saved = Saved(
        options.resume,
        {
            "needs": needs,
            "n": source.n,
            "protocol": made,
            "extractors": {name: e.sha256 for name, e in extractors.items()},
            "batch_size": options.batch_size,
        },
    )
    current = Pass(source, needs, extractors, batch_size=options.batch_size, saved=saved)
    current.begin()
    check_dims(current.statistics, real)
    real = complete(real, metrics, extractors, options.batch_size)
    check_dims(current.statistics, real)
    fake = current.finish("eval" if isinstance(images, Source) else None)
    seen = torch.tensor(fake.seen)
    sum_over_ranks([seen])
    fake.merge_ranks()

    results = []
    for metric in metrics:
        n = metric.limit or int(seen)
        about = {
            **made,
            **measured_by(metric, extractors[metric.extractor], real),
            "fewstep": version("fewstep"),
            **note(metric, n),
        }
        results += [Result(name, value, n, about) for name, value in compute(metric, fake, real).items()]
        if options.extrapolate and metric.kind == "frechet":
            samples = fake[metric.need._replace(of="samples")]
            value = frechet_at_infinity(samples, *real.moments[metric.extractor, metric.part])
            extrapolated = {k: v for k, v in about.items() if k != "note"} | {
                "extrapolated": "15 sizes, linear in 1 / n"
            }
            results.append(Result(f"{metric.name}_infinity", value, n, extrapolated))
    barrier()
    saved.remove()
    return results


def from_iterable(images: Iterable[NDArray[np.uint8]]) -> Source:
    n = None
    if isinstance(images, Sized):
        counted = torch.tensor(len(images))
        sum_over_ranks([counted])
        n = int(counted)
    return Source(n, lambda start: list(images)[start:] if start else images)


def fake_needs(metrics: Iterable[Metric], *, extrapolate: bool) -> list[Need]:
    needs = [metric.need for metric in metrics]
    if extrapolate:
        needs += [metric.need._replace(of="samples") for metric in metrics if metric.kind == "frechet"]
    return list(dict.fromkeys(needs))


def check_counts(metrics: Iterable[Metric], n: int | None, real: Reference) -> None:
    for metric in metrics:
        if n is None and (metric.kind != "frechet" or metric.limit):
            raise ValueError(f"{metric.name} needs to know the number of images beforehand; give a list or a Source")
        if n is not None:
            metric.check(n)
        if metric.kind != "score" and real.images is not None:
            metric.check(len(real.images), "reference")
    if n is not None and n < world_size():
        raise ValueError(f"{n} images cannot be split over {world_size()} processes")


def check_extractor(used: Extractor, real: Reference, name: str) -> None:
    """Refuse a reference whose arrays were made with other weights than those in use."""
    known = real.extractors.get(name)
    if known is not None and known != used.sha256:
        raise ValueError(
            f"the reference {real.name} was made with the {name} extractor {known[:16]}..., and this one is "
            f"{(used.sha256 or 'without a hash')[:16]}...; make the reference anew, or use the same weights"
        )


def check_dims(fake: Statistics, real: Reference) -> None:
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


def lacking(metric: Metric, real: Reference) -> bool:
    features = (metric.extractor, metric.part)
    if metric.kind == "score":
        return False
    return features not in (real.moments if metric.kind == "frechet" else real.samples)


def complete(
    real: Reference, metrics: Sequence[Metric], extractors: Mapping[str, Extractor], batch_size: int = BATCH
) -> Reference:
    """The reference with all arrays that the metrics need; what is missing is computed from its images.

    Moments are of all images that the reference stands for: where a file has both moments and images, the images are
    a sample, and only features of single images come from them.
    """
    needs = dict.fromkeys(metric.need._replace(limit=None) for metric in metrics if lacking(metric, real))
    if not needs:
        return real
    if real.images is None:
        wanted = ", ".join(metric.name for metric in metrics if lacking(metric, real))
        raise ValueError(
            f"the reference {real.name} does not serve {wanted}: it has {real.contents()}; make one that does with: "
            "fewstep eval reference DATA out.npz"
        )
    source = from_images(real.images)
    current = Pass(source, list(needs), extractors, batch_size=batch_size, saved=Saved(None, {}))
    current.begin()
    found = current.finish("reference")
    found.merge_ranks()
    moments = {n[:2]: found[n] for n in needs if n.of == "moments"}
    samples = {n[:2]: found[n] for n in needs if n.of == "samples"}
    hashes = {name: e.sha256 for name, e in extractors.items()}
    return replace(
        real,
        moments={**dict(real.moments), **moments},
        samples={**dict(real.samples), **samples},
        extractors={**hashes, **{k: v for k, v in real.extractors.items() if v is not None}},
    )


def make_reference(images: Images, options: Options) -> Reference:
    """The statistics of all images of a set that the metrics need, to be written by `references.save_reference`."""
    metrics = options.parsed()
    for metric in metrics:
        metric.check(len(images), "reference")
    return complete(Reference.of(images), metrics, options.open_extractors(metrics), options.batch_size)


def compute(metric: Metric, fake: Statistics, real: Reference) -> dict[str, float]:
    """The figures of one metric by name."""
    features, name = (metric.extractor, metric.part), metric.name
    found: Any = fake[metric.need]
    match metric.kind:
        case "frechet":
            (mean, cov), (real_mean, real_cov) = found, real.moments[features]
            return {name: frechet_distance(mean, cov, real_mean, real_cov)}
        case "kernel":
            distance, deviation = kernel_distance(found, real.samples[features])
            return {name: distance, f"{name}_std": deviation}
        case "score":
            return {name: found[0], f"{name}_std": found[1]}
    both = overlap(real.samples[features], found, metric.k)
    suffix = name[2:]  # of pr5_dinov2: 5_dinov2
    if metric.kind == "overlap":
        return {f"precision{suffix}": both.precision, f"recall{suffix}": both.recall}
    return {f"density{suffix}": both.density, f"coverage{suffix}": both.coverage}


def measured_by(metric: Metric, used: Extractor, real: Reference) -> dict[str, Any]:
    """The part of a protocol that another measurement must share."""
    extractor = {"name": used.name, "sha256": used.sha256, "part": metric.part, "resize": used.resize}
    settings = SETTINGS[metric.kind] | ({"k": metric.k} if metric.k else {})
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
