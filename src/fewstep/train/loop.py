"""`fit`: trains a run in its folder and resumes it there. The loop, and what is due after its steps.

run.json       what runs: settings, data, versions, command
log.jsonl      one line of metrics at a time
metrics.jsonl  the results of its evaluations, with their protocols
best/          the averaged product with the best result, a model folder; best.json says which
snapshots/     the averaged product as model folders, by training images
averages/      likewise for further averages, a folder for each
checkpoints/   the whole state of training, the newest ones
samples/       grids of fixed seeds
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.io.model_folder import network_to_dict
from fewstep.nets.execution import compile_blocks, recompute_blocks
from fewstep.runtime.distributed import barrier, device, from_first, rank, world_size
from fewstep.runtime.files import read_json
from fewstep.runtime.memory import lacks_memory
from fewstep.runtime.progress import Progress
from fewstep.runtime.threads import tuned_threads
from fewstep.train import checkpoint_files
from fewstep.train.checkpoint import Checkpoints
from fewstep.train.evaluation import Evaluations
from fewstep.train.folder import RECORD, check_until, claimed, open_folder
from fewstep.train.log import Log
from fewstep.train.preemption import Preempted, Watch, stop_signals
from fewstep.train.settings import Run
from fewstep.train.sharding import STRATEGIES, shardable
from fewstep.train.snapshots import images_of_grid, places, record_of, take_snapshot
from fewstep.train.trackers import Tracker, open_trackers
from fewstep.train.trainer import Trainer


def fit(run: Run, folder: str | Path, *, fresh: bool = False) -> Denoiser:
    """Train a run in a folder, or resume it there.

    The same call again resumes from the newest checkpoint, or returns at once if the run is finished. The result is the same,
    bit for bit, however often the run was interrupted, with the same number of threads: on a CPU a run chooses the fastest
    number as it goes (`runtime.threads`), unless OMP_NUM_THREADS is set. Other numbers change results by rounding.

    Args:
        run: What to train; the networks of its method are changed in place.
        folder: Where everything is written; made if it does not exist.
        fresh: Discard what a run left in the folder, and start over.

    Returns:
        The averaged product.

    Raises:
        ValueError: The folder belongs to another configuration or holds a longer run, another process trains in it, no
            checkpoint is intact, or the loss diverged.
        Preempted: SIGTERM or SIGINT stopped the run after its state was saved.

    Example:
        >>> student = fs.fit(run, "runs/student")
    """
    folder = Path(folder)
    run.check_numbers()  # again: the number of ranks may not have been known
    product = run.method.get_submodule(run.method.product)
    assert isinstance(product, Denoiser)
    product.codec.prepare(device())  # snapshots are images
    network_to_dict(product.net)  # raises ValueError for a network that no snapshot can hold
    if run.compile:
        compile_blocks(run.method)  # raises ValueError where PyTorch is too old
    training = [p for p in run.method.parameters() if p.requires_grad]
    with claimed(folder) as check, resumable(training):
        if not fresh:
            check_until(folder, run.until, run.batch_size)
        open_folder(folder, run.identity(), record_of(run, product), fresh=fresh)
        check()
        if run.recompute is not None:
            recompute_blocks(run.method, run.recompute)
        trainer = Trainer(
            run.method,
            run.data,
            run.optimizers,
            batch_size=run.batch_size,
            micro_batch=read_json(folder / RECORD)["identity"]["micro_batch"],
            ema=run.ema,
            seed=run.seed,
            tf32=run.tf32,
            device=device(),
            strategies={name: STRATEGIES[run.strategy]() for name in shardable(run.method)},
        )
        with closing(Checkpoints(folder / "checkpoints", keep=run.keep)) as checkpoints:
            seconds = resume(trainer, checkpoints.newest())
            Loop(run, trainer, folder, checkpoints, seconds).train(check)
        trainer.gather()
    product = trainer.product
    assert isinstance(product, Denoiser)
    return product


def resume(trainer: Trainer, checkpoint: Path | None) -> float:
    """Load a checkpoint, if there is one; returns the seconds trained so far."""
    if checkpoint is None:
        return 0.0
    state = checkpoint_files.load(checkpoint, trainer.tensors)
    try:
        trainer.load_counters(state)
    except (RuntimeError, LookupError) as error:
        raise ValueError(
            f"{checkpoint} is not a state of this run ({str(error)[:200]}); remove it to resume from the one before"
        ) from error
    return state["seconds"]


@contextmanager
def resumable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let a method train again in this process if its whole state was saved: at the end, and after a signal.

    After any other exception its weights may be those of no checkpoint; the Trainer then rejects it, as nothing in it trains.
    """
    try:
        yield
    except Preempted:
        nn.ParameterList(parameters).requires_grad_(True)
        raise
    nn.ParameterList(parameters).requires_grad_(True)


