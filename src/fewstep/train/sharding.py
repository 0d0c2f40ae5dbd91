"""How the weights of networks are stored on the ranks: a full copy on each rank, or sharded (FSDP2)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor import Replicate as Replicated

from fewstep.nets.casting import GATHERED
from fewstep.runtime.distributed import world_size


def shardable(module: nn.Module, prefix: str = "") -> list[str]:
    """Names of the networks in `module` that `Shard` shards: the outermost ones that list their `entry_points`.

    A module whose `entry_points` are None is replicated, with all that it contains.
    """
    found: list[str] = []
    for name, child in module.named_children():
        entry_points = getattr(child, "entry_points", ())
        if entry_points:
            found.append(f"{prefix}{name}")
        elif entry_points is not None:
            found += shardable(child, f"{prefix}{name}.")
    return found


class Strategy(Protocol):
    """How a network is stored on the ranks."""

    def place(self, network: nn.Module, /) -> None:
        """Distribute the parameters; called before the network gets an optimizer."""


class Replicate:
    """Every rank holds a full copy of the network; works with any module and any loss."""

    def place(self, network: nn.Module) -> None:
        pass


class Shard:
    """Every rank holds its shard of each parameter, gradient, moment and average (FSDP2), for networks that do not fit.

    A block's parameters are gathered only while it computes. All ranks must call the `entry_points` of the network alike.
    A loss that differentiates the network twice, as R1 does, needs `Replicate`. Scalar parameters stay replicated.
    """

    def place(self, network: nn.Module) -> None:
        if world_size() == 1:
            return
        # `encode` returns its input within a tuple, and nothing writes into what it returns
        warnings.filterwarnings("ignore", ".*returned a view tensor", UserWarning)
        for p in network.parameters():
            p.data = p.data.contiguous()  # FSDP2 shards along the first dimension of contiguous tensors
        mesh = init_device_mesh(next(network.parameters()).device.type, (world_size(),))
        scalars = {p for p in network.parameters() if p.ndim == 0}
        lists = [m for m in network.modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))]
        blocks = [block for each in lists for block in each.children() if any(True for _ in block.parameters())]
        for module in (*blocks, network):
            # the network too, as the optimizer may move it before it computes again
            placed = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
            placed.set_gradient_divide_factor(1.0)  # sums, by operations that gloo supports too
            placed.set_force_sum_reduction_for_comms(True)
        for name in getattr(network, "entry_points", ("forward",)):
            if hasattr(network, name):
                gather_within(network, name)


def gather_within(network: nn.Module, name: str) -> None:
    """Let a method of `network` gather the parameters it needs, unless it is called by another one that gathered them.

    Marks the network in `GATHERED`, so that no weight cast to another precision outlives the call.
    """
    plain = getattr(network, name)
    if name != "forward":  # FSDP2 hooks forward by itself
        register_fsdp_forward_method(network, name)
    gathering = getattr(network, name)

    @functools.wraps(plain)
    def call(*args: Any, **options: Any) -> Any:
        if GATHERED.get() is network:
            return plain(*args, **options)
        token = GATHERED.set(network)
        try:
            return gathering(*args, **options)
        finally:
            GATHERED.reset(token)

    setattr(network, name, call)


STRATEGIES: dict[str, type[Strategy]] = {"replicate": Replicate, "shard": Shard}


def full(tensor: Tensor) -> Tensor:
    """The full tensor on every rank: a gathered copy of a sharded one, else the tensor itself. All ranks call it."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def shard_like(like: Tensor, tensor: Tensor) -> Tensor:
    """A full tensor, which all ranks hold, sharded as `like` is; what is sharded already stays as it is."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def as_optimized(params: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters as an optimizer takes them: all of them DTensors if some are, in the same memory."""
    mesh = next((p.device_mesh for p in params if isinstance(p, DTensor)), None)
    if mesh is None:
        return [*params]
    return [p if isinstance(p, DTensor) else nn.Parameter(replicated(p.detach(), mesh)) for p in params]


def move_gradients(params: Sequence[nn.Parameter], optimized: Sequence[nn.Parameter]) -> None:
    """Move the gradients of parameters to their counterparts from `as_optimized`."""
    for p, q in zip(params, optimized, strict=True):
        if p is not q and p.grad is not None:
            assert isinstance(q, DTensor)
            q.grad, p.grad = replicated(p.grad, q.device_mesh), None


def replicated(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """A tensor that all ranks hold, as a DTensor in the same memory."""
    return DTensor.from_local(tensor, mesh, [Replicated()], run_check=False)
