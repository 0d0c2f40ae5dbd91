"""What a network is to the rest of the library: a U-Net in two halves, with its configuration."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Features(NamedTuple):
    """What a U-Net's encoder hands to its decoder.

    Args:
        bottleneck: the output of the encoder's last block (B, C, h, w).
        skips: the outputs of all layers of the encoder, the finest first.
        embedding: the embedding (B, n) of noise level, class and augmentation.

    Example:
        >>> features = net.encode(x, c_noise)
        >>> logits = features.bottleneck.mean(1)
    """

    bottleneck: Tensor
    skips: tuple[Tensor, ...]
    embedding: Tensor


class SamplingDefaults(NamedTuple):
    """How the authors of a network sample it, down to the random numbers: with these a seed gives their image.

    Args:
        steps: number of steps of Heun's method.
        noise_dtype: the precision in which the noise of a stochastic sampler is drawn; None for that of its state, float64.
        idle_noise: whether churn also draws noise at steps that add none.
    """

    steps: int = 18
    noise_dtype: torch.dtype | None = None
    idle_noise: bool = True


class Network(Protocol):
    """What a raw network F must provide: a U-Net in two halves, with its frozen configuration.

    Attributes:
        config: a frozen dataclass, from which the network can be built again.
        in_channels: channels of the images.
        resolution: side of the images in pixels.
        num_classes: number of classes, 0 without.

    Example:
        >>> network: fs.nets.Network = fs.nets.SongUNet(fs.nets.SongConfig(8, model_channels=8, num_blocks=1, channel_mult=(1,)))
    """

    config: Any
    in_channels: int
    resolution: int
    num_classes: int

    def encode(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Features: ...
    def decode(self, features: Features) -> Tensor: ...
