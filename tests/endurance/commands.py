"""Commands that write, killed and failing at any of their changes of files: what was there before is lost by none.

Each command replaces what an earlier one wrote, of other weights or data. After a fault its output must be the earlier one
or the new one, file by file, and the same command again must write the new one and leave nothing else.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.data import ImageStream, digits
from fewstep.io import hub, model_folder
from fewstep.runtime.files import PARTIAL, clear_once
from fewstep.train.ema import PowerFunction
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.settings import Run
from tests import ROOT
from tests.conftest import tiny_net
from tests.faults import with_fault

GOLDEN = ROOT / "tests/golden"
COMMANDS = {
    "convert": "convert {v}.pkl out --kind teacher --overwrite",
    "ema": "ema run-{v} --std 0.07 --out out",
    "pull": "pull owner/{v} out --overwrite",
    "sample folder": "sample model-{v} --seeds 0-3 --steps 2 --out out --overwrite",
    "sample npz": "sample model-{v} --seeds 0-3 --steps 2 --npz out.npz --overwrite",
    "sample grid": "sample model-{v} --seeds 0-3 --steps 2 --grid out.png --overwrite",
    "data pack": "data pack {v}.npz out.zip --overwrite",
    "eval": "eval model-{v} --reference digits --metrics fd_pixels --seeds 0-19 --steps 2 --json out.json --overwrite",
    "eval reference": "eval reference {v}.npz out.npz --metrics fd_pixels --overwrite",
    "report": "report run-{v} ",
    "restore": "restore model-{v} digits --task box_inpainting --first 1 --nfe 3 --preset balanced --class 3 "
    "--prior-steps 1 --out out",
    "export": "export model-{v} out.safetensors --overwrite",
}
FAULTS = (0, errno.EIO, errno.ENOSPC)
SYSTEM_CALLS = "write,pwrite64,writev,fsync,ftruncate,rename,renameat,renameat2,mkdir,unlink,unlinkat,rmdir,link,chmod"
VOLATILE = re.compile(rb'"(seconds|[a-z_]*_seconds|images_per_second)": [^,\n]*|[0-9]+(\.[0-9]+)? (ms|s|min)\b')
"""What differs between two runs of one command."""


def world(folder: Path) -> None:
    """Two versions, a and b, of everything that a command reads."""
    for seed, (v, name) in enumerate([("a", "edm-ddpmpp-cond"), ("b", "edm-ncsnpp-uncond")]):
        shutil.copyfile(GOLDEN / f"{name}.pkl", folder / f"{v}.pkl")
        torch.manual_seed(seed)
        model_folder.save(Denoiser(tiny_net()), folder / f"model-{v}")
        images = np.random.default_rng(seed).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
        np.savez(folder / f"{v}.npz", images, images=images)
        method = Pretraining(Denoiser(tiny_net()), DenoisingLoss())
        ema = (PowerFunction(0.05), PowerFunction(0.1))
        fit(
            Run(method, ImageStream(digits()), {"denoiser": Adam(1e-3)}, 4, 8, ema=ema, snapshots=2),
            folder / f"run-{v}",
        )


def call(folder: Path, words: list[str]) -> None:
    """Run a command there, in this process, which says what it says to the file `said`; raises what it could not do."""
    os.chdir(folder)
    clear_once.cache_clear()  # as in a process of its own
    os.environ["FEWSTEP_CACHE"] = str(folder / "cache")
    hub.fetch = lambda address: folder / f"model-{address.repository[-1]}"  # pyright: ignore[reportAttributeAccessIssue]
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    if main(words):
        raise OSError(errno.EIO, "the command ended with an error")


def words_of(kind: str, v: str) -> list[str]:
    return COMMANDS[kind].format(v=v).split()


def forked(job: Callable[[], None]) -> int:
    """The process of a job."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
            os._exit(0)
        except BaseException:
            traceback.print_exc()  # into `said`, where the command's own output is
            os._exit(1)
    return pid


