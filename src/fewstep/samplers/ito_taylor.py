"""Samplers of second order by forward-mode differentiation: Taylor for the ODE, Ito-Taylor for the SDEs of `sde`.

For additive noise, dx = f(x, t) dt + g(t) dW, the Ito-Taylor scheme of strong order 1.5 and weak order 2 is
    x+ = x + h f + I_g + (df/dx) I_z + h^2 / 2 (f_t + (df/dx) f + g^2 / 2 Lap f)
(Kloeden & Platen, 1992, section 10.4), with I_g = int g dW and I_z = int_0^h (int_0^s g dW) ds drawn from their joint
law. Its derivatives are one directional derivative of the network, which forward mode gives together with the value,
but for the Laplacian; and for a true denoiser that is free, since the heat equation says
    sigma Lap D = D_sigma + 2 (dD/dx) F.
At kappa = 1 all that is left is x+ = x - 2 h F + I_g + (h^2 F - 2 I_z + 2 (dD/dx) I_z) / sigma: one dual evaluation a
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fewstep.denoiser import Denoise, Denoiser
from fewstep.noise import Noise, karras_sigmas
from fewstep.samplers.contract import Sampler, steps, unwrapped
from fewstep.samplers.edm import churn_factor, lift, slope
from fewstep.samplers.sde import Kappa, diffusion_moments, noise_moments, rate

Laplacian = Literal["identity", "hutchinson", "exact", "none"]
NoisePair = Literal["exact", "simplified"]


def check_differentiable(denoise: Denoise) -> None:
    """Raise ValueError for a network that rounds sigma, whose derivative in sigma means nothing.

    The samplers look through `functools.partial` and `counted`; call it yourself on a network inside a closure.
    """
    inner = unwrapped(denoise)
    if isinstance(inner, Denoiser):
        probe = torch.tensor([0.0123, 0.789, 45.6], dtype=torch.float64)
        if (inner.precondition.round(probe) != probe).any():
            raise ValueError(
                f"{type(inner.precondition).__name__} rounds noise levels to a grid, so that the network has no "
                "derivative in sigma; sample it with heun, churn or stochastic_heun, which need none"
            )


def dual(f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The value of `f` and its derivative in the direction of `tangents`, by one forward-mode evaluation."""
    try:
        # cloned, since dual numbers cannot be made of tensors with overlapping memory (`expand`)
        value, derivative = torch.func.jvp(f, tuple(p.clone() for p in primals), tangents)[:2]
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) or "forward" in str(error).lower() or "jvp" in str(error).lower():
            raise ValueError(
                "this network cannot be differentiated in forward mode; sample it with heun, churn or stochastic_heun, "
                f"which need no derivative, or build it of plain operations, as fewstep.nets is ({error})"
            ) from error
        raise
    return value, derivative


def second_derivative(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """d^2 f / dx^2 [v, v], by nested forward mode."""
    # Without gradients PyTorch takes fused derivatives (of silu, say) that have no derivative of their own.
    with torch.enable_grad():
        return dual(lambda u: dual(f, (u,), (v,))[1], (x,), (v,))[1].detach()


def laplace(f: Callable[[Tensor], Tensor], x: Tensor, method: Laplacian, noise: Noise) -> Tensor | float:
    """The Laplacian of each component of `f`, per sample of the batch.

    exact: one nested evaluation per element of a sample, for tests. hutchinson: one, with random signs v, as
    E d^2 f [v, v] = Lap f; its error has mean zero and keeps the orders. none: 0, which leaves order 1.
    """
    if method == "none":
        return 0.0
    if method == "hutchinson":
        return second_derivative(f, x, noise(x).sign())
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, *x.shape[1:])
    return torch.stack([second_derivative(f, x, v.expand_as(x)) for v in basis]).sum(0)


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}")


