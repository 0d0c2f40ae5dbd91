"""DiffPIR, plug-and-play restoration with a plain denoiser (Zhu et al., 2023, arXiv 2305.08995)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise
from fewstep.inverse.likelihood import Likelihood
from fewstep.samplers.contract import steps


@torch.no_grad()
def diffpir(
    denoise: Denoise,
    likelihood: Likelihood,
    x: Tensor,
    sigmas: Tensor,
    *,
    trust: float = 1.75,
    zeta: float = 0.3,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """DiffPIR (Zhu et al., 2023, Algorithm 1): denoise, fit to the measurement, add noise.

    At each level: x0 = argmin_u |A u - y|^2 / (2 sigma_y^2) + trust |u - D(x)|^2 / (2 sigma^2), then noise up to the next level.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
        likelihood: the measurements and their operator.
        x: noise (B, C, H, W) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.
        trust: lambda in the paper's rho = lambda sigma_y^2 / sigma^2, with both levels in the unit of x. The authors' code
            takes sigma_y for images in [0, 1] and sigma for images in [-1, 1]; its lambda is 4 `trust`, so that 1.75 is
            its 7. deepinv's `lambda_` is 2 `trust`.
        zeta: the share of fresh noise in the variance, in [0, 1]; the rest is the noise that the solution implies.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The solution (B, C, H, W) at each level.

    Raises:
        ValueError: trust is not positive, zeta is outside [0, 1], or the levels do not decrease to 0.

    Example:
        >>> x0 = fs.samplers.last(fs.inverse.diffpir(denoise, likelihood, sigmas[0] * z, sigmas))
    """
    if not trust > 0 or not 0 <= zeta <= 1:
        raise ValueError(f"diffpir takes trust > 0 and zeta in [0, 1]; got trust={trust}, zeta={zeta}")
    for sigma, sigma_next in steps(sigmas):
        x0 = likelihood.nearest(denoise(x, sigma), float(sigma) ** 2 / (trust * likelihood.sigma_y**2))
        yield x0
        implied = (x - x0) / sigma
        if sigma_next > 0:
            x = x0 + sigma_next * ((1 - zeta) ** 0.5 * implied + zeta**0.5 * noise(x))
