"""Exponential integrators in the log of the noise level: DDPM's ancestral step, and DPM-Solver++ of second order.

The diffusion with stochasticity kappa (see `sde`) is linear in x but for D. With r = sigma_next / sigma and D frozen
over a step it is solved exactly: x+ = r^(1 + kappa) x + (1 - r^(1 + kappa)) D + sigma_next sqrt(1 - r^(2 kappa)) eps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise
from fewstep.samplers.contract import steps


def exponential_step(x: Tensor, x0: Tensor, sigma: Tensor, sigma_next: Tensor, kappa: float, noise: Noise) -> Tensor:
    """From `sigma` to `sigma_next` with the clean image `x0` frozen; noise is drawn only if some is added."""
    if kappa < 0:
        raise ValueError(f"kappa must be 0 (deterministic) or positive; got {kappa}")
    r = sigma_next / sigma
    x = r ** (1 + kappa) * x + (1 - r ** (1 + kappa)) * x0
    if kappa > 0 and sigma_next > 0:
        x = x + sigma_next * (1 - r ** (2 * kappa)).sqrt() * noise(x)
    return x


@torch.no_grad()
def ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, kappa: float = 1.0, noise: Noise = torch.randn_like
) -> Iterator[Tensor]:
    """Ancestral sampler of DDPM (Ho et al., 2020); at kappa = 0 DDIM (Song et al., 2021a). First order, one evaluation a step.

    x+ = r^(1 + kappa) x + (1 - r^(1 + kappa)) D + sigma_next sqrt(1 - r^(2 kappa)) eps, with r = sigma_next / sigma.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.
        kappa: stochasticity: 0 is deterministic, 1 DDPM.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0, or `kappa` is negative.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.ancestral(denoise, sigmas[0] * z, sigmas))
    """
    for sigma, sigma_next in steps(sigmas):
        yield (x := exponential_step(x, denoise(x, sigma), sigma, sigma_next, kappa, noise))


@torch.no_grad()
def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, kappa: float = 1.0, noise: Noise = torch.randn_like
) -> Iterator[Tensor]:
    """SDE-DPM-Solver++(2M) (Lu et al., 2022): the ancestral step with D extrapolated to the middle of the step.

    With h = ln(sigma / sigma_next) and the previous step's h' and D', D becomes D + h / (2 h') (D - D'). The first step
    and the one to sigma = 0 are of first order. One evaluation a step.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: distinct noise levels (n + 1,) that decrease to 0.
        kappa: stochasticity: 0 is `dpmpp_2m`, 1 the reverse SDE.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0, two of them are equal, or `kappa` is negative.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.dpmpp_2m_sde(denoise, sigmas[0] * z, sigmas))
    """
    past = None
    for sigma, sigma_next in steps(sigmas, distinct=True):
        x0 = middle = denoise(x, sigma)
        if past is not None and sigma_next > 0:
            sigma_past, x0_past = past
            middle = x0 + (sigma / sigma_next).log() / (2 * (sigma_past / sigma).log()) * (x0 - x0_past)
        past = sigma, x0
        yield (x := exponential_step(x, middle, sigma, sigma_next, kappa, noise))


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al., 2022): deterministic, second order, one evaluation a step.

    It is `dpmpp_2m_sde` at kappa = 0: with r = sigma_next / sigma, x+ = r x + (1 - r) (D + h / (2 h') (D - D')).

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: distinct noise levels (n + 1,) that decrease to 0.

    Returns:
        An iterator over the state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0, or two of them are equal.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.dpmpp_2m(denoise, sigmas[0] * z, sigmas))
    """
    return dpmpp_2m_sde(denoise, x, sigmas, kappa=0.0)
