"""Gradients summed over ranks while the backward pass is still running."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from fewstep.runtime.distributed import world_size

BUCKET_BYTES = 25 * 2**20
"""Size of a message of gradients: large enough to use the connection, small enough to start early (as in DDP)."""


def buckets(params: Sequence[Tensor]) -> list[list[Tensor]]:
    """The parameters from last to first, about the order of a backward pass, in buckets of one dtype each."""
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
    """Sum the gradients of `params` over all ranks; wraps the last backward pass of a step.

    A bucket is sent as soon as all of its gradients exist, in the same order on every rank. Where a parameter has a gradient
    on some ranks only, it counts as zero on the others; where it has none on any rank, it stays without one. Sharded
    parameters are skipped: FSDP2 sums their gradients itself.
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
        # pinned memory, as any other copy would make the backward pass wait
        present = torch.tensor([p.grad is not None for p in group], dtype=parts[0].dtype, pin_memory=parts[0].is_cuda)
        flat = torch.cat([*(part.flatten() for part in parts), present.to(parts[0].device, non_blocking=True)])
        sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def accumulated(p: Tensor) -> None:
        missing[number[p]] -= 1
        while len(sent) < len(groups) and not missing[len(sent)]:
            send()

    hooks = [p.register_post_accumulate_grad_hook(accumulated) for p in params]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    while len(sent) < len(groups):
        send()
    for group, (flat, work) in zip(groups, sent, strict=True):
        work.wait()
        *parts, present = flat.split([*(p.numel() for p in group), len(group)])
        for p, part, count in zip(group, parts, present, strict=True):
            if p.grad is not None:
                p.grad.copy_(part.view_as(p))
            elif count > 0:
                p.grad = part.view_as(p).clone()
