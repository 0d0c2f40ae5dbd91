"""Guidance: the prediction of a model, extrapolated away from a weaker one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise, expand

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser


def check_guidance(scale: Any, interval: Any) -> None:
    """Raise ValueError for a scale or an interval of noise levels that cannot guide."""
    if not isinstance(scale, Real) or not 0 <= float(scale) < math.inf:
        raise ValueError(f"guidance needs a finite scale of at least 0 (0 is the guide alone, 1 none); got {scale!r}")
    try:
        low, high = map(float, interval)
    except (TypeError, ValueError) as error:
        raise ValueError(f"guidance needs an interval (low, high) of noise levels; got {interval!r}") from error
    if not 0 <= low < high:
        raise ValueError(f"guidance needs an interval of noise levels with 0 <= low < high; got {interval!r}")


def guided(
    denoise: Denoise, guide: Denoise, scale: float, *, interval: tuple[float, float] = (0.0, math.inf)
) -> Denoise:
    """Return a guided denoiser: guide + scale (denoise - guide) where sigma lies in `interval`, plain `denoise` elsewhere.

    If the guide is the same network without a label, this is classifier-free guidance (Ho & Salimans, 2022); if it is a weaker
    network, autoguidance (Karras et al., 2024b, Sec. 3). The interval is that of Kynkaanniemi et al. (2024). The guide is
    evaluated only if a sample of the batch needs it.

    Args:
        denoise: the prediction to guide, `(x, sigma) -> x0`.
        guide: the prediction to move away from, `(x, sigma) -> x0`.
        scale: strength of guidance; 1 is no guidance, 0 the guide alone.
        interval: the lowest and the highest noise level at which guidance applies.

    Returns:
        The guided prediction, `(x, sigma) -> x0`.

    Raises:
        ValueError: the scale is negative or not finite, or the interval is empty.

    Example:
        >>> better = fs.guided(lambda x, sigma: model(x, sigma, label), model, 1.5, interval=(0.2, 5.0))
        >>> x0 = better(x, 2.0)
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


@dataclass(frozen=True)
class Guidance:
    """Settings of guidance: guide + scale (model - guide), for sigma in `interval`; see `guided`.

    Args:
        scale: strength of guidance; 1 is no guidance, 0 the guide alone.
        guide: a weaker model (autoguidance), or one without classes; None for the model itself without its label
            (classifier-free guidance).
        interval: the lowest and the highest noise level at which guidance applies.

    Raises:
        ValueError: the scale is negative or not finite, the interval is empty, or the guide is not a model.

    Example:
        >>> images = fs.generate(model, range(64), guidance=fs.Guidance(1.5, interval=(0.2, 5.0)))
    """

    scale: float
    guide: Denoiser | None = None
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        check_guidance(self.scale, self.interval)
        if self.guide is not None and not hasattr(self.guide, "estimates_mean"):
            raise ValueError(f"guide is a model, such as fs.load(path); got a {type(self.guide).__name__}")

    def mix(self, denoise: Denoise, guide: Denoise) -> Denoise:
        """Return the guided denoiser of two denoisers, with this scale and interval.

        Args:
            denoise: the prediction to guide, `(x, sigma) -> x0`.
            guide: the prediction to move away from, `(x, sigma) -> x0`.

        Returns:
            The guided prediction; see `guided`.
        """
        return guided(denoise, guide, self.scale, interval=self.interval)

    def bind(self, model: Denoiser, label: Tensor | None, noise: Noise) -> Denoise:
        """Return the guided prediction of a model for images of given classes.

        Args:
            model: the model to guide.
            label: class indices (B,); None for no class.
            noise: draws the noise of models that need any.

        Returns:
            The guided prediction, `(x, sigma) -> x0`.
        """
        guide = model if self.guide is None else self.guide
        known = label if self.guide is not None and guide.num_classes else None
        return self.mix(model.bind(label, noise), guide.bind(known, noise))

    def describe(self) -> dict[str, Any]:
        """Return the settings as they are recorded with a result."""
        guide = "the model without its label" if self.guide is None else "another model"
        return {"scale": self.scale, "guide": guide, "interval": [str(v) for v in self.interval]}
