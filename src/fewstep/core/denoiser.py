"""The denoiser D(x; sigma) = E[x0 | x0 + sigma eps = x]: a network under a preconditioning, which knows how it is sampled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.core.codec import Codec, Pixels
from fewstep.core.guidance import Guidance
from fewstep.core.inputs import check_images, check_label, max_sigma
from fewstep.core.network import Features, SamplingDefaults
from fewstep.core.noise import Denoise, Noise, expand, karras_sigmas
from fewstep.core.plan import Plan, Sampler, closed
from fewstep.core.precondition import EDM, Coefficients, Precondition
from fewstep.runtime.precision import activations, layout

DEFAULT_SIGMA_MAX = 152.2
"""Highest noise level of EDM's samplers, those of the VP SDE (Karras et al., 2022, Table 1); for networks under its
preconditioning, which has no bound.
"""
RAISED = 1.4143
"""By how much EDM's stochastic sampler raises a level above its range, at most: sqrt(2)."""


class Encoded(NamedTuple):
    """The features of noisy images with all else that `Denoiser.decode` needs: the images and their coefficients."""

    x: Tensor
    coefficients: Coefficients
    features: Features


class Preconditioned(nn.Module):
    """A raw network `net` under a preconditioning, which computes in `dtype`: a denoiser, or a discriminator of noisy images."""

    def __init__(self, net: nn.Module, precondition: Precondition, dtype: torch.dtype) -> None:
        super().__init__()
        self.net: Any = net
        self.precondition: Precondition = precondition
        self.dtype = dtype

    def features(
        self, encoder: Any, x: Tensor, sigma: float | Tensor, label: Tensor | None, augment: Tensor | None = None
    ) -> Features:
        """The features that an encoder of `net` sees in the noisy image `x` (B, C, H, W) at `sigma`."""
        return encoder.encode(*self.inputs(x, self.precondition(expand(sigma, x))), label, augment)

    def inputs(self, x: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
        """The scaled image (B, C, H, W) and the noise condition (B,) that an encoder of `net` takes."""
        # the embedding of the noise level is never rounded to less than float32
        c_noise = c.noise.flatten().to(torch.promote_types(self.dtype, torch.float32))
        return activations(c.input * x, self.dtype), c_noise


class Denoiser(Preconditioned):
    """A raw network under a preconditioning (Karras et al., 2022, Eq. 7): D = c_skip x + c_out F(c_in x; c_noise).

    Args:
        net: The network F.
        precondition: Its coefficients and its range of noise levels, kept with the weights; `EDM()` if None.
        levels: The noise levels (largest first) at which a distilled generator is sampled; None for a denoiser of all levels.
        dtype: The precision in which the network computes. The result has the dtype of `x`, and the skip connection is never
            rounded.
        uncertainty: The log-variance head of EDM2, c_noise (B,) -> (B,), that weights its loss (Karras et al., 2024a,
            Eq. 21); None for none.
        codec: Converts between its units and images.
        class_names: The names of its classes by index, where they are known. A `Run` takes them from its data.

    Attributes:
        draws: Whether a call returns a random draw of p(x0 | x) instead of its mean.
        needs_observation: Whether it needs an observation of the image, and so cannot generate.

    Example:
        >>> model = fs.Denoiser(fs.nets.SongUNet(fs.nets.SongConfig(img_resolution=32)))
    """

    entry_points = ("forward", "encode", "decode", "log_variance")
    """The methods that evaluate the network; a network that lists them can be sharded over ranks."""
    draws: bool = False
    needs_observation: bool = False

    def __init__(
        self,
        net: nn.Module,
        *,
        precondition: Precondition | None = None,
        levels: tuple[float, ...] | None = None,
        dtype: torch.dtype = torch.float32,
        uncertainty: nn.Module | None = None,
        codec: Codec = Pixels(),
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(net, precondition or EDM(), dtype)
        self.uncertainty = uncertainty
        self.levels = levels
        self.codec = codec
        self.class_names = None if class_names is None else tuple(class_names)
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
    def trained_sigma_max(self) -> float:
        """The noise level up to which it was trained: a generator's first, else that of the preconditioning, or
        `DEFAULT_SIGMA_MAX` where that has no bound.
        """
        if self.levels:
            return self.levels[0]
        return self.sigma_max if math.isfinite(self.sigma_max) else DEFAULT_SIGMA_MAX

    @property
    def estimates_mean(self) -> bool:
        """Whether it estimates E[x0 | x] at every noise level, as teachers, guides and most inverse solvers must."""
        return self.levels is None and not self.draws and not self.needs_observation

    @property
    def supports_unconditional(self) -> bool:
        """Whether it was trained to predict without a class: it has none, or hid them at times (`label_dropout`)."""
        return not self.num_classes or getattr(getattr(self.net, "config", None), "label_dropout", 0.0) > 0

    @property
    def sigma_data(self) -> float:
        return self.precondition.sigma_data

    def forward(
        self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None, *, augment: Tensor | None = None
    ) -> Tensor:
        """Predict the clean image E[x0 | x].

        Warns, once, of noise levels above `trained_sigma_max` and of a label for a model without classes.

        Args:
            x: Noisy images (B, C, H, W).
            sigma: Their noise level: a number, () or (B,).
            label: Class indices (B,) int64; None for no class.
            augment: Augmentation labels (B, n); None for no augmentation.

        Returns:
            The predicted images (B, C, H, W), in the dtype of `x`.

        Raises:
            ValueError: An argument has the wrong shape, type or device; on the CPU also: a noise level is not positive and
                finite, or the model does not have a class.

        Example:
            >>> x0 = model(x0 + 0.5 * torch.randn_like(x0), 0.5)
        """
        return self.decode(self.encode(x, sigma, label, augment=augment))

    def encode(
        self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None, *, augment: Tensor | None = None
    ) -> Encoded:
        """Return the features of noisy images, from the arguments of `forward`: its first half, for discriminators, `decode`."""
        level = expand(sigma, x) if torch.compiler.is_compiling() else self.check(x, sigma, label)
        c = self.precondition(level)
        return Encoded(x, c, self.net.encode(*self.inputs(x, c), label, augment))

    def check(self, x: Tensor, sigma: float | Tensor, label: Tensor | None) -> Tensor:
        """Check the arguments of `forward`, and warn, once for each model, about what it was not trained for.

        Returns:
            The noise levels (B, 1, 1, 1).

        Raises:
            ValueError: see `forward`.
        """
        check_images(x, self.shape, next(self.net.parameters(), None))
        level = expand(sigma, x)
        self.check_level(sigma, self.trained_sigma_max)
        if self.num_classes and label is not None:
            check_label(label, len(x), self.num_classes, x.device)
        elif label is not None:
            self.warn("label has no effect: this model has no classes")
        return level

    def check_level(self, sigma: float | Tensor, top: float, name: str = "sigma") -> None:
        """Raise ValueError for invalid noise levels; warn if one is more than `RAISED` times `top`, the highest of training."""
        value = max_sigma(sigma if isinstance(sigma, Tensor | Real) else torch.as_tensor(sigma), name)
        if value > RAISED * top:
            self.warn(f"{name}={value:g} is above {top:g}, up to which this model was trained: it extrapolates")

    def warn(self, message: str) -> None:
        """Warn once for each kind of message, and never in training mode, where the method chooses the arguments."""
        kind = message.partition("=")[0]
        if not self.training and kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)

    def decode(self, encoded: Encoded) -> Tensor:
        """Predict the clean image (B, C, H, W) from what `encode` returned: the second half of `forward`."""
        x, c, features = encoded
        return c.skip * x + c.out * self.net.decode(features)[:, : x.shape[1]].to(x.dtype)

    def log_variance(self, sigma: Tensor) -> Tensor:
        """Return the log-variances u (B,), float32, that the network expects of its error (Karras et al., 2024a, Eq. 21).

        Args:
            sigma: noise levels, (B,) or ().

        Raises:
            ValueError: the denoiser has no log-variance head.
        """
        if self.uncertainty is None:
            raise ValueError("this denoiser has no log-variance head; build it with Denoiser(..., uncertainty=...)")
        return self.uncertainty(self.precondition(sigma.float().reshape(-1)).noise)

    def sigmas(
        self, n: int | None = None, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> Tensor:
        """`karras_sigmas` for this network, as EDM samples it: the range is first clamped to that of the network, the
        levels are then rounded to those that it knows.

        Args:
            n: number of steps; that of the network's authors if None.
            sigma_min: lowest noise level, at least that of the network.
            sigma_max: highest noise level, at most that of the network.
            rho: exponent of the schedule.

        Returns:
            The levels (n + 1,), float64, closed by 0.
        """
        n = self.sampling.steps if n is None else n
        low, high = max(sigma_min, self.sigma_min), min(sigma_max, self.sigma_max)
        sigmas = self.precondition.round(karras_sigmas(n, sigma_min=low, sigma_max=high, rho=rho))
        return torch.cat([sigmas[:-1], sigmas.new_zeros(1)])

    def plan(
        self,
        steps: int | None = None,
        *,
        sampler: str | Sampler | None = None,
        levels: Sequence[float] | Tensor | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        rho: float | None = None,
        guidance: Guidance | None = None,
        **options: Any,
    ) -> Plan:
        """Return how this model makes images.

        A few-step generator goes through its own levels; other models take Heun's method on Karras' schedule.

        Args:
            steps: number of steps; None for 18, for 32 with EDM2's networks, for a generator's own.
            sampler: the name of one of `fewstep.samplers`, or a function; None for the default above.
            levels: the noise levels themselves, largest first, instead of steps and range; without a sampler they are
                those of `multistep`.
            sigma_min: lowest noise level of the schedule (0.002).
            sigma_max: highest noise level of the schedule (80).
            rho: exponent of the schedule (7).
            guidance: guidance of the model; None for none.
            **options: options of the sampler, such as S_churn.

        Returns:
            The sampler with its noise levels and options.

        Raises:
            ValueError: the model cannot be sampled in this way, or an option would have no effect.

        Example:
            >>> plan = model.plan(9)
            >>> images = fs.generate(model, range(64), plan=plan)
        """
        if guidance is not None:
            self.check_guidance(guidance)
        bounds = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
        ranged = {name: value for name, value in bounds.items() if value is not None}
        if sampler == "posterior" or "ts" in options:
            raise ValueError(
                "ts and the sampler posterior are for models that draw from the posterior (NCVSD), which this is not; use "
                "levels or steps"
            )
        if self.levels is not None and sampler is None and levels is None:
            return self.own_plan(self.levels, steps, [*options, *ranged], guidance)
        if sampler is None:
            sampler = "multistep" if levels is not None else "churn" if options.get("S_churn") else "heun"
        if levels is not None:
            if steps is not None or ranged:
                raise ValueError(
                    "levels are the noise levels themselves; leave steps, sigma_min, sigma_max and rho out"
                )
            return Plan(sampler, closed(levels), options, guidance)
        for_network = getattr(sampler, "for_network", None)
        if for_network is not None:  # one with a schedule of its own
            if not self.estimates_mean:
                raise ValueError(
                    "EDM's general sampler needs a denoiser of all noise levels; this model is a generator"
                )
            fitted = for_network(self.precondition, **ranged, **options)
            return Plan(fitted, fitted.sigmas(self.sampling.steps if steps is None else steps), {}, guidance)
        return Plan(sampler, self.sigmas(steps, **ranged), options, guidance)

    @staticmethod
    def own_plan(
        levels: Sequence[float], steps: int | None, without_effect: Sequence[str], guidance: Guidance | None
    ) -> Plan:
        """The plan of a few-step generator."""
        if without_effect:
            raise ValueError(
                f"{', '.join(without_effect)} would have no effect: this model generates from its own noise levels. Leave "
                "the option out, or name a sampler"
            )
        if steps not in (None, len(levels)):
            raise ValueError(
                f"this generator was distilled to {len(levels)} step(s); got steps={steps}. Leave it out, or name a sampler "
                "and its noise levels"
            )
        return Plan("multistep", closed(levels), {}, guidance)

    def bind(self, label: Tensor | None, noise: Noise) -> Denoise:
        """Return this model for images of given classes, `(x, sigma) -> x0`, as samplers and inverse solvers call it.

        Args:
            label: class indices (B,); None for no class.
            noise: draws the noise of a model that needs any.
        """
        return partial(self, label=label)

    def sampler_options(self, label: Tensor | None) -> dict[str, Any]:
        """Return options for samplers that take them, with which a seed gives the image of the network's authors."""
        return {"round_sigma": self.precondition.round, "idle_noise": self.sampling.idle_noise}

    def check_guidance(self, guidance: Guidance) -> None:
        """Raise ValueError for guidance that does not fit this model."""
        guide = guidance.guide
        for name, model in {"model": self, "guide": guide}.items():
            if model is not None and not model.estimates_mean:
                raise ValueError(
                    f"guidance mixes predictions of the mean at every noise level, and the {name} is a generator or a fake "
                    "score, which has none; leave guidance out, or give a teacher"
                )
        if guide is None and not self.num_classes:
            raise ValueError(
                "classifier-free guidance needs a model with classes; give a weaker model as guide instead"
            )
        if guide is None and not self.supports_unconditional:
            raise ValueError(
                f"guidance {guidance.scale:g} by the model itself needs one that was also trained without its class, and "
                "this one was not (label_dropout 0 in its config.json): its prediction without a class is meaningless. Give a "
                "weaker or an unconditional model as guide (--guide FOLDER, Guidance(guide=...)), or leave guidance out"
            )
        if guide is not None and guide.shape != self.shape:
            raise ValueError(f"the guide makes images of shape {guide.shape}, the model of {self.shape}")
        if guide is not None and guide.num_classes not in (0, self.num_classes):
            raise ValueError(f"the guide has {guide.num_classes} classes, the model {self.num_classes}")


def lay_out(module: nn.Module) -> None:
    """Store the convolutions of all denoisers in `module` that compute below float32 as their activations lie, in place."""
    for part in module.modules():
        if isinstance(part, Denoiser) and part.dtype.itemsize < 4:
            place = next(part.net.parameters()).device
            part.net.to(memory_format=layout(part.shape[1:], place))


def score(denoise: Denoise, x: Tensor, sigma: float | Tensor) -> Tensor:
    """Return the score, the gradient of ln p(x; sigma): (D(x; sigma) - x) / sigma^2 (Karras et al., 2022, Eq. 3).

    Args:
        denoise: the denoiser D, `(x, sigma) -> x0`.
        x: noisy images (B, ...).
        sigma: their noise level: a number, () or (B,).

    Returns:
        The score (B, ...).

    Example:
        >>> gradient = fs.score(model, x, 2.0)
    """
    level = expand(sigma, x)
    return (denoise(x, level.flatten()) - x) / level**2
