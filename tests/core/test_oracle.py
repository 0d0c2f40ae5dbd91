"""Exact denoisers against brute force: quadrature, automatic differentiation, torch.distributions, information form."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from fewstep.core.oracle import EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def g() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def randn(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=g)


def mixture(dim: int, n: int, g: torch.Generator, classes: Tensor | None = None) -> MixtureDenoiser:
    roots = randn(n, dim, dim, g=g)
    weights = torch.arange(1, n + 1, dtype=torch.float64)
    return MixtureDenoiser(weights, randn(n, dim, g=g), roots @ roots.mT / dim, classes)


def test_mixture_is_the_posterior_mean_by_quadrature() -> None:
    weights, means = f64([0.3, 0.7]), f64([[-1.0], [0.8]])
    oracle = MixtureDenoiser(weights, means, f64([0.04, 0.09]))
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    prior = sum(w * torch.exp(-((grid - m) ** 2) / (2 * v)) / v**0.5 for w, m, v in ((0.3, -1, 0.04), (0.7, 0.8, 0.09)))
    x = f64([-1.3, 0.1, 0.9, 2.0])
    for sigma in (0.05, 0.4, 3.0):
        likelihood = torch.exp(-((x[:, None] - grid) ** 2) / (2 * sigma**2))
        expected = (likelihood * prior * grid).sum(1) / (likelihood * prior).sum(1)
        torch.testing.assert_close(oracle(x[:, None], sigma)[:, 0], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dim", [2, 8])
def test_density_and_score_of_a_mixture(dim: int, g: torch.Generator) -> None:
    oracle, sigma = mixture(dim, 3, g), f64([0.1, 0.7, 5.0])
    x = randn(3, dim, g=g).requires_grad_()
    for i in range(3):
        noisy = oracle.covariances() + sigma[i] ** 2 * torch.eye(dim)
        parts = MultivariateNormal(oracle.means, noisy)
        expected = MixtureSameFamily(Categorical(f64([1.0, 2.0, 3.0])), parts).log_prob(x)[i]
        torch.testing.assert_close(oracle.log_density(x, sigma)[i], expected)
    (gradient,) = torch.autograd.grad(oracle.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(oracle.score(x, sigma), gradient, atol=1e-9, rtol=1e-9)


def test_gaussian_in_closed_form(g: torch.Generator) -> None:
    root = randn(4, 4, g=g)
    oracle = GaussianDenoiser(randn(1, 2, 2, g=g), root @ root.T)
    x = randn(5, 1, 2, 2, g=g)
    gain = root @ root.T @ torch.linalg.inv(root @ root.T + 0.25 * torch.eye(4))
    mean = oracle.means.flatten(1)
    expected = mean + (x.flatten(1) - mean) @ gain.T
    torch.testing.assert_close(oracle(x, 0.5), expected.reshape(x.shape))
    torch.testing.assert_close(oracle(x, torch.full((5,), 0.5)), oracle(x, 0.5))
    assert oracle.shape == (1, 2, 2)


def test_isotropic_components_are_full_ones_of_one_variance(g: torch.Generator) -> None:
    weights, means, variances = f64([1.0, 3.0]), randn(2, 3, 2, g=g), f64([0.2, 0.5])
    small = MixtureDenoiser(weights, means, variances)
    full = MixtureDenoiser(weights, means, variances[:, None, None] * torch.eye(6, dtype=torch.float64))
    x = randn(4, 3, 2, g=g)
    torch.testing.assert_close(small(x, 0.3), full(x, 0.3))
    torch.testing.assert_close(small.log_density(x, 0.3), full.log_density(x, 0.3))
    torch.testing.assert_close(small.moments(0.3), full.moments(0.3))


def test_labels_select_components(g: torch.Generator) -> None:
    oracle = mixture(2, 4, g, classes=torch.tensor([0, 1, 1, 2]))
    one = MixtureDenoiser(f64([2.0, 3.0]), oracle.means[1:3], oracle.covariances()[1:3])
    x = randn(3, 2, g=g)
    label = torch.tensor([1, 0, 1])
    torch.testing.assert_close(oracle(x, 0.5, label)[[0, 2]], one(x, 0.5)[[0, 2]])
    torch.testing.assert_close(oracle.log_density(x, 0.5, label)[[0, 2]], one.log_density(x, 0.5)[[0, 2]])
    torch.testing.assert_close(oracle.score(x, 0.5, label)[[0, 2]], one.score(x, 0.5)[[0, 2]])
    assert oracle.num_classes == 3
    assert one.num_classes == 0
    with pytest.raises(ValueError, match="no classes"):
        one(x, 0.5, label)
    with pytest.raises(ValueError, match="among the classes"):
        oracle(x, 0.5, torch.tensor([0, 1, 3]))


def test_empirical_is_the_limit_of_narrow_mixtures_and_a_weighted_mean(g: torch.Generator) -> None:
    points, x = randn(6, 2, 3, g=g), randn(4, 2, 3, g=g)
    oracle = EmpiricalDenoiser(points)
    narrow = MixtureDenoiser(torch.ones(6).double(), points, torch.zeros(6).double())
    sigma = f64([0.01, 0.5, 2.0, 80.0])
    torch.testing.assert_close(oracle(x, sigma), narrow(x, sigma))
    torch.testing.assert_close(oracle.log_density(x, sigma), narrow.log_density(x, sigma))
    distance = (x[:, None] - points).flatten(2).square().sum(2)
    weights = (-distance[1] / (2 * 0.25)).exp()
    torch.testing.assert_close(oracle(x, sigma)[1], torch.einsum("k,kij->ij", weights / weights.sum(), points))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_density(leaf, 0.5).sum(), leaf)
    torch.testing.assert_close(oracle.score(x, 0.5), gradient)


def test_empirical_knows_classes(g: torch.Generator) -> None:
    points, classes = randn(6, 3, g=g), torch.tensor([0, 1, 0, 1, 1, 4])
    oracle, ones = EmpiricalDenoiser(points, classes), EmpiricalDenoiser(points[classes == 1])
    x = randn(2, 3, g=g)
    label = torch.tensor([1, 1])
    torch.testing.assert_close(oracle(x, 1.0, label), ones(x, 1.0))
    torch.testing.assert_close(oracle.log_density(x, 1.0, label), ones.log_density(x, 1.0))
    torch.testing.assert_close(oracle(x, 1.0, torch.tensor([4, 4])), points[[5, 5]])
    assert oracle.num_classes == 5
    with pytest.raises(ValueError, match="among the classes"):
        oracle(x, 1.0, torch.tensor([1, 2]))


def test_empirical_selects_points_by_several_conditions(g: torch.Generator) -> None:
    points, conditions = randn(4, 3, g=g), f64([[2, 1, 0], [2, 0, 0], [1, 1, 0], [2, 1, 0]])
    oracle, x = EmpiricalDenoiser(points, conditions), randn(2, 3, g=g)
    weights = oracle.weights(x, 1.0, conditions[[0, 2]])
    torch.testing.assert_close(weights[0, [0, 3]], EmpiricalDenoiser(points[[0, 3]]).weights(x, 1.0)[0])
    assert weights[0, [1, 2]].eq(0).all() and weights[1].tolist() == [0, 0, 1, 0]
    torch.testing.assert_close(oracle(x, 1.0, conditions[[0, 2]]), weights @ points)
    assert oracle.num_classes == 0
    with pytest.raises(ValueError, match="among the classes"):
        oracle(x, 1.0, f64([[2, 1, 0], [1, 0, 0]]))


def test_empirical_is_stable_and_keeps_the_precision_of_the_state(g: torch.Generator) -> None:
    points = randn(64, 3072, g=g).clamp(-1, 1)
    oracle = EmpiricalDenoiser(points)
    for sigma in (1e-4, 0.002, 0.5, 80.0, 1e4):
        x = points[:3] + sigma * randn(3, 3072, g=g)
        assert oracle(x, sigma).isfinite().all()
        single = EmpiricalDenoiser(points.float())(x.float(), sigma)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), oracle(x, sigma), atol=1e-3, rtol=0)
    torch.testing.assert_close(oracle(points[:3] + 1e-4, 1e-4), points[:3])
    assert oracle(points[:3].float(), 1.0).dtype == torch.float32  # computed in float64
    assert EmpiricalDenoiser(points.float())(points[:3], 1.0).dtype == torch.float64


@pytest.mark.parametrize("kind", ["mixture", "empirical"])
def test_samples_have_the_moments_of_the_marginal(kind: str, g: torch.Generator) -> None:
    classes = torch.tensor([0, 1, 1])
    if kind == "mixture":
        oracle = mixture(3, 3, g, classes)
        weights, means, within = oracle.log_weights.exp(), oracle.means, oracle.covariances()
    else:
        oracle = EmpiricalDenoiser(randn(3, 3, g=g), classes, f64([1.0, 2.0, 3.0]))
        weights, means, within = oracle.log_weights.exp(), oracle.points, torch.zeros(3, 3, 3).double()
    n, sigma = 40000, 0.5
    x = oracle.sample(n, sigma, generator=g)
    mean = weights @ means
    second = torch.einsum("k,kij->ij", weights, within + means[:, :, None] * means[:, None]) + sigma**2 * torch.eye(3)
    torch.testing.assert_close(x.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.T @ x / n, second, atol=0.06, rtol=0.02)
    if isinstance(oracle, MixtureDenoiser):
        exact = oracle.moments(sigma)
        torch.testing.assert_close(exact[0], mean)
        torch.testing.assert_close(exact[1] + mean.outer(mean), second)
    first = oracle.sample(n, sigma, label=torch.zeros(n, dtype=torch.int64), generator=g)
    torch.testing.assert_close(first.mean(0), means[0], atol=0.03, rtol=0)
    torch.testing.assert_close(first.T.cov(), within[0] + sigma**2 * torch.eye(3), atol=0.06, rtol=0)


def test_posterior_of_a_gaussian_in_information_form(g: torch.Generator) -> None:
    root = randn(4, 4, g=g)
    prior, A, y, sigma_y = GaussianDenoiser(randn(2, 2, g=g), root @ root.T), randn(3, 4, g=g), randn(3, g=g), 0.3
    posterior = prior.posterior(A, y, sigma_y)
    precision = torch.linalg.inv(root @ root.T)
    covariance = torch.linalg.inv(precision + A.T @ A / sigma_y**2)
    mean = covariance @ (precision @ prior.means.flatten() + A.T @ y / sigma_y**2)
    torch.testing.assert_close(posterior.moments()[0], mean.reshape(2, 2))
    torch.testing.assert_close(posterior.moments()[1], covariance)


def test_posterior_of_a_mixture_is_prior_times_likelihood(g: torch.Generator) -> None:
    prior, A, y, sigma_y = mixture(3, 4, g, torch.tensor([0, 0, 1, 1])), randn(2, 3, g=g), randn(2, g=g), 0.4
    posterior = prior.posterior(A, y, sigma_y)
    x = randn(5, 3, g=g)
    likelihood = -(y - x @ A.T).square().sum(1) / (2 * sigma_y**2)
    evidence = prior.log_density(x, 0.0) + likelihood - posterior.log_density(x, 0.0)
    torch.testing.assert_close(evidence, evidence[:1].expand(5))
    assert posterior.num_classes == 2


def test_posterior_of_a_noiseless_measurement_meets_it(g: torch.Generator) -> None:
    prior, A = mixture(3, 4, g), torch.eye(3, dtype=torch.float64)[:1]
    posterior = prior.posterior(A, f64([0.7]), 0.0)
    torch.testing.assert_close(posterior.sample(10)[:, 0], torch.full((10,), 0.7).double())


def test_posterior_of_points_reweights_them(g: torch.Generator) -> None:
    points, A, y = randn(5, 2, g=g), randn(1, 2, g=g), randn(1, g=g)
    posterior = EmpiricalDenoiser(points).posterior(A, y, 0.5)
    weights = (-(y - points @ A.T).square().sum(1) / 0.5).softmax(0)
    torch.testing.assert_close(posterior(randn(1, 2, g=g), 1e6)[0], weights @ points, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["mixture", "empirical"])
def test_forward_derivatives_are_those_of_finite_differences(kind: str, g: torch.Generator) -> None:
    oracle = mixture(3, 3, g) if kind == "mixture" else EmpiricalDenoiser(randn(5, 3, g=g))
    x, v, sigma, c, e = randn(4, 3, g=g), randn(4, 3, g=g), f64(0.6), f64(-0.8), 1e-5
    value, derivative = torch.func.jvp(oracle, (x, sigma), (v, c))[:2]
    expected = (oracle(x + e * v, sigma + e * c) - oracle(x - e * v, sigma - e * c)) / (2 * e)
    torch.testing.assert_close(derivative, expected, atol=1e-8, rtol=1e-7)
    torch.testing.assert_close(value, oracle(x, sigma))


def test_errors(g: torch.Generator) -> None:
    ones = torch.ones(2).double()
    with pytest.raises(ValueError, match="needs weights"):
        MixtureDenoiser(ones, randn(2, 3, g=g), torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="semi-definite"):
        GaussianDenoiser(ones, f64([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match=r"classes must have shape \(2,\)"):
        MixtureDenoiser(ones, randn(2, 3, g=g), ones, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"classes must have shape \(2,\) or \(2, conditions\)"):
        EmpiricalDenoiser(randn(2, 3, g=g), torch.tensor([0]))
    for oracle in (GaussianDenoiser(ones, 1.0), EmpiricalDenoiser(torch.eye(2).double())):
        with pytest.raises(ValueError, match=r"of shape \(2,\)"):
            oracle(randn(1, 3, g=g), 1.0)
        with pytest.raises(ValueError, match="a measurement needs A"):
            oracle.posterior(torch.eye(3).double(), torch.ones(3).double(), 1.0)
        with pytest.raises(ValueError, match="sigma_y"):
            oracle.posterior(torch.eye(2).double(), ones, -1.0)
    with pytest.raises(ValueError, match="sigma_y"):
        EmpiricalDenoiser(torch.eye(2).double()).posterior(torch.eye(2).double(), ones, 0.0)
    assert math.isfinite(GaussianDenoiser(ones, 1.0).log_density(ones[None], 1.0).item())