def finish(folder: Path, kind: str, v: str) -> float:
    """Run a command to its end; returns its seconds."""
    began = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(forked(partial(call, folder, words_of(kind, v))), 0)[1])
    if code:
        said = (folder / "said").read_text().strip().splitlines()[-3:]
        raise AssertionError(f"fewstep {' '.join(words_of(kind, v))} in {folder} ended with exit code {code}: {said}")
    return time.monotonic() - began


def written(folder: Path, kind: str, *, hidden: bool = False) -> dict[str, bytes]:
    """What a command wrote, by name, without what differs from run to run. hidden: also what may be left half-written."""
    if kind == "report":  # into the folder that it reads
        found = [p for v in ("a", "b") for p in (folder / f"run-{v}").rglob("*report*") if p.is_file()]
        return {p.parts[-2] + "/" + p.name: (b"</html>" in p.read_bytes() and b"whole") or b"torn" for p in found}
    found = [
        p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0].lstrip(".").startswith("out")
    ]
    names = {str(p.relative_to(folder)): p for p in found}
    left = {n for n in names if any(PARTIAL.fullmatch(part) or ".old-" in part for part in Path(n).parts)}
    return {n: VOLATILE.sub(b"", p.read_bytes()) for n, p in names.items() if hidden or n not in left}


class Trial:
    """A command in a folder, with its two outputs."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.clear()
        self.seconds = finish(folder, kind, "a")
        self.new = written(folder, kind)
        self.before()
        self.old = written(folder, kind)
        if not self.new or (self.new == self.old and kind != "report"):
            raise AssertionError(f"{kind} wrote nothing, or the same of different inputs: {sorted(self.new)}")

    def clear(self) -> None:
        for path in self.folder.glob("*out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def before(self) -> None:
        """The output of the other version."""
        self.clear()
        finish(self.folder, self.kind, "b")

    def check(self, what: str) -> None:
        """Nothing is lost, and the command can be repeated."""
        found = written(self.folder, self.kind)
        lost = sorted(self.old.keys() - found.keys())
        torn = [n for n in found.keys() & {*self.old, *self.new} if found[n] not in (self.old.get(n), self.new.get(n))]
        if lost or torn:
            raise AssertionError(f"{self.kind}, {what}: lost {lost[:3]}, torn {torn[:3]} in {self.folder}")
        finish(self.folder, self.kind, "a")
        if (again := written(self.folder, self.kind, hidden=True)) != self.new and self.kind != "report":
            different = sorted(n for n in {*again, *self.new} if again.get(n) != self.new.get(n))
            raise AssertionError(f"{self.kind}, {what}: the same command again leaves {different[:3]} in {self.folder}")

    def killed(self, moments: random.Random) -> None:
        """At a random moment."""
        self.before()
        pid = forked(partial(call, self.folder, words_of(self.kind, "a")))
        time.sleep(moments.uniform(0, self.seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.check("killed")

    def faulty(self, number: int, fault: int) -> bool:
        """At its change of files of this number, see `faults.with_fault`; False if there are fewer."""
        self.before()
        code = with_fault(partial(call, self.folder, words_of(self.kind, "a")), number, fault)
        self.check(f"{errno.errorcode.get(fault, 'SIGKILL')} at change {number}")
        return code is not None

    def traced(self, fault: str, moments: random.Random, calls: int) -> int:
        """With a fault at a random one of so many system calls that write; returns how many there were."""
        self.before()
        log = self.folder / "trace"
        inject = f"{SYSTEM_CALLS}:{fault}:when={moments.randint(1, calls)}" if calls else ""
        command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={SYSTEM_CALLS}"]
        command += ["-e", f"inject={inject}"] if inject else []
        program = "import sys; from pathlib import Path; from tests.endurance.commands import call; "
        program += "call(Path(sys.argv[1]), sys.argv[2:])"
        subprocess.run(
            [*command, sys.executable, "-c", program, str(self.folder), *words_of(self.kind, "a")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        count = len(log.read_text(errors="replace").splitlines())
        log.unlink()
        self.check(f"{fault} at a system call")
        return count
