"""Measuring the averaged product on a clock while it trains, and keeping the best one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.core.denoiser import Denoiser
from fewstep.data.images import ImageData
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.metrics import evaluate as metrics
from fewstep.metrics.catalog import parse
from fewstep.metrics.protocol import MetricResult, differences
from fewstep.metrics.references import ReferenceData
from fewstep.metrics.sources import ImageSet
from fewstep.runtime.files import write_json
from fewstep.sample import generated
from fewstep.train.preemption import Watch


@dataclass(frozen=True)
class Evaluation:
    """every: training images between two measurements; another one follows at the end.

    metrics: by name, as `metrics.catalog.parse` reads them; the first decides which product is the best. reference: real
    images or their statistics, None for the training images. n: images made, from the seeds 0 ... n - 1, by the sampler
    of `default_plan`. batch_size: images at a time. feature_dtype: in which feature networks compute, see
    `metrics.evaluate.Options`.
    """

    every: int
    metrics: tuple[str, ...] = ("fd_pixels",)
    reference: ReferenceData | ImageSet | None = None
    n: int = 10_000
    batch_size: int = 64
    feature_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"an evaluation is due every so many images, at least 1; got {self.every}")
        for metric in metrics.Options(self.metrics).parsed():
            metric.check(self.n)

    def due(self, before: int, nimg: int) -> bool:
        """Whether a step from `before` to `nimg` images crosses a multiple of `every`."""
        return before // self.every < nimg // self.every

    def prepare(self, data: Any) -> Callable[[Denoiser, Watch], list[MetricResult]]:
        """A function that measures a denoiser, whose images pass through a `Watch`. Networks and statistics of the reference
        are got here, once.

        data: the training images, if there is no other reference.
        """
        reference = data if self.reference is None else self.reference
        if self.reference is None and not isinstance(data, ImageData):
            raise ValueError(f"{data.name} holds no images to compare with; give the evaluation a reference")
        options = metrics.Options(self.metrics, batch_size=self.batch_size, feature_dtype=self.feature_dtype)
        options = dataclasses.replace(options, extractors=options.open_extractors(options.parsed()))
        if not isinstance(reference, ReferenceData):
            reference = metrics.make_reference(reference, options)

        def measure(denoiser: Denoiser, watch: Watch) -> list[MetricResult]:
            images = generated(denoiser, range(self.n), batch_size=self.batch_size)
            watched = dataclasses.replace(images, make=lambda: watch(images.make()))
            return metrics.evaluate(watched, reference, options)

        return measure

    def best(self, results: Sequence[MetricResult], earlier: Sequence[Sequence[MetricResult]]) -> bool:
        """Whether the first figure beats all earlier ones that were measured in the same way: distances are to be small,
        scores and shares large.
        """
        sign = 1 if parse(self.metrics[0]).kind in ("frechet", "kernel") else -1
        rivals = [r for others in earlier for r in others if not differences(results[0], r)]
        return all(sign * results[0].value < sign * r.value for r in rivals)


def keep_best(results: Sequence[MetricResult], denoiser: Denoiser, folder: Path, card: Card) -> None:
    """Save the denoiser as the model folder `best/`, and say in `best.json` which it is."""
    model_folder.save(denoiser, folder / "best", dataclasses.replace(card, metrics=[r.asdict() for r in results]))
    write_json(folder / "best.json", {"model": "best", "nimg": card.nimg, results[0].key: results[0].value})
