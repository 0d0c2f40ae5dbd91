"""Decoupled annealing posterior sampling (Zhang et al., 2025, arXiv 2407.01521)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise, add_noise, karras_sigmas
from fewstep.inverse.likelihood import Likelihood
from fewstep.samplers.contract import last, steps
from fewstep.samplers.edm import euler


def estimate_by_ode(denoise: Denoise, n: int = 5) -> Denoise:
    """Return DAPS's estimate of x0: the end of the probability-flow ODE from (x, sigma), by Euler's method.

    The levels are the authors': `n` + 1 of Karras' ramp from sigma to 0.01, the last one replaced by 0.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        n: number of steps, which are evaluations.

    Returns:
        The estimate, `(x, sigma) -> x0`.

    Example:
        >>> estimate = fs.inverse.estimate_by_ode(denoise, 5)
        >>> x0 = estimate(z, torch.tensor(1.0).double())
    """

    def end(x: Tensor, sigma: Tensor) -> Tensor:
        top = float(sigma)
        sigmas = karras_sigmas(n + 1, sigma_min=min(0.01, top / 10), sigma_max=top)
        return last(euler(denoise, x, torch.cat([sigmas[:-2], sigmas[-1:]]).to(x)))

    return end


@dataclass(frozen=True)
class Langevin:
    """The draws of the authors' code of DAPS: plain Langevin steps from the estimate x0.

    u <- u - h grad E(u) + sqrt(2 h) eps on E(u) = |A(u) - y|^2 / tau^2 + |u - x0|^2 / (2 sigma^2).

    Args:
        rate: h at the first level; each task has its own.
        steps: number of steps for each level.
        tau: sqrt(2) times the measurement noise that E stands for. The authors take 0.01 whatever the noise is.
        last: h at level k of n is rate (1 - (1 - last) k / (n + 1)).

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> states = fs.inverse.daps(denoise, likelihood, sigmas[0] * z, sigmas, langevin=fs.inverse.Langevin(steps=3))
    """

    rate: float = 1e-4
    steps: int = 100
    tau: float = 0.01
    last: float = 0.01

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.steps >= 1 and self.tau > 0 and 0 < self.last <= 1):
            raise ValueError(f"Langevin steps need rate, tau > 0, steps >= 1 and last in (0, 1]; got {self}")

    def __call__(self, likelihood: Likelihood, x0: Tensor, sigma: Tensor, done: float, noise: Noise) -> Tensor:
        """Return the end of the steps; `done` is k / (n + 1)."""
        u, h = x0, self.rate * (1 - (1 - self.last) * done)
        gradient = likelihood.operator.gradient(likelihood.y)
        for _ in range(self.steps):
            downhill = 2 * gradient(u) / self.tau**2 + (u - x0) / sigma**2
            u = u - h * downhill + (2 * h) ** 0.5 * noise(u)
        return u


@torch.no_grad()
def daps(
    denoise: Denoise,
    likelihood: Likelihood,
    x: Tensor,
    sigmas: Tensor,
    *,
    radius: float = 0.5,
    sigma_data: float = 0.5,
    langevin: Langevin | None = None,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Decoupled annealing posterior sampling (Zhang et al., 2025, Algorithm 1).

    At each level: estimate x0, draw from N(x0, r^2) p(y | x0), then add noise up to the next level. By default the draws are
    exact if the operator is linear, with r = radius sigma sigma_data / hypot(sigma, sigma_data). The paper has r = sigma and a
    hundred short Langevin steps, which do not reach that distribution where the measurement has no information; exact draws
    need the smaller r.

    Args:
        denoise: the estimate `(x, sigma) -> x0`, `estimate_by_ode(D)` as in the paper.
        likelihood: the measurements and their operator.
        x: noise (B, C, H, W) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.
        radius: r as a share of the standard deviation that a posterior of pixels of deviation `sigma_data` has.
        sigma_data: standard deviation of the data.
        langevin: draw as the authors' code does instead; radius, sigma_data and the likelihood's sigma_y then have no effect.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The draw (B, C, H, W) at each level.

    Raises:
        ValueError: radius or sigma_data is not positive, or the levels do not decrease to 0.

    Example:
        >>> estimate = fs.inverse.estimate_by_ode(denoise, 5)
        >>> x0 = fs.samplers.last(fs.inverse.daps(estimate, likelihood, sigmas[0] * z, sigmas))
    """
    if not radius > 0 or not sigma_data > 0:
        raise ValueError(f"daps takes a positive radius and sigma_data; got {radius} and {sigma_data}")
    for k, (sigma, sigma_next) in enumerate(steps(sigmas)):
        if langevin is not None:
            x0 = langevin(likelihood, denoise(x, sigma), sigma, k / len(sigmas), noise)
        else:
            r = radius * sigma_data * sigma / torch.hypot(sigma, sigma.new_tensor(sigma_data))
            x0 = likelihood.sample(denoise(x, sigma), r, noise)
        yield x0
        if sigma_next > 0:
            x = add_noise(x0, sigma_next, noise)
