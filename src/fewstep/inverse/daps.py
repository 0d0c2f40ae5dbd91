"""Decoupled annealing posterior sampling (Zhang et al., 2025, arXiv 2407.01521)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.inverse.likelihood import Likelihood
from fewstep.noise import Noise, add_noise, karras_sigmas
from fewstep.samplers.contract import last, steps
from fewstep.samplers.edm import euler


def solved(denoise: Denoise, n: int = 5) -> Denoise:
    """The end of the probability-flow ODE from (x, sigma), by `n` steps of Euler: DAPS's estimate of x0."""

    def end(x: Tensor, sigma: Tensor) -> Tensor:
        top = float(sigma)
        sigmas = torch.tensor([top, 0.0], dtype=torch.float64)
        if n > 1:
            sigmas = karras_sigmas(n, sigma_min=min(0.01, top / 10), sigma_max=top)
        return last(euler(denoise, x, sigmas.to(x)))

    return end


@torch.no_grad()
def daps(
    denoise: Denoise,
    likelihood: Likelihood,
    x: Tensor,
    sigmas: Tensor,
    *,
    radius: float = 0.5,
    sigma_data: float = 0.5,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """At each level estimate x0, draw from N(x0, r^2) p(y | x0), renoise to the next level (Algorithm 1).

    denoise: the estimate, `solved(D)` as in the paper. r = radius sigma sigma_data / hypot(sigma, sigma_data), the share
    `radius` of what a posterior of pixels of deviation sigma_data has. The paper takes r = sigma and a hundred short
    Langevin steps, which do not reach that law where the measurement is silent; the draws here are exact, if the operator
    is linear, and need the smaller r. Yields the draws.
    """
    for sigma, sigma_next in steps(sigmas):
        r = radius * sigma_data * sigma / torch.hypot(sigma, sigma.new_tensor(sigma_data))
        x0 = likelihood.sample(denoise(x, sigma), r, noise)
        yield x0
        if sigma_next > 0:
            x = add_noise(x0, sigma_next, noise)