class Loop:
    """Trains a run in its folder.

    Args:
        seconds: How long it was trained before.
    """

    def __init__(self, run: Run, trainer: Trainer, folder: Path, checkpoints: Checkpoints, seconds: float) -> None:
        self.run, self.trainer, self.folder, self.checkpoints, self.before = run, trainer, folder, checkpoints, seconds
        self.lead = rank() == 0
        self.trackers: tuple[Tracker, ...] = ()
        total = -(-run.until // run.batch_size)
        self.log_every = min(100, max(1, total // 100))
        self.snapshot_every = max(1, total // max(run.snapshots, 1))
        if self.lead:
            self.log = Log(folder / "log.jsonl", trainer.nimg)
            self.evaluations = Evaluations(folder, trainer.nimg)

    @property
    def done(self) -> bool:
        return self.trainer.nimg >= self.run.until

    def due(self) -> tuple[bool, bool]:
        """Whether an evaluation and a snapshot are due now and have not been made; all ranks call it."""
        evaluation, nimg = self.run.evaluation, self.trainer.nimg
        evaluate = evaluation is not None and (self.done or evaluation.due(nimg - self.run.batch_size, nimg))
        snapshot = self.done or self.trainer.steps % self.snapshot_every == 0
        if not nimg or not (evaluate or snapshot):
            return False, False
        if self.lead:
            evaluate = evaluate and nimg not in self.evaluations
            snapshot = snapshot and not all(place.exists() for place in places(self.trainer, self.folder))
        return from_first((evaluate, snapshot))

    def train(self, check: Callable[[], None]) -> None:
        """Train, log, evaluate, and take snapshots and checkpoints until the end, or until a signal asks to stop.

        check: Raises ValueError if the folder was removed.
        """
        run, trainer = self.run, self.trainer
        due = self.due()  # what an interruption left out
        if self.done and not any(due):
            return
        self.measure = None if run.evaluation is None else run.evaluation.prepare(run.data.data)
        record = read_json(self.folder / RECORD)
        product = trainer.product
        assert isinstance(product, Denoiser)
        self.grid = record["grid"] if "grid" in record else images_of_grid(product)
        if self.lead:
            self.trackers = open_trackers(run.track, self.folder, run.name, record["identity"], trainer.nimg)
        self.started = self.saved = self.logged = time.monotonic()
        self.logged_nimg = trainer.nimg
        progress = Progress(run.name, total=run.until, done=trainer.nimg)
        try:
            with progress, stop_signals() as self.asked, tuned_threads(alone_on_cpu()) as before_step:
                self.show(*due, progress)
                while not self.done:
                    before_step()
                    logs = self.step()
                    check()
                    due = self.due()
                    if self.done or due[0] or trainer.steps % self.log_every == 0:
                        self.note(logs, progress)
                    elif self.lead:
                        self.log.add(logs)
                    late = time.monotonic() - self.saved > run.checkpoint_seconds
                    stop, save = self.checkpoints.agree(self.asked(), late)
                    if stop or save or self.done or any(due):
                        self.save()
                    progress.update(trainer.nimg)
                    if stop:
                        raise Preempted
                    self.show(*due, progress)
                self.checkpoints.finish()
        except Preempted:
            self.checkpoints.finish()
            if self.lead:
                where = f"stopped at {trainer.nimg:,} of {run.until:,} images, which are saved in {self.folder}"
                print(f"{run.name}: {where}; the same command continues", file=sys.stderr)
            raise
        finally:
            for tracker in self.trackers:
                tracker.close()
        barrier()

    def step(self) -> dict[str, Tensor]:
        """A step of the Trainer. Raises MemoryError, which says what needs less, if it does not fit."""
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
        trainer, players = self.trainer, self.trainer.player_metrics()
        if not self.lead:
            return
        self.log.add(logs)
        now = time.monotonic()
        rate = (trainer.nimg - self.logged_nimg) / max(now - self.logged, 1e-9)
        entry = {"nimg": trainer.nimg, "seconds": self.before + now - self.started, "images_per_second": rate}
        entry |= {"peak_memory_gib": peak_memory_gib(), "threads": torch.get_num_threads(), **players}
        metrics = self.log.write(entry)
        check_finite(metrics, trainer, self.folder)
        for tracker in self.trackers:
            tracker.log(trainer.nimg, {k: v for k, v in (entry | metrics).items() if k != "nimg"})
        progress.show_losses(metrics)
        self.logged, self.logged_nimg = now, trainer.nimg

    def save(self) -> None:
        """Start a checkpoint."""
        if self.lead:
            check_finite(self.log.metrics(), self.trainer, self.folder)
        self.checkpoints.save(self.trainer.state_dict(), seconds=self.before + time.monotonic() - self.started)
        self.saved = time.monotonic()

    def show(self, evaluate: bool, snapshot: bool, progress: Progress) -> None:
        """Evaluate the averaged product, and take a snapshot of it; the state has been saved already."""
        if not evaluate and not snapshot:
            return
        self.trainer.gather()
        product = self.trainer.product
        assert isinstance(product, Denoiser)
        watch = Watch(product, self.asked, lambda stop: self.checkpoints.agree(stop, due=False)[0])
        if evaluate and self.measure is not None:
            began = time.monotonic()
            results = self.measure(product, watch)
            taken = time.monotonic() - began  # does not count as training
            self.logged, self.started = self.logged + taken, self.started + taken
            if self.lead:
                self.evaluations.add(self.run, self.trainer, results)
                metrics = {r.key: r.value for r in results}
                self.log.lines.amend(self.trainer.nimg, metrics)
                for tracker in self.trackers:
                    tracker.log(self.trainer.nimg, metrics)
                progress.show_losses(metrics)
        if snapshot:
            picture = take_snapshot(self.run, self.trainer, self.folder, self.grid, watch)
            for tracker in self.trackers:
                tracker.image(self.trainer.nimg, "samples", picture)


def alone_on_cpu() -> bool:
    """Whether this process computes on a CPU and has no other ranks."""
    return device().type == "cpu" and world_size() == 1


def peak_memory_gib() -> float:
    """The most memory that this process used at once, in GiB: on a GPU its tensors, else all of it."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in KiB on Linux


def check_finite(metrics: dict[str, float], trainer: Trainer, folder: Path) -> None:
    """Raise ValueError if a loss diverged, before a checkpoint with it replaces a good one."""
    diverged = [key for key, value in metrics.items() if not np.isfinite(value) and not key.startswith("grad_norm/")]
    if diverged:
        names = [key for key in diverged if "/" not in key] or diverged  # the losses, rather than all their details
        raise ValueError(
            f"{', '.join(names)} became infinite or NaN before {trainer.nimg:,} images; the last good checkpoint is in "
            f"{folder / 'checkpoints'}. Lower the learning rate and use another folder"
        )
