"""Long native calls that do not keep signals waiting."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
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
    ended = threading.Event()  # an interrupted `Thread.join` takes the thread for one that has ended

    def run() -> None:
        try:
            done.append(function())
        except BaseException as error:  # it is raised again in the caller's thread
            failed.append(error)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        ended.wait()
    except BaseException as error:
        leave_before(ended, exit_code(error))
        raise
    if failed:
        raise failed[0]
    return done[0]


def exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def leave_before(ended: threading.Event, code: int) -> None:
    """End the process at its exit without further exit functions, if a thread still computes then.

    The destructors of native libraries abort a process with the signal SIGABRT while one of their threads computes.
    """

    def leave() -> None:
        if not ended.is_set():
            atexit.unregister(leave)
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code)

    atexit.register(leave)
