"""How networks and their gradients lie over the ranks: whole on each of them, or in parts (FSDP2)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor import Replicate as Replicated

from fewstep.nets.casting import GATHERED
from fewstep.runtime.distributed import world_size

BUCKET_BYTES = 25 * 2**20
"""Of gradients in one message: enough to use the connection, few enough to begin early in a backward pass (as in DDP)."""


def buckets(params: Sequence[Tensor]) -> list[list[Tensor]]:
    """The parameters from last to first, which is about when backward reaches them, in messages of one dtype each."""
    result: list[list[Tensor]] = []
    size = BUCKET_BYTES
    for p in reversed(params):
        if size >= BUCKET_BYTES or result[-1][0].dtype != p.dtype:
            result.append([])
            size = 0
        result[-1].append(p)
        size += p.nbytes
    return result


@contextmanager
def summed_over_ranks(params: Sequence[Tensor]) -> Iterator[None]:
    """Around the last backward pass of a step: afterwards each gradient is the sum over the ranks.

    A message leaves as soon as all of its gradients are there, while the pass goes on, and in the same order on every
    rank. Where a parameter has a gradient on some ranks alone it counts as zero on the others; without one on any rank it
    stays without. Gradients in parts are sums already (FSDP2).
    """
    if world_size() == 1:
        yield
        return
    params = [p for p in params if not isinstance(p, DTensor)]
    groups = buckets(params)
    number = {p: i for i, group in enumerate(groups) for p in group}
    missing = [len(group) for group in groups]
    sent: list[tuple[Tensor, Any]] = []

    @torch.no_grad()
    def send() -> None:
        group = groups[len(sent)]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        # out of pinned memory, as the pass would wait for any other copy
        there = torch.tensor([p.grad is not None for p in group], dtype=parts[0].dtype, pin_memory=parts[0].is_cuda)
        flat = torch.cat([*(part.flatten() for part in parts), there.to(parts[0].device, non_blocking=True)])
        sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def arrived(p: Tensor) -> None:
        missing[number[p]] -= 1
        while len(sent) < len(groups) and not missing[len(sent)]:
            send()

    hooks = [p.register_post_accumulate_grad_hook(arrived) for p in params]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    while len(sent) < len(groups):
        send()
    for group, (flat, work) in zip(groups, sent, strict=True):
        work.wait()
        *parts, there = flat.split([*(p.numel() for p in group), len(group)])
        for p, part, count in zip(group, parts, there, strict=True):
            if p.grad is not None:
                p.grad.copy_(part.view_as(p))
            elif count > 0:
                p.grad = part.view_as(p).clone()


class Strategy(Protocol):
    """How a network lies over the ranks."""

    def place(self, network: nn.Module, /) -> None:
        """Lay out the parameters; before the network has an optimizer."""


class Replicate:
    """Every rank holds all of the network; for any module and any loss."""

    def place(self, network: nn.Module) -> None:
        pass


def as_one(network: nn.Module, name: str) -> None:
    """Let a method gather the parameters that it needs, unless the network is computing already: then they are together.

    No weight is kept in another precision beyond the computation.
    """
    plain = getattr(network, name)
    if name != "forward":  # which does so by itself
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


class Shard:
    """Every rank holds its part of each parameter, gradient, moment and average (FSDP2), for networks that do not fit.

    A block's parameters are together only while it computes. Every `forward` and every method named in `methods` must be
    called by all ranks alike. A loss that differentiates the network twice, as R1 does, is for `Replicate`. Parameters
    that are a single number stay whole.
    """

    methods = ("forward", "encode", "decode", "log_variance", "see")

    def place(self, network: nn.Module) -> None:
        if world_size() == 1:
            return
        # `encode` hands its input on, and nothing writes into what it returns
        warnings.filterwarnings("ignore", ".*returned a view tensor", UserWarning)
        for p in network.parameters():
            p.data = p.data.contiguous()  # FSDP2 takes no other layout, and parts are rows
        mesh = init_device_mesh(next(network.parameters()).device.type, (world_size(),))
        numbers = {p for p in network.parameters() if p.ndim == 0}
        lists = [m for m in network.modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))]
        blocks = [block for each in lists for block in each.children() if any(True for _ in block.parameters())]
        for module in (*blocks, network):
            # the network too, which may move before it computes again
            placed = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=numbers)
            placed.set_gradient_divide_factor(1.0)  # sums, by operations that gloo has too
            placed.set_force_sum_reduction_for_comms(True)
        for name in self.methods:
            if hasattr(network, name):
                as_one(network, name)


STRATEGIES: dict[str, type[Strategy]] = {"replicate": Replicate, "shard": Shard}


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank; of one in parts, a copy. All ranks call it."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def shard_like(model: Tensor, tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, whole or in the same parts, laid out as `model`; the tensor itself if `model` is whole."""
    if not isinstance(model, DTensor):
        return tensor
    if model.shape != tensor.shape:
        raise ValueError(f"expected the shape {tuple(model.shape)}; got {tuple(tensor.shape)}")
    mesh, there = model.device_mesh, part(tensor.detach()).to(model.device)
    if isinstance(tensor, DTensor):
        options = {"run_check": False, "shape": tensor.shape, "stride": tensor.stride()}
        return DTensor.from_local(there, mesh, model.placements, **options)
    return distribute_tensor(there, mesh, model.placements, src_data_rank=None)


def on_cpu(model: Tensor, dtype: torch.dtype, *, pin: bool = False) -> Tensor:
    """An empty tensor in the CPU's memory, of the shape of `model` and in the same parts. pin: for quick copies from GPUs."""
    local = torch.empty(part(model).shape, dtype=dtype, pin_memory=pin)
    if not isinstance(model, DTensor):
        return local
    return DTensor.from_local(
        local, cpu_mesh(), model.placements, run_check=False, shape=model.shape, stride=model.stride()
    )


@functools.cache
def cpu_mesh() -> DeviceMesh:
    """All ranks, with their CPUs; all ranks make it together."""
    return init_device_mesh("cpu", (world_size(),))


def alike(params: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters as an optimizer takes them: where some lie in parts, the whole ones too as DTensors, in the same memory."""
    mesh = next((p.device_mesh for p in params if isinstance(p, DTensor)), None)
    if mesh is None:
        return [*params]
    return [p if isinstance(p, DTensor) else nn.Parameter(everywhere(p.detach(), mesh)) for p in params]


def hand_over(params: Sequence[nn.Parameter], seen: Sequence[nn.Parameter]) -> None:
    """Move the gradients of parameters to those that are `alike` them."""
    for p, q in zip(params, seen, strict=True):
        if p is not q and p.grad is not None:
            assert isinstance(q, DTensor)
            q.grad, p.grad = everywhere(p.grad, q.device_mesh), None


def everywhere(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """A tensor that all ranks hold, as one of those that they hold in parts; in the same memory."""
    return DTensor.from_local(tensor, mesh, [Replicated()], run_check=False)


def part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, without a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
