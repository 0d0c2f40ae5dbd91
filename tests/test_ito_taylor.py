"""Ito-Taylor samplers: noise pairs, the heat identity, strong and weak orders on common paths, marginals, refusals."""

import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.denoiser import Denoiser, guided
from fewstep.noise import karras_sigmas
from fewstep.oracle import MixtureDenoiser
from fewstep.precondition import IDDPM
from fewstep.samplers import (
    Sampler,
    check_differentiable,
    counted,
    euler_maruyama,
    ito_taylor,
    ito_taylor_sde,
    last,
    second_order_options,
    taylor2,
)
from fewstep.samplers.ito_taylor import laplace
from fewstep.samplers.sde import diffusion_moments
from tests.convergence import Paths, anisotropic, expectation, f64, geometric, law, on_a_line, slope


def growing(kappa: float) -> Callable[[Tensor], Tensor]:
    """A stochasticity that depends on the level."""
    return lambda sigma: kappa * sigma / (1 + sigma)


def test_moments_of_the_noise_pair() -> None:
    for kappa in (1.0, 0.3):
        moments = diffusion_moments(kappa, f64(2.0), f64(1.4))
        V, C, Z = moments
        torch.testing.assert_close(f64([[V, C], [C, Z]]), law(kappa, 2.0, 1.4), atol=1e-14, rtol=1e-13)
    V, C, Z = diffusion_moments(growing(0.7), f64(2.0), f64(1.4))
    s = 2.0 - (torch.arange(20000, dtype=torch.float64) + 0.5) * 0.6 / 20000
    density = 2 * 0.7 * s**2 / (1 + s) * 0.6 / 20000
    expected = [density.sum(), (density * (s - 1.4)).sum(), (density * (s - 1.4) ** 2).sum()]
    torch.testing.assert_close(f64([V, C, Z]), torch.stack(expected), atol=1e-9, rtol=1e-8)


def test_drawn_pairs_have_these_moments() -> None:
    moments = diffusion_moments(0.8, f64(1.0), f64(0.2))
    sources = iter(torch.eye(2, dtype=torch.float64)[:, :, None])  # each element of the batch carries one source
    g, z = moments.draw(torch.zeros(2, 1, dtype=torch.float64), lambda x: next(sources), exact=True)
    pair = torch.stack([g.flatten(), z.flatten()])
    torch.testing.assert_close(pair @ pair.T, law(0.8, 1.0, 0.2))
    g, z = moments.draw(torch.zeros(1, 1, dtype=torch.float64), torch.ones_like, exact=False)
    assert (g * z).item() == pytest.approx(law(0.8, 1.0, 0.2)[0, 1].item())


@pytest.mark.parametrize("oracle", [on_a_line(), anisotropic(2), anisotropic(8)])
def test_heat_identity(oracle: MixtureDenoiser) -> None:
    sigma = f64(0.6)
    x = oracle.sample(5, 0.6, generator=torch.Generator().manual_seed(0))
    F = (x - oracle(x, sigma)) / sigma
    _, right = torch.func.jvp(oracle, (x, sigma), (2 * F, torch.ones_like(sigma)))[:2]
    left = sigma * laplace(lambda u: oracle(u, sigma), x, "exact", torch.randn_like)
    torch.testing.assert_close(left, right, atol=1e-9, rtol=1e-9)


