"""A run: a Trainer with a folder. It logs, takes snapshots and checkpoints, and the same call again resumes it.

run.json       what runs: settings, data, versions, command
log.jsonl      one line of figures at a time
metrics.jsonl  the results of its evaluations, with their protocols
best/          the averaged product with the best result, a model folder; best.json says which
snapshots/     the averaged product as model folders, by images seen
averages/      likewise for further averages, a folder for each
checkpoints/   the whole state of training, the newest ones
samples/       grids of fixed seeds
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fewstep import checkpoint
from fewstep.checkpoint import Card
from fewstep.conditional import ConditionalDiscriminator
from fewstep.data.codec import ready
from fewstep.data.labels import LabelStream
from fewstep.data.latents import LatentStream
from fewstep.data.stream import ImageStream
from fewstep.denoiser import Denoiser
from fewstep.distributed import barrier, device, rank, world_size
from fewstep.files import read_json, write_json
from fewstep.generation import gathered, generate
from fewstep.memory import lacks_memory
from fewstep.method import Method
from fewstep.metrics.protocol import Result, parse_results
from fewstep.nets.blocks import Recomputation, compile_blocks, recompute_blocks
from fewstep.nets.layers import Frozen
from fewstep.progress import Progress
from fewstep.report.grid import grid, save_png
from fewstep.train.checkpoints import KEPT, Checkpoints
from fewstep.train.checkpoints import load as load_state
from fewstep.train.contract import check_method
from fewstep.train.ema import HalfLife, Profile
from fewstep.train.evaluation import Evaluation, keep_best
from fewstep.train.identity import describe, differences, digest, environment
from fewstep.train.log import Lines, Log
from fewstep.train.optim import Adam
from fewstep.train.preemption import Preempted, stop_signals
from fewstep.train.strategies import STRATEGIES
from fewstep.train.trackers import check_trackers, open_trackers
from fewstep.train.trainer import Trainer
from fewstep.train.transfer import Transfer


@dataclass
class Run:
    """A method, its data and its settings: all that a training is, but the folder.

    optimizers: for each player that moves. until: training images at the end. snapshots: how many are taken on the way
    there, evenly. ema: how the product is averaged, in one way or several; the first makes the snapshots.
    checkpoint_seconds: at least so much time lies between two checkpoints, of which the newest `keep` stay. evaluation: how
    the product is measured on the way, None for not at all. track: where figures go beside the folder, as
    `trackers.TRACKERS` has it. strategy: how large networks lie on the ranks, of `strategies.STRATEGIES`; the others are
    replicated. compile: whether blocks are compiled (`nets.blocks.compile_blocks`). recompute: what is
    computed again in backward passes (`nets.blocks.recompute_blocks`), None for nothing. tf32: see `precision.tf32`.
    name, card: for the log and the model's card; the rest of the card is filled in. command: the command line that
    repeats this run. transfer: where it started, filled in by `transfer.transfer`.
    """

    method: Method
    data: ImageStream | LatentStream | LabelStream
    optimizers: Mapping[str, Adam]
    batch_size: int
    until: int
    micro_batch: int | None = None
    ema: Profile | tuple[Profile, ...] = HalfLife()
    seed: int = 0
    snapshots: int = 10
    checkpoint_seconds: float = 60.0
    keep: int = KEPT
    evaluation: Evaluation | None = None
    track: tuple[str, ...] = ()
    strategy: str = "replicate"
    compile: bool = False
    recompute: Recomputation | None = None
    tf32: bool = False
    name: str = "run"
    card: Card = field(default_factory=Card)
    command: str = ""
    transfer: Transfer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise ValueError(f"method is a Method, such as fs.distill.SiD(teacher); got a {type(self.method).__name__}")
        if not hasattr(self.data, "data"):
            raise ValueError(
                f"data is a stream, such as fs.ImageStream(fs.images(path)); got a {type(self.data).__name__}"
            )
        check_method(self.method)
        check_data(self.method, self.data)
        self.check()

    def check(self) -> None:
        """Refuse settings that make no run, before anything is written."""
        counts = {"batch_size": self.batch_size, "until": self.until, "keep": self.keep}
        optional = (("micro_batch", self.micro_batch), ("recompute", self.recompute))
        counts |= {k: v for k, v in optional if isinstance(v, int)}
        for name, value in counts.items():
            if not isinstance(value, int):
                raise ValueError(f"{name} must be an integer; got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        players = list(dict.fromkeys(phase.player for phase in self.method.phases))
        if set(players) != set(self.optimizers):
            raise ValueError(f"optimizers must name {', '.join(players)}; got {', '.join(self.optimizers) or 'none'}")
        if self.batch_size < world_size():
            raise ValueError(f"a batch of {self.batch_size} is too small for {world_size()} ranks; give each an image")
        for name, value in {
            "seed": self.seed,
            "snapshots": self.snapshots,
            "checkpoint_seconds": self.checkpoint_seconds,
        }.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative; got {value}")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"the strategies are {', '.join(STRATEGIES)}; got {self.strategy!r}")
        if self.method.uneven and self.strategy != "replicate":
            raise ValueError(
                f"the ranks of this {type(self.method).__name__} evaluate its networks in different numbers, as each draws which "
                "step it trains; networks in parts would wait forever. Take the strategy replicate"
            )
        check_trackers(self.track)

    @cached_property
    def given(self) -> dict[str, str]:
        """Hashes of the networks that the method was given, as they are before it trains."""
        moving = {phase.player for phase in self.method.phases}
        lasting = [name for name, _ in self.method.named_children() if name not in moving]
        return {name: digest(self.method.get_submodule(name)) for name in (*lasting, *self.method.copied)}

    def identity(self) -> dict[str, Any]:
        """What decides the weights: a resumed run must have the same."""
        return {
            "method": describe(self.method),
            "given": self.given,
            "network": {name: checkpoint.to_dict(m.net.config) for name, m in denoisers(self.method)},
            "denoiser": {name: describe(m) for name, m in denoisers(self.method)},
            "data": {"name": self.data.data.name, "n": len(self.data.data), "sha256": self.data.data.fingerprint},
            "stream": {"seed": self.data.seed, "flip": self.data.flip},
            "optimizers": {name: describe(o) for name, o in self.optimizers.items()},
            "batch_size": self.batch_size,
            "micro_batch": self.micro_batch or self.batch_size // world_size(),
            "ema": describe(self.ema),
            "seed": self.seed,
            **({"tf32": True} if self.tf32 else {}),
            **({"transfer": self.transfer.sha256} if self.transfer else {}),
        }


def denoisers(method: nn.Module) -> list[tuple[str, Denoiser]]:
    return [(name, child) for name, child in method.named_children() if isinstance(child, Denoiser)]


def large(method: nn.Module) -> list[str]:
    """Names of the networks that a strategy lays out: of about the size of the teacher, wherever they are in the method, but
    for feature networks, which R1 differentiates twice.
    """
    inner = tuple(f"{name}." for name, m in method.named_modules() if isinstance(m, Frozen))
    return [
        name
        for name, m in method.named_modules()
        if isinstance(m, (Denoiser, ConditionalDiscriminator)) and not name.startswith(inner)
    ]


def check_data(method: Method, stream: ImageStream | LatentStream | LabelStream) -> None:
    """Refuse data of another shape or other classes than the networks', and labels alone where images are needed."""
    data = stream.data
    if method.needs_images and isinstance(stream, LabelStream):
        raise ValueError(
            f"{type(method).__name__} learns from images; this data has labels alone. Give it the data set"
        )
    for name, network in denoisers(method):
        if network.shape != tuple(data.shape):
            raise ValueError(
                f"the {name} is made for images of shape {network.shape}; {data.name} has {tuple(data.shape)}. Give data "
                "of the same shape, or another teacher"
            )
        if network.num_classes and network.num_classes != data.num_classes:
            raise ValueError(
                f"the {name} knows {network.num_classes} classes; {data.name} has {data.num_classes or 'none'}. Give data "
                "with the same classes, or another teacher"
            )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder, made if it is not there, is this process's for the block; another run in it is refused meanwhile."""
    if rank() != 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process trains in {folder} at this moment; wait for it, stop it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)


