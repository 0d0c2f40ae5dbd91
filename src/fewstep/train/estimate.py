"""What a run will take, printed before it starts: networks, length, and the time and memory of a step on this machine.

A step is measured on a copy of the method, with as many images as a few seconds allow, and extrapolated to the batch. The
random streams are left as they were, so that a run with an estimate is the same run as one without, bit for bit.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Method, Phase
from fewstep.data.labels import LabelStream
from fewstep.nets.execution import recompute_blocks
from fewstep.runtime import memory, precision
from fewstep.runtime.distributed import device, from_first, world_size
from fewstep.sample import count_evaluations
from fewstep.train.log import parsed
from fewstep.train.read_ahead import ReadAhead
from fewstep.train.settings import Run
from fewstep.train.sharding import STRATEGIES, shardable
from fewstep.train.snapshots import SECONDS as GRID_SECONDS
from fewstep.train.snapshots import images_of_grid
from fewstep.train.trainer import Trainer

SECONDS = 3.0
"""Measuring begins no larger batch after this many seconds; a step with one image is always measured."""
SHORT = 50
"""Steps; a shorter run shows its speed about as soon as it could be measured."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes on this machine.

    Attributes:
        step: Seconds of a training step, averaged over phases that are not due in every step.
        snapshot: Seconds of the grid of a snapshot.
        memory: Bytes at the peak: on a GPU its tensors, else the whole process.
        images: Images at a time in the measured steps; the step of the run is extrapolated from them.
    """

    step: float
    snapshot: float
    memory: int
    images: int

    def seconds(self, run: Run) -> float:
        """Of the whole run, snapshots included, evaluations not."""
        return steps_of(run) * self.step + run.snapshots * self.snapshot

    def images_in(self, run: Run, seconds: float) -> int:
        """How many images can be trained in a time, a multiple of the batch; at least one batch."""
        return max(1, int((seconds - run.snapshots * self.snapshot) / self.step)) * run.batch_size

    def lines(self, run: Run) -> list[str]:
        """For people: time and memory."""
        place = device()
        threads = torch.get_num_threads()
        where = f"the CPU ({threads} thread{'s' * (threads > 1)})" if place.type == "cpu" else str(place)
        notes = [f"measured with {self.images} images at a time"]
        notes += [f"{run.evaluation.n:,} images of each evaluation not included"] if run.evaluation else []
        notes += ["without --compile"] if run.compile else []
        free = memory.available() if place.type == "cpu" else torch.cuda.mem_get_info(place)[0]
        of = "" if free is None else f"; {size(free)} are free"
        return [
            f"time: {period(self.step)} a step on {where}, {period(self.seconds(run))} in all ({'; '.join(notes)})",
            f"memory: about {size(self.memory)} at the peak, an estimate{of}",
        ]


def measure(run: Run, *, clock: Callable[[], float] = time.perf_counter) -> Estimate:
    """Measure a step of a run; all ranks call it.

    All phases are timed with 1 image on each rank, then with more, up to the micro-batch of the run, as `SECONDS` allow; the
    time of a batch is extrapolated linearly from the last two. The memory of activations is what autograd saves for each
    image; gradients, optimizers, averages and a checkpoint that is being written are counted.

    Args:
        run: What is going to be trained; it is not changed.
        clock: Returns seconds.

    Returns:
        The estimate.

    Raises:
        ValueError: A loss is not a method of the Method, so that a copy of it would train the original.
    """
    before = memory.used()
    with random_streams_kept():
        trainer = trainer_of_copy(run)
        share = run.batch_size // world_size()
        most = min(run.micro_batch or share, share)
        saved: dict[int, int] = {}
        seconds: dict[int, float] = {}
        timed(trainer, run, 1, clock, count=False)  # starts threads, prepares kernels and optimizers
        began, n = clock(), 1
        while True:
            first, kept = timed(trainer, run, n, clock, count=len(saved) < 2)
            saved |= {n: kept} if kept else {}
            seconds[n] = first
            if clock() - began < SECONDS:  # the first pass prepared kernels for this size
                seconds[n] = min(first, timed(trainer, run, n, clock, count=False)[0])
            larger = from_first(affordable(seconds, most, SECONDS - (clock() - began)))
            if larger <= n:
                break
            n = larger
        step = of_batch(seconds, share)
        product = trainer.product
        assert isinstance(product, Denoiser)
        evaluation = step / share / 3  # backward costs two forward passes
        grid = evaluation * images_of_grid(product) * count_evaluations(product.plan())
        grid = min(grid, GRID_SECONDS) if device().type == "cpu" else grid
        held = bytes_held(trainer) + activations(saved, most) + (before or 0 if device().type == "cpu" else 0)
    if device().type == "cuda":
        del trainer, product
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Estimate(step, grid, held, n)


def trainer_of_copy(run: Run) -> Trainer:
    """A Trainer of a copy of the method, for one image on each rank."""
    shared = (run.data, run.data.data)
    method = copy.deepcopy(run.method, {id(each): each for each in shared})
    modules = set(method.modules())
    for phase in method.phases:
        if getattr(phase.loss, "__self__", None) not in modules:
            raise ValueError(f"the loss {phase.name} is not a method of {type(method).__name__}")
    if run.recompute is not None:
        recompute_blocks(method, run.recompute)
    return Trainer(
        method,
        run.data,
        run.optimizers,
        batch_size=world_size(),
        micro_batch=1,
        ema=run.ema,
        seed=run.seed,
        tf32=run.tf32,
        device=device(),
        strategies={name: STRATEGIES[run.strategy]() for name in shardable(method)},
    )


def timed(trainer: Trainer, run: Run, n: int, clock: Callable[[], float], *, count: bool) -> tuple[float, int]:
    """Seconds of a step with `n` images on each rank, and if `count` the most bytes that autograd saves in a phase."""

    def now() -> float:
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return clock()

    trainer.data.thread.shutdown()
    trainer.micro_batch, trainer.batch_size = n, n * world_size()
    trainer.data = ReadAhead(run.data, n, n * world_size(), trainer.device)
    seconds, most = 0.0, 0
    for index, phase in enumerate(trainer.method.phases):
        began = now()
        with precision.tf32(run.tf32), saved_bytes(trainer.method) if count else nullcontext([0]) as found:
            trainer.update(index, phase)
        seconds += (now() - began) * frequency(phase, run)
        most = max(most, sum(found))
    began = now()
    for average in trainer.averages:
        average.update(trainer.nimg, trainer.batch_size)
    return seconds + now() - began, most


@contextmanager
def saved_bytes(method: nn.Module) -> Iterator[list[int]]:
    """The bytes of each tensor that autograd saves within the block, other than parameters and buffers."""
    known = {t.untyped_storage().data_ptr() for t in (*method.parameters(), *method.buffers())}
    found: list[int] = []

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            found.append(storage.nbytes())
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        yield found


@contextmanager
def random_streams_kept() -> Iterator[None]:
    """Leave the random streams of torch, numpy and Python as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device()] if device().type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def of_batch(seconds: dict[int, float], n: int) -> float:
    """Seconds of a step with `n` images, from those of steps with fewer: a + b n through the two largest.

    b is at least a tenth of the time per image and at most all of it, so that noise cannot make images free.
    """
    *others, largest = seconds
    slope = seconds[largest] / largest
    if others:
        rise = (seconds[largest] - seconds[others[-1]]) / (largest - others[-1])
        slope = min(max(rise, slope / 10), slope)
    return seconds[largest] + slope * (n - largest)


