"""What a reader must not do, and what it may take."""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import typing
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

SECONDS, MEBIBYTES = 20, 1024
PATIENCE = 60
"""Seconds that a reader may wait for: the machine may be busy, but nothing may block."""
ALLOWED = (ValueError, OSError)
LIBRARIES = (sys.base_prefix, sys.prefix, "<frozen")
CODE = (
    "exec",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
)
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "os.chown",
)


class Slow(BaseException):
    """Beyond `ALLOWED`, so that no reader mistakes it for its own."""


def too_slow(signum: int, frame: object) -> None:
    what = f"computed for more than {SECONDS}" if signum == signal.SIGPROF else f"waited for more than {PATIENCE}"
    raise Slow(f"{what} seconds")


def memory(key: str) -> float:
    """MiB that this program has (VmRSS), or the most that it had since `forget_peak` (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Watch:
    """Notes what the code that runs under it does: code of the file, processes, sockets, changes outside of a folder.

    taken: MiB that the last call took beyond what the process had.

    There is one for a process, since the hook cannot be taken away.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        self.taken = 0.0
        sys.addaudithook(self.hook)
        signal.signal(signal.SIGPROF, too_slow)
        signal.signal(signal.SIGALRM, too_slow)
        # What would take the machine down is an error instead, which no reader may raise.
        resource.setrlimit(resource.RLIMIT_DATA, (4 * MEBIBYTES << 20, resource.RLIM_INFINITY))

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "exec" and args[0].co_filename.startswith(LIBRARIES):
            return  # the library imports a module of its own the first time that it needs it
        if event == "exec" and sys._getframe(1).f_code.co_filename == typing.__file__:
            return  # an annotation of ours
        if event == "ctypes.dlopen" and args[0] is None:
            return  # the program itself, for a call of the system that Python lacks
        if event in CODE or event.startswith(("socket.", "ctypes.dlopen")):
            self.seen.append(f"{event} {args!r:.200}")
        elif event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            if (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and os.fsdecode(args[0]) != os.devnull:
                self.changed(event, args[0])
        elif event in CHANGES:
            two = event in ("os.rename", "os.link")
            for path in args[: 2 if two else 1]:
                self.changed(event, path, args[-1])

    def changed(self, event: str, path: str | bytes | os.PathLike[Any], folder: int = -1) -> None:
        """Note a change at a path, relative to an open folder if there is one."""
        assert self.folder is not None
        place = (Path(f"/proc/self/fd/{folder}").resolve() if folder >= 0 else Path()) / os.fsdecode(path)
        target = place.resolve() if event in ("open", "os.mkdir") else place.parent.resolve()
        if not target.is_relative_to(self.folder) and "__pycache__" not in place.parts:
            self.seen.append(f"{event} changes {place}")

    def failure(self, call: Callable[[Path], Any], folder: Path) -> tuple[str | None, bool]:
        """How a call on the files in `folder` failed, None if it did not; and whether it refused them."""
        refused, what = False, None
        self.seen.clear()
        forget_peak()
        before = memory("VmRSS")
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        self.folder = folder.resolve()
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                call(folder)
        except ALLOWED:
            refused = True
        except (Exception, Slow) as error:
            what = f"{type(error).__name__}: {error}"
        finally:
            self.folder = None
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        if what is None and self.seen:
            what = self.seen[0]
        self.taken = memory("VmHWM") - before
        if what is None and self.taken > MEBIBYTES:
            what = f"took {self.taken:,.0f} MiB of memory"
        return what, refused
