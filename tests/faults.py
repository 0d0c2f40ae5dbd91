"""Faults at each moment at which a program changes files: the process is killed there, or the call fails."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

FILES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.chmod")
CHANGES = (*FILES, "socket.connect", "http.client.send")
"""Events of Python's audit hooks; `open` is one of them if the file is opened for writing."""
WRITES = os.O_WRONLY | os.O_RDWR


def changes(event: str, given: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(given[2], int) and bool(given[2] & WRITES) and given[0] != os.devnull
    return event in CHANGES


def with_fault(job: Callable[[], object], number: int, fault: int) -> int | None:
    """Run `job` in a fork that meets a fault at its change of files of this number, from 0.

    fault: an `errno` with which that call fails, or 0 for SIGKILL before it. Returns the errno that the job raised, 0 if
    it ended, 1 for another error, -SIGKILL if it was killed; None if it made fewer changes.
    """
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        return None if code == 255 else code
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    seen = -1

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        if not changes(event, given):
            return
        seen += 1
        if seen == number:
            if fault:
                raise OSError(fault, os.strerror(fault))
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        job()
        code = 0
    except OSError as error:
        code = error.errno or errno.EPERM
    except BaseException:
        code = errno.EPERM
    os._exit(255 if seen < number else code)