@torch.no_grad()
def ito_taylor(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    kappa: Kappa = 1.0,
    laplacian: Laplacian = "identity",
    noise_pair: NoisePair = "exact",
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Second-order Ito-Taylor sampler of the diffusion of `sde`: strong order 1.5, weak order 2.

    kappa: 0 for the ODE, 1 for the reverse SDE, or a function of sigma. laplacian: `identity` is exact for a true
    denoiser; `hutchinson` estimates that of the network, `exact` computes it, `none` leaves it out (first order, as
    control). noise_pair: `exact` draws I_g and I_z, `simplified` draws I_g and projects I_z on it (weak order 2, strong
    1).

    Cost of a step: one dual evaluation at kappa = 1 with the identity, else a plain and a dual one, plus nested ones
    for `hutchinson` and `exact`. The last step is x = D. Each step draws I_g, then I_z, then the signs of `hutchinson`.
    The orders hold where h / sigma is small; take rho >= 3. Guidance belongs inside `denoise`.
    """
    check_choice("laplacian", laplacian, Laplacian)
    check_choice("noise_pair", noise_pair, NoisePair)
    check_differentiable(denoise)
    for sigma, sigma_next in steps(sigmas, distinct=True):
        if sigma_next == 0:
            yield denoise(x, sigma)
            return
        h = sigma - sigma_next
        k, k_slope = rate(kappa, sigma), torch.zeros_like(sigma)
        if callable(kappa):
            _, k_slope = dual(partial(rate, kappa), (sigma,), (torch.ones_like(sigma),))
        I_g, I_z = diffusion_moments(kappa, sigma, sigma_next).draw(x, noise, exact=noise_pair == "exact")
        # h^2 / 2 times the weights of (dD/dx) F and of D_sigma in the drift's own derivative
        along = h**2 / 2 * (1 - k if laplacian == "identity" else 1 + k)
        across = h**2 / 2 * (1 - k if laplacian == "identity" else torch.ones_like(k))
        if along == 0:
            x0, curvature = dual(lambda u, level=sigma: denoise(u, level), (x,), (I_z,))
            F = (x - x0) / sigma
        else:
            F = slope(denoise, x, sigma)
            _, curvature = dual(denoise, (x, sigma), (I_z - along * F, -across))
        drift = -(1 + k) * h * F + h**2 / 2 * (k_slope + k * (1 + k) / sigma) * F
        new = x + drift + I_g + (1 + k) / sigma * (curvature - I_z)
        if laplacian != "identity" and k > 0:
            lap = laplace(lambda u, level=sigma: denoise(u, level), x, laplacian, noise)
            new = new + h**2 / 2 * k * (1 + k) * lap
        yield (x := new)


@torch.no_grad()
def taylor2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Second-order Taylor sampler of the probability-flow ODE, with EDM's churn if S_churn > 0 (see `churn`).

    x+ = x + h F - h^2 / (2 sigma) d/ds D(x + s F; sigma + s), h = sigma_next - sigma. One plain and one dual evaluation
    a step. Raising the level and solving the ODE both carry the marginals exactly, so with any churn their error is the
    ODE's.
    """
    check_differentiable(denoise)
    n = len(sigmas) - 1
    for sigma, sigma_next in steps(sigmas):
        if S_churn:
            raised = sigma * (1 + churn_factor(sigma, n, S_churn, S_min, S_max))
            sigma, x = raised, lift(x, sigma, raised, noise, S_noise)
        h, F = sigma_next - sigma, slope(denoise, x, sigma)
        new = x + h * F
        if sigma_next > 0:
            _, curvature = dual(denoise, (x, sigma), (F, torch.ones_like(sigma)))
            new = new - h**2 / (2 * sigma) * curvature
        yield (x := new)


@torch.no_grad()
def ito_taylor_sde(
    drift: Callable[[Tensor, Tensor], Tensor],
    diffusion: Callable[[Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    *,
    laplacian: Literal["exact", "hutchinson", "none"] = "exact",
    noise_pair: NoisePair = "exact",
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """The Ito-Taylor scheme for any dx = f(x, t) dt + g(t) dW with a scalar g, on increasing `times` (n + 1,).

    drift: f, called with x (B, ...) and t (), differentiable in both. diffusion: g, called with t (). Yields x at each
    next time. The other options are those of `ito_taylor`.
    """
    check_choice("laplacian", laplacian, Literal["exact", "hutchinson", "none"])
    check_choice("noise_pair", noise_pair, NoisePair)
    values: list[float] = times.flatten().tolist()
    if times.ndim != 1 or len(values) < 2 or not all(a < b for a, b in pairwise(values)):
        raise ValueError(f"times must be (n + 1,) with n >= 1 and increase; got {values}")
    for t, t_next in pairwise(times.unbind()):
        h = t_next - t
        moments = noise_moments(lambda s, start=t: diffusion(start + s) ** 2, h)
        I_g, I_z = moments.draw(x, noise, exact=noise_pair == "exact")
        f = drift(x, t)
        _, curvature = dual(drift, (x, t), (I_z + h**2 / 2 * f, h**2 / 2))
        lap = laplace(lambda u, start=t: drift(u, start), x, laplacian, noise)
        yield (x := x + h * f + I_g + curvature + h**2 / 4 * diffusion(t) ** 2 * lap)


def second_order_options(
    *,
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    randn_like: Literal["db", "ddb"] = "db",
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> tuple[Sampler, Tensor]:
    """The sampler and the noise levels for the options of the 2nd-SED solver's command line.

    randn_like: `ddb` draws the exact noise pair, `db` the simplified one. With S_churn > 0 it is the churned `taylor2`,
    in the range of S_min and S_max, which mean nothing otherwise; else `ito_taylor` at kappa = 1. The schemes are the
    correct ones of second order; that solver's own branch of second order was never reached.
    """
    check_choice("randn_like", randn_like, Literal["db", "ddb"])
    sigmas = karras_sigmas(steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    if S_churn > 0:
        return partial(taylor2, S_churn=S_churn, S_min=S_min, S_max=S_max, S_noise=S_noise), sigmas
    return partial(ito_taylor, noise_pair="exact" if randn_like == "ddb" else "simplified"), sigmas
