"""DiffPIR, plug-and-play restoration with a plain denoiser (Zhu et al., 2023, arXiv 2305.08995)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.inverse.likelihood import Likelihood
from fewstep.noise import Noise
from fewstep.samplers.contract import steps


@torch.no_grad()
def diffpir(
    denoise: Denoise,
    likelihood: Likelihood,
    x: Tensor,
    sigmas: Tensor,
    *,
    trust: float = 7.0,
    zeta: float = 0.3,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Denoise, solve argmin |A u - y|^2 / (2 sigma_y^2) + trust |u - D(x)|^2 / (2 sigma^2), renoise (Algorithm 1).

    trust: the paper's lambda. zeta: the share of fresh noise in the variance; the rest is the noise that the solution
    implies. Yields the solutions.
    """
    for sigma, sigma_next in steps(sigmas):
        x0 = likelihood.nearest(denoise(x, sigma), float(sigma) ** 2 / (trust * likelihood.sigma_y**2))
        yield x0
        implied = (x - x0) / sigma
        if sigma_next > 0:
            x = x0 + sigma_next * ((1 - zeta) ** 0.5 * implied + zeta**0.5 * noise(x))
