"""Averages of weights over training."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.train.strategies import part, shard_like, whole


class Profile(Protocol):
    """How the weights of the past count in an average. name: of its folder; different for different profiles."""

    @property
    def name(self) -> str: ...
    def decay(self, seen: int, batch_size: int, /) -> float: ...


@dataclass(frozen=True)
class HalfLife:
    """Exponential average with a half-life in images, at most `rampup` times the images seen so far (EDM).

    With the count before the step, so that the first update is a copy.
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
"""Of a power function: the uniform average has it."""


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
    """Average with weights proportional to tau^gamma over the images tau seen (Karras et al., 2024, Sec. 3).

    std: width of that profile relative to the training so far; 0.05 and 0.10 let `posthoc.reconstruct` find others
    afterwards. The first update is a copy.
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
    """The average of one module's parameters; buffers are copied.

    module: the average as a network. Once the source lies in parts on the ranks (`follow`) so does the average, and the
    network has its weights between `gather` and the next `update` alone.
    """

    def __init__(self, module: nn.Module, profile: Profile) -> None:
        self.profile = profile
        self.source = module
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.params: dict[str, Tensor] = dict(self.module.named_parameters())
        self.parted = False

    def follow(self) -> None:
        """Lie on the ranks as the source does by now."""
        source = dict(self.source.named_parameters())
        self.parted = any(part(p) is not p for p in source.values())
        self.params = {name: shard_like(source[name], p) for name, p in self.params.items()}
        self.empty()

    def empty(self) -> None:
        """Where the average lies in parts, free what `module` holds of it beside them."""
        if self.parted:
            nothing = {name: torch.empty_like(p, device="meta") for name, p in self.module.named_parameters()}
            self.module.load_state_dict(nothing, strict=False, assign=True)

    def gather(self) -> None:
        """Let `module` have its weights, on every rank; all ranks call it."""
        if self.parted:
            together = {name: whole(p) for name, p in self.params.items()}
            self.module.load_state_dict(together, strict=False, assign=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Of the module; weights as they lie on the ranks."""
        return self.module.state_dict() | self.params

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if not self.parted:
            self.module.load_state_dict(state)
            return
        if wrong := state.keys() ^ self.module.state_dict().keys():
            raise KeyError(f"the average has no {', '.join(sorted(wrong))}")
        self.params = {name: shard_like(p, state[name]) for name, p in self.params.items()}
        buffers = {name: tensor for name, tensor in state.items() if name not in self.params}
        self.module.load_state_dict(buffers, strict=False)

    @torch.no_grad()
    def update(self, seen: int, batch_size: int) -> None:
        decay = self.profile.decay(seen, batch_size)
        mine, theirs = self.params.values(), self.source.parameters()
        torch._foreach_lerp_([part(p) for p in mine], [part(p) for p in theirs], 1 - decay)
        self.empty()
        for mine, theirs in zip(self.module.buffers(), self.source.buffers(), strict=True):
            mine.copy_(theirs)


def averages(module: nn.Module, ema: Profile | tuple[Profile, ...]) -> tuple[Average, ...]:
    """One average of `module` for each profile."""
    profiles = ema if isinstance(ema, tuple) else (ema,)
    if not profiles or len({p.name for p in profiles}) < len(profiles):
        raise ValueError(f"expected one or several different averages; got {[p.name for p in profiles]}")
    return tuple(Average(module, profile) for profile in profiles)
