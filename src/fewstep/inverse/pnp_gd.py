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
    """Split Gibbs sampling of p(x0 | y) with annealing: from u = `x` at sigmas[0], at each level draw
    x0 ~ p(x0 | u; sigma), then u ~ N(u; x0, sigma_next^2 I) p(y | u). Yields every x0; one evaluation for each level.

    denoise: draws of p(x0 | u; sigma), as a generative denoiser's or `drawn`'s; not means. sigmas: (n + 1,), closed by 0.
    persistence: alpha in [0, 1), Adler's overrelaxation. The noise of u is what u has of it as seen from the new x0, with
    the sign turned, times alpha, and fresh noise times sqrt(1 - alpha^2): the stationary law is the same, and images move
    (1 + alpha) times as fast where the measurement is silent.
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
            seen = past[1] + likelihood.shrink(past[0] - x0, sigma) / sigma
            eps = (1 - persistence**2) ** 0.5 * eps - persistence * seen
        u = likelihood.sample(x0, rho, lambda _, eps=eps: eps)  # a decomposed operator draws once
        past = x0, eps


def averaged(states: Iterable[Tensor], sigmas: Tensor, *, below: float, decay: float) -> Iterator[Tensor]:
    """The running mean m <- decay m + (1 - decay) x0 of what `pnp_gd` yields, from the level `below` on; x0 before.

    NCVSD reports it; the chain itself goes on from x0.
    """
    mean = None
    for x0, sigma in zip(states, sigmas, strict=False):
        mean = x0 if mean is None or sigma >= below else decay * mean + (1 - decay) * x0
        yield mean


def drawn(denoise: Denoise, n: int = 4, *, noise: Noise = torch.randn_like) -> Denoise:
    """Draws of p(x0 | u; sigma) by an ordinary denoiser: the reverse diffusion from u at sigma down to 0, in `n` steps of
    second order (SDE-DPM-Solver++(2M)), `n` evaluations.

    The reverse diffusion has that law in the limit of many steps; a deterministic sampler would return one image. With
    few steps the draws vary too little: their covariance is short by 13 % at 4 steps and 4 % at 8 on Gaussians, and a
    single step returns the mean.
    """

    def draw(u: Tensor, sigma: Tensor) -> Tensor:
        top = float(sigma)
        sigmas = torch.tensor([top, 0.0], dtype=torch.float64)
        if n > 1:
            sigmas = karras_sigmas(n, sigma_min=0.4 / max(n, 4) * top, sigma_max=top, rho=2)
        return last(dpmpp_2m_sde(denoise, u, sigmas.to(u), noise=noise))

    return draw


def published_sigmas(n: int = 50, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 2.0) -> Tensor:
    """NCVSD's annealing with `n` levels, Karras' ramp with exponent `rho`: (n,), closed by 0.

    Its last level is no evaluation: u at 0.002 would be drawn and not used. 50 levels are 49 evaluations.
    """
    levels = karras_sigmas(n, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return torch.cat([levels[:-2], levels[-1:]])


KNEE = 0.1


def balanced_sigmas(n: int = 49, *, sigma_min: float = 0.05, sigma_max: float = 5.0) -> Tensor:
    """Levels on which the chain forgets at every level as much as it can: (n + 1,), closed by 0, `n` evaluations.

    1 / sigma grows in equal steps to sigma = `KNEE`; the last sixteenth of the levels leads by equal ratios to
    `sigma_min`, which should be the noise of the measurement. docs/inverse.md derives it.
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
    """How PnP-GD runs. beta: NCVSD's tuned 2 sigma_y^2, None for the measurement's own noise. ema_below, ema_decay:
    of `averaged`; a decay of 0 reports x0 itself. sigma_min None: the measurement's noise level, 0.05 at most.
    rho: exponent of the published levels; the balanced ones have none.
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
