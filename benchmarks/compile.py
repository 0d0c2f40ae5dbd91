"""Compiled blocks: seconds until the first evaluation and training step, and both by turns with plain ones.

`cold` begins with an empty cache, `warm` with that of the process before; both in processes of their own. With one thread
seconds are those of the processors, with the compiler's processes, else of the wall.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import networks
from benchmarks.measure import Table, compared, in_fresh_process, on_processors
from benchmarks.scaling import both
from fewstep.nets.execution import compile_blocks


def arguments(parser: argparse.ArgumentParser) -> None:
    networks.arguments(parser, batch=8, repeats=3)
    parser.add_argument("--start-up", action="store_true", help=argparse.SUPPRESS)


def functions(given: argparse.Namespace) -> dict[str, dict[str, Callable[[], Any]]]:
    """An evaluation and a training step, plain and compiled."""
    plain = networks.denoiser(given)
    fast = copy.deepcopy(plain)
    compile_blocks(fast)
    mine, theirs = both(fast, given.batch), both(plain, given.batch)
    return {name: {"plain": theirs[name], "compiled": mine[name]} for name in mine}


def run(given: argparse.Namespace) -> Iterator[Table]:
    if given.start_up:
        print(json.dumps(first_calls(given)))
        return
    words = ["--network", given.network, "--batch", str(given.batch), "--dtype", given.dtype]
    words += ["--channels", str(given.channels)] if given.channels else []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        if on_processors():
            os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        starts = {name: in_fresh_process("compile", "--start-up", *words) for name in ("cold", "warm")}
        heads = list(starts["cold"])
        rows = [{"": head, **{name: found[head] for name, found in starts.items()}} for head in heads]
        yield Table("First calls, seconds", rows)
        for name, turns in functions(given).items():
            yield compared(f"{name} of {given.network}, batch {given.batch}", turns, given.repeats, images=given.batch)


def first_calls(given: argparse.Namespace) -> dict[str, float]:
    """Seconds of the first call of each."""
    found: dict[str, float] = {}
    for name, turns in functions(given).items():
        for kind, call in turns.items():
            began = elapsed()
            call()
            found[f"{name}, {kind}"] = elapsed() - began
    return found


def elapsed() -> float:
    """As `measure.clock`, with the processes that have ended."""
    return sum(os.times()[:4]) if on_processors() else time.perf_counter()
