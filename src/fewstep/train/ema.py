"""Averages of weights over training."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class HalfLife:
    """Exponential average with a half-life in images, at most `rampup` times the images seen so far (EDM).

    With the count before the step, so that the first update is a copy.
    """

    nimg: float = 500_000
    rampup: float | None = 0.05

    def decay(self, seen: int, batch_size: int) -> float:
        """The share of the old average after a step of `batch_size` images that began at `seen` images."""
        half = self.nimg if self.rampup is None else min(self.nimg, self.rampup * seen)
        return 0.5 ** (batch_size / max(half, 1e-8))


class Average:
    """The average of one module's parameters; buffers are copied."""

    def __init__(self, module: nn.Module, profile: HalfLife) -> None:
        self.profile = profile
        self.source = module
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, seen: int, batch_size: int) -> None:
        decay = self.profile.decay(seen, batch_size)
        torch._foreach_lerp_(list(self.module.parameters()), list(self.source.parameters()), 1 - decay)
        for mine, theirs in zip(self.module.buffers(), self.source.buffers(), strict=True):
            mine.copy_(theirs)
