"""Images per second of a training command beside busy processes: PyTorch's defaults, one thread, a bounded spin, and ours.

`python -m benchmarks contention`. The command is `fewstep distill digits:sid`, on a CPU; a busy process is an endless loop of
Python. PyTorch's defaults are all cores and GNU OpenMP's own spin.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Table
from fewstep.runtime.threads import SPIN

GNU_SPIN = "300000"
"""What libgomp takes if nothing is set, as its manual says."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="digits:sid", help="recipe of the student")
    parser.add_argument("--neighbours", default="0,1,2", help="numbers of busy processes")
    parser.add_argument("--until", type=int, default=25_600, help="training images of each run")
    parser.add_argument("--seconds", type=float, default=60.0, help="after which a run is stopped")


def settings() -> dict[str, dict[str, str]]:
    """Environments to compare; in the last one the command chooses."""
    cores = str(os.cpu_count())
    return {
        "PyTorch's defaults": {"OMP_NUM_THREADS": cores, "GOMP_SPINCOUNT": GNU_SPIN},
        "one thread": {"OMP_NUM_THREADS": "1"},
        "bounded spin": {"OMP_NUM_THREADS": cores, "GOMP_SPINCOUNT": SPIN},
        "fewstep's defaults": {},
    }


def run(given: argparse.Namespace) -> Iterator[Table]:
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder, "teacher")
        fewstep("train", "digits:teacher", "--until", "1280", "--out", str(teacher), environment={}).wait()
        rows = []
        for number in map(int, given.neighbours.split(",")):
            row: dict[str, Any] = {"busy processes": number}
            with ExitStack() as stack:
                for _ in range(number):
                    stack.enter_context(neighbour())
                for name, environment in settings().items():
                    out = Path(folder, f"{len(rows)}-{len(row)}")
                    row[name] = rate(given, teacher, out, environment)
            rows.append(row)
        yield Table(f"{given.recipe} on {os.cpu_count()} cores, images per second", rows)


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def fewstep(*words: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command on the CPU, under the environment without what concerns threads, and `environment`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-m", "fewstep", *words, "--device", "cpu"]
    return subprocess.Popen(command, env=inherited | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rate(given: argparse.Namespace, teacher: Path, out: Path, environment: dict[str, str]) -> float:
    """Images per second in the second half of the log of a run."""
    words = ("distill", given.recipe, "--teacher", str(teacher), "--until", str(given.until), "--out", str(out))
    process = fewstep(*words, environment=environment)
    log, began = out / "log.jsonl", time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        if len(lines(log)) > 2 and time.monotonic() - began > given.seconds:
            process.kill()
            process.wait()
    found = lines(log)
    first, last = found[len(found) // 2 - 1], found[-1]
    return (last["nimg"] - first["nimg"]) / (last["seconds"] - first["seconds"])


def lines(log: Path) -> list[dict[str, Any]]:
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
