"""The denoiser D(x; sigma) = E[x0 | x0 + sigma eps = x], and what is made of it: score and guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fewstep.data.codec import Codec, Pixels
from fewstep.nets.layers import activations
from fewstep.noise import expand
from fewstep.precondition import EDM, Precondition

Denoise = Callable[[Tensor, Tensor], Tensor]
"""`(x, sigma) -> x0`: a denoiser with label and guidance already bound."""


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


class Encoded(NamedTuple):
    """The input of a denoiser beside the features that its encoder saw in it: all that `decode` needs."""

    x: Tensor
    sigma: Tensor
    features: Features


class Denoiser(nn.Module):
    """A raw network under a preconditioning (Karras et al., 2022, Eq. 7): D = c_skip x + c_out F(c_in x; c_noise).

    net: the network F. precondition: its coefficients and its range of noise levels, kept with the weights.
    levels: for a distilled generator, the noise levels (largest first) from which it was trained to generate; None for
    a denoiser of all levels. dtype: the precision in which the network computes; the result has the dtype of `x`, and
    the skip connection is never rounded. uncertainty: the log-variance head, c_noise (B,) -> (B,), that weights the loss
    of EDM2 (Karras et al., 2024a, Eq. 21); None if there is none. codec: between its units and images.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        precondition: Precondition | None = None,
        levels: tuple[float, ...] | None = None,
        dtype: torch.dtype = torch.float32,
        uncertainty: nn.Module | None = None,
        codec: Codec = Pixels(),
    ) -> None:
        super().__init__()
        self.net: Any = net
        self.uncertainty = uncertainty
        self.precondition: Precondition = precondition or EDM()
        self.levels = levels
        self.dtype = dtype
        self.codec = codec

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of an image."""
        return (self.net.in_channels, self.net.resolution, self.net.resolution)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if unconditional."""
        return self.net.num_classes

    @property
    def sampling(self) -> SamplingDefaults:
        """How the authors of this kind of network sample it."""
        return getattr(self.net, "sampling", SamplingDefaults())

    @property
    def sigma_min(self) -> float:
        return self.precondition.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.precondition.sigma_max

    @property
    def sigma_data(self) -> float:
        return self.precondition.sigma_data

    def forward(
        self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None, *, augment: Tensor | None = None
    ) -> Tensor:
        """The clean image (B, C, H, W) expected behind `x` at `sigma`, a number, () or (B,).

        label: class indices (B,), None for no class. augment: augmentation labels (B, n), None for no augmentation.
        """
        return self.decode(self.encode(x, sigma, label, augment=augment))

    def encode(
        self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None, *, augment: Tensor | None = None
    ) -> Encoded:
        """The first half: features of the noisy image, for discriminators and control branches, and for `decode`."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"this denoiser takes images of shape {self.shape}; got a batch of shape {tuple(x.shape)}")
        sigma = expand(sigma, x)
        c = self.precondition(sigma)
        # the embedding of the noise level is never rounded to less than float32
        c_noise = c.noise.flatten().to(torch.promote_types(self.dtype, torch.float32))
        return Encoded(x, sigma, self.net.encode(activations(c.input * x, self.dtype), c_noise, label, augment))

    def decode(self, encoded: Encoded) -> Tensor:
        """The second half: the clean image, from what `encode` returned."""
        x, sigma, features = encoded
        c = self.precondition(sigma)
        return c.skip * x + c.out * self.net.decode(features)[:, : x.shape[1]].to(x.dtype)

    def log_variance(self, sigma: Tensor) -> Tensor:
        """The log-variance u (B,) that the network expects of its error at `sigma`, (B,) or (); in float32."""
        if self.uncertainty is None:
            raise ValueError("this denoiser has no log-variance head; build it with Denoiser(..., uncertainty=...)")
        return self.uncertainty(self.precondition(sigma.float().reshape(-1)).noise)


def lay_out(module: nn.Module) -> None:
    """Store the convolutions of all denoisers in `module` that compute below float32 as their activations lie, in place."""
    for part in module.modules():
        if isinstance(part, Denoiser) and part.dtype.itemsize < 4:
            part.net.to(memory_format=torch.channels_last)


def score(denoise: Denoise, x: Tensor, sigma: float | Tensor) -> Tensor:
    """The gradient of ln p(x; sigma): (D(x; sigma) - x) / sigma^2 (Karras et al., 2022, Eq. 3)."""
    level = expand(sigma, x)
    return (denoise(x, level.flatten()) - x) / level**2


def guided(
    denoise: Denoise, guide: Denoise, scale: float, *, interval: tuple[float, float] = (0.0, float("inf"))
) -> Denoise:
    """Guidance: guide + scale (denoise - guide) where sigma lies in `interval`, plain `denoise` elsewhere.

    With the same network without a label as guide it is classifier-free guidance (Ho & Salimans, 2022), with a weaker
    network autoguidance (Karras et al., 2024b), with the interval of Kynkaanniemi et al. (2024). The guide is evaluated
    only if a sample of the batch needs it.
    """
    low, high = interval
    everywhere = low <= 0 and math.isinf(high)

    def guided_denoise(x: Tensor, sigma: Tensor) -> Tensor:
        strong = denoise(x, sigma)
        if scale == 1:
            return strong
        level = expand(sigma, x)
        inside = (low <= level) & (level <= high)
        # the branch on data cannot be traced
        if not (everywhere or torch.compiler.is_compiling()) and not inside.any():
            return strong
        weak = guide(x, sigma)
        mixed = weak + scale * (strong - weak)
        return mixed if everywhere else torch.where(inside, mixed, strong)

    return guided_denoise
