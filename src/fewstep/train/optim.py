"""Optimizers as settings: a frozen description that makes the optimizer and tells its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Adam:
    """Adam with EDM's and EDM2's learning rates (Karras et al., 2022, 2024).

    The rate at `nimg` images is lr min(nimg / rampup, 1) / sqrt(max(nimg / reference, 1)), times the share of the way
    left to `until` within the last `cooldown` images. rampup: linear warm-up, whose first step has rate 0. reference:
    where the decay by the inverse square root begins. loss_scale: at which the dynamic scale of losses begins, for networks
    that compute in float16; None for no scale.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    rampup: float = 0
    reference: float = math.inf
    cooldown: float = 0
    until: float = math.inf
    loss_scale: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise ValueError(f"a learning rate is a number from 0 on; got {self.lr}")

    def rate(self, nimg: int) -> float:
        """The learning rate of the step that begins at `nimg` images."""
        rate = self.lr / math.sqrt(max(nimg / self.reference, 1))
        if self.rampup:
            rate *= min(nimg / self.rampup, 1)
        if self.cooldown:
            rate *= min(max((self.until - nimg) / self.cooldown, 0), 1)
        return rate

    def __call__(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
