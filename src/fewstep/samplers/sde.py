"""The diffusions that share the marginals p(x; sigma), and their first-order and derivative-free samplers.

With the noise level as the clock, d(sigma) = -d(tau), and F = (x - D(x; sigma)) / sigma,
    dx = -(1 + kappa) F d(tau) + sqrt(2 kappa sigma) dW    (Karras et al., 2022, Eq. 6, with kappa = sigma beta).
kappa = 0 is the probability-flow ODE, kappa = 1 the reverse-time SDE of Song et al. (2021b); the distribution of x at each
level does not depend on it. All samplers end with x = D, the exact limit of the diffusion at sigma = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise
from fewstep.samplers.contract import steps
from fewstep.samplers.edm import slope

Kappa = float | Callable[[Tensor], Tensor | float]
"""Stochasticity, not negative: a number, or a function of sigma (0-dim tensor)."""


def rate(kappa: Kappa, sigma: Tensor) -> Tensor:
    """Return kappa at `sigma`, as a tensor of its dtype."""
    value = kappa(sigma) if callable(kappa) else kappa
    value = torch.as_tensor(value, dtype=sigma.dtype, device=sigma.device)
    if value < 0:
        raise ValueError(f"kappa must be 0 (the ODE) or positive (1: the reverse SDE); got {float(value):g}")
    return value


class NoiseMoments(NamedTuple):
    """The covariance, per pixel, of two Gaussians: the noise A of a step, and B, what its derivative acts on."""

    variance: Tensor
    covariance: Tensor
    variance_b: Tensor

    def draw(self, x: Tensor, noise: Noise, *, exact: bool) -> tuple[Tensor, Tensor]:
        """A pair (A, B) of the shape of `x`; if not `exact`, B is the mean of its law given A.

        Calls `noise` once for A and, if exact, once more; not at all if there is no noise.
        """
        if self.variance == 0:
            return torch.zeros_like(x), torch.zeros_like(x)
        A = self.variance.sqrt() * noise(x)
        share = self.covariance / self.variance
        if not exact:
            return A, share * A
        rest = (self.variance_b - share * self.covariance).clamp_min(0).sqrt()
        return A, share * A + rest * noise(x)


LEGENDRE = np.polynomial.legendre.leggauss(8)
"""Nodes in [-1, 1] and weights."""


def noise_moments(density: Callable[[Tensor], Tensor], h: Tensor) -> NoiseMoments:
    """The moments of I_g = int g dW and I_z = int_0^h (int_0^s g dW) ds over a step h.

    density: g^2 as a function of the time elapsed in the step.

    Var I_g = int g^2 ds, Cov = int (h - s) g^2 ds, Var I_z = int (h - s)^2 g^2 ds over [0, h], by Gauss-Legendre
    quadrature with 8 nodes: exact where kappa is a polynomial (degree <= 12), and a covariance for any kappa.
    """
    nodes, weights = (torch.tensor(values, dtype=h.dtype, device=h.device) for values in LEGENDRE)
    rest = h * (1 - nodes) / 2
    variance = weights * h / 2 * torch.stack([density(s) for s in h - rest])
    return NoiseMoments(variance.sum(), (variance * rest).sum(), (variance * rest**2).sum())


def diffusion_moments(kappa: Kappa, sigma: Tensor, sigma_next: Tensor) -> NoiseMoments:
    """The moments for g = sqrt(2 kappa sigma) on the way from `sigma` to `sigma_next`; for a constant kappa
    Var I_g = kappa (sigma^2 - sigma_next^2), Cov = kappa (sigma h^2 - h^3 / 3),
    Var I_z = kappa (2 sigma h^3 / 3 - h^4 / 6).
    """

    def density(s: Tensor) -> Tensor:
        return 2 * rate(kappa, sigma - s) * (sigma - s)

    return noise_moments(density, sigma - sigma_next)


@torch.no_grad()
def euler_maruyama(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, kappa: Kappa = 1.0, noise: Noise = torch.randn_like
) -> Iterator[Tensor]:
    """Euler-Maruyama for the diffusion of this module. Strong and weak order 1, one evaluation a step.

    With h = sigma - sigma_next and F = (x - D) / sigma: x+ = x - (1 + kappa) h F + I_g, where I_g has the exact variance of the
    noise of the step, kappa (sigma^2 - sigma_next^2) for a constant kappa. The last step is x = D.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.
        kappa: stochasticity: 0 for the ODE, 1 for the reverse SDE, or a function of sigma.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0, or `kappa` is negative.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.euler_maruyama(denoise, sigmas[0] * z, sigmas, kappa=1.0))
    """
    for sigma, sigma_next in steps(sigmas):
        x0 = denoise(x, sigma)
        if sigma_next > 0:
            I_g, _ = diffusion_moments(kappa, sigma, sigma_next).draw(x, noise, exact=False)
            x0 = x - (1 + rate(kappa, sigma)) * (sigma - sigma_next) * (x - x0) / sigma + I_g
        yield (x := x0)


@torch.no_grad()
def stochastic_heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, kappa: Kappa = 1.0, noise: Noise = torch.randn_like
) -> Iterator[Tensor]:
    """Heun's method for the diffusion of this module. Weak order 2 without derivatives, strong order 1, two evaluations a step.

    With f = -(1 + kappa) F, h = sigma - sigma_next and the noise I_g of `euler_maruyama`: x~ = x + h f(x, sigma) + I_g,
    x+ = x + h / 2 (f(x, sigma) + f(x~, sigma_next)) + I_g. The last step is x = D. At kappa = 0 it is `heun`.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.
        kappa: stochasticity: 0 for the ODE, 1 for the reverse SDE, or a function of sigma.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0, or `kappa` is negative.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.stochastic_heun(denoise, sigmas[0] * z, sigmas, kappa=1.0))
    """
    for sigma, sigma_next in steps(sigmas):
        if sigma_next == 0:
            yield denoise(x, sigma)
            return
        h = sigma - sigma_next
        I_g, _ = diffusion_moments(kappa, sigma, sigma_next).draw(x, noise, exact=False)
        drift = -(1 + rate(kappa, sigma)) * slope(denoise, x, sigma)
        ahead = x + h * drift + I_g
        drift_next = -(1 + rate(kappa, sigma_next)) * slope(denoise, ahead, sigma_next)
        yield (x := x + h / 2 * (drift + drift_next) + I_g)
