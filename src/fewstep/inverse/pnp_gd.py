"""PnP-GD: posterior sampling with a generative denoiser (Peng et al., 2025), its presets, and one with less bias."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise, karras_ramp, karras_sigmas
from fewstep.inverse.likelihood import Likelihood
from fewstep.inverse.operator import Coupling, Decomposed
from fewstep.samplers.contract import last, steps
from fewstep.samplers.dpm_solver import dpmpp_2m_sde


@torch.no_grad()
def pnp_gd(
    denoise: Denoise,
    likelihood: Likelihood,
    x: Tensor,
    sigmas: Tensor,
    *,
    persistence: float = 0.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """PnP-GD, posterior sampling with a generative denoiser (NCVSD; Peng et al., 2025): split Gibbs sampling with annealing.

    From u = `x` at `sigmas[0]`, at each level draw x0 ~ p(x0 | u; sigma), then u ~ N(u; x0, sigma_next^2 I) p(y | u). One
    evaluation for each level.

    Args:
        denoise: draws of p(x0 | u; sigma), `(u, sigma) -> x0`: a generative denoiser, or `draw_by_sde(D)`; not means.
        likelihood: the measurements and their operator.
        x: noise (B, C, H, W) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.
        persistence: alpha in [0, 1), Adler's overrelaxation. The noise of u is what u has of it relative to the new x0, with
            the sign turned, times alpha, and fresh noise times sqrt(1 - alpha^2): the stationary distribution is the same, and
            images move (1 + alpha) times as fast where the measurement has no information.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The draw x0 (B, C, H, W) at each level.

    Raises:
        ValueError: `persistence` is outside [0, 1), or positive without a known decomposition of the operator, or the levels do
            not decrease to 0.

    Example:
        >>> draw = fs.inverse.draw_by_sde(denoise, 4)
        >>> x0 = fs.samplers.last(fs.inverse.pnp_gd(draw, likelihood, sigmas[0] * z, sigmas))
    """
    if not 0 <= persistence < 1:
        raise ValueError(f"persistence must lie in [0, 1); got {persistence}")
    if persistence and not isinstance(likelihood.operator, Decomposed):
        raise ValueError(
            "persistent noise needs an operator whose singular value decomposition is known; set persistence=0"
        )
    u, past = x, None
    for sigma, rho in steps(sigmas):
        x0 = denoise(u, sigma)
        yield x0
        if rho == 0:
            return
        if not persistence:
            u = likelihood.sample(x0, rho, noise)
            continue
        eps = noise(x0)
        if past is not None:
            before = past[1] + likelihood.shrink(past[0] - x0, sigma) / sigma
            eps = (1 - persistence**2) ** 0.5 * eps - persistence * before
        u = likelihood.sample(x0, rho, lambda _, eps=eps: eps)  # a decomposed operator draws once
        past = x0, eps


def averaged(states: Iterable[Tensor], sigmas: Tensor, *, below: float, decay: float) -> Iterator[Tensor]:
    """Yield the running mean m <- decay m + (1 - decay) x0 of states from a level on, and the states themselves before.

    NCVSD reports this mean; the chain itself continues from x0.

    Args:
        states: what `pnp_gd` returned.
        sigmas: its noise levels.
        below: the level from which the mean is taken.
        decay: share of the old mean, in [0, 1).

    Yields:
        States (B, C, H, W), as many as there are.

    Example:
        >>> states = fs.inverse.pnp_gd(fs.inverse.draw_by_sde(denoise), likelihood, sigmas[0] * z, sigmas)
        >>> x0 = fs.samplers.last(fs.inverse.averaged(states, sigmas, below=1.0, decay=0.7))
    """
    mean = None
    for x0, sigma in zip(states, sigmas, strict=False):
        mean = x0 if mean is None or sigma >= below else decay * mean + (1 - decay) * x0
        yield mean


def draw_by_sde(denoise: Denoise, n: int = 4, *, noise: Noise = torch.randn_like) -> Denoise:
    """Return draws of p(x0 | u; sigma) by an ordinary denoiser: the reverse diffusion from u at sigma down to 0.

    It takes `n` steps of second order (SDE-DPM-Solver++(2M)), which are `n` evaluations. The reverse diffusion has that
    distribution in the limit of many steps; a deterministic sampler would return one image. With few steps the draws vary too
    little: their covariance is short by 13 % at 4 steps and 4 % at 8 on Gaussians, and a single step returns the mean.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        n: number of steps.
        noise: draws unit Gaussian noise like its argument.

    Returns:
        The draws, `(u, sigma) -> x0`.

    Example:
        >>> draw = fs.inverse.draw_by_sde(denoise, 4)
        >>> x0 = draw(z, torch.tensor(1.0).double())
    """

    def draw(u: Tensor, sigma: Tensor) -> Tensor:
        top = float(sigma)
        sigmas = torch.tensor([top, 0.0], dtype=torch.float64)
        if n > 1:
            sigmas = karras_sigmas(n, sigma_min=0.4 / max(n, 4) * top, sigma_max=top, rho=2)
        return last(dpmpp_2m_sde(denoise, u, sigmas.to(u), noise=noise))

    return draw


def published_sigmas(n: int = 50, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 2.0) -> Tensor:
    """Return NCVSD's annealing levels, Karras' ramp with exponent `rho`.

    The last level of the ramp costs no evaluation, as u at 0.002 would be drawn and not used: 50 levels are 49 evaluations.

    Args:
        n: number of levels of the ramp.
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
        rho: exponent of the ramp.

    Returns:
        Decreasing noise levels (n,), float64, closed by 0.

    Raises:
        ValueError: see `fs.karras_sigmas`.

    Example:
        >>> sigmas = fs.inverse.published_sigmas(50)
    """
    levels = karras_sigmas(n, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return torch.cat([levels[:-2], levels[-1:]])


KNEE = 0.1


def balanced_sigmas(n: int = 49, *, sigma_min: float = 0.05, sigma_max: float = 5.0) -> Tensor:
    """Return levels on which the chain forgets at every level as much as it can.

    1 / sigma grows in equal steps to sigma = `KNEE`; the last sixteenth of the levels leads by equal ratios to
    `sigma_min`. docs/inverse.md derives it.

    Args:
        n: number of levels, which are evaluations.
        sigma_min: lowest noise level, which should be the noise of the measurement.
        sigma_max: highest noise level.

    Returns:
        Decreasing noise levels (n + 1,), float64, closed by 0.

    Raises:
        ValueError: there is no level, or the bounds do not satisfy 0 < sigma_min < sigma_max.

    Example:
        >>> sigmas = fs.inverse.balanced_sigmas(49, sigma_min=0.05)
    """
    if not 0 < sigma_min < sigma_max or n < 1:
        raise ValueError(f"levels need n >= 1 and 0 < sigma_min < sigma_max; got {n}, {sigma_min}, {sigma_max}")
    knee = min(max(KNEE, sigma_min), sigma_max)
    tail = n // 16 if knee > sigma_min else 0
    end = knee if tail else sigma_min
    ramp = karras_ramp(torch.linspace(1, 0, n - tail, dtype=torch.float64), end, sigma_max, -1.0)
    rest = end * (sigma_min / end) ** (torch.arange(1, tail + 1, dtype=torch.float64) / max(tail, 1))
    return torch.cat([ramp, rest, torch.zeros(1).double()])


@dataclass(frozen=True)
class PnPPreset:
    """How PnP-GD runs.

    Args:
        name: name of the preset.
        beta: NCVSD's tuned 2 sigma_y^2; None for the measurement's own noise.
        ema_below: the level `below` of `averaged`.
        ema_decay: the decay of `averaged`; 0 reports x0 itself.
        coupling: as of `Likelihood`.
        persistence: as of `pnp_gd`.
        sigma_max: highest noise level.
        sigma_min: lowest noise level; None for the measurement's noise level, 0.05 at most.
        rho: exponent of the published levels; the balanced ones have none.

    Raises:
        ValueError: a value is out of range.
    """

    name: str
    beta: float | None
    ema_below: float
    ema_decay: float
    coupling: Coupling = "split"
    persistence: float = 0.0
    sigma_max: float = 80.0
    sigma_min: float | None = 0.002
    rho: float = 2.0

    def __post_init__(self) -> None:
        for name in ("beta", "sigma_min", "sigma_max", "rho"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite; got {value}")
        if self.sigma_min is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be less than sigma_max; got {self.sigma_min} and {self.sigma_max}")
        if not self.ema_below >= 0 or not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"the average takes a level of at least 0 and a decay in [0, 1); got {self.ema_below}, {self.ema_decay}"
            )

    def sigmas(self, evaluations: int, sigma_y: float) -> Tensor:
        """(evaluations + 1,), closed by 0."""
        if self.name == "published":
            assert self.sigma_min is not None
            levels = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}
            return published_sigmas(evaluations + 1, **levels)
        return balanced_sigmas(evaluations, sigma_min=self.sigma_min or min(sigma_y, 0.05), sigma_max=self.sigma_max)


published = partial(PnPPreset, "published")
PUBLISHED = {
    "box_inpainting": published(1e-4, 100, 0.2),
    "random_inpainting": published(1e-4, 100, 0.2),
    "gaussian_deblur": published(2e-3, 100, 0.6),
    "motion_deblur": published(3e-3, 100, 0.6),
    "super_resolution": published(1e-3, 100, 0.6),
    "phase_retrieval": published(1e-3, 0.2, 0.6),
}
PUBLISHED |= {f"{task}_circ": PUBLISHED[task] for task in ("gaussian_deblur", "motion_deblur")}
"""NCVSD's settings for each of its tasks (measurement noise 0.05); random inpainting takes those of the box."""

BALANCED = PnPPreset("balanced", None, 0.0, 0.0, "tight", 0.5, 5.0, None)
"""Less bias in as many evaluations: balanced levels, tight coupling, persistence 1/2, the true noise level, no average."""


def named_preset(name: str, task: str) -> PnPPreset:
    """`balanced`, or `published`: NCVSD's for this task."""
    if name == "balanced":
        return BALANCED
    if name != "published":
        raise ValueError(f"the presets are balanced and published; got {name!r}")
    if task not in PUBLISHED:
        raise ValueError(
            f"no preset is published for the task {task}, only for {', '.join(PUBLISHED)}; use the preset balanced"
        )
    return PUBLISHED[task]
