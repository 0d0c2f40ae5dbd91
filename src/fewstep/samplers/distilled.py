"""Sampling from distilled generators, which denoise in one go from any level they were trained for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise, add_noise, fuse
from fewstep.samplers.contract import steps


@torch.no_grad()
def multistep(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
    """Denoise, renoise to the next level, repeat, as consistency models do (Song et al., 2023, Algorithm 1).

    With a generator, `sigmas` are its `levels`, closed by 0; a single level is one-step generation and draws no noise.
    """
    for sigma, sigma_next in steps(sigmas):
        x = denoise(x, sigma)
        if sigma_next > 0:
            x = add_noise(x, sigma_next, noise)
        yield x


@torch.no_grad()
def posterior(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise = torch.randn_like, mean: Tensor | float = 0.0
) -> Iterator[Tensor]:
    """Draw from p(x0 | y) by a generative denoiser, in as many steps as wanted (NCVSD; Peng et al., 2025, Algorithm 2).

    y = `x` is an observation at `sigmas[0]`, which stays: from t z at each further level t, denoise what it and the state
    know together, then renoise to the next level. With n levels between the first and the closing 0 it takes n
    evaluations; with none a single one, of y itself. For images from nothing, y is pure noise at sigma_init.

    mean: E[x0], about which the state starts: mean + t z. The paper's 0 serves where t is far above |E[x0]|; closer to the
    images, whose noisy versions lie about their mean, a generator that starts there has less left to do in one step.

    denoise: draws from p(x0 | y) at a level; with a plain denoiser, which answers with the mean, it is no sampler.
    """
    pairs = list(steps(sigmas))
    y, sigma_y = x, sigmas[0]
    if len(pairs) == 1:
        yield denoise(y, sigma_y)
        return
    x = mean + sigmas[1] * noise(y)
    yield x
    for t, t_next in pairs[1:]:
        both, level = fuse(y, sigma_y, x, t)
        x = denoise(both, level[0])
        if t_next > 0:
            x = add_noise(x, t_next, noise)
        yield x
