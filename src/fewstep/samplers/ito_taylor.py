"""Samplers of second order by forward-mode differentiation: Taylor for the ODE, Ito-Taylor for the SDEs of `sde`.

With J = dD/dx, the diffusions of `sde` are linear in x but for D. On the way from sigma down to sigma+, and with
phi(s) = exp(-int_{sigma+}^s (1 + kappa) / u du), the part of x at level s that is left at sigma+, they are solved by
    x+ = phi x - int phi'(s) D_s ds + int phi g dW                                  (phi without argument: at sigma).
D_s along the path follows from Ito's formula, and the heat equation says for a true denoiser
    sigma Lap D = D_sigma + 2 J F,
so that dD = L D d(tau) + J g dW with L D = -(1 - kappa) (D_sigma + J F): no second derivative is left, and at kappa = 1
D is a martingale. To strong order 1.5 and weak order 2 (Kloeden & Platen, 1992, section 10.4) this is
    x+ = phi x + (1 - phi) D + N_1 + J N_2 + c L D
with Gaussians N_1 = int phi g dW and N_2 = int q g dW drawn from their joint law: one directional derivative of the
network, which forward mode gives together with the value. At kappa = 1 a step is one dual evaluation, and
phi = (sigma+ / sigma)^2. How J and L D change over a step does not matter to the orders; `expansion` takes the change
from Gaussian data, for which every step of any size is then exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from fewstep.core.denoiser import Preconditioned
from fewstep.core.noise import Denoise, Noise
from fewstep.runtime.autodiff import forward_derivatives
from fewstep.samplers.contract import steps, unwrapped
from fewstep.samplers.edm import churn_factor, lift, slope
from fewstep.samplers.sde import Kappa, NoiseMoments, noise_moments, rate

Laplacian = Literal["identity", "hutchinson", "exact", "none"]
NoisePair = Literal["exact", "simplified"]


def check_differentiable(denoise: Denoise) -> None:
    """Raise ValueError for a network that rounds sigma, as its derivative in sigma is meaningless.

    The samplers look through `functools.partial` and `counted`; call it yourself on a network inside a closure.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.

    Raises:
        ValueError: the preconditioning of the network rounds noise levels to a grid.

    Example:
        >>> fs.samplers.check_differentiable(model)
    """
    inner = unwrapped(denoise)
    if isinstance(inner, Preconditioned):
        probe = torch.tensor([0.0123, 0.789, 45.6], dtype=torch.float64)
        if (inner.precondition.round(probe) != probe).any():
            raise ValueError(
                f"{type(inner.precondition).__name__} rounds noise levels to a grid, so that the network has no "
                "derivative in sigma; sample it with heun, churn or stochastic_heun, which need none"
            )


def dual(f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the value of `f` and its derivative in the direction of `tangents`, by one forward-mode evaluation."""
    try:
        with forward_derivatives():
            # cloned, since dual numbers cannot be made of tensors with overlapping memory (`expand`)
            cloned = (tuple(t.clone() for t in each) for each in (primals, tangents))
            value, derivative = torch.func.jvp(f, *cloned)[:2]
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) or "forward" in str(error).lower() or "jvp" in str(error).lower():
            raise ValueError(
                "this network cannot be differentiated in forward mode; sample it with heun, churn or stochastic_heun, "
                "which need no derivative, or build it of plain operations, as fewstep.nets is "
                f"({str(error).splitlines()[0]})"
            ) from error
        raise
    return value, derivative


