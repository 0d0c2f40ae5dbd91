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
    """Unit Gaussian noise for a batch of images, each drawn on the CPU by a generator with a seed of its own.

    Args:
        seeds: one seed for each image, taken modulo 2^32.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Draw the next noise of each image.

        Args:
            x: a tensor (B, ...) whose shape, dtype and device the noise takes.
            dtype: the precision in which the noise is drawn, on which its values depend; None for that of `x`.

        Returns:
            Noise (B, ...) like `x`.
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
    """Return x + sigma eps with eps ~ N(0, I); differentiable in `x` and `sigma`.

    Args:
        x: clean images (B, ...).
        sigma: the noise level: a number, () or (B,).
        noise: draws eps like its argument.

    Returns:
        Noisy images (B, ...).

    Raises:
        ValueError: `sigma` has another shape.

    Example:
        >>> x = fs.add_noise(x0, 0.5)
    """
    return x + expand(sigma, x) * noise(x)


def combine_observations(
    y: Tensor, sigma_y: float | Tensor, x: Tensor, sigma_x: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Combine two independent noisy observations of one image into the equivalent single one.

    With precisions a = sigma_y^-2 and b = sigma_x^-2 it is ((a y + b x) / (a + b), (a + b)^-1/2), the product of two Gaussian
    likelihoods of x0. So E[x0 | y, x] = D(*combine_observations(y, sigma_y, x, sigma_x)) for an unconditional denoiser D.
    It is computed from ratios and therefore exact in the limits where one level is infinite or zero.

    Args:
        y: an observation y = x0 + sigma_y eps (B, ...).
        sigma_y: its noise level: a number, () or (B,).
        x: another observation of the same x0, with independent noise, (B, ...).
        sigma_x: its noise level.

    Returns:
        The equivalent observation (B, ...) and its noise levels (B,).

    Raises:
        ValueError: a noise level has another shape.

    Example:
        >>> x0 = model(*fs.combine_observations(y, 0.5, x, 2.0))
    """
    sy, sx = expand(sigma_y, x), expand(sigma_x, x)
    level = 1 / torch.hypot(1 / sy, 1 / sx)
    return x + (y - x) / (1 + (sy / sx) ** 2), level.flatten()


def karras_ramp(t: Tensor, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Return the noise level at `t` in [0, 1] of EDM's warped ramp: `sigma_min` at t = 0, `sigma_max` at t = 1."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + t * (high - low)) ** rho


def karras_sigmas(n: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Return the noise levels of EDM's schedule (Karras et al., 2022, Eq. 5).

    sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i < n, and sigma_n = 0. A single
    step goes from `sigma_max` to 0.

    Args:
        n: number of steps.
        sigma_min: the lowest noise level above 0, in units of the images.
        sigma_max: the highest noise level.
        rho: exponent of the schedule; larger values take shorter steps near `sigma_min`.

    Returns:
        Decreasing noise levels (n + 1,), float64.

    Raises:
        ValueError: there is no step, `rho` is not positive, or the levels do not satisfy 0 < sigma_min < sigma_max.

    Example:
        >>> sigmas = fs.karras_sigmas(18)
        >>> x0 = fs.samplers.last(fs.samplers.heun(denoise, sigmas[0] * z, sigmas))
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
    """Return the noise levels for `samplers.posterior` that an index list of NCVSD stands for, such as 10,22,39 for two steps.

    Index i is level i of `karras_sigmas(40)`, from 80 down to `sigma_min`, which is 0.002 in the paper. The last index is always
    39 and adds no step. The levels are sigma_init, those of the indices but the last, and 0, so there are as many evaluations as
    indices before 39.

    Args:
        indices: increasing indices from 0 to 39, of which the last is 39.
        sigma_init: the level of the pure noise from which images are made.
        sigma_min: the lowest level of the grid.

    Returns:
        Decreasing noise levels, closed by a zero, float64.

    Raises:
        ValueError: the indices do not increase, or do not end in 39.
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
    """Training noise levels of EDM: ln(sigma) ~ N(mean, std^2) (Karras et al., 2022, Table 1).

    Called with images (B, ...), it draws levels (B,).

    Args:
        mean: mean of ln(sigma), P_mean in the paper.
        std: standard deviation of ln(sigma), P_std in the paper.

    Example:
        >>> loss = fs.DenoisingLoss(fs.LogNormal(mean=-0.4, std=1.0))  # EDM2's
    """

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, x: Tensor) -> Tensor:
        return (self.mean + self.std * torch.randn(len(x), device=x.device)).exp()


@dataclass(frozen=True)
class KarrasUniform:
    """Noise levels whose place on EDM's warped ramp is uniform, t ~ U[0, t_max]; where SiD compares scores (Zhou et al., 2024).

    Called with images (B, ...), it draws levels (B,).

    Args:
        t_max: the end of the ramp that is used, 1 for all of it; SiD's is 0.8.
        sigma_min: the level at t = 0.
        sigma_max: the level at t = 1.
        rho: exponent of the ramp, as in `karras_sigmas`.

    Example:
        >>> sigma = fs.KarrasUniform(t_max=0.8)(x0)
    """

    t_max: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, x: Tensor) -> Tensor:
        t = self.t_max * torch.rand(len(x), device=x.device)
        return karras_ramp(t, self.sigma_min, self.sigma_max, self.rho)


@dataclass(frozen=True)
class LogUniform:
    """Training noise levels of the variance-exploding SDE: ln(sigma) uniform between the bounds (Song et al., 2021).

    Called with images (B, ...), it draws levels (B,).

    Args:
        sigma_min: the lowest level.
        sigma_max: the highest level.

    Example:
        >>> loss = fs.DenoisingLoss(fs.LogUniform(0.02, 100.0))
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** torch.rand(len(x), device=x.device)
