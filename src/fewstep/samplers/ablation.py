"""The general sampler in which EDM compares earlier ones (Karras et al., 2022, Table 1).

The state s(t) x follows the ODE
    dx/dt = (sigma'/sigma + s'/s) x - (sigma' s / sigma) D(x / s; sigma)    (Eq. 81)
in a time t that the schedule turns into a noise level. States are handed in and out unscaled, as elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise, karras_sigmas
from fewstep.core.precondition import VP, Precondition, iddpm_levels
from fewstep.samplers.catalog import check_options
from fewstep.samplers.contract import steps
from fewstep.samplers.edm import churn_factor

Solver = Literal["euler", "heun"]
Discretization = Literal["vp", "ve", "iddpm", "edm"]
ScheduleName = Literal["vp", "ve", "linear"]
Scaling = Literal["vp", "none"]


class Schedule(NamedTuple):
    """sigma(t), its derivative and its inverse."""

    sigma: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ablation:
    """EDM's general sampler, defined by four choices; `sigmas(n)` are its noise levels, and a call samples.

    Args:
        solver: "euler", or "heun" for the second-order family with its second evaluation at the fraction `alpha` of the step.
        discretization: where the steps are.
        schedule: sigma(t).
        scaling: s(t).
        sigma_min: lowest noise level; None for that of the discretization.
        sigma_max: highest noise level; None for that of the discretization.
        rho: exponent of the edm discretization.
        epsilon_s: smallest time of the vp discretization.
        C_1: constant of the iDDPM levels.
        C_2: constant of the iDDPM levels.
        M: number of the iDDPM levels.
        alpha: 1 is Heun's method, 1/2 the midpoint method, 2/3 Ralston's.
        S_churn: amount of fresh noise, as in `churn`; so are the next three.
        S_min: lowest level at which noise is added.
        S_max: highest level at which noise is added.
        S_noise: standard deviation of the noise.
        precondition: that of the network; it clamps the range and rounds the levels to those that the network knows.

    Raises:
        ValueError: a choice is unknown, alpha is outside (0, 1], or the range is empty.

    Example:
        >>> sampler = fs.samplers.Ablation(solver="euler", discretization="vp", schedule="vp", scaling="vp")
        >>> sigmas = sampler.sigmas(50)
        >>> x0 = fs.samplers.last(sampler(denoise, sigmas[0] * z, sigmas))
    """

    solver: Solver = "heun"
    discretization: Discretization = "edm"
    schedule: ScheduleName = "linear"
    scaling: Scaling = "none"
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    epsilon_s: float = 1e-3
    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    alpha: float = 1.0
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    precondition: Precondition | None = None

    def __post_init__(self) -> None:
        choices = {"solver": Solver, "discretization": Discretization, "schedule": ScheduleName, "scaling": Scaling}
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choice))}; got {getattr(self, name)!r}")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1]; got {self.alpha}")
        low, high = self.range
        if not 0 < low < high:
            raise ValueError(f"noise levels need 0 < sigma_min < sigma_max; got sigma_min={low}, sigma_max={high}")

    def for_network(self, precondition: Precondition, **settings: Any) -> Ablation:
        """Return this sampler with the noise levels of a network.

        Args:
            precondition: the preconditioning of the network.
            **settings: fields to change.

        Raises:
            ValueError: a setting is unknown or has no effect.
        """
        check_options("EDM's general sampler", [f.name for f in dataclasses.fields(self)], settings)
        if "rho" in settings and self.discretization != "edm":
            raise ValueError(
                f"rho has no effect with the discretization {self.discretization}; it shapes the levels of edm"
            )
        return dataclasses.replace(self, precondition=precondition, **settings)

    @cached_property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest noise level."""
        vp = VP().sigma(torch.tensor([self.epsilon_s, 1], dtype=torch.float64)).tolist()
        low, high = {"vp": vp, "ve": (0.02, 100), "iddpm": (0.002, 81), "edm": (0.002, 80)}[self.discretization]
        low = low if self.sigma_min is None else self.sigma_min
        high = high if self.sigma_max is None else self.sigma_max
        if self.precondition is not None:
            low, high = max(low, self.precondition.sigma_min), min(high, self.precondition.sigma_max)
        return low, high

    @cached_property
    def vp(self) -> VP:
        """The VP schedule with sigma(epsilon_s) and sigma(1) at the ends of the range."""
        low, high = (math.log1p(level**2) for level in self.range)
        beta_d = 2 * (low / self.epsilon_s - high) / (self.epsilon_s - 1)
        return VP(beta_d=beta_d, beta_min=high - beta_d / 2)

    def round(self, sigma: Tensor) -> Tensor:
        """Return the levels of the network nearest to `sigma`."""
        return sigma if self.precondition is None else self.precondition.round(sigma)

    def sigmas(self, n: int) -> Tensor:
        """Return the noise levels of a number of steps.

        Args:
            n: number of steps.

        Returns:
            Decreasing levels (n + 1,), float64, closed by a zero.

        Raises:
            ValueError: there is no step.
        """
        low, high = self.range
        if self.discretization == "edm":
            sigmas = karras_sigmas(n, sigma_min=low, sigma_max=high, rho=self.rho)[:-1]
        elif n < 1:
            raise ValueError(f"a schedule needs at least 1 step; got {n}")
        else:
            i = torch.arange(n, dtype=torch.float64)
            ramp = i / max(n - 1, 1)
            if self.discretization == "vp":
                sigmas = self.vp.sigma(1 + ramp * (self.epsilon_s - 1))
            elif self.discretization == "ve":
                sigmas = high * (low / high) ** ramp
            else:
                levels = iddpm_levels(self.M, self.C_1, self.C_2, torch.float64)
                levels = levels[(low <= levels) & (levels <= high)]
                sigmas = levels[((len(levels) - 1) / max(n - 1, 1) * i).round().long()]
        return torch.cat([self.round(sigmas), sigmas.new_zeros(1)])

    @cached_property
    def noise_schedule(self) -> Schedule:
        """The functions of the chosen schedule."""
        if self.schedule == "linear":
            return Schedule(torch.clone, torch.ones_like, torch.clone)
        if self.schedule == "ve":
            return Schedule(torch.sqrt, lambda t: 0.5 / t.sqrt(), torch.square)
        vp = self.vp

        def derivative(t: Tensor) -> Tensor:
            sigma = vp.sigma(t)
            return (vp.beta_min + vp.beta_d * t) / 2 * (sigma + 1 / sigma)

        return Schedule(vp.sigma, derivative, vp.time)

    def scale(self, sigma: Tensor) -> Tensor:
        """Return s at noise levels."""
        return 1 / (1 + sigma**2).sqrt() if self.scaling == "vp" else torch.ones_like(sigma)

    def slope(self, denoise: Denoise, x: Tensor, t: Tensor) -> Tensor:
        """Return dx/dt of the state (Karras et al., 2022, Eq. 81)."""
        sigma, growth = self.noise_schedule.sigma(t), self.noise_schedule.derivative(t)
        s = self.scale(sigma)
        decay = -sigma * growth * s**2 if self.scaling == "vp" else 0  # s' / s
        return (growth / sigma + decay) * x - growth * s / sigma * denoise(x / s, sigma)

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise = torch.randn_like
    ) -> Iterator[Tensor]:
        """Sample from noisy images.

        Args:
            denoise: the denoiser, `(x, sigma) -> x0`.
            x: noisy images (B, ...) at `sigmas[0]`.
            sigmas: noise levels, from the method `sigmas`.
            noise: draws unit Gaussian noise like its argument.

        Yields:
            The state (B, ...) at each next level.
        """
        time, n = self.noise_schedule.time, len(sigmas) - 1
        x = x * self.scale(sigmas[0])
        for sigma, sigma_next in steps(sigmas):
            raised = sigma
            if self.S_churn:
                gamma = churn_factor(sigma, n, self.S_churn, self.S_min, self.S_max)
                raised = self.round(sigma * (1 + gamma))
                excess = (raised**2 - sigma**2).clamp_min(0).sqrt()
                x = self.scale(raised) * (x / self.scale(sigma) + excess * self.S_noise * noise(x))
            # t = 0 is the end by definition: refitted VP schedules may cross sigma = 0 a little earlier
            t, t_next = time(raised), time(sigma_next) if sigma_next > 0 else sigma_next
            h, d = t_next - t, self.slope(denoise, x, t)
            ahead = x + h * d
            if self.solver == "heun" and sigma_next > 0:
                other = self.slope(denoise, x + self.alpha * h * d, t + self.alpha * h)
                ahead = x + h * ((1 - 0.5 / self.alpha) * d + 0.5 / self.alpha * other)
            x = ahead
            yield x / self.scale(sigma_next)
