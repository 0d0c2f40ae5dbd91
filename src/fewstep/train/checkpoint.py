"""Checkpoints of a run: the whole state of training, saved while training continues, verified, and kept in a rolling set.

NIMG/shard-*.safetensors   all tensors: each rank writes the shards that it alone holds, and its share of what all ranks hold
NIMG/state.json            counters, loss scales, seconds trained, and the hash of each shard
NIMG.damaged/              a damaged one, set aside when its name was needed; never read, never removed
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from fewstep.runtime.distributed import local, rank, world_size
from fewstep.runtime.files import numbered, remove, sync
from fewstep.train import checkpoint_files
from fewstep.train.checkpoint_files import reason, signature
from fewstep.train.options import RunOptions


class Checkpoints:
    """The checkpoints of a run, in folders named by training images. Every rank makes one and calls it alike.

    Args:
        folder: Where they are; made by the first save.
        keep: How many to keep. An older one is removed once this many newer ones have been verified.
    """

    def __init__(self, folder: Path, *, keep: int = RunOptions.keep) -> None:
        if keep < 1:
            raise ValueError(f"at least one checkpoint must be kept; got keep={keep}")
        self.folder, self.keep = folder, keep
        # on the CPU, and separate from that of the gradients, so that the thread can use it at any time
        self.group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        # another one for the main thread, as messages of two threads must not mix
        self.votes: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        self.staged: dict[str, Tensor] = {}
        self.verified: dict[Path, list[tuple[str, int, int, int]]] = {}

    def save(self, state: dict[str, Any], *, seconds: float) -> None:
        """Start saving a `Trainer.state_dict`. It is copied first, so that training can continue when this returns.

        Args:
            state: As from `Trainer.state_dict`.
            seconds: Trained so far.

        Raises:
            OSError: The save before failed (also raised by `finish`).
        """
        self.finish()
        counters = {key: value for key, value in state.items() if key != "tensors"} | {"seconds": seconds}
        place = self.folder / f"{state['nimg']:012d}"
        partial = place.with_name(f".{place.name}.partial")
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.partial"):  # by a run that was killed
                remove(left)
            partial.mkdir()
        if self.group is not None:
            dist.barrier(self.group)
        self.pending = self.thread.submit(self.write, self.stage(state["tensors"]), partial, place, counters)

    @torch.no_grad()
    def stage(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of what this rank holds, in CPU memory that the next save reuses: a new allocation takes twice as long."""
        mine, theirs = ({k: (local(t).shape, t.dtype) for k, t in d.items()} for d in (self.staged, tensors))
        if mine != theirs:
            options = {
                "device": "cpu",
                "memory_format": torch.contiguous_format,
                "pin_memory": torch.cuda.is_available(),
            }
            self.staged = {k: torch.empty_like(t, **options) for k, t in tensors.items()}
        torch._foreach_copy_([local(t) for t in self.staged.values()], [local(t) for t in tensors.values()])
        return self.staged

    def write(self, tensors: dict[str, Tensor], partial: Path, place: Path, state: Mapping[str, Any]) -> None:
        """Write the shards of all ranks, record their hashes, rename the folder into place, drop old checkpoints."""
        try:
            hashes = checkpoint_files.save(tensors, partial, self.group)
            if rank() == 0:
                # not by `write_json`, which would make the folder again if it was removed
                text = json.dumps({**state, "shards": hashes}, indent=2, allow_nan=False)
                (partial / "state.json").write_text(text)
                sync(partial / "state.json")
                sync(partial)
                if place.exists():  # damaged: otherwise training would have resumed from it
                    place.rename(next(p for p in numbered(place.with_name(f"{place.name}.damaged")) if not p.exists()))
                partial.rename(place)
                sync(self.folder)
                self.verified[place] = signature(place)
                self.drop()
        except (OSError, CheckpointException) as error:
            if rank() == 0:
                remove(partial)
            newest = next(iter(self.newest_first()), None)
            raise OSError(
                f"{place}: this checkpoint could not be written ({reason(error)}); "
                + (f"the one before, {newest}, is untouched; " if newest else "")
                + "free some space or repair the folder, then run the same command again"
            ) from error

    def agree(self, stop: bool, due: bool) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether the first rank's clock says that a save is due."""
        if self.group is None:
            return stop, due
        flags = torch.tensor([stop, due and rank() == 0], dtype=torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.votes)
        return bool(flags[0]), bool(flags[1])

    def finish(self) -> None:
        """Wait until the save that was started is on disk; raises its error."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def newest_first(self) -> list[Path]:
        """The folders of checkpoints; anything with another name is ignored."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return [self.folder / name for name in sorted(names, reverse=True) if re.fullmatch(r"\d{12}", name)]

    def damage(self, path: Path) -> str | None:
        """As `checkpoint_files.damage`; a checkpoint that was verified is not read again while its files are unchanged."""
        if self.verified.get(path) == signature(path):
            return None
        found = checkpoint_files.damage(path)
        if found is None:
            self.verified[path] = signature(path)
        return found

    def drop(self) -> None:
        """Remove what is older than the newest `keep` intact checkpoints."""
        intact = 0
        for path in self.newest_first():
            if intact == self.keep:
                remove(path)
                continue
            try:
                intact += self.damage(path) is None
            except OSError as error:
                print(f"warning: {path} cannot be read now ({reason(error)}) and stays", file=sys.stderr)

    def newest(self) -> Path | None:
        """The newest intact checkpoint, as the first rank finds it; damaged ones are reported on standard error.

        Returns:
            Its folder; None if there is no checkpoint.

        Raises:
            ValueError: There are checkpoints, and all are damaged.
            OSError: One cannot be read, so that it may be intact.
        """
        nimg = -1
        if rank() == 0:
            chosen = self.find()
            nimg = -1 if chosen is None else int(chosen.name)
        if self.group is not None:
            number = torch.tensor(nimg)
            dist.broadcast(number, 0, group=self.group)
            nimg = int(number)
        return self.folder / f"{nimg:012d}" if nimg >= 0 else None

    def find(self) -> Path | None:
        """The newest intact checkpoint; reads the files."""
        damaged = []
        for path in self.newest_first():
            try:
                found = self.damage(path)
            except OSError as error:
                raise OSError(
                    f"{error.filename or path}: {error.strerror} ({errno.errorcode.get(error.errno or 0)}), so it is not known "
                    f"whether this checkpoint is intact, and nothing was changed; make it readable, or move {path} elsewhere "
                    "to continue from the one before"
                ) from error
            if found is None:
                for other, why in damaged:
                    print(f"warning: checkpoint {other} is damaged ({why}); using the one before", file=sys.stderr)
                return path
            damaged.append((path, found))
        if damaged:
            raise ValueError(
                f"no checkpoint in {self.folder} is intact, and nothing was changed; the newest, {damaged[0][0].name}: "
                f"{damaged[0][1]}. Restore one from a backup, or start over with --fresh (fresh=True)"
            )
        return None

    def close(self) -> None:
        """Wait for the save under way and end the thread."""
        try:
            self.finish()
        finally:
            self.thread.shutdown()
