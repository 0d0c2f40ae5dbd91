"""Averages of weights over training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fewstep.runtime.distributed import local
from fewstep.train.sharding import full


class Profile(Protocol):
    """How the weights of the past count in an average.

    Attributes:
        name: Name of the average's folder; different profiles have different names.
    """

    @property
    def name(self) -> str: ...
    def decay(self, seen: int, batch_size: int, /) -> float: ...


@dataclass(frozen=True)
class HalfLife:
    """Exponential moving average with a half-life in training images, as in EDM.

    Args:
        nimg: the half-life, in images.
        rampup: the half-life is at most this times the images seen before the step, so that the first update is a copy;
            None for no ramp-up.

    Example:
        >>> run = fs.Run(method, stream, optimizers, batch_size=512, until=10**7, ema=fs.HalfLife(500_000))
    """

    nimg: float = 500_000
    rampup: float | None = 0.05

    @property
    def name(self) -> str:
        default = self.rampup == HalfLife.rampup
        ramp = "" if default else "-no-rampup" if self.rampup is None else f"-rampup-{self.rampup:g}"
        return f"half-life-{self.nimg:g}{ramp}"

    def decay(self, seen: int, batch_size: int) -> float:
        """The share of the old average after a step of `batch_size` images that began at `seen` images."""
        half = self.nimg if self.rampup is None else min(self.nimg, self.rampup * seen)
        return 0.5 ** (batch_size / max(half, 1e-8))


MAX_STD = 1 / math.sqrt(12)
"""The largest relative standard deviation of a power function: that of the uniform average."""


def power(std: float) -> float:
    """The exponent gamma whose profile tau^gamma on [0, 1] has the standard deviation `std`.

    std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Karras et al., 2024, App. C), solved as a cubic.
    """
    if not 0 < std < MAX_STD:
        raise ValueError(f"the relative std of a power function lies between 0 and {MAX_STD:.4f}; got {std:g}")
    precision = std**-2
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


@dataclass(frozen=True)
class PowerFunction:
    """Average with weights proportional to tau^gamma over the images tau seen (Karras et al., 2024a, Sec. 3).

    The first update is a copy.

    Args:
        std: width of that profile relative to the training so far. From averages of 0.05 and 0.10, `posthoc.reconstruct`
            computes others after training.

    Example:
        >>> averages = (fs.PowerFunction(0.05), fs.PowerFunction(0.10))
        >>> run = fs.Run(method, stream, optimizers, batch_size=512, until=10**7, ema=averages)
    """

    std: float = 0.1

    @cached_property
    def gamma(self) -> float:
        return power(self.std)

    @property
    def name(self) -> str:
        return f"std-{self.std:.3f}"

    def decay(self, seen: int, batch_size: int) -> float:
        """(1 - batch_size / nimg)^(gamma + 1), for a step of `batch_size` images that ends at nimg images."""
        return (seen / (seen + batch_size)) ** (self.gamma + 1)


class Average:
    """A running average of one network's parameters, stored on the ranks as the network itself is; buffers are copied.

    Args:
        source: The network that trains, placed on the ranks already.
        replica: A full copy of it, made before it was placed; becomes `module`.
        profile: How the weights of the past count.

    Attributes:
        module: The average as a network. Where the average is sharded, it has its weights only between `gather` and the
            next `update`.
    """

    def __init__(self, source: nn.Module, replica: nn.Module, profile: Profile) -> None:
        self.profile, self.source = profile, source
        self.module = replica.requires_grad_(False).eval()
        self.sharded = any(isinstance(p, DTensor) for p in source.parameters())
        if self.sharded:
            self.params = {name: p.detach().clone() for name, p in source.named_parameters()}
            self.release()
        else:
            self.params = dict(self.module.named_parameters())

    def release(self) -> None:
        """Free the full weights that `gather` put into `module`, if the average is sharded."""
        if self.sharded:
            empty = {name: torch.empty_like(p, device="meta") for name, p in self.module.named_parameters()}
            self.module.load_state_dict(empty, strict=False, assign=True)

    def gather(self) -> None:
        """Put the full weights into `module` on every rank; all ranks call it."""
        if self.sharded:
            weights = {name: full(p) for name, p in self.params.items()}
            self.module.load_state_dict(weights, strict=False, assign=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the averaged network, its parameters as they are stored on the ranks; not a copy."""
        return self.module.state_dict() | {name: p.detach() for name, p in self.params.items()}

    @torch.no_grad()
    def update(self, seen: int, batch_size: int) -> None:
        """Include the present weights, after a step of `batch_size` images that began at `seen` images."""
        decay = self.profile.decay(seen, batch_size)
        mine, theirs = self.params.values(), self.source.parameters()
        torch._foreach_lerp_([local(p) for p in mine], [local(p) for p in theirs], 1 - decay)
        self.release()
        for mine, theirs in zip(self.module.buffers(), self.source.buffers(), strict=True):
            mine.copy_(theirs)


def profiles(ema: Profile | tuple[Profile, ...]) -> tuple[Profile, ...]:
    """The profiles of one or several averages. Raises ValueError if there are none, or two are the same."""
    result = ema if isinstance(ema, tuple) else (ema,)
    if not result or len({p.name for p in result}) < len(result):
        raise ValueError(f"ema must be one profile or several different ones; got {[p.name for p in result]}")
    return result
