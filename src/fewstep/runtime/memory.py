"""When memory does not suffice: numpy says MemoryError, PyTorch a RuntimeError, on CPUs a plain one."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

PLAIN = re.compile("DefaultCPUAllocator: (can't allocate|not enough) memory|CUDA error: out of memory|ALLOC_FAILED")
"""What a RuntimeError says that has no type of its own."""


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of the machine or of a GPU was not sufficient."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # without torch, which a process may not have
    return "OutOfMemoryError" in kinds or isinstance(error, MemoryError) or PLAIN.search(str(error)) is not None


def explained(error: BaseException) -> str:
    """What there was no memory for, as far as the error says it."""
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    if asked:
        return f"there is not enough memory: {int(asked[1]) / 2**30:,.1f} GiB could not be allocated"
    first = str(error).strip().partition("\n")[0]
    return f"there is not enough memory{first and f': {first}'}"


def available() -> int | None:
    """Bytes of memory that this process can still allocate, within the limit of its container; None if not known."""
    found = []
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        limit, used = (
            int(Path("/sys/fs/cgroup", name).read_text("ascii")) for name in ("memory.max", "memory.current")
        )
        found.append(limit - used)
    return min(found, default=None)


def used() -> int | None:
    """Bytes of memory that this process holds now; None if not known."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
