"""Ranks of `torch.distributed`; every function also works in a single process without a process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """The device of this process: its own GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def fast_dtype() -> torch.dtype:
    """bfloat16 where this process's hardware computes in it (GPUs since 2020, CPUs with AVX512-BF16), else float32.

    Elsewhere it is emulated, a hundred times slower.
    """
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()  # there is no public name for it
    return torch.bfloat16 if native else torch.float32


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group that `torchrun` describes in the environment, for the duration; nothing to do without torchrun."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def sum_over_ranks(tensors: list[Tensor]) -> None:
    """Add up each tensor over the ranks, in place, in one flat message per dtype."""
    if world_size() == 1 or not tensors:
        return
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        group = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in group])
        dist.all_reduce(flat)
        for t, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
            t.copy_(part.view_as(t))


def gather(value: T) -> list[T]:
    """The value of every rank, by rank, on the first one; nothing on the others. Values are pickled: keep them small."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.gather_object(value, found if rank() == 0 else None)
    return found if rank() == 0 else []


def from_first(value: T) -> T:
    """The value of the first rank, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()
