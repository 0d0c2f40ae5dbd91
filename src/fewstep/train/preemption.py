"""Signals that ask a run to stop: it saves its state and leaves, with an exit code that says so."""

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


class StopRequestedError(Exception):
    """Ends what a network computes, within `Watch` alone."""


class Watch:
    """Lets what a network makes end soon after a signal, on all ranks together.

    asked: whether this process was asked to stop. agree: whether any rank is; all ranks call it.
    """

    def __init__(self, network: nn.Module, asked: Callable[[], bool], agree: Callable[[bool], bool]) -> None:
        self.network, self.asked, self.agree = network, asked, agree

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        """This rank's share of the items, during which the network asks before each of its layers; all ranks go through it.

        Raises Preempted on all ranks if one was asked to stop before it had its share.
        """
        stopped = False
        try:
            with self.asking():
                yield from items
        except StopRequestedError:
            stopped = True
        if self.agree(stopped):
            raise Preempted

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Within the block, layers raise StopRequestedError once this process was asked; of compiled networks the whole does."""

        def ask(*_: object) -> None:
            if self.asked():
                raise StopRequestedError

        layers = [*self.network.modules()]
        if any(m._compiled_call_impl is not None for m in layers):  # hooks would be compiled too
            layers = [self.network]
        hooks = [layer.register_forward_pre_hook(ask) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
