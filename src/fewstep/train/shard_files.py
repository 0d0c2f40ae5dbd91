"""Shards of Distributed Checkpoint as safetensors, whose index is in their headers: its own index is a pickle."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from fewstep.runtime.files import sha256, sync, write_tensors

OFFSETS = "DCP_SHARDING_INFO"
"""Key of a shard's header: where each of its tensors begins in the whole tensor, as torch's own safetensors shards have it."""


def done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


class Writer(StorageWriter):
    """Writes what a rank holds as one shard, without another copy, and hashes the shard while it is synced.

    Attributes:
        hashes: SHA-256 of each shard as it was read back, on the first rank, after `torch.distributed.checkpoint.save`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes: dict[str, str] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The folder exists, and must not be made again if it was removed."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=f"shard-{k:05d}.safetensors") for k, plan in enumerate(plans, start=1)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if not plan.items:
            return done([])
        tensors: dict[str, Tensor] = {item.index.fqn: planner.resolve_data(item) for item in plan.items}  # pyright: ignore[reportAssignmentType] - all are tensors
        offsets = {item.index.fqn: {"saved_offsets": [*(item.index.offset or ())]} for item in plan.items}
        path = self.folder / plan.storage_data
        write_tensors(path, tensors, metadata={OFFSETS: json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"})
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(sync, path)
            written = (path.name, sha256(path))
            synced.result()
        return done([WriteResult(item.index, tensors[item.index.fqn].nbytes, written) for item in plan.items])  # pyright: ignore[reportArgumentType] - any object

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.hashes = dict(sorted({r.storage_data for some in results for r in some}))  # pyright: ignore[reportArgumentType]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class Reader(StorageReader):
    """Reads from shards of any number of ranks; each rank reads what it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found: dict[str, TensorStorageMetadata] = {}
        stored: dict[MetadataIndex, Path] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            for name, dtype, offset, shape in chunks(path):
                stored[MetadataIndex(name, offset)] = path
                whole = found.setdefault(name, TensorStorageMetadata(TensorProperties(dtype), torch.Size(shape), []))
                whole.chunks.append(ChunkStorageMetadata(offset, shape))
                ends = (tuple(map(sum, zip(chunk.offsets, chunk.sizes, strict=True))) for chunk in whole.chunks)
                whole.size = torch.Size(map(max, zip(*ends, strict=True)))
        return Metadata(state_dict_metadata=dict(found), storage_data=stored)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.stored: dict[MetadataIndex, Path] = metadata.storage_data  # pyright: ignore[reportAttributeAccessIssue] - any object

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        per_file = defaultdict(list)
        for item in plan.items:
            per_file[self.stored[item.storage_index]].append(item)
        for path, items in per_file.items():
            with safe_open(path, framework="pt") as file:
                for item in items:
                    part = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True))
                    name = item.storage_index.fqn
                    tensor = file.get_slice(name)[part] if part else file.get_tensor(name)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(tensor)
                    planner.commit_tensor(item, target)
        return done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def chunks(path: Path) -> Iterator[tuple[str, torch.dtype, torch.Size, torch.Size]]:
    """Name, type, offset and shape of each tensor of a shard, from its header."""
    with safe_open(path, framework="pt") as file:
        offsets = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
        for name in file.keys():  # noqa: SIM118 - not a mapping
            view = file.get_slice(name)
            shape = torch.Size(view.get_shape())
            dtype = (view[:0] if shape else file.get_tensor(name)).dtype
            offset = torch.Size(offsets[name]["saved_offsets"] if name in offsets else [0] * len(shape))
            yield name, dtype, offset, shape
