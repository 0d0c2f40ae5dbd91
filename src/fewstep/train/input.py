"""Training data on its way to the device: read by a thread while the step before computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from fewstep.core.method import Batch


class Stream(Protocol):
    """Endless training data: the batch at a position is a function of the position, called by another thread."""

    def batch(self, position: int, n: int) -> Batch: ...


class ReadAhead:
    """The batches of a stream at positions `stride` apart, `depth` of them read before they are asked for.

    For a GPU they lie in pinned memory, from which they are copied while it computes. An error of the stream is raised
    where the batch that it belongs to is asked for; who asks for another position than the next ones waits for it.
    """

    def __init__(self, stream: Stream, n: int, stride: int, device: torch.device, *, depth: int = 2) -> None:
        self.stream, self.n, self.stride, self.device, self.depth = stream, n, stride, device, depth
        self.thread = ThreadPoolExecutor(1, "input")
        self.coming: dict[int, Future[Batch]] = {}

    def batch(self, position: int) -> Batch:
        """The `n` images from `position` on, on the device."""
        wanted = range(position, position + (self.depth + 1) * self.stride, self.stride)
        self.coming = {p: self.coming.get(p) or self.thread.submit(self.read, p) for p in wanted}
        return self.coming.pop(position).result().to(self.device)

    def read(self, position: int) -> Batch:
        batch = self.stream.batch(position, self.n)
        return batch.pinned() if self.device.type == "cuda" else batch