def open_folder(run: Run, folder: Path, *, fresh: bool) -> None:
    """Make the run's folder, or find that it is this run's."""
    record = folder / "run.json"
    if rank() == 0:
        replaced = fresh and record.exists()
        if replaced:
            for name in ("snapshots", "averages", "checkpoints", "samples", "best", "posthoc", "tensorboard"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in ("log.jsonl", "metrics.jsonl", "best.json", "run.json"):
                (folder / name).unlink(missing_ok=True)
        identity = json.loads(json.dumps(run.identity(), allow_nan=False))
        if record.exists():
            theirs = read_json(record)
            known = theirs.get("identity") if isinstance(theirs, dict) else None
            if run.micro_batch is None and isinstance(known, dict):  # the number of ranks may be another one now
                identity["micro_batch"] = known.get("micro_batch")
            found = differences(identity, known)
            if found:
                raise ValueError(
                    f"{folder} belongs to another configuration: {'; '.join(found[:5])}"
                    + ("" if len(found) <= 5 else f"; and {len(found) - 5} more")
                    + ". Choose another folder, or start over with --fresh (fresh=True)"
                )
        elif any(folder.iterdir()) and not replaced:
            raise ValueError(f"{folder} is not empty and holds no run (run.json); choose another folder")
        else:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            about: dict[str, Any] = {
                "name": run.name,
                "command": run.command,
                "started": started,
                "until": run.until,
                "transfer": None if run.transfer is None else dataclasses.asdict(run.transfer),
            }
            write_json(record, about | environment() | {"identity": identity})
    barrier()


def fit(run: Run, folder: str | Path, *, fresh: bool = False) -> Denoiser:
    """Train until `run.until` images, in `folder`; returns the averaged product.

    The same call again resumes from the newest checkpoint, or returns at once what is finished. A run is the same, bit
    for bit, however often it was interrupted. SIGTERM and SIGINT end it with `Preempted` after its state is saved. fresh:
    discard what is there.
    """
    folder = Path(folder)
    run.check()
    product = run.method.get_submodule(run.method.product)
    if isinstance(product, Denoiser):  # of which every snapshot has images
        ready(product.codec, device())
    with claimed(folder):
        open_folder(run, folder, fresh=fresh)
        if run.compile:
            compile_blocks(run.method)
        if run.recompute is not None:
            recompute_blocks(run.method, run.recompute)
        trainer = Trainer(
            run.method,
            run.data,
            run.optimizers,
            batch_size=run.batch_size,
            micro_batch=read_json(folder / "run.json")["identity"]["micro_batch"],
            ema=run.ema,
            seed=run.seed,
            tf32=run.tf32,
            device=device(),
            strategies={name: STRATEGIES[run.strategy]() for name in large(run.method)},
        )
        with closing(Checkpoints(folder / "checkpoints", keep=run.keep)) as checkpoints:
            before, newest = 0.0, checkpoints.newest()
            if newest is not None:
                state = load_state(newest, trainer.layout())
                try:
                    trainer.load_state_dict(state)
                except (RuntimeError, LookupError) as error:
                    raise ValueError(
                        f"{newest} holds no state of this run ({str(error)[:200]}); remove it, and the one before is used"
                    ) from error
                before = state["seconds"]
            if trainer.nimg < run.until:
                advance(run, trainer, folder, checkpoints, before)
        trainer.gather()
    product = trainer.product
    assert isinstance(product, Denoiser)
    return product


def advance(run: Run, trainer: Trainer, folder: Path, checkpoints: Checkpoints, before: float) -> None:
    """Train, log, measure, take snapshots and checkpoints until the end, or until a signal asks to stop."""
    lead = rank() == 0
    measure = None if run.evaluation is None else run.evaluation.prepare(run.data.data)
    log = Log(folder / "log.jsonl", trainer.nimg) if lead else None
    scores = Lines(folder / "metrics.jsonl", trainer.nimg) if lead else None
    trackers = (
        open_trackers(run.track, folder, run.name, read_json(folder / "run.json")["identity"], trainer.nimg)
        if lead
        else ()
    )
    total = -(-run.until // run.batch_size)
    log_every = min(100, max(1, total // 100))
    snapshot_every = max(1, total // max(run.snapshots, 1))
    started = saved = logged = time.monotonic()
    logged_nimg = trainer.nimg
    with Progress(run.name, total=run.until, done=trainer.nimg) as progress, stop_signals() as asked:
        try:
            while trainer.nimg < run.until:
                begun = trainer.nimg
                try:
                    logs = trainer.step()
                except RuntimeError as error:
                    if not lacks_memory(error):
                        raise
                    raise MemoryError(
                        f"a step in micro-batches of {trainer.micro_batch} images does not fit into the memory of {device()}; "
                        "try --recompute light, then --recompute 1, then a smaller --micro-batch, if the recipe has it, in "
                        "another run, then --strategy shard on several GPUs"
                    ) from error
                done = trainer.nimg >= run.until
                now = time.monotonic()
                results: list[Result] = []
                measured = done or (run.evaluation is not None and run.evaluation.due(begun, trainer.nimg))
                pictured = done or trainer.steps % snapshot_every == 0
                noted = done or measured or trainer.steps % log_every == 0
                condition = trainer.condition() if noted else {}  # as `gather`, by all ranks
                if measured or pictured:
                    trainer.gather()
                if measure is not None and measured:
                    assert isinstance(trainer.product, Denoiser)
                    results = measure(trainer.product)
                    taken = time.monotonic() - now  # which is no time of training
                    logged, started = logged + taken, started + taken
                    if scores is not None:
                        record(results, scores, run, trainer, folder)
                if log is not None:
                    log.add(logs)
                    if noted:
                        now = time.monotonic()
                        rate = (trainer.nimg - logged_nimg) / max(now - logged, 1e-9)
                        entry = {"nimg": trainer.nimg, "seconds": before + now - started, "images_per_second": rate}
                        entry |= {"peak_memory_gib": peak_memory_gib(), **condition}
                        entry |= {r.key: r.value for r in results}
                        figures = log.write(entry)
                        check_finite(figures, trainer, folder)
                        for tracker in trackers:
                            tracker.log(trainer.nimg, {k: v for k, v in (entry | figures).items() if k != "nimg"})
                        progress.figures(figures | {r.key: r.value for r in results})
                        logged, logged_nimg = now, trainer.nimg
                if pictured:
                    images = take_snapshot(run, trainer, folder)
                    for tracker in trackers:
                        tracker.image(trainer.nimg, "samples", images)
                stop, due = checkpoints.agree(asked(), time.monotonic() - saved > run.checkpoint_seconds)
                if done or stop or due:
                    if log is not None:
                        check_finite(log.figures(), trainer, folder)
                    checkpoints.save(trainer.state_dict(), seconds=before + time.monotonic() - started)
                    saved = time.monotonic()
                progress.update(trainer.nimg)
                if stop and not done:
                    checkpoints.finish()
                    if lead:
                        where = f"stopped at {trainer.nimg:,} of {run.until:,} images, which are saved in {folder}"
                        print(f"{run.name}: {where}; the same command goes on", file=sys.stderr)
                    raise Preempted
            checkpoints.finish()
        finally:
            for tracker in trackers:
                tracker.close()
    barrier()


def peak_memory_gib() -> float:
    """The most memory that this process had at once, in GiB: on a GPU its tensors, else all of it."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in KiB on Linux


def record(results: list[Result], scores: Lines, run: Run, trainer: Trainer, folder: Path) -> None:
    """Append results to `metrics.jsonl`, and keep the product if they are the best so far."""
    assert run.evaluation is not None and isinstance(trainer.product, Denoiser)
    earlier = [parse_results(line.get("results"), str(scores.path)) for line in scores.kept]
    if run.evaluation.best(results, earlier):
        about = dataclasses.replace(card_of(run, trainer), ema=describe(trainer.averages[0].profile))
        keep_best(results, trainer.product, folder, about)
    scores.append({"nimg": trainer.nimg, "results": [r.asdict() for r in results]})


def check_finite(figures: dict[str, float], trainer: Trainer, folder: Path) -> None:
    """Stop a run whose loss is lost, before its checkpoint overwrites a good one."""
    lost = [key for key, value in figures.items() if not np.isfinite(value) and not key.startswith("grad_norm/")]
    if lost:
        names = [key for key in lost if "/" not in key] or lost  # the losses, rather than all that is told of them
        raise ValueError(
            f"{', '.join(names)} became infinite or undefined before {trainer.nimg:,} images; the last good checkpoint is in "
            f"{folder / 'checkpoints'}. Lower the learning rate and use another folder"
        )


def card_of(run: Run, trainer: Trainer) -> Card:
    """The card of a model that the run saves now."""
    data = run.data.data
    about = {"name": data.name, "n": len(data), "sha256": data.fingerprint}
    return dataclasses.replace(run.card, name=run.card.name or run.name, nimg=trainer.nimg, data=about)


def take_snapshot(run: Run, trainer: Trainer, folder: Path) -> Image.Image:
    """Save the averaged product as a model folder, with its other averages, and a grid of images of fixed seeds.

    All ranks make images, and the first one writes. Returns the grid; on the other ranks an empty one.
    """
    product, card = trainer.product, card_of(run, trainer)
    assert isinstance(product, Denoiser)
    for average in reversed(trainer.averages if rank() == 0 else ()):  # the product last: where it is, the others are
        first = average is trainer.averages[0]
        place = folder / ("snapshots" if first else f"averages/{average.profile.name}") / f"{trainer.nimg:012d}"
        assert isinstance(average.module, Denoiser)
        checkpoint.save(average.module, place, dataclasses.replace(card, ema=describe(average.profile)))
    n = max(1, product.num_classes)
    columns = min(n, 10)
    label = torch.arange(4 * columns) % n if product.num_classes else None
    made = list(gathered(generate(product, range(4 * columns), label=label), 4 * columns))
    if rank() != 0:
        return Image.new("L", (1, 1))
    result = grid(np.stack(made), columns=columns)
    save_png(result, folder / "samples" / f"{trainer.nimg:012d}.png")
    return result
