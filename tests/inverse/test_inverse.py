"""Inverse solvers against exact posteriors: Gaussian priors without sampling error, mixtures with; and their laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import inverse
from fewstep.core.noise import karras_sigmas
from fewstep.core.oracle import GaussianDenoiser, MixtureDenoiser
from fewstep.inverse import BALANCED, Likelihood, balanced_sigmas, pnp_gd, published_sigmas
from fewstep.inverse.pnp_gd import PUBLISHED
from fewstep.samplers import counted, last
from tests.linear import F64, Impulses, affine, generative, matrix, moments

FIRST = inverse.Inpainting(torch.tensor([[1.0, 0.0]]), (1, 1, 2))
ONE = torch.ones(1, 1, 2, dtype=F64)


def pair(correlation: float) -> GaussianDenoiser:
    """Two pixels of unit deviation."""
    c = correlation
    return GaussianDenoiser(torch.zeros(1, 1, 2, dtype=F64), torch.tensor([[1, c], [c, 1]], dtype=F64))


def errors(sigmas: Tensor, correlation: float, sigma_y: float, **options: Any) -> tuple[float, float]:
    """The largest error of the mean and of the covariance, where the first pixel was measured as 1."""
    prior = pair(correlation)
    mean, covariance = moments(pnp_gd, prior, FIRST, ONE, sigma_y, sigmas, **options)
    exact = prior.posterior(matrix(FIRST)[:1], torch.ones(1, dtype=F64), sigma_y).moments()
    return (mean - exact[0].flatten()).abs().max().item(), (covariance - exact[1]).abs().max().item()


TOYS = [(c, sigma_y) for c in (0.3, 0.6, 0.8, 0.95) for sigma_y in (0.05, 0.2, 0.5)]
TIGHT: dict[str, Any] = {"coupling": BALANCED.coupling, "persistence": BALANCED.persistence}


def test_errors_of_the_published_annealing_fall_with_its_levels() -> None:
    """As n^(-4/5): with sigma ~ j^2 / n^2 at the j-th level from the end, the chain last moves where sum sigma^2 ~ 1."""
    found = [errors(published_sigmas(n), 0.8, 0.2) for n in (50, 100, 200)]
    assert found[0][0] > 0.2
    for few, more in pairwise(found):
        for a, b in zip(few, more, strict=True):
            assert 1.5 < a / b < 2**0.8 + 0.02


def test_balanced_levels_and_tight_coupling_are_nearly_unbiased_in_49_calls() -> None:
    for correlation, sigma_y in TOYS:
        sigmas = BALANCED.sigmas(49, sigma_y)
        mean, covariance = errors(sigmas, correlation, sigma_y, **TIGHT)
        assert len(sigmas) == 50 and mean < 0.03 and covariance < 0.02
        published = errors(published_sigmas(50), correlation, sigma_y)
        assert mean < published[0] / 4 and covariance < published[1]


def test_the_levels_alone_help_and_the_coupling_and_the_persistence_each_help_more() -> None:
    """For operators without a decomposition there are the levels alone."""
    sigmas = balanced_sigmas(49, sigma_min=0.02)
    options: list[dict[str, Any]] = [{}, {"coupling": "tight"}, {"coupling": "tight", "persistence": 0.5}]
    found = [max(errors(sigmas, c, s, **kind)[0] for c, s in TOYS) for kind in options]
    assert 0.05 > found[0] > found[1] > found[2]


@pytest.mark.parametrize("persistence", [0.0, 0.5, 0.9])
def test_tight_coupling_at_the_noise_of_the_measurement_has_no_bias(persistence: float) -> None:
    """A chain at one level converges to the posterior itself; with split coupling to that of a noisier measurement."""
    sigmas = torch.cat([torch.full((120,), 0.4, dtype=F64), torch.zeros(1, dtype=F64)])
    tight = errors(sigmas, 0.8, 0.4, coupling="tight", persistence=persistence)
    assert max(tight) < 1e-6
    split = errors(sigmas, 0.8, 0.4, persistence=persistence)
    assert split[0] > 0.05
    noisier = pair(0.8).posterior(matrix(FIRST)[:1], torch.ones(1, dtype=F64), math.hypot(0.4, 0.4)).moments()
    mean, covariance = moments(pnp_gd, pair(0.8), FIRST, ONE, 0.4, sigmas, persistence=persistence)
    torch.testing.assert_close(mean, noisier[0].flatten(), atol=1e-6, rtol=0)
    torch.testing.assert_close(covariance, noisier[1], atol=1e-6, rtol=0)


OPERATORS = {
    "blur": inverse.CircularBlur(inverse.gaussian_kernel(0.5), (1, 6, 6)),
    "resampling": inverse.super_resolution((1, 6, 6), 2, "average"),
    "random": inverse.Inpainting(inverse.random_mask(6, 6, 0.5), (1, 6, 6)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_smooth_gaussian_image(name: str) -> None:
    """36 pixels with correlations exp(-distance^2 / 8): root mean square error of the mean, published and balanced."""
    place = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)).double()
    covariance = 0.25 * torch.exp(-(torch.cdist(place, place) ** 2) / 8) + 1e-3 * torch.eye(36).double()
    prior, op = GaussianDenoiser(torch.zeros(1, 6, 6, dtype=F64), covariance), OPERATORS[name]
    y = op(prior.sample(1, generator=torch.Generator().manual_seed(0)))[0]
    exact = prior.posterior(matrix(op), y.flatten(), 0.05).moments()[0].flatten()

    def error(sigmas: Tensor, **options: Any) -> float:
        mean = partial(GaussianDenoiser.forward, prior)  # without noise every draw is its mean
        likelihood = Likelihood(op, y[None], 0.05, options.pop("coupling", "split"))
        x = torch.zeros(1, 1, 6, 6, dtype=F64)
        found = last(pnp_gd(mean, likelihood, x, sigmas, noise=torch.zeros_like, **options))
        return (found.flatten() - exact).square().mean().sqrt().item()

    published, balanced = error(published_sigmas(50)), error(BALANCED.sigmas(49, 0.05), **TIGHT)
    assert balanced < 0.03 and balanced < published / 2


def test_mixture_posterior() -> None:
    """Two modes that the measurement decides between, and correlations: moments of 12,000 samples, 49 calls."""
    torch.manual_seed(0)
    means = torch.tensor([[-0.6, -0.5], [0.6, 0.7]], dtype=F64).view(2, 1, 1, 2)
    covariances = torch.tensor([[[0.3, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]], dtype=F64)
    prior = MixtureDenoiser(torch.tensor([0.5, 0.5], dtype=F64), means, covariances)
    n, sigma_y = 12_000, 0.2
    exact = prior.posterior(matrix(FIRST)[:1], torch.tensor([0.3], dtype=F64), sigma_y).moments()
    y = 0.3 * ONE.expand(n, 1, 1, 2)

    def error(sigmas: Tensor, coupling: Any, persistence: float) -> tuple[float, float]:
        likelihood = Likelihood(FIRST, y, sigma_y, coupling)
        x = sigmas[0] * torch.randn(n, 1, 1, 2, dtype=F64)
        denoise = counted(generative(prior, torch.randn_like))
        samples = last(pnp_gd(denoise, likelihood, x, sigmas, persistence=persistence)).flatten(1)
        assert denoise.nfe == 49
        gap = samples.mean(0) - exact[0].flatten()
        return gap.abs().max().item(), (samples.T.cov() - exact[1]).abs().max().item()

    published = error(published_sigmas(50), "split", 0.0)
    balanced = error(BALANCED.sigmas(49, sigma_y), BALANCED.coupling, BALANCED.persistence)
    assert balanced[0] < 0.03 and balanced[1] < 0.02
    assert published[0] > 2 * balanced[0]


def test_published_levels_and_presets() -> None:
    sigmas = published_sigmas(50)
    expected = {0: 80.0, 1: 76.78, 10: 50.8, 20: 28.2, 30: 12.2, 40: 2.82, 45: 0.595, 48: 0.0512, 49: 0.0}
    for k, value in expected.items():
        assert float(sigmas[k]) == pytest.approx(value, rel=2e-3), k
    assert len(sigmas) == 50
    assert PUBLISHED["box_inpainting"].beta == 1e-4 and PUBLISHED["box_inpainting"].ema_decay == 0.2
    likelihood = Likelihood(FIRST, ONE[None], 0.05)
    assert likelihood.measured(1e-4).sigma_y == pytest.approx(0.00707, abs=1e-5)
    assert likelihood.measured(None) is likelihood
    torch.testing.assert_close(PUBLISHED["box_inpainting"].sigmas(49, 0.05), sigmas)


def test_balanced_levels() -> None:
    sigmas = balanced_sigmas(49, sigma_min=0.05)
    assert len(sigmas) == 50 and float(sigmas[0]) == pytest.approx(5) and float(sigmas[-2]) == pytest.approx(0.05)
    inverse_levels = 1 / sigmas[:46]
    torch.testing.assert_close(inverse_levels.diff(), inverse_levels.diff()[:1].expand(45))
    assert float(sigmas[45]) == pytest.approx(0.1)
    for n, sigma_min in ((1, 0.5), (2, 0.05), (15, 0.02), (16, 0.02), (200, 0.05)):
        some = balanced_sigmas(n, sigma_min=sigma_min)
        assert len(some) == n + 1 and bool((some.diff() < 0).all())
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        balanced_sigmas(10, sigma_min=6)


def test_the_average_is_reported_and_the_chain_goes_on_without_it() -> None:
    states, sigmas = [torch.tensor(v) for v in (1.0, 2.0, 4.0, 8.0)], torch.tensor([3.0, 1.0, 0.5, 0.1, 0.0])
    assert [float(m) for m in inverse.averaged(states, sigmas, below=100, decay=0.25)] == [1.0, 1.75, 3.4375, 6.859375]
    assert [float(m) for m in inverse.averaged(states, sigmas, below=0.6, decay=0.25)] == [1.0, 2.0, 3.5, 6.875]


@pytest.mark.parametrize(("n", "tolerance"), [(4, 0.3), (8, 0.2), (32, 0.02)])
def test_an_ordinary_denoiser_draws_by_its_reverse_diffusion(n: int, tolerance: float) -> None:
    prior = pair(0.7)
    for sigma in torch.tensor([0.2, 0.9], dtype=F64):
        noise = Impulses((2,) * n)
        u = torch.tensor([0.4, -1.0], dtype=F64).view(1, 1, 1, 2).expand(noise.rows, 1, 1, 2)
        denoise = counted(prior)
        mean, covariance = affine(inverse.draw_by_sde(denoise, n, noise=noise)(u, sigma))
        assert denoise.nfe == n
        exact = torch.linalg.inv(torch.linalg.inv(prior.moments()[1]) + torch.eye(2).double() / sigma**2)
        torch.testing.assert_close(mean, prior(u[:1], sigma).flatten(), atol=tolerance / 10, rtol=0)
        torch.testing.assert_close(covariance, exact, atol=tolerance * float(exact.max()), rtol=0)


SOLVERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "pnp_gd": (pnp_gd, lambda prior: generative(prior, torch.randn_like)),
    "pnp_gd by a teacher": (pnp_gd, lambda prior: inverse.draw_by_sde(prior, 4)),
    "daps": (inverse.daps, lambda prior: inverse.estimate_by_ode(prior, 3)),
    "dps": (partial(inverse.dps, weight=0.3), lambda prior: prior),
    "diffpir": (partial(inverse.diffpir, trust=1.0), lambda prior: prior),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_the_mode_that_was_measured(name: str) -> None:
    """Modes at (-1, -1) and (1, 1): the first pixel was measured, the second follows."""
    torch.manual_seed(0)
    means = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=F64).view(2, 1, 1, 2)
    prior = MixtureDenoiser(torch.ones(2, dtype=F64), means, torch.full((2,), 0.01, dtype=F64))
    y = torch.tensor([1.0, 0.0], dtype=F64).view(1, 1, 1, 2) * torch.tensor([1.0, -1.0] * 32).view(-1, 1, 1, 1)
    solver, bind = SOLVERS[name]
    sigmas = karras_sigmas(49)
    x = sigmas[0] * torch.randn(64, 1, 1, 2, dtype=F64)
    *_, found = solver(bind(prior), Likelihood(FIRST, y, 0.05), x, sigmas)
    exact = name.startswith("pnp_gd") or name == "daps"  # the others push, and some images end between the modes
    assert ((found[..., 1] - y[..., 0]).abs() < 0.4).double().mean() > (0.95 if exact else 0.8)
    assert ((found[..., 0] - y[..., 0]).abs() < 0.4).double().mean() > 0.95


def test_daps_draws_around_its_estimate() -> None:
    """One step: N(u; D(x), r^2) p(y | u), with r = radius sigma s / hypot(sigma, s)."""
    full = inverse.Inpainting(torch.ones(1, 2), (1, 1, 2))
    prior, noise = pair(0.0), Impulses((2,))
    x = torch.full((noise.rows, 1, 1, 2), 2.0, dtype=F64)
    likelihood = Likelihood(full, 3 * ONE.expand(noise.rows, 1, 1, 2), 0.4)
    (found,) = inverse.daps(prior, likelihood, x, torch.tensor([1.0, 0.0]).double(), radius=0.8, noise=noise)
    mean, covariance = affine(found)
    r = 0.8 * 0.5 / math.hypot(1, 0.5)
    precision = 1 / r**2 + 1 / 0.4**2
    assert mean.tolist() == pytest.approx([(1 / r**2 + 3 / 0.4**2) / precision] * 2)
    torch.testing.assert_close(covariance, torch.eye(2).double() / precision)


def test_diffpir_solves_its_proximal_problem() -> None:
    """One step: argmin |u - y|^2 / (2 sigma_y^2) + trust |u - D|^2 / (2 sigma^2)."""
    prior, full = pair(0.0), inverse.Inpainting(torch.ones(1, 2), (1, 1, 2))
    x = torch.full((1, 1, 1, 2), 2.0, dtype=F64)
    likelihood = Likelihood(full, ONE[None], 0.5)
    (found,) = inverse.diffpir(prior, likelihood, x, torch.tensor([1.0, 0.0], dtype=F64), trust=3.0)
    assert found.flatten().tolist() == pytest.approx([(1 / 0.25 + 3 * 1.0) / (1 / 0.25 + 3)] * 2)
    away = Likelihood(full, 3 * ONE[None], 0.5)
    (found,) = inverse.diffpir(prior, away, x, torch.tensor([1.0, 0.0], dtype=F64), trust=3.0)
    assert found.flatten().tolist() == pytest.approx([(3 / 0.25 + 3 * 1.0) / (1 / 0.25 + 3)] * 2)


def test_dps_steps_down_the_norm_of_the_gap() -> None:
    """D = x / 2 at sigma = 1: the gradient of |x1 / 2 - y| is its sign over 2, times sqrt((1 + 1) (1 + 0))."""
    likelihood = Likelihood(FIRST, 3 * ONE[None], 0.1)
    x = torch.full((1, 1, 1, 2), 2.0, dtype=F64)
    (found,) = inverse.dps(pair(0.0), likelihood, x, torch.tensor([1.0, 0.0], dtype=F64), weight=0.3)
    assert found.flatten().tolist() == pytest.approx([1.0 + 0.3 * 2**0.5 * 0.5, 1.0])
    exact = Likelihood(FIRST, ONE[None], 0.1)
    (found,) = inverse.dps(pair(0.0), exact, x, torch.tensor([1.0, 0.0], dtype=F64), weight=0.3)
    assert found.flatten().tolist() == [1.0, 1.0]  # no step where there is no gap


def test_refusals() -> None:
    with pytest.raises(ValueError, match="persistence must lie"):
        next(pnp_gd(pair(0), Likelihood(FIRST, ONE[None], 0.1), ONE[None], balanced_sigmas(5), persistence=1.0))
    unknown = inverse.LinearFunction(lambda x: x, (1, 1, 2))
    with pytest.raises(ValueError, match="persistent noise needs"):
        list(pnp_gd(pair(0), Likelihood(unknown, ONE[None], 0.1), ONE[None], balanced_sigmas(5), persistence=0.5))
