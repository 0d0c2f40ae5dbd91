"""The denoiser D(x; sigma) = E[x0 | x0 + sigma eps = x], and what is made of it: score and guidance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.core.codec import Codec, Pixels
from fewstep.core.inputs import check_guidance, check_images, check_label, highest
from fewstep.core.network import Features, SamplingDefaults
from fewstep.core.noise import expand
from fewstep.core.precondition import EDM, Precondition
from fewstep.runtime.precision import activations

Denoise = Callable[[Tensor, Tensor], Tensor]
"""`(x, sigma) -> x0`: a denoiser with label and guidance already bound."""

USUAL = 152.2
"""Highest noise level of EDM's samplers, those of the VP SDE (Karras et al., 2022, Table 1); for networks under its
preconditioning, which has no bound.
"""
RAISED = 1.4143
"""By how much EDM's stochastic sampler raises a level above its range, at most: sqrt(2)."""


class Encoded(NamedTuple):
    """The input of a denoiser beside the features that its encoder saw in it: all that `decode` needs."""

    x: Tensor
    sigma: Tensor
    features: Features


class Preconditioned(nn.Module):
    """A raw network `net` under a preconditioning, which computes in `dtype`: denoisers, and discriminators of noisy images."""

    def __init__(self, net: nn.Module, precondition: Precondition, dtype: torch.dtype) -> None:
        super().__init__()
        self.net: Any = net
        self.precondition: Precondition = precondition
        self.dtype = dtype

    def features(
        self, encoder: Any, x: Tensor, sigma: float | Tensor, label: Tensor | None, augment: Tensor | None = None
    ) -> Features:
        """The features that an encoder of `net` sees in the noisy image `x` (B, C, H, W) at `sigma`."""
        c = self.precondition(expand(sigma, x))
        # the embedding of the noise level is never rounded to less than float32
        c_noise = c.noise.flatten().to(torch.promote_types(self.dtype, torch.float32))
        return encoder.encode(activations(c.input * x, self.dtype), c_noise, label, augment)


class Denoiser(Preconditioned):
    """A raw network under a preconditioning (Karras et al., 2022, Eq. 7): D = c_skip x + c_out F(c_in x; c_noise).

    net: the network F. precondition: its coefficients and its range of noise levels, kept with the weights.
    levels: for a distilled generator, the noise levels (largest first) from which it was trained to generate; None for
    a denoiser of all levels. dtype: the precision in which the network computes; the result has the dtype of `x`, and
    the skip connection is never rounded. uncertainty: the log-variance head, c_noise (B,) -> (B,), that weights the loss
    of EDM2 (Karras et al., 2024a, Eq. 21); None if there is none. codec: between its units and images.
    """

    entry_points = ("forward", "encode", "decode", "log_variance")
    """The methods that evaluate the network; a network that lists them can be sharded over ranks."""

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
        super().__init__(net, precondition or EDM(), dtype)
        self.uncertainty = uncertainty
        self.levels = levels
        self.codec = codec
        self._warned: set[str] = set()

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
    def highest(self) -> float:
        """The noise level up to which it was trained: a generator's first, else that of the preconditioning, or `USUAL` where
        that has no bound.
        """
        if self.levels:
            return self.levels[0]
        return self.sigma_max if math.isfinite(self.sigma_max) else USUAL

    @property
    def knows_no_class(self) -> bool:
        """Whether it was trained to predict without a class: it has none, or hid them at times (`label_dropout`)."""
        return not self.num_classes or getattr(getattr(self.net, "config", None), "label_dropout", 0.0) > 0

    @property
    def sigma_data(self) -> float:
        return self.precondition.sigma_data

    def forward(
        self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None, *, augment: Tensor | None = None
    ) -> Tensor:
        """The clean image (B, C, H, W) expected behind `x` at `sigma`, a number, () or (B,).

        label: class indices (B,), None for no class. augment: augmentation labels (B, n), None for no augmentation.

        Raises ValueError for an argument of another shape, type or device, for noise levels that are not positive and finite,
        and for classes that it does not have. Warns, once, of levels above `highest` and of a label without classes. Values
        on GPUs are not looked at.
        """
        return self.decode(self.encode(x, sigma, label, augment=augment))

    def encode(
        self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None, *, augment: Tensor | None = None
    ) -> Encoded:
        """The first half: features of the noisy image, for discriminators and control branches, and for `decode`."""
        if not torch.compiler.is_compiling():
            self.check(x, sigma, label)
        return Encoded(x, expand(sigma, x), self.features(self.net, x, sigma, label, augment))

    def check(self, x: Tensor, sigma: float | Tensor, label: Tensor | None) -> None:
        """Refuse an argument that is none, and warn, once for each model, of what it was not trained for."""
        check_images(x, self.shape, next(self.net.parameters(), None))
        expand(sigma, x)
        self.check_level(sigma, self.highest)
        if self.num_classes and label is not None:
            check_label(label, len(x), self.num_classes, x.device)
        elif label is not None:
            self.warn("label has no effect: this model has no classes")

    def check_level(self, sigma: float | Tensor, top: float, name: str = "sigma") -> None:
        """Refuse noise levels that are none; warn of those above `top`, up to which it was trained, by more than `RAISED`."""
        value = highest(sigma if isinstance(sigma, Tensor | Real) else torch.as_tensor(sigma), name)
        if value > RAISED * top:
            self.warn(f"{name}={value:g} is above {top:g}, up to which this model was trained: it extrapolates")

    def warn(self, message: str) -> None:
        """Warn once of each kind; nothing while it trains, when what it is called with is the method's."""
        kind = message.partition("=")[0]
        if not self.training and kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)

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
    only if a sample of the batch needs it. Raises ValueError for a scale that is negative or not finite, or an empty interval.
    """
    check_guidance(scale, interval)
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
