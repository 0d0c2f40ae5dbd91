"""Ranks of `torch.distributed`; every function also works in a single process without a process group."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fewstep.runtime.launch import launched

T = TypeVar("T")

GRACE = 3.0
"""Seconds that a rank which lost another one leaves to `torchrun`, which else takes the first to be gone for the cause."""


def rank() -> int:
    """Return the number of this process, from 0; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


CHOSEN: list[torch.device] = []
"""The device that `use` chose for this process, if any."""


def device() -> torch.device:
    """Return the device of this process: the chosen one, else its own GPU where there is one, else the CPU."""
    if CHOSEN and (CHOSEN[0].type != "cuda" or CHOSEN[0].index is not None):
        return CHOSEN[0]
    if CHOSEN or torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def use(name: str | None) -> None:
    """Choose the device on which this process computes, as `--device` does.

    Args:
        name: cpu, cuda, cuda:N; None for the usual one.

    Raises:
        ValueError: the name is not a device of this machine, one GPU would be shared by several ranks, or it is MPS, which has no
            float64, in which states of samplers and statistics are kept.
    """
    CHOSEN.clear()
    if name is None:
        return
    try:
        chosen = as_device(name)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    if chosen.type == "mps":
        raise ValueError(
            "--device mps: samplers and statistics compute in float64, which MPS lacks; use --device cpu. In Python, "
            'fs.load(path, device="mps") loads a model for code of your own'
        )
    if chosen.index is not None and launched().world > 1:
        raise ValueError(
            f"--device {name}: torchrun gives each rank a GPU of its own; use --device cuda, or leave it out"
        )
    CHOSEN.append(chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(device())


def as_device(name: str | torch.device) -> torch.device:
    """Return the device of a name on this machine.

    Args:
        name: cpu, cuda, cuda:N or mps.

    Raises:
        ValueError: the name is of another kind, or there is no such hardware; the message says what is missing.
    """
    try:
        wanted = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {name}: expected cpu, cuda, cuda:N (such as cuda:1) or mps") from error
    if wanted.type == "cpu" and not wanted.index:
        return torch.device("cpu")
    if wanted.type == "mps" and not wanted.index:
        if torch.backends.mps.is_available():
            return wanted
        lacks = "finds no Apple GPU" if torch.backends.mps.is_built() else "has no MPS"
        raise ValueError(f"device {name}: this PyTorch {lacks} (torch {torch.__version__}); use cpu")
    if wanted.type != "cuda":
        raise ValueError(f"device {name}: expected cpu, cuda, cuda:N (such as cuda:1) or mps")
    if not torch.backends.cuda.is_built():
        raise ValueError(
            f"device {name}: this PyTorch has no CUDA (torch {torch.__version__}); use cpu, or install a build with CUDA, "
            "see https://pytorch.org/get-started"
        )
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there:
        raise ValueError(
            f"device {name}: PyTorch finds no GPU (torch {torch.__version__}); check nvidia-smi and CUDA_VISIBLE_DEVICES, or "
            "use cpu"
        )
    if (wanted.index or 0) >= there:
        raise ValueError(f"device {name}: there are {there} GPUs, cuda:0 to cuda:{there - 1}")
    return wanted


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group that `torchrun` describes in the environment, for the duration; without torchrun this does nothing.

    Raises:
        ConnectionError: another rank has ended, which is the only error of this one.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if device().type == "cuda":
        torch.cuda.set_device(device())
    store, number, size = meeting_point()
    try:
        dist.init_process_group(backend(), store=store, rank=number, world_size=size)
        yield
    except Exception as error:
        if not lost_another(error):
            raise
        if dist.is_torchelastic_launched():
            time.sleep(GRACE)
        raise ConnectionError(f"another rank is gone, and torchrun says why ({str(error).splitlines()[0]})") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def backend() -> str:
    """Return the backends by the device of their tensors: counts of images, for example, are on the CPU beside GPUs, too."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def meeting_point() -> tuple[dist.Store, int, int]:
    """Where the ranks find each other, the number of this one, and how many there are.

    Over its restarts torchrun keeps what the ranks tell each other, the addresses of those that are gone too. On one
    machine every start has its own names there; between machines starts are not counted alike.
    """
    given = os.environ
    kept = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if kept and given.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and given["GROUP_WORLD_SIZE"] != "1":
        raise ValueError(
            "restarts on several machines need ranks that meet anew each time; start torchrun with --rdzv-backend c10d and "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, or with --max-restarts 0"
        )
    store, number, size = next(rendezvous("env://"))
    if kept:
        store = dist.PrefixStore(f"start {given['TORCHELASTIC_RESTART_COUNT']}", store)
    return store, number, size


def lost_another(error: Exception) -> bool:
    """Whether a message between ranks failed. NCCL's errors have a type of their own, gloo's name its source file."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this rank's items: every world-th, starting at its own number; `sample.gather_images` puts them in order again."""
    return items[rank() :: world_size()]


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


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy every tensor from the first rank to all others, in place."""
    if world_size() > 1:
        for tensor in tensors:
            flat = tensor.contiguous()
            dist.broadcast(flat, 0)
            tensor.copy_(flat)


def gather(value: T) -> list[T]:
    """Return the values of all ranks on the first one, and nothing on the others. Values are pickled: keep them small."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.gather_object(value, found if rank() == 0 else None)
    return found if rank() == 0 else []


def from_first(value: T) -> T:
    """Return the value of the first rank, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that may be sharded (a DTensor), without a copy."""
    # by its method, as importing DTensor takes longer than loading a small model
    return getattr(tensor, "to_local", lambda: tensor)()


def barrier() -> None:
    """Wait until all ranks are here."""
    if world_size() > 1:
        dist.barrier()
