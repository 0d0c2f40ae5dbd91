"""A sampler of your own in one file: the two-step Adams-Bashforth method for the probability-flow ODE.

    fewstep sample MODEL --sampler examples/own_sampler.py:adams_bashforth --steps 18 --grid images.png

This is the idea of PNDM and iPNDM (Liu et al., 2022, arXiv 2202.09778; Zhang & Chen, 2023, arXiv 2204.13902) with steps of any
size: the slope of the step before costs nothing, so that a method of second order evaluates the network once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fewstep.samplers.contract import steps


@torch.no_grad()
def adams_bashforth(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Yield x (B, ...) at each next level; one evaluation a step, order 2 in the size of the steps.

    Args:
        denoise: the model with class and guidance bound, (x, sigma) -> x0.
        x: noisy images (B, ...) at sigmas[0].
        sigmas: the levels (n + 1,), decreasing to 0.
    """
    before = None  # size and slope of the step before
    for sigma, sigma_next in steps(sigmas, distinct=True):
        step, slope = sigma_next - sigma, (x - denoise(x, sigma)) / sigma
        if before is None or sigma_next == 0:  # to sigma = 0 a step of Euler's method returns the denoised image
            x = x + step * slope
        else:
            x = x + step * (slope + step / (2 * before[0]) * (slope - before[1]))
        before = step, slope
        yield x