def second_derivative(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Return d^2 f / dx^2 [v, v], by nested forward mode."""
    # Without gradients PyTorch takes fused derivatives (of silu, say) that have no derivative of their own.
    with torch.enable_grad():
        return dual(lambda u: dual(f, (u,), (v,))[1], (x,), (v,))[1].detach()


def laplace(f: Callable[[Tensor], Tensor], x: Tensor, method: Laplacian, noise: Noise) -> Tensor | float:
    """Return the Laplacian of each component of `f`, per sample of the batch.

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


NODES, WEIGHTS = legendre.leggauss(16)
PRIMITIVE = np.stack([legendre.legval(NODES, legendre.legint(row, lbnd=-1)) for row in np.eye(16)], axis=1)
CUMULATIVE = PRIMITIVE @ np.linalg.inv(legendre.legvander(NODES, 15))
"""Quadrature on [-1, 1]: `WEIGHTS` integrate over it, row i of `CUMULATIVE` from -1 up to node i."""


class Expansion(NamedTuple):
    """The coefficients of a step: phi, c, and the moments of (N_1, N_2) per pixel."""

    decay: Tensor
    drift: Tensor
    noise: NoiseMoments


def expansion(kappa: Kappa, sigma: Tensor, sigma_next: Tensor, sigma_data: float) -> Expansion:
    """The step from `sigma` to `sigma_next` > 0.

    For data N(mu, sigma_data^2 I), and kappa frozen at k where it multiplies L D, with p = (1 - k) / 2,
    R(s) = (sigma_data^2 + sigma^2) / (sigma_data^2 + s^2) and a noise increment at level v, the paths of D are
        D_s = D + m(s) L D + J int_s^sigma R(v) (R(s) / R(v))^p g dW_v,
        m(s) = (sigma_data^2 + sigma^2) / (2 sigma) (R(s)^p - 1) / p,
    whence c = -int phi' m ds and q(v) = -R(v)^(1 - p) int_{sigma+}^v phi' R^p ds; at kappa = 1, q = (1 - phi) R. All by
    Gauss quadrature in ln(sigma).
    """
    nodes, weights, cumulative = (
        torch.tensor(values, dtype=sigma.dtype, device=sigma.device) for values in (NODES, WEIGHTS, CUMULATIVE)
    )
    half = (sigma / sigma_next).log() / 2
    s = sigma_next * (half * (1 + nodes)).exp()
    k = torch.stack([rate(kappa, level) for level in s])
    phi = (-half * cumulative @ (1 + k)).exp()
    fall = half * (1 + k) * phi  # -d(phi), in units of the nodes
    log_R = ((sigma_data**2 + sigma**2) / (sigma_data**2 + s**2)).log()
    p = (1 - rate(kappa, sigma)) / 2
    m = (sigma_data**2 + sigma**2) / (2 * sigma) * ((p * log_R).expm1() / p if p != 0 else log_R)
    q = ((1 - p) * log_R).exp() * (cumulative @ (fall * (p * log_R).exp()))
    variance = half * weights * 2 * k * s**2  # of g dW; ds = s d(ln s)
    moments = NoiseMoments((variance * phi**2).sum(), (variance * phi * q).sum(), (variance * q**2).sum())
    return Expansion((-half * weights @ (1 + k)).exp(), weights @ (fall * m), moments)


@torch.no_grad()
def ito_taylor(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    kappa: Kappa = 1.0,
    laplacian: Laplacian = "identity",
    noise_pair: NoisePair = "exact",
    sigma_data: float = 0.5,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Second-order Ito-Taylor sampler of the diffusion of `sde`: strong order 1.5, weak order 2.

    x+ = phi x + (1 - phi) D + N_1 + J N_2 + c L D, derived at the top of this module from Kloeden & Platen (1992, section 10.4)
    and the heat equation sigma Lap D = D_sigma + 2 J F. The last step is x = D.

    A step costs one dual evaluation at kappa = 1 with the identity, else a plain and a dual one, plus nested ones for
    `hutchinson` and `exact`. It draws N_1, then N_2, then the signs of `hutchinson`. Apply guidance inside `denoise`.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`, differentiable in forward mode.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: distinct noise levels (n + 1,) that decrease to 0.
        kappa: stochasticity: 0 for the ODE, 1 for the reverse SDE, or a function of sigma.
        laplacian: "identity" is exact for a true denoiser; "hutchinson" estimates the Laplacian of the network, "exact" computes
            it, "none" leaves it out (first order, as control).
        noise_pair: "exact" draws N_1 and N_2; "simplified" draws N_1 and projects N_2 on it (weak order 2, strong order 1).
        sigma_data: standard deviation of the data, as in EDM. Steps are exact for Gaussian data that has it; the orders do not
            depend on it.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: a choice is unknown, `sigma_data` is not positive, `kappa` is negative, the levels do not decrease to 0 or two
            are equal, or the network has no derivative.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.ito_taylor(denoise, sigmas[0] * z, sigmas, kappa=1.0))
    """
    check_choice("laplacian", laplacian, Laplacian)
    check_choice("noise_pair", noise_pair, NoisePair)
    if sigma_data <= 0:
        raise ValueError(f"sigma_data must be positive (EDM: 0.5); got {sigma_data}")
    check_differentiable(denoise)
    for sigma, sigma_next in steps(sigmas, distinct=True):
        if sigma_next == 0:
            yield denoise(x, sigma)
            return
        k = rate(kappa, sigma)
        decay, c, moments = expansion(kappa, sigma, sigma_next, sigma_data)
        N_1, N_2 = moments.draw(x, noise, exact=noise_pair == "exact")
        # the weights of J F and of D_sigma in L D
        along, across = (1 - k, 1 - k) if laplacian == "identity" else (1 + k, torch.ones_like(k))
        if along == 0:
            x0, response = dual(lambda u, level=sigma: denoise(u, level), (x,), (N_2,))
        else:
            x0 = denoise(x, sigma)
            _, response = dual(denoise, (x, sigma), (N_2 - c * along * (x - x0) / sigma, -c * across))
        new = decay * x + (1 - decay) * x0 + N_1 + response
        if laplacian != "identity" and k > 0:
            new = new + c * k * sigma * laplace(lambda u, level=sigma: denoise(u, level), x, laplacian, noise)
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

    With h = sigma_next - sigma and F = (x - D) / sigma,
    x+ = x + h F - h^2 / (2 sigma) d/ds D(x + s F; sigma + s) at s = 0. A step costs one plain and one dual evaluation. Raising
    the level and solving the ODE both carry the marginals exactly, so that with any churn their error is the ODE's.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`, differentiable in forward mode.
        x: noisy images (B, ...) at `sigmas[0]`.
        sigmas: noise levels (n + 1,) that decrease to 0.
        S_churn: amount of fresh noise over the whole schedule.
        S_min: lowest level at which noise is added.
        S_max: highest level at which noise is added.
        S_noise: standard deviation of the noise.
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) at each next level, the last one at sigma = 0.

    Raises:
        ValueError: the levels do not decrease to 0, `S_churn` is negative, or the network has no derivative.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.taylor2(denoise, sigmas[0] * z, sigmas))
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
    """The Ito-Taylor scheme for any dx = f(x, t) dt + g(t) dW with a scalar g, forward in time.

    x+ = x + h f + I_g + (df/dx) I_z + h^2 / 2 (f_t + (df/dx) f + g^2 / 2 Lap f), with I_g = int g dW and
    I_z = int_0^h (int_0^s g dW) ds: the scheme of strong order 1.5 of Kloeden & Platen (1992, section 10.4).

    Args:
        drift: f, called with x (B, ...) and t (), differentiable in both.
        diffusion: g, called with t ().
        x: the state (B, ...) at `times[0]`.
        times: increasing times (n + 1,).
        laplacian: "exact" computes the Laplacian, "hutchinson" estimates it, "none" leaves it out (first order).
        noise_pair: "exact" draws I_g and I_z; "simplified" draws I_g and projects I_z on it (weak order 2, strong order 1).
        noise: draws unit Gaussian noise like its argument.

    Yields:
        The state (B, ...) at each next time.

    Raises:
        ValueError: a choice is unknown, the times do not increase, or the drift has no derivative.

    Example:
        >>> times = torch.linspace(0, 1, 11)
        >>> decay = fs.samplers.ito_taylor_sde(lambda x, t: -x, torch.ones_like, torch.randn(4, 2), times)
        >>> x = fs.samplers.last(decay)
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