def test_hutchinson_is_unbiased() -> None:
    oracle, sigma = anisotropic(2), f64(0.6)
    x = oracle.sample(1, 0.6, generator=torch.Generator().manual_seed(0)).expand(4, 2)
    signs = f64([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    estimates = laplace(lambda u: oracle(u, sigma), x, "hutchinson", lambda x: 0.3 * signs)
    exact = laplace(lambda u: oracle(u, sigma), x, "exact", torch.randn_like)
    assert isinstance(estimates, Tensor)
    assert isinstance(exact, Tensor)
    torch.testing.assert_close(estimates.mean(0), exact[0])
    assert estimates.std(0).max() > 1e-3


def test_strong_order() -> None:
    torch.manual_seed(0)
    oracle, counts = on_a_line(), (8, 16, 32, 64, 128)
    x = oracle.sample(2000, 2.0).repeat(2, 1)
    paths = Paths(geometric(2.0, 0.3, 512), (2000, 1), kappa=1.0)
    truth = paths.end(ito_taylor, oracle, x, 512)
    errors = [(paths.end(ito_taylor, oracle, x, n) - truth).abs().mean().item() for n in counts]
    assert slope(errors) == pytest.approx(1.5, abs=0.1)
    # Negative control: without the Laplacian, or without I_z as in Euler-Maruyama, it is first order.
    for sampler, draws in ((partial(ito_taylor, laplacian="none"), 2), (euler_maruyama, 1)):
        first = [(paths.end(sampler, oracle, x, n, draws) - truth).abs().mean().item() for n in (16, 32, 64)]
        assert slope(first) == pytest.approx(1.0, abs=0.12)


def test_weak_order() -> None:
    oracle, counts = on_a_line(), (16, 32, 64, 128, 256)
    levels = {n: geometric(2.0, 0.3, n) for n in counts}
    exact = expectation(lambda x: np.cos(2 * x), ito_taylor, oracle, levels[16][-1:])
    for sampler, order, some in (
        (ito_taylor, 2.0, counts),
        (partial(ito_taylor, laplacian="none"), 1.0, counts[1:3]),
    ):
        errors = [abs(expectation(lambda x: np.cos(2 * x), sampler, oracle, levels[n]) - exact) for n in some]
        assert slope(errors) == pytest.approx(order, abs=0.2)


def test_strong_errors_on_uniform_steps() -> None:
    """From sigma = 2 to 0.3 at kappa = 1; Euler-Maruyama makes 1.5e-1, 7.0e-2, 3.4e-2 here."""
    torch.manual_seed(0)
    oracle = on_a_line()
    x = oracle.sample(2000, 2.0).repeat(2, 1)
    paths = Paths(torch.linspace(2.0, 0.3, 257, dtype=torch.float64), (2000, 1), kappa=1.0)
    truth = paths.end(ito_taylor, oracle, x, 256)
    for n, error in ((8, 5.1e-2), (16, 2.0e-2), (32, 7.2e-3)):
        assert (paths.end(ito_taylor, oracle, x, n) - truth).abs().mean() < 1.05 * error


@pytest.mark.parametrize("dim", [2, 8])
def test_strong_order_with_anisotropic_components(dim: int) -> None:
    torch.manual_seed(0)
    oracle = anisotropic(dim)
    x = oracle.sample(300, 2.0).repeat(2, 1)
    paths = Paths(geometric(2.0, 0.3, 256), (300, dim), kappa=1.0)
    truth = paths.end(ito_taylor, oracle, x, 256)
    errors = [(paths.end(ito_taylor, oracle, x, n) - truth).norm(dim=1).mean().item() for n in (8, 16, 32, 64)]
    assert slope(errors) == pytest.approx(1.5, abs=0.12)


@pytest.mark.parametrize("kappa", [1.0, 0.4, 2.0, growing(1.5)])
def test_exact_laplacian_identity_and_general_scheme_agree(kappa: float | Callable[[Tensor], Tensor]) -> None:
    oracle, levels = anisotropic(2), karras_sigmas(8, sigma_min=0.1, sigma_max=3)
    x = oracle.sample(4, 3.0)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        k = kappa(-t) if callable(kappa) else kappa
        return -(1 + k) * (x - oracle(x, -t)) / -t

    def diffusion(t: Tensor) -> Tensor:
        return (2 * (kappa(-t) if callable(kappa) else kappa) * -t).sqrt()

    def run(sampler: Callable, *args: object, **options: object) -> Tensor:
        g = torch.Generator().manual_seed(1)
        states = sampler(*args, **options, noise=lambda x: torch.randn(x.shape, dtype=x.dtype, generator=g))
        return torch.stack(list(islice(states, 7)))

    identity = run(ito_taylor, oracle, x, levels, kappa=kappa)
    exact = run(ito_taylor, oracle, x, levels, kappa=kappa, laplacian="exact")
    general = run(ito_taylor_sde, drift, diffusion, x, -levels[:-1])
    torch.testing.assert_close(exact, identity, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(general, identity, atol=1e-9, rtol=1e-9)


def test_general_scheme_solves_a_linear_sde_to_second_order() -> None:
    """dx = -x dt + (1 + t) dW from x(0) = 1: E x(1) = 1 / e, and the variance is a polynomial minus an exponential."""
    errors = []
    for n in (8, 16, 32, 64):
        sources = iter(torch.eye(2 * n + 1, dtype=torch.float64)[1:, :, None])
        x = torch.zeros(2 * n + 1, 1, dtype=torch.float64)
        x[0] = 1.0
        times = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        end = last(ito_taylor_sde(lambda x, t: -x, lambda t: 1 + t, x, times, noise=lambda x, s=sources: next(s)))
        mean, variance = end[0].item(), end[1:].square().sum().item()
        expected = 2.5 / 2 - 0.5 / 2 * math.exp(-2)  # int_0^1 e^(2 t - 2) (1 + t)^2 dt
        errors.append(abs(mean - math.exp(-1)) + abs(variance - expected))
    assert slope(errors) == pytest.approx(2.0, abs=0.15)


def test_marginals_over_the_full_range() -> None:
    oracle = on_a_line()
    mean, covariance = oracle.moments(0.02)
    errors = []
    for n in (20, 40):
        levels = karras_sigmas(n + 1, sigma_min=0.02, sigma_max=20)[:-1]
        errors.append(abs(expectation(np.square, ito_taylor, oracle, levels) - (covariance + mean**2).item()))
    assert errors == pytest.approx([1.045e-2, 3.60e-3], rel=0.02)


def test_samples_at_kappa_1_cost_one_dual_evaluation_a_step() -> None:
    torch.manual_seed(0)
    denoise = counted(on_a_line())
    x = last(ito_taylor(denoise, 20 * torch.randn(20_000, 1, dtype=torch.float64), karras_sigmas(41, sigma_max=20)))
    assert (denoise.nfe, denoise.jvp) == (1, 40)
    assert x.square().mean().item() == pytest.approx(0.3 * 1.04 + 0.7 * 0.73, abs=0.02)


def test_networks_can_be_sampled_and_guided(denoiser: Denoiser) -> None:
    net = denoiser.double()
    net.dtype = torch.float64
    label = torch.tensor([1, 2])
    x = 5 * torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigmas = karras_sigmas(3, sigma_min=0.1, sigma_max=5)
    denoise = guided(partial(net, label=label), net, 1.5)
    for sampler in (taylor2, ito_taylor, partial(ito_taylor, laplacian="hutchinson", kappa=0.5)):
        assert last(sampler(denoise, x, sigmas)).isfinite().all()
    sigma, e = f64(0.7), 1e-4
    _, derivative = torch.func.jvp(denoise, (x, sigma), (x, torch.ones_like(sigma)))[:2]
    with torch.no_grad():
        expected = (denoise(x + e * x, sigma + e) - denoise(x - e * x, sigma - e)) / (2 * e)
    torch.testing.assert_close(derivative, expected, atol=1e-4, rtol=1e-3)


def test_options_of_the_second_order_solver() -> None:
    sampler, sigmas = second_order_options(steps=84, rho=3.0, randn_like="ddb", S_max=5.0)
    torch.testing.assert_close(sigmas, karras_sigmas(84, rho=3), atol=0, rtol=0)
    assert isinstance(sampler, partial)
    assert (sampler.func, sampler.keywords) == (ito_taylor, {"noise_pair": "exact"})
    sampler, _ = second_order_options(randn_like="db")
    assert isinstance(sampler, partial)
    assert sampler.keywords == {"noise_pair": "simplified"}
    sampler, _ = second_order_options(S_churn=80, S_max=1, randn_like="db")
    assert isinstance(sampler, partial)
    assert (sampler.func, sampler.keywords["S_max"]) == (taylor2, 1)
    with pytest.raises(ValueError, match="randn_like must be one of db, ddb"):
        second_order_options(randn_like=cast("Any", "gauss"))


class Reverse(torch.autograd.Function):
    """An operation without a forward-mode derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


def fused(x: Tensor, sigma: Tensor) -> Tensor:
    q = x[:, None, :, None].expand(-1, 1, -1, 8).contiguous()
    return torch.nn.functional.scaled_dot_product_attention(q, q, q)[:, 0, :, 0]


@pytest.mark.parametrize("sampler", [taylor2, ito_taylor])
def test_refusals_name_the_way_out(sampler: Sampler, denoiser: Denoiser) -> None:
    sigmas, x = karras_sigmas(4), torch.ones(2, 2).double()
    rounding = Denoiser(denoiser.net, precondition=IDDPM())
    for denoise in (rounding, partial(rounding, label=None), counted(partial(rounding, label=None))):
        with pytest.raises(ValueError, match=r"rounds noise levels.*stochastic_heun"):
            last(sampler(denoise, torch.ones(2, 1, 8, 8).double(), sigmas))
    check_differentiable(denoiser)
    for blind in (lambda x, sigma: Reverse.apply(x), fused):
        with pytest.raises(ValueError, match=r"forward mode.*stochastic_heun"):
            last(sampler(blind, x, sigmas))

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        last(sampler(broken, x, sigmas))


def test_errors() -> None:
    oracle, sigmas, x = on_a_line(), karras_sigmas(4), torch.ones(2, 1).double()
    unknown: Any = "unknown"
    with pytest.raises(ValueError, match="laplacian must be one of identity"):
        last(ito_taylor(oracle, x, sigmas, laplacian=unknown))
    with pytest.raises(ValueError, match="noise_pair must be one of exact"):
        last(ito_taylor(oracle, x, sigmas, noise_pair=unknown))
    with pytest.raises(ValueError, match="kappa must be 0"):
        last(ito_taylor(oracle, x, sigmas, kappa=lambda sigma: sigma - 1))
    with pytest.raises(ValueError, match="distinct"):
        last(ito_taylor(oracle, x, f64([2.0, 1.0, 1.0, 0.0])))
    with pytest.raises(ValueError, match="times must be"):
        last(ito_taylor_sde(lambda x, t: -x, lambda t: t, x, f64([1.0, 0.5])))
    with pytest.raises(ValueError, match="laplacian must be one of exact"):
        last(ito_taylor_sde(lambda x, t: -x, torch.sqrt, x, f64([0.0, 1.0]), laplacian=unknown))
