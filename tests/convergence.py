"""What the order of convergence of a sampler is measured with: mixtures, common Brownian paths, exact expectations."""

import math
from collections.abc import Callable
from itertools import islice, pairwise

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from fewstep.oracle import MixtureDenoiser
from fewstep.samplers import Sampler


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def on_a_line() -> MixtureDenoiser:
    return MixtureDenoiser(f64([0.3, 0.7]), f64([[-1.0], [0.8]]), f64([0.2, 0.3]) ** 2)


def anisotropic(dim: int) -> MixtureDenoiser:
    """Overlapping components with standard deviations from 0.2 to 0.8 in random directions."""
    g = torch.Generator().manual_seed(0)
    frames = torch.linalg.qr(torch.randn(3, dim, dim, dtype=torch.float64, generator=g)).Q
    variances = torch.linspace(0.2, 0.8, dim, dtype=torch.float64) ** 2
    means = 0.5 * torch.randn(3, dim, dtype=torch.float64, generator=g)
    return MixtureDenoiser(f64([1.0, 2.0, 3.0]), means, (frames * variances) @ frames.mT)


def geometric(high: float, low: float, n: int) -> Tensor:
    return high * (low / high) ** torch.linspace(0, 1, n + 1, dtype=torch.float64)


def law(kappa: float, a: float, b: float) -> Tensor:
    """The covariance of (I_g, I_z) on the way from level a to b."""
    h = a - b
    covariance = a * h**2 - h**3 / 3
    return kappa * f64([[a**2 - b**2, covariance], [covariance, 2 * a * h**3 / 3 - h**4 / 6]])


class Paths:
    """Brownian paths on a fine grid of levels: pairs (I_g, I_z) of each fine step, with their mirror images."""

    def __init__(self, fine: Tensor, shape: tuple[int, ...], kappa: float) -> None:
        self.fine, self.kappa, self.pairs = fine, kappa, []
        for a, b in zip(fine[:-1].tolist(), fine[1:].tolist(), strict=True):
            root = torch.linalg.cholesky(law(kappa, a, b))
            pair = torch.einsum("ij,j...->i...", root, torch.randn(2, *shape, dtype=torch.float64))
            self.pairs.append(torch.cat([pair, -pair], dim=1))

    def end(self, sampler: Sampler, oracle: MixtureDenoiser, x: Tensor, n: int, draws: int = 2) -> Tensor:
        """The state at the last fine level by `n` steps driven by the paths."""
        factor = (len(self.fine) - 1) // n
        levels = self.fine[::factor]
        unit = iter([z for k in range(n) for z in self.normals(k * factor, factor)[:draws]])
        states = sampler(
            oracle, x, torch.cat([levels, levels.new_zeros(1)]), kappa=self.kappa, noise=lambda x: next(unit)
        )
        return list(islice(states, n))[-1]

    def normals(self, start: int, factor: int) -> tuple[Tensor, Tensor]:
        """The independent normals that give the pair of a coarse step: I_g adds up, I_z also collects h I_g so far."""
        g, z = torch.zeros_like(self.pairs[0])
        for m in range(start, start + factor):
            g, z = g + self.pairs[m][0], z + self.pairs[m][1] + (self.fine[m] - self.fine[m + 1]) * g
        root = torch.linalg.cholesky(law(self.kappa, self.fine[start].item(), self.fine[start + factor].item()))
        return g / root[0, 0], (z - root[1, 0] / root[0, 0] * g) / root[1, 1]


def slope(errors: list[float]) -> float:
    """The mean slope over all halvings."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


def expectation(phi: Callable, sampler: Sampler, oracle: MixtureDenoiser, levels: Tensor) -> float:
    """E phi(x) at the last of `levels`, without sampling: on a line, and given the state, a step at kappa = 1 is Gaussian.

    The expectation is carried backward, by Gauss-Hermite quadrature over a step and splines over the state.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    x = 0.05 * torch.sinh(torch.linspace(-8.5, 8.5, 1001, dtype=torch.float64))
    value = phi(x.numpy())

    for pair in reversed(list(pairwise(levels))):
        unit = iter(f64([[0, 1, 0], [0, 0, 1]]))  # no noise, I_g alone, I_z alone
        states = sampler(
            oracle,
            x.repeat(3)[:, None],
            torch.stack([*pair, torch.zeros_like(pair[0])]),
            noise=lambda v, unit=unit: next(unit).repeat_interleave(len(x))[:, None],
        )
        mean, with_g, with_z = next(states).reshape(3, -1)
        std = torch.hypot(with_g - mean, with_z - mean)
        future = CubicSpline(x.numpy(), value)
        value = sum(w * future((mean + std * z).numpy()) for z, w in zip(nodes, weights / weights.sum(), strict=True))
    density = oracle.log_density(x[:, None], levels[0]).exp().numpy()
    return float(np.trapezoid(density * value, x.numpy()))
