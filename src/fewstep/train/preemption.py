"""Signals that ask a run to stop: it saves its state and leaves, with an exit code that says so."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command will go on."""


class Preempted(SystemExit):
    """A signal stopped the run after its state was saved. A script that does not catch it ends with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and SIGINT only make the yielded function true; the second of either ends the process.

    Signals reach the main thread alone; in another one the block changes nothing.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    kinds = (signal.SIGTERM, signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        for kind in kinds:
            signal.signal(kind, signal.SIG_DFL)
        print(f"{signal.Signals(number).name}: saving; once more to leave at once", file=sys.stderr, flush=True)

    before = [signal.signal(kind, note) for kind in kinds]
    try:
        yield asked.is_set
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
