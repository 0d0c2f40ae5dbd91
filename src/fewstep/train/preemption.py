"""Signals that ask a run to stop: it saves its state and exits with a code that says so."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from torch import nn

T = TypeVar("T")

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, and the same command will continue."""


class Preempted(SystemExit):
    """A signal stopped the run after its state was saved. A script that does not catch it exits with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and SIGINT only make the yielded function return True; a second signal ends the process.

    Signals reach only the main thread; in another thread the block changes nothing.
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
        print(f"{signal.Signals(number).name}: saving; once more to exit at once", file=sys.stderr, flush=True)

    before = [signal.signal(kind, note) for kind in kinds]
    try:
        yield asked.is_set
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


class StopRequestedError(Exception):
    """Ends an evaluation of a network, within `Watch` only."""


class Watch:
    """Ends what a network generates soon after a signal, on all ranks together.

    Args:
        network: What generates; it is interrupted between two of its evaluations.
        asked: Whether this process was asked to stop.
        agree: Whether any rank was, given whether this one was; all ranks call it.
    """

    def __init__(self, network: nn.Module, asked: Callable[[], bool], agree: Callable[[bool], bool]) -> None:
        self.network, self.asked, self.agree = network, asked, agree

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        """This rank's share of the items. All ranks iterate over it to the end.

        Raises:
            Preempted: On all ranks, if one of them was asked to stop before it had its share.
        """

        def check(*_: object) -> None:
            if self.asked():
                raise StopRequestedError

        stopped = False
        hook = self.network.register_forward_pre_hook(check)
        try:
            yield from items
        except StopRequestedError:
            stopped = True
        finally:
            hook.remove()
        if self.agree(stopped):
            raise Preempted