def affordable(seconds: dict[int, float], most: int, spend: float) -> int:
    """How many images to measure next: 2 after 1, then as many as twice their step is expected to take at most `spend`."""
    n = max(seconds)
    larger = min(2, most) if n == 1 else n
    bound = 4 * SECONDS / (seconds[n] / n)  # in case that the expectation is wrong
    while n > 1 and 2 * larger <= min(most, bound) and 2 * of_batch(seconds, 2 * larger) <= spend:
        larger *= 2
    if n == 1 and seconds[n] > spend:
        return n
    return most if larger < most < 2 * larger and larger > n else larger


def activations(saved: dict[int, int], n: int) -> int:
    """Bytes that autograd saves for `n` images: a part for each image, and a fixed one, such as weights that were cast."""
    if len(saved) == 1:
        return saved[1] * n
    each = max(0, saved[2] - saved[1])
    return saved[1] + each * (n - 1)


def bytes_held(trainer: Trainer) -> int:
    """Bytes of weights, gradients, optimizers and averages; on a CPU with the copy of a checkpoint, without the weights."""
    trained = [sum(p.nbytes for p in params) for params in trainer.params.values()]
    weights = sum(t.nbytes for t in trainer.method.state_dict().values())
    averages = sum(t.nbytes for average in trainer.averages for t in average.state_dict().values())
    state = 2 * sum(trained) + averages
    if trainer.device.type == "cuda":
        return weights + max(trained) + state
    return max(trained) + state + weights + state


