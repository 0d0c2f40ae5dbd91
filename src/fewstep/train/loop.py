"""The loop of a run: steps, and what is due after them; it ends with its images, or when a signal asks it to."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.io import model_folder
from fewstep.metrics.protocol import MetricResult, parse_results
from fewstep.runtime.distributed import barrier, device, from_first, rank
from fewstep.runtime.files import read_json
from fewstep.runtime.memory import lacks_memory
from fewstep.runtime.progress import Progress
from fewstep.train.checkpoints import Checkpoints
from fewstep.train.evaluation import keep_best
from fewstep.train.identity import describe
from fewstep.train.log import Lines, Log
from fewstep.train.preemption import Preempted, Watch, stop_signals
from fewstep.train.snapshots import card_of, images_of_grid, places, take_snapshot
from fewstep.train.trackers import Tracker, open_trackers
from fewstep.train.trainer import Trainer

if TYPE_CHECKING:
    from fewstep.train.run import Run


class Loop:
    """Trains a run in its folder. seconds: that it trained before."""

    def __init__(self, run: Run, trainer: Trainer, folder: Path, checkpoints: Checkpoints, seconds: float) -> None:
        self.run, self.trainer, self.folder, self.checkpoints, self.before = run, trainer, folder, checkpoints, seconds
        self.lead = rank() == 0
        total = -(-run.until // run.batch_size)
        self.log_every = min(100, max(1, total // 100))
        self.snapshot_every = max(1, total // max(run.snapshots, 1))

    @property
    def done(self) -> bool:
        return self.trainer.nimg >= self.run.until

    @property
    def measured(self) -> bool:
        """Whether an evaluation is due now."""
        evaluation, nimg = self.run.evaluation, self.trainer.nimg
        return evaluation is not None and (self.done or evaluation.due(nimg - self.run.batch_size, nimg))

    @property
    def pictured(self) -> bool:
        """Whether a snapshot is due now."""
        return self.done or self.trainer.steps % self.snapshot_every == 0

    def open(self) -> tuple[bool, bool]:
        """Open the records; returns whether an evaluation and a snapshot are due that an interruption has left out."""
        evaluation, nimg = self.run.evaluation, self.trainer.nimg
        missing = (False, False)
        self.trackers: tuple[Tracker, ...] = ()
        if self.lead:
            path = self.folder / "metrics.jsonl"
            self.log = Log(self.folder / "log.jsonl", nimg)
            self.scores = Lines(path, nimg, lambda line: parse_results(line.get("results"), str(path)))
            self.best = best_before(self.folder)
            known = {line["nimg"] for line in self.scores.kept}
            drawn = all(place.exists() for place in places(self.trainer, self.folder))
            missing = (self.measured and nimg not in known, self.pictured and not drawn)
        missing = from_first(missing if nimg else (False, False))
        if self.done and missing == (False, False):
            return missing
        self.measure = None if evaluation is None else evaluation.prepare(self.run.data.data)
        record = read_json(self.folder / "run.json")
        product = self.trainer.product
        assert isinstance(product, Denoiser)
        self.grid = record["grid"] if "grid" in record else images_of_grid(product)
        if self.lead:
            self.trackers = open_trackers(self.run.track, self.folder, self.run.name, record["identity"], nimg)
        return missing

    def train(self, check: Callable[[], None]) -> None:
        """Train, log, measure, take snapshots and checkpoints until the end, or until a signal asks to stop.

        check: raises ValueError if the folder is not there any more.
        """
        run, trainer = self.run, self.trainer
        missing = self.open()
        if self.done and missing == (False, False):
            return
        self.started = self.saved = self.logged = time.monotonic()
        self.logged_nimg = trainer.nimg
        progress = Progress(run.name, total=run.until, done=trainer.nimg)
        try:
            with progress, stop_signals() as self.asked:
                self.show(*missing, progress)
                while not self.done:
                    logs = self.step()
                    check()
                    measured, pictured = self.measured, self.pictured
                    if self.done or measured or trainer.steps % self.log_every == 0:
                        self.note(logs, progress)
                    elif self.lead:
                        self.log.add(logs)
                    late = time.monotonic() - self.saved > run.checkpoint_seconds
                    stop, due = self.checkpoints.agree(self.asked(), late)
                    if stop or due or measured or pictured:
                        self.save()
                    progress.update(trainer.nimg)
                    if stop:
                        raise Preempted
                    self.show(measured, pictured, progress)
                self.checkpoints.finish()
        except Preempted:
            self.checkpoints.finish()
            if self.lead:
                where = f"stopped at {trainer.nimg:,} of {run.until:,} images, which are saved in {self.folder}"
                print(f"{run.name}: {where}; the same command goes on", file=sys.stderr)
            raise
        finally:
            for tracker in self.trackers:
                tracker.close()
        barrier()

    def step(self) -> dict[str, Tensor]:
        try:
            return self.trainer.step()
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            raise MemoryError(
                f"a step in micro-batches of {self.trainer.micro_batch} images does not fit into the memory of {device()}; "
                "try --recompute light, then --recompute 1, then a smaller --micro-batch, if the recipe has it, in "
                "another run, then --strategy shard on several GPUs"
            ) from error

    def note(self, logs: dict[str, Tensor], progress: Progress) -> None:
        """Write a line of the log; all ranks call it."""
        trainer, condition = self.trainer, self.trainer.condition()
        if not self.lead:
            return
        self.log.add(logs)
        now = time.monotonic()
        rate = (trainer.nimg - self.logged_nimg) / max(now - self.logged, 1e-9)
        entry = {"nimg": trainer.nimg, "seconds": self.before + now - self.started, "images_per_second": rate}
        entry |= {"peak_memory_gib": peak_memory_gib(), **condition}
        metrics = self.log.write(entry)
        check_finite(metrics, trainer, self.folder)
        for tracker in self.trackers:
            tracker.log(trainer.nimg, {k: v for k, v in (entry | metrics).items() if k != "nimg"})
        progress.show_losses(metrics)
        self.logged, self.logged_nimg = now, trainer.nimg

    def save(self) -> None:
        """Begin a checkpoint."""
        if self.lead:
            check_finite(self.log.metrics(), self.trainer, self.folder)
        self.checkpoints.save(self.trainer.state_dict(), seconds=self.before + time.monotonic() - self.started)
        self.saved = time.monotonic()

    def show(self, measured: bool, pictured: bool, progress: Progress) -> None:
        """Measure the averaged product, and take a snapshot of it, where they are due; the state is saved already."""
        if not measured and not pictured:
            return
        self.trainer.gather()
        product = self.trainer.product
        assert isinstance(product, Denoiser)
        watch = Watch(product, self.asked, lambda stop: self.checkpoints.agree(stop, due=False)[0])
        if measured and self.measure is not None:
            began = time.monotonic()
            results = self.measure(product, watch)
            taken = time.monotonic() - began  # which is no time of training
            self.logged, self.started = self.logged + taken, self.started + taken
            if self.lead:
                self.record(results, product)
                metrics = {r.key: r.value for r in results}
                self.log.lines.amend(self.trainer.nimg, metrics)
                for tracker in self.trackers:
                    tracker.log(self.trainer.nimg, metrics)
                progress.show_losses(metrics)
        if pictured:
            picture = take_snapshot(self.run, self.trainer, self.folder, self.grid, watch)
            for tracker in self.trackers:
                tracker.image(self.trainer.nimg, "samples", picture)

    def record(self, results: list[MetricResult], product: Denoiser) -> None:
        """Append results to `metrics.jsonl`, and keep the product if they are the best so far.

        The best is known by its card, too: a line of the file may have been lost.
        """
        run, nimg = self.run, self.trainer.nimg
        assert run.evaluation is not None
        earlier = [parse_results(line["results"], str(self.scores.path)) for line in self.scores.kept]
        best_nimg, best = self.best
        if best and best_nimg != nimg:
            earlier.append(best)
        if run.evaluation.best(results, earlier):
            about = dataclasses.replace(card_of(run, self.trainer), ema=describe(self.trainer.averages[0].profile))
            keep_best(results, product, self.folder, about)
            self.best = nimg, results
        self.scores.append({"nimg": nimg, "results": [r.asdict() for r in results]})


def best_before(folder: Path) -> tuple[int, list[MetricResult]]:
    """The images and the results of the model in `best/`; none if there is no such model."""
    if not (folder / "best").exists():
        return 0, []
    card = model_folder.card(folder / "best")
    return card.nimg, parse_results(card.metrics, str(folder / "best" / "config.json"))


def peak_memory_gib() -> float:
    """The most memory that this process had at once, in GiB: on a GPU its tensors, else all of it."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in KiB on Linux


def check_finite(metrics: dict[str, float], trainer: Trainer, folder: Path) -> None:
    """Stop a run whose loss diverged, before its checkpoint overwrites a good one."""
    lost = [key for key, value in metrics.items() if not np.isfinite(value) and not key.startswith("grad_norm/")]
    if lost:
        names = [key for key in lost if "/" not in key] or lost  # the losses, rather than all that is told of them
        raise ValueError(
            f"{', '.join(names)} became infinite or undefined before {trainer.nimg:,} images; the last good checkpoint is in "
            f"{folder / 'checkpoints'}. Lower the learning rate and use another folder"
        )
