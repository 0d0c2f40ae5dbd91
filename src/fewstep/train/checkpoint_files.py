"""The files of one checkpoint: shards written and read by torch's Distributed Checkpoint, and `state.json` with their hashes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.checkpoint import save as save_shards

from fewstep.runtime.files import read_json, sha256
from fewstep.train.shard_files import Reader, Writer

COUNTERS = ("nimg", "steps", "position")
MISSING = (FileNotFoundError, NotADirectoryError)
DAMAGE = (ValueError, LookupError, TypeError, SafetensorError, CheckpointException, *MISSING)
"""What damaged files raise. Other errors of the system are not the file's fault: a disk or a network may come back."""


def save(tensors: dict[str, Tensor], folder: Path, group: Any = None) -> dict[str, str]:
    """Write this rank's shard into `folder`; returns the hashes of all shards on the first rank. All ranks call it."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is fine
    writer = Writer(folder)
    save_shards(tensors, storage_writer=writer, process_group=group)
    if missing := [name for name in writer.hashes if not (folder / name).exists()]:
        raise FileNotFoundError(f"{missing[0]} of another rank is missing; all ranks must share the folder")
    return writer.hashes


def read_state(path: Path) -> dict[str, Any]:
    """The counters, loss scales and hashes in `state.json` of a checkpoint. Raises ValueError if they are damaged."""
    state = read_json(path / "state.json")
    counters = [state[name] for name in COUNTERS]
    if any(type(n) is not int or n < 0 for n in counters) or type(state["scalers"]) is not dict:
        raise ValueError("its counters are not valid numbers")
    if type(state["shards"]) is not dict or not state["shards"]:
        raise ValueError("it lists no shards")
    state["seconds"] = float(state["seconds"])
    return state


def signature(path: Path) -> list[tuple[str, int, int, int]]:
    """Names, sizes, times and inodes of the files in a folder; if they are the same, so are the contents."""
    with os.scandir(path) as entries:
        found = [(e.name, e.stat()) for e in entries]
    return sorted((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in found)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is what was written. Raises OSError if it cannot be read."""
    try:
        recorded = read_state(path)["shards"]
        found = {shard.name: sha256(shard) for shard in path.glob("*.safetensors")}
    except DAMAGE as error:
        return reason(error)
    wrong = sorted(name for name in set(recorded) | set(found) if recorded.get(name) != found.get(name))
    return f"{', '.join(wrong)}: not the recorded tensors" if wrong else None


def load(path: Path, into: Callable[[Mapping[str, torch.Size]], dict[str, Tensor]] | None = None) -> dict[str, Any]:
    """Read a checkpoint, written by any number of ranks.

    Args:
        path: Folder of the checkpoint.
        into: Returns the tensors to fill in place, given the names and shapes that are stored, as `Trainer.tensors` does;
            each rank reads its own shards. None for new tensors, each of them full.

    Returns:
        A `Trainer.state_dict`, with `seconds` trained.

    Raises:
        ValueError: The shards cannot be read although their hashes are right, or belong to other networks.
    """
    state = read_state(path)
    reader = Reader(path)
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    try:
        stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
        shapes = {name: found.size for name, found in stored.items()}
        if into is None:
            tensors = {name: torch.empty(shapes[name], dtype=stored[name].properties.dtype) for name in stored}
        else:
            tensors = into(shapes)
        load_shards(tensors, storage_reader=reader, no_dist=True)  # pyright: ignore[reportArgumentType] - dict is invariant
    except (CheckpointException, RuntimeError, OSError, *DAMAGE) as error:
        raise ValueError(f"{path}: its shards cannot be read ({reason(error)}); remove this checkpoint") from error
    return state | {"tensors": tensors}


def reason(error: BaseException) -> str:
    """An error in one line; of Distributed Checkpoint's, what the first rank that failed reported."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))
        error = first[0] if isinstance(first, tuple) else first
    return f"{error}".strip().splitlines()[-1] if str(error).strip() else type(error).__name__
