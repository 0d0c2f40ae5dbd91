"""Noise levels: where training draws sigma, where sampling steps, how noisy observations combine.

A noisy image is `x = x0 + sigma * eps` with unit Gaussian `eps`; `sigma` is the only time of this library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

Noise = Callable[[Tensor], Tensor]
"""Draws unit Gaussian noise of the shape, dtype and device of its argument; `torch.randn_like` is one."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""`(x, sigma) -> x0`: a denoiser with label and guidance already bound."""


class SeededNoise:
    """Unit Gaussian noise for a batch, every image from a generator of its own seed (mod 2^32), drawn on the CPU."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Noise of the shape, dtype and device of `x` (B, ...), drawn in `dtype`, that of `x` if None.

        The numbers of a seed depend on the precision in which they are drawn.
        """
        return self.draw(x.shape[1:], dtype or x.dtype).to(x)

    def draw(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Noise (B, *shape) on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=g, dtype=dtype) for g in self.generators])

    def classes(self, n: int) -> Tensor:
        """A uniform class index for each image (B,)."""
        return torch.stack([torch.randint(n, (), generator=g) for g in self.generators])


def expand(sigma: float | Tensor, x: Tensor) -> Tensor:
    """Reshape a noise level, a number, () or (B,), to (B, 1, ..., 1), so that it broadcasts against `x` (B, ...).

    The result has the dtype and device of `x`. This is the only broadcasting of noise levels in the library.
    """
    if isinstance(sigma, Real):  # filled in on the device: copying a number there waits for it
        sigma = torch.full((), float(sigma), dtype=x.dtype, device=x.device)
    elif not isinstance(sigma, Tensor):
        try:
            sigma = torch.as_tensor(sigma)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"sigma must be a number or a tensor of shape ({len(x)},); got {sigma!r}") from error
    sigma = sigma.to(x, non_blocking=sigma.is_cpu)
    if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) not in (1, len(x))):
        raise ValueError(f"sigma must be a number or have shape ({len(x)},) to match x; got shape {tuple(sigma.shape)}")
    return sigma.reshape(-1, *[1] * (x.ndim - 1)).expand(len(x), *[1] * (x.ndim - 1))


def add_noise(x: Tensor, sigma: float | Tensor, noise: Noise = torch.randn_like) -> Tensor:
    """A draw of `x + sigma * eps`; differentiable in `x` and `sigma`."""
    return x + expand(sigma, x) * noise(x)


def fuse(y: Tensor, sigma_y: float | Tensor, x: Tensor, sigma_x: float | Tensor) -> tuple[Tensor, Tensor]:
    """Merge two independent noisy observations of one image into the equivalent single one.

    With precisions a = sigma_y^-2 and b = sigma_x^-2 it is ((a y + b x) / (a + b), (a + b)^-1/2), so that
    E[x0 | y, x] = D(*fuse(y, sigma_y, x, sigma_x)) for an unconditional denoiser D (the product of two Gaussian
    likelihoods in x0). Computed from ratios, hence exact in the limits where one level is infinite or zero.

    Returns the image (B, ...) and its noise levels (B,).
    """
    sy, sx = expand(sigma_y, x), expand(sigma_x, x)
    level = 1 / torch.hypot(1 / sy, 1 / sx)
    return x + (y - x) / (1 + (sy / sx) ** 2), level.flatten()


def karras_ramp(t: Tensor, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """The noise level at `t` in [0, 1] of EDM's warped ramp; t = 0 is `sigma_min`, t = 1 is `sigma_max`."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + t * (high - low)) ** rho


def karras_sigmas(n: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Decreasing noise levels for `n` steps, closed by a zero: shape (n + 1,), float64 (Karras et al., 2022, Eq. 5).

    sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho; a single step goes from
    `sigma_max` to 0.
    """
    if n < 1:
        raise ValueError(f"a schedule needs at least 1 step; got {n}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"noise levels need 0 < sigma_min < sigma_max; got sigma_min={sigma_min}, sigma_max={sigma_max}"
        )
    if rho <= 0:
        raise ValueError(f"rho must be positive; got {rho}")
    ramp = karras_ramp(torch.linspace(1, 0, n, dtype=torch.float64), sigma_min, sigma_max, rho)
    ramp[0] = sigma_max
    return torch.cat([ramp, ramp.new_zeros(1)])


GRID = 40
"""Noise levels to which NCVSD's index lists refer."""


def indexed_sigmas(indices: Sequence[int], *, sigma_init: float = 80.0, sigma_min: float = 0.002) -> Tensor:
    """The noise levels for `samplers.posterior` that an index list of NCVSD means, such as 10,22,39 for two steps.

    Index i is level i of `karras_sigmas(40)`, from 80 to `sigma_min`, 0.002 in the paper. The lists end in 39, which is no
    step: they stand for sigma_init, the levels but the last, and 0; so there are as many evaluations as indices before 39.
    """
    if len(indices) < 2 or indices[-1] != GRID - 1 or indices[0] < 0 or not all(a < b for a, b in pairwise(indices)):
        raise ValueError(
            f"indices of noise levels increase from 0 at least and end in {GRID - 1}, which closes the list, such as "
            f"10,22,39 for two steps; got {','.join(map(str, indices))}"
        )
    levels = karras_sigmas(GRID, sigma_min=sigma_min)[list(indices[:-1])]
    return torch.cat([levels.new_tensor([sigma_init]), levels, levels.new_zeros(1)])


@dataclass(frozen=True)
class LogNormal:
    """ln(sigma) ~ N(mean, std^2): where EDM trains (Karras et al., 2022, Table 1). Called with x (B, ...) it draws (B,)."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, x: Tensor) -> Tensor:
        return (self.mean + self.std * torch.randn(len(x), device=x.device)).exp()


@dataclass(frozen=True)
class KarrasUniform:
    """Uniform on the Karras ramp from t = 0 (`sigma_min`) up to `t_max` (SiD: 0.8). Called with x (B, ...) it draws (B,)."""

    t_max: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, x: Tensor) -> Tensor:
        t = self.t_max * torch.rand(len(x), device=x.device)
        return karras_ramp(t, self.sigma_min, self.sigma_max, self.rho)


@dataclass(frozen=True)
class LogUniform:
    """ln(sigma) uniform between the bounds: where the variance-exploding SDE trains (Song et al., 2021).

    Called with x (B, ...) it draws (B,).
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** torch.rand(len(x), device=x.device)