def frequency(phase: Phase, run: Run) -> float:
    """The share of the steps of a run in which a phase is due."""
    return max(0.0, min(phase.stop, run.until) - phase.start) / run.until / phase.every


def steps_of(run: Run) -> int:
    return math.ceil(run.until / run.batch_size)


# For people


def about(run: Run) -> list[str]:
    """What a run trains, and for how long."""
    stream, each = run.data, len(run.data.data)
    seen = "" if isinstance(stream, LabelStream) else f"; {passes(run.until / each)} the {each:,} images"
    return [
        f"networks: {networks(run.method)}",
        f"training: {run.until:,} images in {steps_of(run):,} steps of {run.batch_size:,}{seen}",
    ]


def passes(n: float) -> str:
    return f"{n:.2g} times" if n < 10 else f"{n:,.0f} times"


def networks(method: Method) -> str:
    """The networks of a method with their sizes, and whether they train."""
    players = {phase.player.partition(".")[0] for phase in method.phases}
    found = []
    for name, child in method.named_children():
        if n := sum(p.numel() for p in child.parameters()):
            kind = f" ({type(child.net).__name__})" if isinstance(child, Denoiser) else ""
            found.append(f"{name}{kind} of {n / 1e6:.3g} M parameters{'' if name in players else ', frozen'}")
    return "; ".join(found)


def so_far(folder: Path, until: int) -> str | None:
    """How far a run in a folder is and how long the rest takes at its logged speed; None if it has no checkpoint or log."""
    log = folder / "log.jsonl"
    if not log.exists() or not any((folder / "checkpoints").glob("[0-9]" * 12)):
        return None
    lines = [line for text in log.read_bytes().splitlines() if (line := parsed(text, lambda line: line["seconds"]))]
    if not lines or not lines[-1]["nimg"] or not lines[-1]["seconds"]:
        return None
    nimg, seconds = lines[-1]["nimg"], lines[-1]["seconds"]
    left = max(0, until - nimg) * seconds / nimg
    rate = f"{nimg / seconds:,.3g} images/s as logged"
    return f"resuming: {nimg:,} of {until:,} images are done; {period(left)} left at {rate}"


def period(seconds: float) -> str:
    """A time in words, in the unit in which it is read most easily."""
    for unit, length, most in (("s", 1, 100), ("minutes", 60, 100), ("hours", 3600, 72)):
        if seconds < most * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.3g} days" if seconds < 8.64e7 else f"{seconds / 86400:,.0f} days"


def size(nbytes: float) -> str:
    return f"{nbytes / 2**30:.1f} GiB"
