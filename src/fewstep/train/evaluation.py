"""Evaluating the averaged product during training, and keeping the best one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fewstep import metrics
from fewstep.core.denoiser import Denoiser
from fewstep.data.images import ImageData
from fewstep.io import model_folder
from fewstep.metrics.catalog import parse
from fewstep.metrics.protocol import MetricResult, differences, parse_results
from fewstep.metrics.references import ReferenceData
from fewstep.metrics.sources import ImageSet
from fewstep.runtime.files import write_json
from fewstep.sample import generated
from fewstep.train.log import Lines
from fewstep.train.preemption import Watch
from fewstep.train.snapshots import card_of

if TYPE_CHECKING:
    from fewstep.train.settings import Run
    from fewstep.train.trainer import Trainer


@dataclass(frozen=True)
class Evaluation:
    """How the averaged product is measured during training.

    Args:
        every: Training images between two evaluations; there is another one at the end.
        metrics: Names as `metrics.catalog.parse` reads them; the first decides which product is the best.
        reference: Real images or their statistics; None for the training images.
        n: Number of images to generate, from the seeds 0 to n - 1, by the default plan of the product.
        batch_size: ImageSet at a time.
        feature_dtype: Precision of feature networks, see `metrics.Options`.

    Raises:
        ValueError: `every` is not positive, a metric is unknown, or `n` is too small for it.
    """

    every: int
    metrics: tuple[str, ...] = ("fd_pixels",)
    reference: ReferenceData | ImageSet | None = None
    n: int = 10_000
    batch_size: int = 64
    feature_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"the images between two evaluations must be at least 1; got {self.every}")
        for metric in metrics.Options(self.metrics).parsed():
            metric.check(self.n)

    def due(self, before: int, nimg: int) -> bool:
        """Whether a step from `before` to `nimg` images crosses a multiple of `every`."""
        return before // self.every < nimg // self.every

    def prepare(self, data: Any) -> Callable[[Denoiser, Watch], list[MetricResult]]:
        """Load networks and compute the statistics of the reference, once.

        Args:
            data: The training images, which are the reference if there is no other.

        Returns:
            A function that measures a denoiser, whose images pass through a `Watch`.
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
        """Whether the first result beats all earlier ones that were measured in the same way.

        Distances are better if they are smaller, scores and shares if they are larger.
        """
        sign = 1 if parse(self.metrics[0]).kind in ("frechet", "kernel") else -1
        rivals = [r for others in earlier for r in others if not differences(results[0], r)]
        return all(sign * results[0].value < sign * r.value for r in rivals)


class Evaluations:
    """The results of a run's evaluations in `metrics.jsonl`, and the product with the best of them in `best/`."""

    def __init__(self, folder: Path, nimg: int) -> None:
        self.folder, path = folder, folder / "metrics.jsonl"
        self.lines = Lines(path, nimg, lambda line: parse_results(line.get("results"), str(path)))

    def __contains__(self, nimg: int) -> bool:
        """Whether the product at this number of images was evaluated."""
        return any(line["nimg"] == nimg for line in self.lines.kept)

    def add(self, run: Run, trainer: Trainer, results: list[MetricResult]) -> None:
        """Append results; save the product if they are the best so far.

        They are compared with those in the card of `best/` too, as a line of the file may have been lost.
        """
        assert run.evaluation is not None
        earlier = [parse_results(line["results"], str(self.lines.path)) for line in self.lines.kept]
        card = model_folder.card(self.folder / "best") if (self.folder / "best").exists() else None
        if card is not None and card.nimg != trainer.nimg:
            earlier.append(parse_results(card.metrics, str(self.folder / "best" / "config.json")))
        if run.evaluation.best(results, earlier):
            about = card_of(run, trainer, trainer.averages[0], metrics=[r.asdict() for r in results])
            product = trainer.product
            assert isinstance(product, Denoiser)
            model_folder.save(product, self.folder / "best", about)
            write_json(
                self.folder / "best.json", {"model": "best", "nimg": trainer.nimg, results[0].key: results[0].value}
            )
        self.lines.append({"nimg": trainer.nimg, "results": [r.asdict() for r in results]})
