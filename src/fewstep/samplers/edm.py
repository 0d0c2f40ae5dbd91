"""Samplers of EDM: Euler and Heun for the ODE dx/dsigma = (x - D(x; sigma)) / sigma, and Heun with churn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise
from fewstep.samplers.contract import steps


def slope(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
    """dx/dsigma of the probability-flow ODE (Karras et al., 2022, Eq. 1 with sigma(t) = t), which is -sigma score."""
    return (x - denoise(x, sigma)) / sigma


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step of Heun's method; of Euler's if it ends at sigma = 0, where the slope is not defined."""
    step, d = sigma_next - sigma, slope(denoise, x, sigma)
    ahead = x + step * d
    if sigma_next > 0:
        ahead = x + step / 2 * (d + slope(denoise, ahead, sigma_next))
    return ahead


@torch.no_grad()
def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """First-order sampler of the probability-flow ODE, which is DDIM (Song et al., 2021a); one evaluation a step."""
    for sigma, sigma_next in steps(sigmas):
        yield (x := x + (sigma_next - sigma) * slope(denoise, x, sigma))


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Deterministic second-order sampler of EDM (Karras et al., 2022, Algorithm 1); 2 n - 1 evaluations for n steps."""
    for sigma, sigma_next in steps(sigmas):
        yield (x := heun_step(denoise, x, sigma, sigma_next))


def churn_factor(sigma: float | Tensor, n: int, S_churn: float, S_min: float, S_max: float) -> float:
    """The relative rise gamma of the noise level at one of `n` steps (Karras et al., 2022, Algorithm 2)."""
    if S_churn < 0:
        raise ValueError(f"S_churn must not be negative; got {S_churn}")
    return min(S_churn / n, math.sqrt(2) - 1) if S_min <= float(sigma) <= S_max else 0.0


def lift(x: Tensor, sigma: Tensor, raised: Tensor, noise: Noise, S_noise: float = 1.0) -> Tensor:
    """Take `x` from level `sigma` up to `raised` by adding fresh noise, inflated by `S_noise`."""
    return x + (raised**2 - sigma**2).sqrt() * S_noise * noise(x)


@torch.no_grad()
def churn(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    round_sigma: Callable[[Tensor], Tensor] = torch.clone,
    idle_noise: bool = True,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Stochastic sampler of EDM (Karras et al., 2022, Algorithm 2): raise the noise level by gamma, then a Heun step.

    gamma = min(S_churn / n, sqrt 2 - 1) where S_min <= sigma <= S_max, 0 elsewhere. round_sigma: `precondition.round`
    of a network that knows only some levels. With S_churn > 0 noise is drawn at every step, used or not, as EDM does;
    with idle_noise=False only where S_min <= sigma <= S_max, as EDM2 does. A seed then gives their image, which
    `Denoiser.sampler_options` takes care of. Without churn, none is drawn and the result is that of `heun`.
    """
    n = len(sigmas) - 1
    for sigma, sigma_next in steps(sigmas):
        raised = sigma
        if S_churn:
            gamma = churn_factor(sigma, n, S_churn, S_min, S_max)
            if gamma > 0 or idle_noise:
                raised = round_sigma(sigma * (1 + gamma))
                x = lift(x, sigma, raised, noise, S_noise)
        yield (x := heun_step(denoise, x, raised, sigma_next))
