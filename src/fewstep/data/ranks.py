"""The ranks of torchrun, for a process that may be without torch: the dataset tool and its workers start without it."""

from __future__ import annotations

import sys
from typing import TypeVar

T = TypeVar("T")


def ranks() -> tuple[int, int]:
    """This rank and the number of ranks; (0, 1) in a process without torch."""
    if "torch" not in sys.modules:
        return 0, 1
    from fewstep.runtime.distributed import rank, world_size

    return rank(), world_size()


def gather(value: T) -> list[T]:
    """The values of all ranks on every rank; see `distributed.gather`."""
    if ranks()[1] == 1:
        return [value]
    from fewstep.runtime import distributed

    return distributed.gather(value)


def from_first(value: T) -> T:
    """The value of the first rank on every rank; see `distributed.from_first`."""
    if ranks()[1] == 1:
        return value
    from fewstep.runtime import distributed

    return distributed.from_first(value)
