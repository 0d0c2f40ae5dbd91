"""How many threads compute on a CPU, and how long they wait for each other.

OpenMP's threads spin at the end of each parallel region until the slowest one arrives. Small networks have thousands of
such regions per second, and beside one other busy process each may last a time slice of the scheduler. Two settings help:
a bounded spin, which must be set before torch is imported, and fewer threads while the machine is shared.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from statistics import median

SPIN = "10000"
"""Rounds that a thread of GNU OpenMP spins before it sleeps."""
STEPS, SECONDS = 6, 1.0
"""A number of threads is timed over this many steps, or over this many seconds if they pass first."""
COLLAPSE = 1.6
"""A loop whose steps take this many times as long as in the last trial starts a new one."""
RETRY = 60.0
"""Seconds after which a loop that uses fewer threads than there are tries all of them again."""


def bound_spin() -> bool:
    """Bounds OpenMP's spin in this process and its children, unless the environment already says how threads wait.

    Returns:
        Whether the setting has an effect in this process. It has none once torch is imported.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return True
    os.environ["GOMP_SPINCOUNT"] = SPIN
    return "torch" not in sys.modules


def use_threads(count: int | None = None) -> None:
    """Sets how this process computes on a CPU: with a bounded spin and `count` threads.

    Args:
        count: number of threads. With None, PyTorch chooses it, and a training run measures which number is fastest.

    Raises:
        ValueError: if `count` is below 1.

    Example:
        >>> import fewstep as fs
        >>> fs.use_threads()  # before the first import of torch
        >>> import torch
    """
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    if not bound_spin():
        warnings.warn(
            "torch is already imported, so its threads spin without a bound; call fs.use_threads() before the first import "
            f"of torch, or start Python with GOMP_SPINCOUNT={SPIN}",
            stacklevel=2,
        )
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(count)


def tune_threads(
    most: int, use: Callable[[int], None], *, clock: Callable[[], float] = time.monotonic
) -> Generator[None, None, None]:
    """Chooses the number of threads of a loop by timing its own steps: `next` it before each step.

    It times `most` threads, then half as many, and so on while that is faster, and keeps the fastest number. It tries again
    when steps become much slower, as when another program starts, and from time to time while it uses fewer than `most`.
    The number of threads changes results by rounding alone.

    Args:
        most: the largest number of threads.
        use: sets the number of threads, such as `torch.set_num_threads`.
        clock: returns seconds.
    """

    def timed() -> Generator[None, None, float]:
        taken: list[float] = []
        while len(taken) < STEPS and sum(taken) < SECONDS:
            began = clock()
            yield
            taken.append(clock() - began)
        return median(taken[1:] or taken)  # the first step starts the threads

    while most > 1:
        seconds: dict[int, float] = {}
        threads = most
        while threads:
            use(threads)
            seconds[threads] = yield from timed()
            if seconds[threads] > min(seconds.values()):
                break
            threads //= 2
        best = min(seconds, key=lambda count: seconds[count])
        use(best)
        chosen = clock()
        while best == most or clock() - chosen < RETRY:
            if (yield from timed()) > COLLAPSE * seconds[best]:
                break
    while True:
        yield


@contextmanager
def tuned_threads(tune: bool) -> Iterator[Callable[[], None]]:
    """Gives a function to call before each step of a loop, which tunes the number of threads by `tune_threads`.

    It does nothing if `tune` is false or `OMP_NUM_THREADS` is set. The number is what it was at the end.
    """
    import torch

    before = torch.get_num_threads()
    tuner = tune_threads(before if tune and "OMP_NUM_THREADS" not in os.environ else 1, torch.set_num_threads)
    try:
        yield lambda: next(tuner)
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
