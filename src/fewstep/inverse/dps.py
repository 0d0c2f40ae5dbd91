"""Diffusion posterior sampling (Chung et al., 2023, arXiv 2209.14687) for a plain denoiser."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.inverse.likelihood import Likelihood
from fewstep.noise import Noise
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
    """An ancestral step, then a step down the gradient of |A(D(x)) - y| in x (Algorithm 1, with the normalised step).

    The paper steps by `weight` in the units of a variance-preserving process, x / sqrt(1 + sigma^2); here x is in its
    own, so that the step has the factor 1 + sigma^2. One evaluation and one backward pass for each level.
    """
    for sigma, sigma_next in steps(sigmas):
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            x0 = denoise(noisy, sigma)
            (gradient,) = torch.autograd.grad(likelihood.gap(x0).sum(), noisy)
        with torch.no_grad():
            kept = (sigma_next / sigma) ** 2
            x = x0 + kept * (x - x0) - weight * (1 + sigma**2) * gradient
            if sigma_next > 0:
                x = x + sigma_next * (1 - kept).sqrt() * noise(x)
        yield x.detach()
