"""The likelihood of an image given a measurement: p(y | x0) = N(y; A(x0), sigma_y^2 I)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.core.noise import Noise
from fewstep.inverse.operator import Coupling, Decomposed, Operator


@dataclass(frozen=True)
class Likelihood:
    """The likelihood p(y | x0) = N(y; A(x0), sigma_y^2 I) of a batch of measurements.

    Args:
        operator: A.
        y: measurements (B, ...).
        sigma_y: standard deviation of their noise, in the unit of y.
        coupling: how proximal draws are tied to the measurement if the operator's decomposition is known; see
            `fewstep.inverse.operator.Decomposed.shrinkage`.

    Raises:
        ValueError: the operator cannot have made `y`, `y` or `sigma_y` is not finite, or a tight coupling is asked of an operator
            without a known decomposition.

    Example:
        >>> y = fs.inverse.measure(operator, x0, 0.05, seeds=[0, 1])
        >>> likelihood = fs.inverse.Likelihood(operator, y, sigma_y=0.05)
    """

    operator: Operator
    y: Tensor
    sigma_y: float
    coupling: Coupling = "split"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_y < float("inf"):
            raise ValueError(
                f"the noise level of a measurement must be positive and finite; got sigma_y={self.sigma_y}. For an exact "
                "measurement use a small value, such as 0.001"
            )
        with torch.no_grad():
            expected = self.operator.A(self.y.new_zeros(1, *self.operator.shape)).shape[1:]
        if self.y.shape[1:] != expected:
            raise ValueError(
                f"this operator turns images {self.operator.shape} into measurements of shape {tuple(expected)}; got "
                f"{tuple(self.y.shape[1:])}"
            )
        if not self.y.isfinite().all():
            bad = (~self.y.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"the measurements {bad} of the batch are not finite")
        if self.coupling == "tight" and not isinstance(self.operator, Decomposed):
            raise ValueError(
                "a tight coupling needs an operator whose singular value decomposition is known (masks, circular and "
                "separable blurs, super-resolution, colorization), and this operator has none; use split"
            )

    def gap(self, x0: Tensor) -> Tensor:
        """Return |A(x0) - y|, (B, 1, ...), over the observed part; differentiable, with gradient 0 at 0."""
        norm = torch.linalg.vector_norm(self.operator.observed(self.operator.A(x0) - self.y).flatten(1), dim=1)
        return norm.view(-1, *[1] * (x0.ndim - 1))

    def sample(self, x: Tensor, rho: float | Tensor, noise: Noise = torch.randn_like) -> Tensor:
        """Draw u from N(u; x, rho^2 I) p(y | u), up to a constant, or from its tight variant.

        Args:
            x: images (B, C, H, W).
            rho: standard deviation of the proximal term.
            noise: draws unit Gaussian noise like its argument.

        Returns:
            The draws (B, C, H, W).
        """
        operator, rho = self.operator, float(rho)
        if isinstance(operator, Decomposed):
            return operator.prox_sample(x, self.y, self.sigma_y, rho, noise, self.coupling)
        return operator.prox_sample(x, self.y, self.sigma_y, rho, noise)

    def shrink(self, v: Tensor, rho: float | Tensor) -> Tensor:
        """Return the part of white noise `v` that a draw of `sample` contains; see `Decomposed.shrink` of the operator."""
        if not isinstance(self.operator, Decomposed):
            raise ValueError(
                "persistent noise needs an operator whose singular value decomposition is known; set persistence=0"
            )
        return self.operator.shrink(v, self.sigma_y, float(rho), self.coupling)

    def nearest(self, x: Tensor, gamma: float) -> Tensor:
        """Return argmin_u gamma / 2 |A(u) - y|^2 + 1/2 |u - x|^2, (B, C, H, W)."""
        return self.operator.prox_l2(x, self.y, gamma)

    def measured(self, beta: float | None) -> Likelihood:
        """Return the same with the noise level of NCVSD's tuned beta, sqrt(beta / 2); unchanged for None."""
        return self if beta is None else replace(self, sigma_y=(beta / 2) ** 0.5)
