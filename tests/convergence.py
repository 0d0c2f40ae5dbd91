"""Exact expectations of a sampler's result, without sampling."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from benchmarks.convergence import f64
from scipy.interpolate import CubicSpline
from torch import Tensor

from fewstep.core.oracle import MixtureDenoiser
from fewstep.samplers import Sampler


def expectation(phi: Callable, sampler: Sampler, oracle: MixtureDenoiser, levels: Tensor) -> float:
    """E phi(x) at the last of `levels`: on a line, and given the state, a step of `ito_taylor` at kappa = 1 is Gaussian.

    The expectation is carried backward, by Gauss-Hermite quadrature over a step and splines over the state.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    x = 0.05 * torch.sinh(torch.linspace(-8.5, 8.5, 801, dtype=torch.float64))
    value = phi(x.numpy())

    for pair in reversed(list(pairwise(levels))):
        unit = iter(f64([[0, 1, 0], [0, 0, 1]]))  # no noise, the first normal alone, the second alone
        states = sampler(
            oracle,
            x.repeat(3)[:, None],
            torch.stack([*pair, torch.zeros_like(pair[0])]),
            noise=lambda v, unit=unit: next(unit).repeat_interleave(len(x))[:, None],
        )
        mean, first, second = next(states).reshape(3, -1)
        std = torch.hypot(first - mean, second - mean)
        future = CubicSpline(x.numpy(), value)
        value = sum(w * future((mean + std * z).numpy()) for z, w in zip(nodes, weights / weights.sum(), strict=True))
    density = oracle.log_density(x[:, None], levels[0]).exp().numpy()
    return float(np.trapezoid(density * value, x.numpy()))
