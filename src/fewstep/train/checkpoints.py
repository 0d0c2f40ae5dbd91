"""The whole state of training on disk, written while training goes on, verified, and restored on any number of ranks.

NIMG/shard-*.safetensors   every tensor, in the shards of torch's Distributed Checkpoint: each rank writes what it holds,
                           and its share of what all ranks hold
NIMG/state.json            counters, scales of losses, seconds trained, and the hash of each shard
NIMG.damaged/              one that was damaged, set aside when its name was needed; never read, never removed

Distributed Checkpoint's own index is a pickle; in shards of safetensors the index is in their headers, which run no code.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.checkpoint import save as save_shards

from fewstep.runtime.distributed import rank, world_size
from fewstep.runtime.files import numbered, read_json, remove, sha256, sync
from fewstep.train.shards import Reader, Writer
from fewstep.train.strategies import on_cpu, part

KEPT = 3
COUNTERS = ("nimg", "steps", "position")
MISSING = (FileNotFoundError, NotADirectoryError)
DAMAGE = (ValueError, LookupError, TypeError, SafetensorError, CheckpointException, *MISSING)
"""What damaged files raise. Other errors of the system are none of the file: a disk or a network may come back."""


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
        self.verified: dict[Path, list[tuple[str, int, int, int]]] = {}

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
                remove(left)
            partial.mkdir()
        if self.group is not None:
            dist.barrier(self.group)
        self.pending = self.thread.submit(self.write, self.copied(state["tensors"]), partial, place, about)

    @torch.no_grad()
    def copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this rank holds, from which training may go on; in the memory of the copy before, which is twice as fast."""
        mine, theirs = ({k: (t.shape, part(t).shape, t.dtype) for k, t in d.items()} for d in (self.copies, tensors))
        if mine != theirs:
            self.copies = {k: on_cpu(t, t.dtype, pin=torch.cuda.is_available()) for k, t in tensors.items()}
        torch._foreach_copy_([part(t) for t in self.copies.values()], [part(t) for t in tensors.values()])
        return self.copies

    def write(self, tensors: dict[str, Tensor], partial: Path, place: Path, about: Mapping[str, Any]) -> None:
        """Each rank its shard; then record their hashes, put the folder in its place, drop old ones."""
        try:
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is fine
            writer = Writer(partial)
            save_shards(tensors, storage_writer=writer, process_group=self.group)
            if rank() == 0:
                if missing := [name for name in writer.hashes if not (partial / name).exists()]:
                    raise FileNotFoundError(f"{missing[0]} of another rank is not there; all must share the folder")
                state = json.dumps({**about, "shards": writer.hashes}, indent=2, allow_nan=False)
                (partial / "state.json").write_text(state)  # which makes no folder that was removed again
                sync(partial / "state.json")
                sync(partial)
                if place.exists():  # damaged, else training would have begun there
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
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return [self.folder / name for name in sorted(names, reverse=True) if re.fullmatch(r"\d{12}", name)]

    def damage(self, path: Path) -> str | None:
        """As the function of this name; what was found to be whole is not read again as long as its files are the same."""
        if self.verified.get(path) == signature(path):
            return None
        found = damage(path)
        if found is None:
            self.verified[path] = signature(path)
        return found

    def drop(self) -> None:
        """Remove what is older than the newest `keep` whole checkpoints."""
        whole = 0
        for path in self.newest_first():
            if whole == self.keep:
                remove(path)
                continue
            try:
                whole += self.damage(path) is None
            except OSError as error:
                print(f"warning: {path} cannot be read now ({reason(error)}) and stays", file=sys.stderr)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, as the first rank sees it; damaged ones are named on standard error.

        Raises ValueError if there are some and all are damaged, and OSError for one that cannot be read, which may be whole.
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
        damaged = []
        for path in self.newest_first():
            try:
                found = self.damage(path)
            except OSError as error:
                raise OSError(
                    f"{error.filename or path}: {error.strerror} ({errno.errorcode.get(error.errno or 0)}), so it is not known "
                    f"whether this checkpoint is whole, and nothing was changed; make it readable, or move {path} elsewhere "
                    "to go on from the one before"
                ) from error
            if found is None:
                for other, why in damaged:
                    print(f"warning: checkpoint {other} is damaged ({why}); using the one before", file=sys.stderr)
                return path
            damaged.append((path, found))
        if damaged:
            raise ValueError(
                f"no checkpoint in {self.folder} is whole, and nothing was changed; the newest, {damaged[0][0].name}: "
                f"{damaged[0][1]}. Bring one back from a copy, or start over with --fresh (fresh=True)"
            )
        return None

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


def signature(path: Path) -> list[tuple[str, int, int, int]]:
    """Names, sizes, times and numbers of the files of a folder: other ones mean other contents."""
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


def load(path: Path, like: Callable[[str, torch.Size], Tensor | None] = lambda name, shape: None) -> dict[str, Any]:
    """A `Trainer.state_dict` with `seconds`, from shards of any number of ranks.

    like: a tensor by name and shape that lies on the ranks as the one of this name shall, see `Trainer.layout`; of one in
    parts, each rank reads its own. Raises ValueError for shards that have the recorded hash and are none nevertheless.
    """
    state = read_state(path)
    reader = Reader(path)
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    try:
        tensors: dict[str, Tensor] = {}
        for name, about in reader.read_metadata().state_dict_metadata.items():
            dtype = about.properties.dtype  # pyright: ignore[reportAttributeAccessIssue] - all are tensors
            shape = about.size  # pyright: ignore[reportAttributeAccessIssue]
            model = like(name, shape)
            tensors[name] = torch.empty(shape, dtype=dtype) if model is None else on_cpu(model, dtype)
        load_shards(tensors, storage_reader=reader, no_dist=True)  # pyright: ignore[reportArgumentType] - dict is invariant
    except (CheckpointException, RuntimeError, OSError, *DAMAGE) as error:
        raise ValueError(f"{path}: its shards cannot be read ({reason(error)}); remove this checkpoint") from error
    return state | {"tensors": tensors}


def reason(error: BaseException) -> str:
    """An error in one line: of those of Distributed Checkpoint, what the first rank that failed said."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))
        error = first[0] if isinstance(first, tuple) else first
    return f"{error}".strip().splitlines()[-1] if str(error).strip() else type(error).__name__
