"""What a network is to the rest of the library: a U-Net in two halves, with its configuration."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Features(NamedTuple):
    """What a U-Net's encoder hands to its decoder."""

    bottleneck: Tensor
    skips: tuple[Tensor, ...]
    embedding: Tensor


class SamplingDefaults(NamedTuple):
    """How the authors of a network sample it, down to the random numbers: with these a seed gives their image.

    steps: number of steps of Heun's method. noise_dtype: in which the noise of a stochastic sampler is drawn, None for
    that of its state, float64. idle_noise: whether churn also draws noise at steps that add none. The defaults are EDM's.
    """

    steps: int = 18
    noise_dtype: torch.dtype | None = None
    idle_noise: bool = True


class Network(Protocol):
    """A raw network F: a U-Net in two halves, with its frozen configuration."""

    config: Any
    in_channels: int
    resolution: int
    num_classes: int

    def encode(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Features: ...
    def decode(self, features: Features) -> Tensor: ...
