"""Sampling from distilled generators, which denoise in one go from any level they were trained for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.noise import Noise, add_noise
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
