"""Sampling from distilled generators, which denoise in one go from any level they were trained for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise, add_noise, combine_observations
from fewstep.samplers.contract import steps


@torch.no_grad()
def multistep(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
    """Denoise, add noise up to the next level, and repeat, as consistency models do (Song et al., 2023, Algorithm 1).

    x0 = D(x; sigma), x+ = x0 + sigma_next eps. One evaluation a step; a single level is one-step generation, without fresh noise.

    Args:
        denoise: the generator, `(x, sigma) -> x0`.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0: the generator's `levels`, closed by 0.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0.

    Example:
        >>> sigmas = torch.tensor([80.0, 5.0, 1.0, 0.0])
        >>> x0 = fs.samplers.last(fs.samplers.multistep(denoise, sigmas[0] * z, sigmas))
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
    """Draw from p(x0 | y) by a generative denoiser, in any number of steps (NCVSD; Peng et al., 2025, Algorithm 2).

    `x` is an observation y at sigma_y = `sigmas[0]`, which is kept. The state starts at mean + t z at the second level t. A step
    draws x0 ~ p(x0 | combine_observations(y, sigma_y, x, t)), then adds noise up to the next level. With n
    levels between the first and the closing 0 it takes n evaluations; without any, a single one, of y itself. To
    generate images, y is pure noise at sigma_init.

    Args:
        denoise: draws from p(x0 | x) at a level, `(x, sigma) -> x0`. A denoiser that predicts the mean gives no samples.
        x: observations y (B, ...) at `sigmas[0]`.
        sigmas: noise levels (n + 2,): that of y, those of the steps, 0.
        noise: draws unit Gaussian noise like its argument.
        mean: E[x0], about which the state starts. The paper's 0 is right where t is far above |E[x0]|; at lower levels noisy
            images are distributed about their mean, and a generator that starts there has less left to do in one step.

    Yields:
        The state (B, ...) at each level from the second on, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0.

    Example:
        >>> sigmas = torch.tensor([80.0, 80.0, 5.0, 0.0])
        >>> x0 = fs.samplers.last(fs.samplers.posterior(denoise, sigmas[0] * z, sigmas))
    """
    pairs = list(steps(sigmas))
    y, sigma_y = x, sigmas[0]
    if len(pairs) == 1:
        yield denoise(y, sigma_y)
        return
    x = mean + sigmas[1] * noise(y)
    yield x
    for t, t_next in pairs[1:]:
        both, level = combine_observations(y, sigma_y, x, t)
        x = denoise(both, level[0])
        if t_next > 0:
            x = add_noise(x, t_next, noise)
        yield x
