"""Preconditionings: how a raw network F becomes a denoiser D (Karras et al., 2022, Table 1).

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise). Each is a frozen dataclass, called with sigma (B, 1, 1, 1); it names
the range of noise levels that the network was made for, and rounds to the levels that it knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """The coefficients of D = c_skip x + c_out F(c_in x; c_noise), each of the shape of sigma.

    Args:
        skip: c_skip.
        out: c_out.
        input: c_in.
        noise: c_noise.

    Example:
        >>> c = fs.precondition.EDM()(torch.tensor(0.5))
        >>> float(c.skip)
        0.5
    """

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


class Precondition(Protocol):
    """The contract of a preconditioning: its coefficients, and the noise levels that its network knows.

    Attributes:
        sigma_min: the lowest noise level.
        sigma_max: the highest noise level; infinite if there is no bound.
        sigma_data: standard deviation of the data.

    Example:
        >>> precondition: fs.precondition.Precondition = fs.precondition.IDDPM()
        >>> sigma = precondition.round(torch.tensor(0.5))
    """

    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...
    @property
    def sigma_data(self) -> float: ...
    def __call__(self, sigma: Tensor, /) -> Coefficients: ...
    def round(self, sigma: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class EDM:
    """EDM's preconditioning: unit variance at the input and at the target of F (Karras et al., 2022, Table 1).

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2),
    c_in = 1 / sqrt(sigma^2 + sigma_data^2), c_noise = ln(sigma) / 4.

    Args:
        sigma_data: standard deviation of the data.
        sigma_min: the lowest noise level.
        sigma_max: the highest noise level.

    Example:
        >>> model = fs.Denoiser(net, precondition=fs.precondition.EDM(sigma_data=0.5))
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __call__(self, sigma: Tensor) -> Coefficients:
        total = sigma**2 + self.sigma_data**2
        return Coefficients(
            self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4
        )

    def round(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class Boundary:
    """A preconditioning under which D is the identity at sigma = `eps`; for GDD's generators.

    It is the form of consistency models (Song et al., 2023, App. C), EDM's but for
    c_skip = sigma_data^2 / ((sigma - eps)^2 + sigma_data^2) and c_out = (sigma - eps) sigma_data / sqrt(sigma^2 + sigma_data^2).

    Args:
        sigma_data: standard deviation of the data.
        eps: the noise level at which D(x) = x.
        sigma_min: the lowest noise level.
        sigma_max: the highest noise level.

    Example:
        >>> model = fs.Denoiser(net, precondition=fs.precondition.Boundary(), levels=(80.0,))
    """

    sigma_data: float = 0.5
    eps: float = 0.002
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __call__(self, sigma: Tensor) -> Coefficients:
        total, rise = sigma**2 + self.sigma_data**2, sigma - self.eps
        return Coefficients(
            self.sigma_data**2 / (rise**2 + self.sigma_data**2),
            rise * self.sigma_data / total.sqrt(),
            1 / total.sqrt(),
            sigma.log() / 4,
        )

    def round(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class VP:
    """The variance-preserving score SDE (Song et al., 2021), as in Table 1 of Karras et al. (2022): F predicts the noise.

    c_skip = 1, c_out = -sigma, c_in = 1 / sqrt(sigma^2 + 1), c_noise = (steps - 1) t at the time t = sigma^-1(sigma), with
    sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) for t in [epsilon_t, 1].

    Args:
        beta_d: slope of the noise schedule.
        beta_min: its value at t = 0.
        steps: number of steps to which times are scaled, M in the paper.
        epsilon_t: the smallest time of training.
        sigma_data: standard deviation of the data, for loss weights.

    Example:
        >>> model = fs.Denoiser(net, precondition=fs.precondition.VP())
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    steps: int = 1000
    epsilon_t: float = 1e-5
    sigma_data: float = 0.5

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at times `t` in [0, 1]."""
        return torch.expm1(self.beta_d * t**2 / 2 + self.beta_min * t).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """Return the time of noise levels, the inverse of `sigma`."""
        return ((self.beta_min**2 + 2 * self.beta_d * torch.log1p(sigma**2)).sqrt() - self.beta_min) / self.beta_d

    # The published networks carry the range as float32 arithmetic of exp(.) - 1 gave it, which cancels near zero.
    @cached_property
    def sigma_min(self) -> float:
        t = torch.tensor(self.epsilon_t)
        return (((self.beta_d * t**2 / 2 + self.beta_min * t).exp() - 1) ** 0.5).item()

    @cached_property
    def sigma_max(self) -> float:
        return ((torch.tensor(self.beta_d / 2 + self.beta_min).exp() - 1) ** 0.5).item()

    def __call__(self, sigma: Tensor) -> Coefficients:
        return Coefficients(
            torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), (self.steps - 1) * self.time(sigma)
        )

    def round(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class VE:
    """The variance-exploding score SDE (Song et al., 2021), as in Table 1 of Karras et al. (2022): F predicts the negative noise.

    c_skip = 1, c_out = sigma, c_in = 1, c_noise = ln(sigma / 2).

    Args:
        sigma_min: the lowest noise level.
        sigma_max: the highest noise level.
        sigma_data: standard deviation of the data, for loss weights.

    Example:
        >>> model = fs.Denoiser(net, precondition=fs.precondition.VE())
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0
    sigma_data: float = 0.5

    def __call__(self, sigma: Tensor) -> Coefficients:
        return Coefficients(torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log())

    def round(self, sigma: Tensor) -> Tensor:
        return sigma


MOST_STEPS = 100_000
"""Of iDDPM, whose levels come one from another; published are 1000 and 4000."""


def iddpm_levels(steps: int, c1: float, c2: float, dtype: torch.dtype) -> Tensor:
    """Return the noise levels of improved DDPM (Nichol & Dhariwal, 2021), as in Table 1 of Karras et al. (2022).

    u_steps = 0, u_{j-1}^2 = (u_j^2 + 1) / max(abar_{j-1} / abar_j, c1) - 1, abar_j = sin^2(pi j / (2 steps (c2 + 1))).

    Args:
        steps: number of levels above 0, M in the paper.
        c1: bound of the ratio, C_1 in the paper.
        c2: offset of the schedule, C_2 in the paper.
        dtype: the precision of the recursion; abar is float32 in any case, as in EDM's programs.

    Returns:
        Decreasing levels (steps + 1,), closed by a zero.
    """
    abar = (torch.arange(steps + 1, dtype=torch.float32) * (math.pi / 2) / steps / (c2 + 1)).sin() ** 2
    ratios = (abar[:-1] / abar[1:]).clamp_min(c1)
    exact = dtype == torch.float64
    sqrt: Any = math.sqrt if exact else torch.sqrt
    u: list[Any] = [0.0 if exact else torch.zeros((), dtype=dtype)]
    for ratio in reversed(ratios.tolist() if exact else ratios.to(dtype).unbind()):
        u.append(sqrt((u[-1] ** 2 + 1) / ratio - 1))
    return torch.tensor(u[::-1], dtype=dtype)


@dataclass(frozen=True)
class IDDPM:
    """Improved DDPM (Nichol & Dhariwal, 2021), as in Table 1 of Karras et al. (2022): F predicts the noise at discrete levels.

    c_skip = 1, c_out = -sigma, c_in = 1 / sqrt(sigma^2 + 1), c_noise = steps - 1 - j at the nearest level u_j of
    `iddpm_levels`, to which sigma is rounded. F has twice the channels; its learned variances are not used.

    Args:
        c1: bound of the ratio, C_1 in the paper.
        c2: offset of the schedule, C_2 in the paper.
        steps: number of levels, M in the paper.
        sigma_data: standard deviation of the data, for loss weights.

    Raises:
        ValueError: there are fewer than 2 or more than `MOST_STEPS` steps.

    Example:
        >>> net = fs.nets.ADMUNet(fs.nets.ADMConfig(8, out_channels=6, model_channels=32, channel_mult=(1,), num_blocks=1))
        >>> model = fs.Denoiser(net, precondition=fs.precondition.IDDPM())
    """

    c1: float = 0.001
    c2: float = 0.008
    steps: int = 1000
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 2 <= self.steps <= MOST_STEPS:
            raise ValueError(f"iDDPM has 2 to {MOST_STEPS} steps; got {self.steps}")

    @cached_property
    def table(self) -> Tensor:
        """The levels as the published networks carry them: (steps + 1,) float32, decreasing to 0.

        In float32 the recursion cancels near zero: the last levels differ by 5e-4 from those in float64, which the authors'
        sampler uses.
        """
        return iddpm_levels(self.steps, self.c1, self.c2, torch.float32)

    @property
    def sigma_min(self) -> float:
        return self.table[-2].item()

    @property
    def sigma_max(self) -> float:
        return self.table[0].item()

    def index(self, sigma: Tensor) -> Tensor:
        """The index of the nearest level, of the shape of sigma."""
        return (sigma.detach().float().unsqueeze(-1) - table(self, sigma.device)).abs().argmin(-1)

    def __call__(self, sigma: Tensor) -> Coefficients:
        noise = (self.steps - 1 - self.index(sigma)).to(sigma.dtype)
        return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), noise)

    def round(self, sigma: Tensor) -> Tensor:
        return table(self, sigma.device)[self.index(sigma)].to(sigma.dtype)


@lru_cache(maxsize=8)
def table(precondition: IDDPM, device: torch.device) -> Tensor:
    """`IDDPM.table` on a device, copied there once: each copy waits for it."""
    return precondition.table.to(device)
