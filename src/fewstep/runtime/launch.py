"""How this process was started: by a launcher such as `torchrun`, and with which command; read without torch."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from fewstep.runtime.display import public


class Launch(NamedTuple):
    """The number of this process, from 0, and how many there are; (0, 1) without a launcher."""

    rank: int
    world: int


def launched() -> Launch:
    """What RANK and WORLD_SIZE say. LOCAL_RANK is checked with them, as it chooses the GPU.

    Raises ValueError for one of the two alone, and for values that no launcher gives.
    """
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ}
    for name, value in given.items():
        if not (value.isascii() and value.isdecimal()):
            raise ValueError(f"{name}={value}: expected a number, as torchrun sets it; unset {name}, or use torchrun")
    rank, world = given.get("RANK"), int(given.get("WORLD_SIZE", "1"))
    if rank is None:
        if world != 1:
            raise ValueError(f"WORLD_SIZE={world} is set without RANK; start with torchrun, or unset WORLD_SIZE")
        return Launch(0, 1)
    if "WORLD_SIZE" not in given:
        raise ValueError(f"RANK={rank} is set without WORLD_SIZE; start with torchrun, or unset RANK")
    if int(rank) >= world:
        raise ValueError(f"RANK={rank}: with WORLD_SIZE={world} ranks are 0 to {world - 1}; start with torchrun")
    return Launch(int(rank), world)


def command_line(argv: Sequence[str]) -> str:
    """The command as a person would type it, for the record: without the secrets of addresses."""
    return shlex.join(["fewstep", *map(public, argv)])
