"""Optimizers as settings, and what an optimizer step needs: a learning rate, a loss scale, projected weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn


class Optimizer(Protocol):
    """Settings that create an optimizer and give its learning rate at a number of training images.

    Attributes:
        loss_scale: Where the dynamic loss scale starts, for networks that compute in float16; None for no scale.
    """

    @property
    def loss_scale(self) -> float | None: ...
    def __call__(self, params: Iterable[nn.Parameter], /) -> torch.optim.Optimizer: ...
    def rate(self, nimg: int) -> float: ...


@dataclass(frozen=True)
class Adam:
    """Adam with the learning rates of EDM and EDM2 (Karras et al., 2022, 2024a).

    The rate at `nimg` images is lr min(nimg / rampup, 1) / sqrt(max(nimg / reference, 1)). Within the last `cooldown` images
    it is multiplied by the fraction of them that is left.

    Args:
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        rampup: length of the linear warm-up in images; its first step has rate 0. 0 for none.
        reference: image count at which the inverse square root decay starts.
        cooldown: length of the linear decay to zero at the end, in images. 0 for none.
        until: where the cooldown ends, in images.
        loss_scale: where the dynamic loss scale starts, for networks that compute in float16; None for no scale.

    Raises:
        ValueError: `lr` is negative, infinite or NaN.

    Example:
        >>> optimizers = {"fake_score": fs.Adam(1e-5), "generator": fs.Adam(1e-5)}
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
            raise ValueError(f"the learning rate must be a finite number of at least 0; got {self.lr}")

    def rate(self, nimg: int) -> float:
        """The learning rate of the step that starts at `nimg` images."""
        rate = self.lr / math.sqrt(max(nimg / self.reference, 1))
        if self.rampup:
            rate *= min(nimg / self.rampup, 1)
        if self.cooldown:
            rate *= min(max((self.until - nimg) / self.cooldown, 0), 1)
        return rate

    def __call__(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


def loss_scaler(device: torch.device, scale: float | None) -> torch.amp.GradScaler:
    """Multiplies a loss so that its gradients neither underflow nor overflow in float16; does nothing without a scale.

    A step whose gradients overflow is skipped and halves the scale; 2,000 steps without an overflow double it.
    """
    return torch.amp.GradScaler(device.type, init_scale=scale or 1.0, enabled=scale is not None)


@runtime_checkable
class Constrained(Protocol):
    """A layer with constrained weights: EDM2's have unit length, the gains of a control branch lie in [0, 1].

    If `forced`, `project_` restores the constraint before each step of the player. Not after it: EDM2 averages the weights
    as the optimizer left them, and projects them in the next training step.
    """

    forced: bool

    def project_(self) -> None: ...


def constrained_layers(module: nn.Module) -> list[Constrained]:
    """The constrained layers of `module` that train."""
    training = (m for m in module.modules() if any(p.requires_grad for p in m.parameters()))
    return [m for m in training if isinstance(m, Constrained) and m.forced]


def start_moments(optimizer: torch.optim.Optimizer, indices: Iterable[int]) -> None:
    """Give an optimizer empty moments for its parameters at these indices, and for no others.

    By a step with zero gradients, so that moments are stored as the optimizer itself stores them.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    for i in indices:
        params[i].grad = torch.zeros_like(params[i])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
