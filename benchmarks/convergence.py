"""The order of convergence of a sampler: mixtures with known denoisers, and Brownian paths shared by step sizes."""

from __future__ import annotations

import math
from itertools import islice
from typing import Literal

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from fewstep.core.noise import Noise
from fewstep.core.oracle import MixtureDenoiser
from fewstep.samplers import Sampler

Draw = Literal["increment", "decayed", "pair"]
"""What the noise of a sampler's step stands for: int g dW, int phi g dW (exponential integrators), or the pair (N_1,
N_2) of `ito_taylor`.
"""


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def on_a_line() -> MixtureDenoiser:
    """Two narrow components on a line; the standard deviation of all is 0.87."""
    return MixtureDenoiser(f64([0.3, 0.7]), f64([[-1.0], [0.8]]), f64([0.2, 0.3]) ** 2)


def anisotropic(dim: int) -> MixtureDenoiser:
    """Three overlapping components with standard deviations from 0.2 to 0.8 in random directions."""
    g = torch.Generator().manual_seed(0)
    frames = torch.linalg.qr(torch.randn(3, dim, dim, dtype=torch.float64, generator=g)).Q
    variances = torch.linspace(0.2, 0.8, dim, dtype=torch.float64) ** 2
    means = 0.5 * torch.randn(3, dim, dtype=torch.float64, generator=g)
    return MixtureDenoiser(f64([1.0, 2.0, 3.0]), means, (frames * variances) @ frames.mT)


def geometric(high: float, low: float, n: int) -> Tensor:
    """(n + 1,) levels in equal ratios."""
    return high * (low / high) ** torch.linspace(0, 1, n + 1, dtype=torch.float64)


def law(kappa: float, a: float | Tensor, b: float | Tensor) -> Tensor:
    """The covariance (..., 2, 2) of I_g = int g dW and I_z = int (s - b) g dW_s, g = sqrt(2 kappa s), from level a to b."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    h = a - b
    V, C, Z = a**2 - b**2, a * h**2 - h**3 / 3, 2 * a * h**3 / 3 - h**4 / 6
    return kappa * torch.stack([V, C, C, Z], dim=-1).unflatten(-1, (2, 2))


def slope(errors: list[float]) -> float:
    """The mean order over all halvings."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


class Paths:
    """Brownian paths on a fine grid of levels (m + 1,), each with its mirror image, for samplers of fewer steps.

    Every fine step keeps the pair of `law`, from which the integral of g dW against any smooth weight follows.
    sigma_data: that of `ito_taylor`.
    """

    def __init__(
        self,
        fine: Tensor,
        shape: tuple[int, ...],
        kappa: float = 1.0,
        *,
        sigma_data: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        self.fine, self.kappa, self.sigma_data = fine, kappa, sigma_data
        self.laws = law(kappa, fine[:-1], fine[1:])
        unit = torch.randn(len(fine) - 1, 2, *shape, dtype=torch.float64, generator=generator)
        pairs = torch.einsum("mij,mj...->mi...", torch.linalg.cholesky(self.laws), unit)
        self.pairs = torch.cat([pairs, -pairs], dim=2)

    def end(self, sampler: Sampler, oracle: MixtureDenoiser, x: Tensor, n: int, draw: Draw = "pair") -> Tensor:
        """The state at the last fine level by `n` steps driven by the paths."""
        factor = (len(self.fine) - 1) // n
        levels = self.fine[::factor]
        return arrive(sampler, oracle, x, levels, kappa=self.kappa, noise=self.noise(factor, draw))

    def noise(self, factor: int, draw: Draw) -> Noise:
        """The unit normals that a sampler with steps of `factor` fine ones draws in turn."""
        units = (z for start in range(0, len(self.pairs), factor) for z in self.units(start, factor, draw))
        return lambda x: next(units)

    def units(self, start: int, factor: int, draw: Draw) -> Tensor:
        """The independent normals (1 or 2, B, ...) behind the noise of one coarse step."""
        part = slice(start, start + factor)
        levels = self.fine[start : start + factor + 1]
        w = self.weights(levels, draw)
        # linear within a fine step: w(b) I_g + (w(a) - w(b)) / (a - b) I_z
        linear = torch.stack([w[:, 1:], (w[:, :-1] - w[:, 1:]) / (levels[:-1] - levels[1:])], dim=-1)
        sums = torch.einsum("kmi,mi...->k...", linear, self.pairs[part])
        root = torch.linalg.cholesky(torch.einsum("kmi,mij,lmj->kl", linear, self.laws[part], linear))
        return torch.linalg.solve_triangular(root, sums.flatten(1), upper=False).reshape(sums.shape)

    def weights(self, levels: Tensor, draw: Draw) -> Tensor:
        """What the noise integrates against g dW: (1 or 2, m + 1) values at the levels of one step."""
        a, b = levels[0], levels[-1]
        decay = (b / levels) ** (1 + self.kappa)
        if draw != "pair":
            return torch.stack([torch.ones_like(levels) if draw == "increment" else decay])
        variance, p = self.sigma_data**2, (1 - self.kappa) / 2
        nodes, weights = (f64(values)[:, None] for values in leggauss(12))
        half = (levels / b).log() / 2
        s = b * (half * (1 + nodes)).exp()
        gain = ((variance + a**2) / (variance + s**2)) ** p
        fall = (half * weights * (1 + self.kappa) * (b / s) ** (1 + self.kappa) * gain).sum(0)
        return torch.stack([decay, fall * ((variance + a**2) / (variance + levels**2)) ** (1 - p)])


def arrive(sampler: Sampler, oracle: MixtureDenoiser, x: Tensor, levels: Tensor, **options: object) -> Tensor:
    """The state at the last of `levels`, which need not be 0."""
    states = sampler(oracle, x, torch.cat([levels, levels.new_zeros(1)]), **options)
    return list(islice(states, len(levels) - 1))[-1]
