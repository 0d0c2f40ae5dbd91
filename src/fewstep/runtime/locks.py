"""Who works on a file or folder: locks that end with their process, and a file where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MISSING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""What `flock` answers where it does not work; EBADF for a folder on NFS, which locks only what is open for writing."""


@contextmanager
def locked(path: Path) -> Iterator[bool | None]:
    """Lock an existing file or folder for the block: True if this process has it, False if another one does.

    None if the file system has no locks. The system ends the lock with the process, however that ends.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool | None:
    """As `locked`, for an open file, until it is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in MISSING:
            return None
        raise
    return True


@contextmanager
def lock_file(path: Path) -> Iterator[bool]:
    """For file systems without locks: make a file that names its owner; False if the one there has a living owner.

    A file is stale, and replaced, if it was written on this machine before its last start, or by a process that has ended.
    """
    mine = owner()
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            break
        except FileExistsError:
            theirs = read_owner(path)
            if theirs is None or alive(theirs):
                yield False
                return
            remove_stale(path, theirs)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(mine, file)
        yield True
    finally:
        if read_owner(path) == mine:
            path.unlink()


def remove_stale(path: Path, stale: dict[str, Any]) -> None:
    """Remove the file of an owner that has ended, but not one that another process put there in the meantime."""
    aside = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    try:
        os.rename(path, aside)
        if read_owner(aside) != stale:
            os.link(aside, path)
    except (FileNotFoundError, FileExistsError):
        pass  # another process was faster; the next attempt sees what it left
    aside.unlink(missing_ok=True)


def owner() -> dict[str, Any]:
    """This process, in words that tell it from every other one: machine, start of the machine, number, start."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": boot(), "pid": pid, "started": started(pid)}


def read_owner(path: Path) -> dict[str, Any] | None:
    """The owner that a lock file names; None if it is gone, or just being written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and type(found.get("pid")) is int else None


def alive(theirs: dict[str, Any]) -> bool:
    """Whether an owner may still run; that of another machine may."""
    if theirs.get("host") != socket.gethostname():
        return True
    return theirs.get("boot") == boot() and theirs.get("started") == started(theirs["pid"]) is not None


def boot() -> str | None:
    """The identifier of this start of the machine, if the system has one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def started(pid: int) -> str | None:
    """When a process began, in ticks of the system where it tells them; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "running"
    except (ProcessLookupError, OverflowError):
        return None
    return "running"
