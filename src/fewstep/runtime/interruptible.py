"""Long native calls that do not keep signals waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def interruptible(function: Callable[[], T]) -> T:
    """The result of a function, computed in a thread, so that this one handles signals meanwhile.

    Python runs handlers between its own instructions only: a decomposition of minutes would delay SIGTERM and Ctrl-C
    until its end. If a handler raises, the thread is left behind and ends with the process.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(function())
        except BaseException as error:  # it is raised again in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
