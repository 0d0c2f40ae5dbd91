"""The commands that write, in a folder with two versions, a and b, of everything that they read."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.data import ImageStream, digits
from fewstep.io import hub, model_folder
from fewstep.io.card import Card
from fewstep.runtime.files import clear_once
from fewstep.train.ema import PowerFunction
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.settings import Run
from tests import ROOT
from tests.conftest import tiny_net
from tests.endurance import hub_client

GOLDEN = ROOT / "tests/golden"
COMMANDS = {
    "restore": "restore model-{v} digits --task box_inpainting --first 1 --nfe 3 --preset balanced --class 3 "
    "--prior-steps 1 --out out",
    "sample folder": "sample model-{v} --seeds 0-3 --steps 2 --out out --overwrite",
    "sample tar": "sample model-{v} --seeds 0-3 --steps 2 --out out.tar --overwrite",
    "sample npz": "sample model-{v} --seeds 0-3 --steps 2 --npz out.npz --overwrite",
    "sample grid": "sample model-{v} --seeds 0-3 --steps 2 --grid out.png --overwrite",
    "convert": "convert {v}.pkl out --kind teacher --overwrite",
    "ema": "ema run-{v} --std 0.07 --out out",
    "pull": "pull owner/{v} out --overwrite",
    "push": "push model-{v} owner/tiny --license MIT",
    "data pack": "data pack {v}.npz out.zip --overwrite",
    "eval": "eval model-{v} --reference digits --metrics fd_pixels --seeds 0-19 --steps 2 --json out.json --overwrite",
    "eval reference": "eval reference {v}.npz out.npz --metrics fd_pixels --overwrite",
    "report": "report run-{v} ",
    "export": "export model-{v} out.safetensors --overwrite",
}
"""The longest first, so that parallel jobs end together."""


def world(folder: Path) -> None:
    """Two versions, a and b, of everything that a command reads."""
    for seed, (v, name) in enumerate([("a", "edm-ddpmpp-cond"), ("b", "edm-ncsnpp-uncond")]):
        shutil.copyfile(GOLDEN / f"{name}.pkl", folder / f"{v}.pkl")
        torch.manual_seed(seed)
        model_folder.save(Denoiser(tiny_net()), folder / f"model-{v}", Card(v, "EDM"))
        images = np.random.default_rng(seed).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
        np.savez(folder / f"{v}.npz", images, images=images)
        method = Pretraining(Denoiser(tiny_net()), DenoisingLoss())
        ema = (PowerFunction(0.05), PowerFunction(0.1))
        fit(
            Run(method, ImageStream(digits()), {"denoiser": Adam(1e-3)}, 4, 8, ema=ema, snapshots=2),
            folder / f"run-{v}",
        )


def words_of(kind: str, v: str) -> list[str]:
    return COMMANDS[kind].format(v=v).split()


def call(folder: Path, words: list[str]) -> None:
    """Run a command in `folder` and in this process. Its output goes to the file `said`; raises OSError if it fails."""
    os.chdir(folder)
    clear_once.cache_clear()  # as in a process of its own
    os.environ["FEWSTEP_CACHE"] = str(folder / "cache")
    hub.fetch = lambda address: folder / f"model-{address.repository[-1]}"  # pyright: ignore[reportAttributeAccessIssue]
    if words[0] == "push":
        hub_client.install(folder)
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    if main(words):
        raise OSError(errno.EIO, "the command ended with an error")


def forked(job: Callable[[], None]) -> int:
    """Run a job in a fork of this process; returns its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
            os._exit(0)
        except BaseException:
            traceback.print_exc()  # into `said`, where the command's own output is
            os._exit(1)
    return pid


def ended(pid: int) -> int:
    """The exit code of a child process, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(folder: Path, kind: str, v: str, then: Callable[[], None] = lambda: None) -> float:
    """Run a command to its end, and `then` something in the same process; returns the seconds."""
    began = time.monotonic()

    def job() -> None:
        call(folder, words_of(kind, v))
        then()

    code = ended(forked(job))
    if code:
        said = (folder / "said").read_text().strip().splitlines()[-3:]
        raise AssertionError(f"fewstep {' '.join(words_of(kind, v))} in {folder} ended with exit code {code}: {said}")
    return time.monotonic() - began


def warm(folder: Path, kind: str, v: str) -> None:
    """Run a command to its end, then import what it imported into this process, so that later forks start with it."""
    names = folder / "said-modules"
    finish(folder, kind, v, partial(record_modules, names))
    for name in names.read_text().splitlines():
        if name not in sys.modules:
            with suppress(Exception):  # what is no module of its own, or cannot be imported alone
                import_module(name)
    names.unlink()


def record_modules(path: Path) -> None:
    path.write_text("\n".join(sys.modules))
