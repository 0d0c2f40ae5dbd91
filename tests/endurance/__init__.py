"""Runs that are killed at random moments, for every method: `make endurance` (`python -m tests.endurance --n 50`).

A child process trains a tiny run with a checkpoint after every step and gets SIGKILL after a random time, again and again,
until the run is through. After each kill the folder must hold a whole checkpoint not older than two steps before the last
line of its log (one is written while the next is begun); at the end the state must be that of a run never killed, bit for bit.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Method
from fewstep.core.network import SamplingDefaults
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.data import ImageStream, digits
from fewstep.distill import GDD, NCVSD, SiD, SiDA
from fewstep.nets.discriminators import ProjectedDiscriminator
from fewstep.nets.features import Classifier
from fewstep.train.checkpoint_files import damage, load
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.settings import Run
from tests.conftest import tiny_net

METHODS = ("Pretraining", "SiD", "SiDA", "GDD", "NCVSD")
BATCH = 4
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["tests.endurance"])  # so that a child is there within milliseconds


def method_of(kind: str) -> Method:
    torch.manual_seed(0)
    net = tiny_net()
    net.sampling = SamplingDefaults(steps=2)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType] - grids are not looked at
    teacher = Denoiser(net)
    if kind == "SiD":
        return SiD(teacher)
    if kind == "SiDA":
        return SiDA(teacher)
    if kind == "NCVSD":
        return NCVSD(teacher)
    if kind == "GDD":
        judge = ProjectedDiscriminator([Classifier((1, 8, 8), 10, width=8)], num_classes=10, width=8)
        return GDD(teacher, judge)
    return Pretraining(teacher, DenoisingLoss())


def run_of(kind: str, steps: int) -> Run:
    method = method_of(kind)
    rates = {phase.player: Adam(2e-3) for phase in method.phases}
    return Run(
        method,
        ImageStream(digits()),
        rates,
        batch_size=BATCH,
        until=BATCH * steps,
        snapshots=1,
        checkpoint_seconds=0.0,
        name=kind,
    )


def child(kind: str, steps: int, folder: Path) -> None:
    """Trains; shows nothing."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    fit(run_of(kind, steps), folder)


def start(kind: str, steps: int, folder: Path) -> BaseProcess:
    process = SPAWN.Process(target=child, args=(kind, steps, folder))
    process.start()
    return process


def newest(folder: Path) -> Path | None:
    """The newest checkpoint; it must be whole, as one is there under its name only when it is."""
    path = max((folder / "checkpoints").glob("[0-9]*"), default=None)
    if path is not None and (found := damage(path)) is not None:
        raise AssertionError(f"{path} is damaged: {found}")
    return path


def logged(folder: Path) -> int:
    """Images by the last whole line of the log."""
    lines = (folder / "log.jsonl").read_bytes().split(b"\n")[:-1] if (folder / "log.jsonl").exists() else []
    return json.loads(lines[-1])["nimg"] if lines else 0


def kill(kind: str, steps: int, folder: Path, moments: random.Random, longest: float) -> int | None:
    """Train until a random moment after the first new checkpoint, then kill; returns the images lost, None if it was through."""
    before, process = newest(folder), start(kind, steps, folder)
    while newest(folder) == before and process.is_alive():
        time.sleep(0.002)
    time.sleep(moments.uniform(0, longest))
    alive = process.is_alive()
    process.kill()
    process.join()
    if not alive and process.exitcode != 0:
        raise AssertionError(f"{kind} ended with exit code {process.exitcode}")
    path = newest(folder)
    lost = logged(folder) - (int(path.name) if path is not None else 0)
    if lost > 2 * BATCH:
        raise AssertionError(f"{kind}: {lost} images lost at {logged(folder)}, batch {BATCH}")
    return lost if process.exitcode == -signal.SIGKILL else None


def finish(kind: str, steps: int, folder: Path) -> None:
    process = start(kind, steps, folder)
    process.join()
    if process.exitcode != 0:
        raise AssertionError(f"{kind} ended with exit code {process.exitcode}")


def state(folder: Path) -> dict[str, Tensor]:
    path = newest(folder)
    assert path is not None
    return load(path)["tensors"]


def different(a: Path, b: Path) -> list[str]:
    """The names of what the newest checkpoints of two runs do not have in common, bit for bit."""
    mine, theirs = state(a), state(b)
    return sorted(
        k for k in {*mine, *theirs} if k not in mine or k not in theirs or not torch.equal(mine[k], theirs[k])
    )
