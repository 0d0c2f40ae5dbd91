"""Images per second of `fewstep sample` into a folder, a tar, a zip and an npz file, by a one-step student of the digits."""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.measure import Table
from fewstep.cli import main

OUTPUTS = {
    "a folder of PNG files": ["--out", "images"],
    "a tar of PNG files": ["--out", "images.tar"],
    "a zip of PNG files": ["--out", "images.zip"],
    "one npz file": ["--npz", "images.npz"],
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num", type=int, default=1_000, help="images")
    parser.add_argument("--repeats", type=int, default=3)


def run(given: argparse.Namespace) -> Iterator[Table]:
    times: dict[str, list[float]] = {name: [] for name in OUTPUTS}
    for _ in range(given.repeats + 1):
        for name, options in OUTPUTS.items():
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                options = [options[0], str(Path(folder, options[1]))]
                began = time.perf_counter()
                if main(["sample", "digits", "--seeds", f"0-{given.num - 1}", *options]):
                    raise SystemExit(f"sample {' '.join(options)} failed")
                times[name].append(time.perf_counter() - began)
    npz = times["one npz file"][1:]
    rows = [
        {
            "": name,
            "images/s": given.num / median(values[1:]),
            "of npz": median(b / a for a, b in zip(values[1:], npz, strict=True)),
        }
        for name, values in times.items()
    ]
    yield Table(f"{given.num:,} digits, seconds of the wall without the start of Python", rows)
