"""Reading training data in a thread, while the step before computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from fewstep.core.method import Batch


class Stream(Protocol):
    """Endless training data: a batch depends only on its position. Called from another thread."""

    def batch(self, position: int, n: int) -> Batch: ...


class ReadAhead:
    """The batches of a stream, some of them read before they are needed.

    For a GPU they are in pinned memory and are copied while it computes. An error of the stream is raised where its batch is
    asked for. Any other position than the next one may be asked for, and is waited for.

    Args:
        stream: Where batches come from.
        n: Images of a batch.
        stride: Distance between the positions of two batches.
        device: Where batches are used.
        depth: How many batches to read ahead.
    """

    def __init__(self, stream: Stream, n: int, stride: int, device: torch.device, *, depth: int = 2) -> None:
        self.stream, self.n, self.stride, self.device, self.depth = stream, n, stride, device, depth
        self.thread = ThreadPoolExecutor(1, "input")
        self.pending: dict[int, Future[Batch]] = {}

    def batch(self, position: int) -> Batch:
        """The `n` images starting at `position`, on the device."""
        wanted = range(position, position + (self.depth + 1) * self.stride, self.stride)
        self.pending = {p: self.pending.get(p) or self.thread.submit(self.read, p) for p in wanted}
        return self.pending.pop(position).result().to(self.device)

    def read(self, position: int) -> Batch:
        batch = self.stream.batch(position, self.n)
        return batch.pinned() if self.device.type == "cuda" else batch
