"""How things are measured: by turns in one process, with medians and ratios, against the machine's own limits.

What is compared alternates, so that a machine that others use too slows all of it alike; a ratio is the median of the
ratios of neighbours in time. Seconds are those of this process's processors if it has one thread, else of the wall.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.metrics.protocol import table
from fewstep.runtime.distributed import device
from fewstep.runtime.files import write_json
from fewstep.runtime.precision import fast_dtype
from fewstep.train.identity import environment


@dataclass
class Table:
    """Figures of one kind: rows of cells under the same heads; the first cell names the row."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.title}\n"
        heads = list(dict.fromkeys(head for row in self.rows for head in row))
        body = [[shown(row.get(head)) for head in heads] for row in self.rows]
        return f"{self.title}\n\n{table(heads, body)}"


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def on_processors() -> bool:
    """Whether seconds are those of the processors: of one thread they are what its work takes, whoever else works."""
    return not torch.cuda.is_available() and torch.get_num_threads() == 1


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if on_processors() else time.perf_counter()


def seconds(function: Callable[[], object]) -> float:
    began = clock()
    function()
    return clock() - began


def alternate(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function in each of `repeats` rounds, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {name: values[1:] for name, values in times.items()}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as long the first takes: the median over the rounds."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@cache
def matrix_rate(dtype: torch.dtype, n: int = 2048, repeats: int = 9) -> float:
    """The largest rate in FLOP/s of products of n x n matrices: what compute can reach."""
    n = n * 4 if torch.cuda.is_available() else n
    a, b = torch.randn(2, n, n, device=device()).to(dtype)
    return 2 * n**3 / min(alternate({"": lambda: a @ b}, repeats)[""])


@cache
def copy_rate(mebibytes: int = 256, repeats: int = 9) -> float:
    """The largest rate in bytes/s, read and written, of a copy in memory: what element-wise work can reach."""
    a = torch.zeros(mebibytes * 2**18, device=device())
    b = torch.zeros_like(a)
    return 2 * a.numel() * 4 / min(alternate({"": lambda: b.copy_(a)}, repeats)[""])


def limits() -> dict[str, float]:
    return {
        "float32_flop_per_s": matrix_rate(torch.float32),
        "fast_flop_per_s": matrix_rate(fast_dtype()),
        "copy_bytes_per_s": copy_rate(),
    }


def compared(
    title: str,
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    images: int,
    operations: int | None = None,
    dtype: torch.dtype | None = None,
) -> Table:
    """The functions by turns: seconds per image, and how many times as fast as the first each is.

    images: that each function handles. operations: of one call of the last function, for its fraction of the matrix rate
    in `dtype`, or in the fastest precision if None.
    """
    times = alternate(functions, repeats)
    first, last = next(iter(times)), list(times)[-1]
    rows: list[dict[str, Any]] = []
    for name, values in times.items():
        middle = median(values)
        row: dict[str, Any] = {
            "": name,
            "s/image": middle / images,
            "images/s": images / middle,
            "speed-up": ratio(times[first], values),
        }
        if operations is not None:
            rate = operations / middle / matrix_rate(dtype or fast_dtype())
            row["of the matrix rate"] = f"{100 * rate:.0f} %" if name == last else None
        rows.append(row)
    return Table(title, rows)


def resident(kind: str) -> float:
    """Resident memory of this process in MiB: VmRSS, now, or VmHWM, the largest since `forget_peak`."""
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith(kind)
    )
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def in_fresh_process(name: str, *arguments: str) -> Any:
    """What `python -m benchmarks NAME ARGUMENTS` prints as JSON in its last line (Linux)."""
    command = [sys.executable, "-m", "benchmarks", name, *arguments]
    # what is freed returns to the system at once, so that the holes of the C library's heap are not counted
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(result.stdout.strip().splitlines()[-1])


def about(name: str, argv: Sequence[str]) -> dict[str, Any]:
    """What was measured, where and when."""
    return {
        "benchmark": name,
        "command": f"python -m benchmarks {' '.join(argv)}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "clock": "processor" if on_processors() else "wall",
        "fast_dtype": str(fast_dtype()),
        **environment(),
    }


def write(path: Path, record: Mapping[str, Any], tables: Sequence[Table]) -> None:
    found = [{"title": t.title, "rows": t.rows} for t in tables]
    write_json(path, {**record, "limits": limits(), "tables": found})
