"""Samplers of EDM: Euler and Heun for the ODE dx/dsigma = (x - D(x; sigma)) / sigma, and Heun with churn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise
from fewstep.samplers.contract import steps


def slope(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
    """Return dx/dsigma = (x - D) / sigma of the probability-flow ODE (Karras et al., 2022, Eq. 1 with sigma(t) = t)."""
    return (x - denoise(x, sigma)) / sigma


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Return the state after one step of Heun's method, or of Euler's if it ends at sigma = 0, where the slope is not defined."""
    step, d = sigma_next - sigma, slope(denoise, x, sigma)
    ahead = x + step * d
    if sigma_next > 0:
        ahead = x + step / 2 * (d + slope(denoise, ahead, sigma_next))
    return ahead


@torch.no_grad()
def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Euler's method for the probability-flow ODE, which is DDIM (Song et al., 2021a). First order, one evaluation a step.

    x+ = x + (sigma_next - sigma) (x - D) / sigma.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.euler(denoise, sigmas[0] * z, sigmas))
    """
    for sigma, sigma_next in steps(sigmas):
        yield (x := x + (sigma_next - sigma) * slope(denoise, x, sigma))


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Deterministic sampler of EDM: Heun's method (Karras et al., 2022, Algorithm 1). Second order.

    With h = sigma_next - sigma and d(x, sigma) = (x - D) / sigma: x~ = x + h d(x, sigma),
    x+ = x + h / 2 (d(x, sigma) + d(x~, sigma_next)). The step to sigma = 0 ends at x~, so that n steps take 2 n - 1 evaluations.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0.

    Example:
        >>> sigmas = fs.karras_sigmas(18)
        >>> x0 = fs.samplers.last(fs.samplers.heun(denoise, sigmas[0] * z, sigmas))
    """
    for sigma, sigma_next in steps(sigmas):
        yield (x := heun_step(denoise, x, sigma, sigma_next))


def churn_factor(sigma: float | Tensor, n: int, S_churn: float, S_min: float, S_max: float) -> float:
    """Return gamma, by how much the noise level rises at one of `n` steps, relative to it (Karras et al., 2022, Algorithm 2)."""
    if S_churn < 0:
        raise ValueError(f"S_churn must not be negative; got {S_churn}")
    return min(S_churn / n, math.sqrt(2) - 1) if S_min <= float(sigma) <= S_max else 0.0


def lift(x: Tensor, sigma: Tensor, raised: Tensor, noise: Noise, S_noise: float = 1.0) -> Tensor:
    """Raise the noise level of `x` from `sigma` to `raised` by fresh noise of standard deviation `S_noise`."""
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
    """Stochastic sampler of EDM (Karras et al., 2022, Algorithm 2): raise the noise level by gamma, then take a Heun step.

    sigma^ = (1 + gamma) sigma with gamma = min(S_churn / n, sqrt 2 - 1) where S_min <= sigma <= S_max, 0 elsewhere;
    x^ = x + S_noise sqrt(sigma^^2 - sigma^2) eps; x+ is the step of `heun` from x^ at sigma^. Without churn the result is that of
    `heun`, and no noise is drawn.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.
        S_churn: amount of fresh noise over the whole schedule.
        S_min: lowest level at which noise is added.
        S_max: highest level at which noise is added.
        S_noise: standard deviation of the noise.
        round_sigma: rounds raised levels; `precondition.round` of a network that knows only some levels.
        idle_noise: with S_churn > 0, whether noise is drawn at every step, used or not, as in EDM, or only where
            S_min <= sigma <= S_max, as in EDM2. A seed then gives their image; `Denoiser.sampler_options` takes care of it.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0, or `S_churn` is negative.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.churn(denoise, sigmas[0] * z, sigmas, S_churn=40, S_min=0.05, S_max=50))
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
