"""Samplers against the truth: orders of convergence and marginals on mixtures whose denoiser is known.

`python -m benchmarks.samplers` prints the tables; `--figure samplers.svg` also plots them (needs matplotlib). Takes about
a minute on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fewstep.noise import Noise, karras_sigmas
from fewstep.oracle import MixtureDenoiser
from fewstep.samplers import (
    Sampler,
    ancestral,
    counted,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_maruyama,
    heun,
    ito_taylor,
    last,
    stochastic_heun,
    taylor2,
)

STOCHASTIC: dict[str, Sampler] = {
    "Euler-Maruyama": euler_maruyama,
    "ancestral": ancestral,
    "stochastic Heun": stochastic_heun,
    "DPM-Solver++(2M) SDE": dpmpp_2m_sde,
    "Ito-Taylor": ito_taylor,
    "Ito-Taylor, Hutchinson": partial(ito_taylor, laplacian="hutchinson"),
    "Ito-Taylor, simplified noise": partial(ito_taylor, noise_pair="simplified"),
    "Ito-Taylor, no Laplacian": partial(ito_taylor, laplacian="none"),
}
DETERMINISTIC: dict[str, Sampler] = {"Euler": euler, "DPM-Solver++(2M)": dpmpp_2m, "Heun": heun, "Taylor": taylor2}


def line_mixture() -> MixtureDenoiser:
    """Two Gaussians on a line: weights .3, .7, means -1, .8, standard deviations .2, .3."""
    weights, means = torch.tensor([0.3, 0.7]).double(), torch.tensor([[-1.0], [0.8]]).double()
    return MixtureDenoiser(weights, means, torch.tensor([0.2, 0.3]).double() ** 2)


def anisotropic_mixture(dim: int, n: int = 3, seed: int = 0) -> MixtureDenoiser:
    """Components with random means and random covariances, of standard deviations from 0.1 to 0.6."""
    g = torch.Generator().manual_seed(seed)
    frames = torch.linalg.qr(torch.randn(n, dim, dim, dtype=torch.float64, generator=g)).Q
    variances = torch.linspace(0.1, 0.6, dim, dtype=torch.float64) ** 2
    means = torch.randn(n, dim, dtype=torch.float64, generator=g)
    return MixtureDenoiser(torch.arange(1.0, n + 1).double(), means, (frames * variances) @ frames.mT)


def brownian_pairs(x: Tensor, fine: Tensor, kappa: float) -> tuple[list[Tensor], list[Tensor]]:
    """I_g and I_z of each step of the decreasing levels `fine`, for x (B, d), from a global random stream."""
    I_g, I_z = [], []
    for a, b in zip(fine[:-1].tolist(), fine[1:].tolist(), strict=True):
        h = a - b
        law = kappa * torch.tensor(
            [[a**2 - b**2, a * h**2 - h**3 / 3], [a * h**2 - h**3 / 3, 2 * a * h**3 / 3 - h**4 / 6]], dtype=x.dtype
        )
        g, z = torch.einsum("ij,j...->i...", torch.linalg.cholesky(law), torch.randn(2, *x.shape, dtype=x.dtype))
        I_g.append(g)
        I_z.append(z)
    return I_g, I_z


def coarse_noise(fine: Tensor, pairs: tuple[list[Tensor], list[Tensor]], factor: int, kappa: float) -> Noise:
    """The unit normals from which a sampler on every `factor`-th level rebuilds the given path: for I_g, then for I_z."""
    draws: list[Tensor] = []
    for start in range(0, len(pairs[0]), factor):
        g, z = torch.zeros_like(pairs[0][0]), torch.zeros_like(pairs[0][0])
        for m in range(start, start + factor):
            z = z + pairs[1][m] + (fine[m] - fine[m + 1]) * g
            g = g + pairs[0][m]
        a, b = float(fine[start]), float(fine[start + factor])
        h = a - b
        var, cov, var_z = a**2 - b**2, a * h**2 - h**3 / 3, 2 * a * h**3 / 3 - h**4 / 6
        first = g / math.sqrt(kappa * var)
        second = (z - cov / var * g) / math.sqrt(kappa * (var_z - cov**2 / var))
        draws += [first, second]
    stream = iter(draws)
    return lambda x: next(stream)


def on_path(sampler: Sampler, pairs: bool) -> bool:
    return pairs


def converge(
    sampler: Sampler,
    oracle: MixtureDenoiser,
    x: Tensor,
    fine: Tensor,
    pairs: tuple[list[Tensor], list[Tensor]],
    counts: list[int],
    kappa: float,
    draws: int,
) -> list[Tensor]:
    """The state at the last level of `fine` by `sampler` in each number of steps, on the same paths."""
    ends = []
    for n in counts:
        factor = (len(fine) - 1) // n
        levels = torch.cat([fine[::factor], fine.new_zeros(1)])
        noise = coarse_noise(fine, pairs, factor, kappa)
        ends.append(noise)
    return ends
