"""The sampler of the 2nd-SED solver as it was published (DannHuang/edm, branch main, July 2023).

It is here to reproduce its results. Its second-order steps are in fact of first order, for the reasons in
`docs/samplers.md`; `ito_taylor` and `taylor2` are the correct schemes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from fewstep.core.noise import Denoise, Noise
from fewstep.samplers.contract import steps
from fewstep.samplers.ito_taylor import check_choice, check_differentiable, dual

RandnLike = Literal["db", "ddb"]


def brownian_pair(x: Tensor, dt: float, randn_like: RandnLike, noise: Noise) -> tuple[Tensor, Tensor]:
    """Return dW = W(dt) and dZ, the integral of W over [0, dt]: drawn together (`ddb`), or dZ as its mean given dW (`db`)."""
    if randn_like == "db":
        dW = math.sqrt(dt) * noise(x)
        return dW, dt / 2 * dW
    first, second = (noise(x.float()).to(x.dtype) for _ in range(2))  # in float32, as published
    return math.sqrt(dt) * (math.sqrt(3) / 2 * first + second / 2), math.sqrt(dt**3 / 3) * first


@torch.no_grad()
def second_order_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    S_churn: float = 0.0,
    S_max: float = math.inf,
    randn_like: RandnLike = "db",
    rho: float = 7.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """The published 2nd-SED sampler, in the time u of Karras' schedule sigma(u) = (A + B u)^rho, u from 0 to 1.

    Each step but the last takes dt = 1 / (n - 1), draws dW, and with g = dt^((rho - 1) / 2) (-B)^(rho / 2) evaluates at
        x^ = x + g dW,  s^ = sqrt(sigma^2 + dt g^2),  F = (x^ - D(x^; s^)) / s^,
    for the rest dt of the way to the next level. gamma = sum_{j=1}^{rho-1} dt^(j-1) binom(rho, j) B^j s^^((rho-j)/rho).
    A step of first order is x + gamma dt F: its noise is not kept. From the second step on, where s^ >= S_max, it is
        x^ + gamma (dt F + dt^2 gamma / s^ F' + dt^2 g / (2 s^) dW + dZ / s^ - Q),
    with F' of the step before and Q the derivative of D along (dt^2 gamma / (2 s^) F' + g / s^ dZ; dt^2 / (2 s^)).
    The last step starts without noise and keeps dt, so that it ends neither at sigma = 0 nor in the denoised image.
    A step costs one evaluation, a dual one if it is of second order.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`; differentiable in forward mode for steps of second order.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: Karras' schedule with this `rho`, of two steps or more, (n + 1,).
        S_churn: ignored with a warning; the published commands name it, without effect.
        S_max: the lowest level at which steps are of second order; by default none is, as published.
        randn_like: how dW and dZ are drawn: "ddb" together, "db" with dZ as its mean given dW (the published steps of second
            order failed with "db").
        rho: exponent of the schedule, a whole number of at least 2.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) after each step.

    Raises:
        ValueError: `randn_like` is unknown, `rho` is not a whole number of at least 2, the levels are not Karras' schedule, or
            the network has no derivative where it is needed.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.second_order_sde(denoise, sigmas[0] * z, sigmas))
    """
    check_choice("randn_like", randn_like, RandnLike)
    pairs, n = list(steps(sigmas, distinct=True)), len(sigmas) - 1
    if rho != int(rho) or rho < 2:
        raise ValueError(f"second_order_sde expands a power: rho must be a whole number of at least 2; got {rho}")
    if n < 2:
        raise ValueError(f"second_order_sde needs at least 2 steps; got {n}")
    if S_churn:
        warnings.warn("S_churn has no effect with second_order_sde, as in the published sampler", stacklevel=2)
    power, start = 1 / rho, float(sigmas[0]) ** (1 / rho)
    B = float(sigmas[-2]) ** power - start
    grid = (start + B * torch.linspace(0, 1, n, dtype=torch.float64)) ** rho
    if not torch.allclose(sigmas[:-1].double().cpu(), grid, rtol=1e-5, atol=0):
        raise ValueError(
            f"second_order_sde steps on Karras' schedule with rho={rho:g}; got the levels {sigmas.tolist()}"
        )
    if S_max <= float(sigmas[1]):
        check_differentiable(denoise)
    whole = 1 / (n - 1)
    g = whole ** ((rho - 1) / 2) * math.sqrt((-B) ** rho)
    F = dW = dZ = torch.zeros_like(x)
    for i, (sigma, sigma_next) in enumerate(pairs):
        lifted, level, dt = x, sigma, torch.as_tensor(whole, dtype=sigma.dtype, device=sigma.device)
        if sigma_next > 0:
            dW, dZ = brownian_pair(x, whole, randn_like, noise)
            lifted, level = x + g * dW, (sigma**2 + whole * g**2).sqrt()
            dt = (sigma_next**power - level**power) / B
        terms = [math.comb(int(rho), j) * B**j * dt ** (j - 1) * level ** (1 - j / rho) for j in range(1, int(rho))]
        gamma = torch.stack(terms).sum()
        if i > 0 and level >= S_max:
            direction = dt**2 / 2 * gamma / level * F + g / level * dZ
            x0, Q = dual(denoise, (lifted, level), (direction, dt**2 / (2 * level)))
            more = dt**2 * gamma / level * F + dt**2 * g / (2 * level) * dW + dZ / level - Q
            F = (lifted - x0) / level
            x = lifted + gamma * (dt * F + more)
        else:
            F = (lifted - denoise(lifted, level)) / level
            x = x + gamma * dt * F
        yield x
