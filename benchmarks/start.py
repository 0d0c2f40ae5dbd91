"""Import and start-up: seconds until a user's first line runs, each in processes of their own."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from benchmarks.measure import Table

NAMES = "import fewstep as fs; [getattr(fs, name) for name in dir(fs)]"
COMMANDS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import fewstep, nothing used": ["-c", "import fewstep"],
    "import torch and fewstep, all public names used": ["-c", f"import torch; {NAMES}"],
    "fewstep --help": ["-m", "fewstep", "--help"],
    "fewstep recipes": ["-m", "fewstep", "recipes"],
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5)


def run(given: argparse.Namespace) -> Iterator[Table]:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(given.repeats + 1):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    rows = [{"": name, "seconds": median(values[1:])} for name, values in times.items()]
    yield Table("Start-up, seconds of the wall", rows)
