"""Exact moments of what a solver returns: for a Gaussian prior every solver here is an affine map of its noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.oracle import GaussianDenoiser, MixtureDenoiser
from fewstep.inverse import Likelihood, Operator
from fewstep.inverse.operator import Coupling
from fewstep.samplers import last

F64 = torch.float64


def matrix(operator: Operator) -> Tensor:
    """The operator as a matrix (m, d) on flattened images, float64."""
    d = torch.Size(operator.shape).numel()
    return operator(torch.eye(d, dtype=F64).view(d, *operator.shape)).flatten(1).T


def generative(prior: MixtureDenoiser, noise: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Exact draws of p(x0 | u; sigma) for a mixture: of a component by its responsibility, then of its Gaussian."""

    def draw(u: Tensor, sigma: Tensor) -> Tensor:
        flat, total, logits = prior.components(u, sigma, None)
        k = (
            logits.softmax(1).multinomial(1).squeeze(1)
            if logits.shape[1] > 1
            else torch.zeros(len(u), dtype=torch.int64)
        )
        rows = torch.arange(len(u))
        v, t = prior.variances[k].to(u), total[rows, k]
        eigen = noise(u).flatten(1) * (v * sigma**2 / t).sqrt() + flat[rows, k] * v / t
        if prior.vectors is not None:
            eigen = torch.einsum("bde,be->bd", prior.vectors[k].to(u), eigen)
        return prior.means[k].to(u) + eigen.view(u.shape)

    return draw


@dataclass
class Impulses:
    """Noise for a batch whose row 0 sees none, and each other row a one in one coordinate of one draw; sizes: of draws."""

    sizes: tuple[int, ...]
    drawn: int = 0

    @property
    def rows(self) -> int:
        return 1 + sum(self.sizes)

    def __call__(self, x: Tensor) -> Tensor:
        size, begin = self.sizes[self.drawn], 1 + sum(self.sizes[: self.drawn])
        out = torch.zeros_like(x)
        out[begin : begin + size] = torch.eye(size, dtype=x.dtype).view(size, *x.shape[1:])
        self.drawn += 1
        return out


def affine(result: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of what the rows of `Impulses` became."""
    flat = result.flatten(1)
    spread = flat[1:] - flat[0]
    return flat[0], spread.T @ spread


def moments(
    solver: Callable[..., Iterator[Tensor]],
    prior: GaussianDenoiser,
    operator: Operator,
    y: Tensor,
    sigma_y: float,
    sigmas: Tensor,
    *,
    coupling: Coupling = "split",
    **options: float,
) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the last state of `solver` with exact draws, without sampling error."""
    noise = Impulses((prior.means[0].numel(),) * (2 * len(sigmas)))
    likelihood = Likelihood(operator, y.expand(noise.rows, *y.shape), sigma_y, coupling)
    x = sigmas[0] * noise(torch.zeros(noise.rows, *prior.shape, dtype=F64))
    return affine(last(solver(generative(prior, noise), likelihood, x, sigmas, noise=noise, **options)))
