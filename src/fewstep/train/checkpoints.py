"""The whole state of training on disk, written while training goes on, verified, and restored on any number of ranks.

NIMG/shard-*.safetensors   every tensor, in the shards of torch's Distributed Checkpoint: each rank writes its own
NIMG/state.json            counters, scales of losses, seconds trained, and the hash of each shard

Distributed Checkpoint's own index is a pickle; in shards of safetensors the index is in their headers, which run no code.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.checkpoint import save as save_shards

from fewstep.distributed import rank, world_size
from fewstep.files import read_json, sha256, sync, write_json

KEPT = 3
COUNTERS = ("nimg", "steps", "position")
DAMAGE = (ValueError, LookupError, TypeError, OSError, SafetensorError, CheckpointException)


class Checkpoints:
    """The checkpoints of a run, folders by images seen under `folder`; every rank makes one and calls it alike.

    keep: how many stay. An older one goes when so many newer ones have proved to be what was written.
    """

    def __init__(self, folder: Path, *, keep: int = KEPT) -> None:
        if keep < 1:
            raise ValueError(f"at least one checkpoint must be kept; got keep={keep}")
        self.folder, self.keep = folder, keep
        # on the CPU and apart from the gradients, so that it can be used by another thread at any time
        self.group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        # of its own: messages of two threads in one group would meet each other's
        self.asking: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        self.copies: dict[str, Tensor] = {}

    def save(self, state: dict[str, Any], *, seconds: float) -> None:
        """Begin to write a `Trainer.state_dict`, which may change as soon as this returns: it is copied first.

        seconds: trained so far. The error of the one before, if there was any, is raised here or by `finish`.
        """
        self.finish()
        about = {key: value for key, value in state.items() if key != "tensors"} | {"seconds": seconds}
        place = self.folder / f"{state['nimg']:012d}"
        partial = place.with_name(f".{place.name}.partial")
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.partial"):  # by a run that was killed
                shutil.rmtree(left)
            partial.mkdir()
        if self.group is not None:
            dist.barrier(self.group)
        self.pending = self.thread.submit(self.write, self.copied(state["tensors"]), partial, place, about)

    @torch.no_grad()
    def copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What training may go on from while it is written; in the memory of the copy before, which is twice as fast."""
        mine, theirs = ({k: (t.shape, t.dtype) for k, t in each.items()} for each in (self.copies, tensors))
        if mine != theirs:
            pin = torch.cuda.is_available()
            self.copies = {k: torch.empty(t.shape, dtype=t.dtype, pin_memory=pin) for k, t in tensors.items()}
        torch._foreach_copy_([*self.copies.values()], [*tensors.values()])
        return self.copies

    def write(self, tensors: dict[str, Tensor], partial: Path, place: Path, about: Mapping[str, Any]) -> None:
        """Each rank its shard; then record their hashes, put the folder in its place, drop old ones."""
        try:
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is fine
            writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
            save_shards(tensors, storage_writer=writer, process_group=self.group)
            if rank() == 0:
                shards = sorted(partial.glob("*.safetensors"))
                for shard in shards:
                    sync(shard)
                write_json(partial / "state.json", {**about, "shards": {s.name: sha256(s) for s in shards}})
                sync(partial)
                if place.exists():
                    shutil.rmtree(place)  # damaged, else training would have begun there
                partial.rename(place)
                sync(self.folder)
                self.drop()
        except (OSError, CheckpointException) as error:
            if rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            newest = next(iter(self.newest_first()), None)
            raise OSError(
                f"{place}: this checkpoint could not be written ({reason(error)}); "
                + (f"the one before, {newest}, is untouched; " if newest else "")
                + "make room or mend the folder, then the same command continues"
            ) from error

    def agree(self, stop: bool, due: bool) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether by the first rank's clock it is time to save."""
        if self.group is None:
            return stop, due
        flags = torch.tensor([stop, due and rank() == 0], dtype=torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.asking)
        return bool(flags[0]), bool(flags[1])

    def finish(self) -> None:
        """Wait until what was begun is on disk; raises its error."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def newest_first(self) -> list[Path]:
        """The checkpoints; what lies beside them under another name is not looked at."""
        return sorted(self.folder.glob("[0-9]" * 12), reverse=True)

    def drop(self) -> None:
        """Remove what is older than the newest `keep` whole checkpoints."""
        whole = 0
        for path in self.newest_first():
            if whole == self.keep:
                shutil.rmtree(path)
            elif damage(path) is None:
                whole += 1

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, as the first rank sees it; damaged ones are named on standard error."""
        nimg = -1
        if rank() == 0:
            for path in self.newest_first():
                found = damage(path)
                if found is None:
                    nimg = int(path.name)
                    break
                print(f"warning: checkpoint {path} is damaged ({found}); using the one before", file=sys.stderr)
        if self.group is not None:
            chosen = torch.tensor(nimg)
            dist.broadcast(chosen, 0, group=self.group)
            nimg = int(chosen)
        return self.folder / f"{nimg:012d}" if nimg >= 0 else None

    def close(self) -> None:
        """Wait for what is being written and end the thread."""
        try:
            self.finish()
        finally:
            self.thread.shutdown()


def read_state(path: Path) -> dict[str, Any]:
    """What `state.json` says, as far as it must be right."""
    state = read_json(path / "state.json")
    counters = [state[name] for name in COUNTERS]
    if any(type(n) is not int or n < 0 for n in counters) or type(state["scalers"]) is not dict:
        raise ValueError("its counters are no numbers")
    if type(state["shards"]) is not dict or not state["shards"]:
        raise ValueError("it names no shards")
    state["seconds"] = float(state["seconds"])
    return state


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is what was written."""
    try:
        recorded = read_state(path)["shards"]
        found = {shard.name: sha256(shard) for shard in path.glob("*.safetensors")}
    except DAMAGE as error:
        return reason(error)
    wrong = sorted(name for name in set(recorded) | set(found) if recorded.get(name) != found.get(name))
    return f"{', '.join(wrong)}: not the recorded tensors" if wrong else None


def load(path: Path) -> dict[str, Any]:
    """A whole `Trainer.state_dict` with `seconds`, from shards of any number of ranks.

    Raises ValueError for shards that have the recorded hash and are none nevertheless.
    """
    state = read_state(path)
    reader = HuggingFaceStorageReader(str(path))
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    try:
        tensors: dict[str, Tensor] = {
            name: torch.empty(about.size, dtype=about.properties.dtype)  # pyright: ignore[reportAttributeAccessIssue] - all are tensors
            for name, about in reader.read_metadata().state_dict_metadata.items()
        }
        load_shards(tensors, storage_reader=reader, no_dist=True)  # pyright: ignore[reportArgumentType] - dict is invariant
    except (CheckpointException, RuntimeError, *DAMAGE) as error:
        raise ValueError(f"{path}: its shards cannot be read ({reason(error)}); remove this checkpoint") from error
    return state | {"tensors": tensors}


def reason(error: BaseException) -> str:
    """An error in one line: of those of Distributed Checkpoint, what the first rank that failed said."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))
        error = first[0] if isinstance(first, tuple) else first
    return f"{error}".strip().splitlines()[-1] if str(error).strip() else type(error).__name__
