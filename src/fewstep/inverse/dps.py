"""Diffusion posterior sampling (Chung et al., 2023, arXiv 2209.14687) for a plain denoiser."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise
from fewstep.inverse.likelihood import Likelihood
from fewstep.samplers.contract import steps


def dps(
    denoise: Denoise,
    likelihood: Likelihood,
    x: Tensor,
    sigmas: Tensor,
    *,
    weight: float = 1.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Diffusion posterior sampling (Chung et al., 2023, Algorithm 1, Gaussian noise).

    An ancestral step, then a step down the gradient of |A(D(x)) - y| in x. With s the present and s' the next level,
    kept = (s' / s)^2 and x0 = D(x):
        x' = x0 + kept (x - x0) + s' sqrt(1 - kept) eps - weight sqrt((1 + s^2) (1 + s'^2)) grad_x |A(x0) - y|.
    The factor converts the algorithm's step, which acts on x / sqrt(1 + sigma^2): one root from the variable that is
    stepped, one from the variable of the gradient. One evaluation and one backward pass for each level.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`, differentiable in x.
        likelihood: the measurements and their operator.
        x: noise (B, C, H, W) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.
        weight: the step size zeta' of the authors' code, which steps along the gradient of the norm. The paper's text
            steps by zeta' / |A(x0) - y| along the gradient of the squared norm, which is twice as far: take 2 zeta'.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, C, H, W) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0.

    Example:
        >>> x0 = fs.samplers.last(fs.inverse.dps(denoise, likelihood, sigmas[0] * z, sigmas))
    """
    for sigma, sigma_next in steps(sigmas):
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            x0 = denoise(noisy, sigma)
            (gradient,) = torch.autograd.grad(likelihood.gap(x0).sum(), noisy)
        with torch.no_grad():
            kept = (sigma_next / sigma) ** 2
            factor = ((1 + sigma**2) * (1 + sigma_next**2)).sqrt()
            x = x0 + kept * (x - x0) - weight * factor * gradient
            if sigma_next > 0:
                x = x + sigma_next * (1 - kept).sqrt() * noise(x)
        yield x.detach()
