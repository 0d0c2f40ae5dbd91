"""Samplers: reference numbers of EDM and EDM2, orders of convergence, exact variances, seeds, costs, errors."""

import math
from collections.abc import Callable
from functools import partial
from itertools import islice, pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import guided
from fewstep.core.noise import Denoise, Noise, karras_sigmas
from fewstep.core.oracle import GaussianDenoiser, MixtureDenoiser
from fewstep.core.precondition import IDDPM, VE
from fewstep.samplers import (
    Ablation,
    Sampler,
    ancestral,
    churn,
    counted,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_maruyama,
    heun,
    ito_taylor,
    last,
    multistep,
    stochastic_heun,
    taylor2,
)


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ONE = torch.ones(1, 1, 1, 1, dtype=torch.float64)


def shrink(variance: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, sigma: x * variance / (variance + sigma**2)


def images(*seeds: int) -> Callable[[Tensor], Tensor]:
    """One random stream per image."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda x: torch.stack(
        [torch.randn(v.shape, dtype=v.dtype, generator=g) for v, g in zip(x, streams, strict=True)]
    )


# Reference numbers: computed once by the samplers of EDM and EDM2; D = x v / (v + sigma^2), latents and noise all 1.


def test_karras_levels_of_18_steps() -> None:
    expected = [80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822, 1.92334]
    expected += [1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002, 0]
    torch.testing.assert_close(karras_sigmas(18), f64(expected), atol=6e-7, rtol=0)


@pytest.mark.parametrize(("n", "expected"), [(18, 0.527624637001), (40, 0.504876864654), (5, 1.257886307670)])
def test_heun_gives_the_numbers_of_edm(n: int, expected: float) -> None:
    sigmas = karras_sigmas(n)
    assert last(heun(shrink(0.25), sigmas[0] * ONE, sigmas)).item() == pytest.approx(expected, abs=2e-12)


@pytest.mark.parametrize(("n", "expected"), [(18, 1.693384606209), (256, 3.755903902874)])
def test_churn_gives_the_numbers_of_edm(n: int, expected: float) -> None:
    sigmas = karras_sigmas(n)
    settings = {"S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
    states = churn(shrink(0.25), sigmas[0] * ONE, sigmas, **settings, noise=torch.ones_like)
    assert last(states).item() == pytest.approx(expected, abs=2e-12)


def test_guided_sampling_gives_the_numbers_of_edm2() -> None:
    sigmas = karras_sigmas(32)
    denoise = guided(shrink(0.25), shrink(0.16), 1.7)
    churned = churn(denoise, 80 * ONE, sigmas, S_churn=10, S_min=0.05, S_max=50, S_noise=1.003, noise=torch.ones_like)
    assert last(heun(shrink(0.25), 80 * ONE, sigmas)).item() == pytest.approx(0.50783801, abs=1e-8)
    assert last(heun(denoise, 80 * ONE, sigmas)).item() == pytest.approx(0.59358181, abs=1e-8)
    assert last(churned).item() == pytest.approx(2.24466652, abs=1e-8)


# Rows: solver, discretization, churned; columns: (schedule, scaling) for vp, ve, linear times vp, none.
ABLATION = """
euler vp    0 | 0.48984169  0.06527475 0.60163266   1.46288178 0.51778913 0.42286291
euler ve    0 | 0.52728363  0.05056172 0.63491030   1.59047990 0.56461743 0.44086666
euler iddpm 0 | 0.50123565 -2.29830049 0.56923772   3.23481094 0.52096949 0.45714309
euler edm   0 | 0.52223975  0.07011415 0.65700221   1.37928102 0.56995085 0.42303144
heun  vp    0 | 0.50419564  0.62560996 0.47274964   0.23953984 0.49855155 0.51214589
heun  ve    0 | 0.50093021  0.65369939 0.43704023   0.20254780 0.48385745 0.51748815
heun  iddpm 0 | 0.49866163  4.84462540 0.42022959 -22.60700379 0.48290590 0.50818586
heun  edm   0 | 0.50400473  0.61739413 0.41658234   0.25298570 0.48328773 0.52762464
heun  edm   1 | 1.46242029  2.00213710 0.95636672   0.75306395 1.35235725 1.62778763
euler vp    1 | 1.40014367  0.68260005 1.98902378   2.61311380 1.55394492 1.05773493
"""
COLUMNS = [(schedule, scaling) for schedule in ("vp", "ve", "linear") for scaling in ("vp", "none")]


@pytest.mark.parametrize("row", ABLATION.strip().splitlines())
def test_ablation_gives_the_numbers_of_edm(row: str) -> None:
    (solver, discretization, churned), values = row.split("|")[0].split(), row.split("|")[1].split()
    options = {"S_churn": 10, "S_min": 0.1, "S_max": 20, "S_noise": 1.01} if churned == "1" else {}
    # The reference computes some ranges of the VP schedule in single precision.
    tolerance = 1e-8 if discretization in ("edm", "vp") else 1e-6
    for (schedule, scaling), expected in zip(COLUMNS, values, strict=True):
        sample = Ablation(*cast("Any", (solver, discretization, schedule, scaling)), **options)
        sigmas = sample.sigmas(18)
        x = last(sample(shrink(0.25), sigmas[0] * ONE, sigmas, noise=torch.ones_like)).item()
        assert x == pytest.approx(float(expected), abs=1.5e-8, rel=tolerance), (schedule, scaling)


def test_ablation_with_the_midpoint_method_gives_the_number_of_edm() -> None:
    sample = Ablation(alpha=0.5)
    sigmas = sample.sigmas(18)
    x = last(sample(shrink(0.25), sigmas[0] * ONE, sigmas)).item()
    assert x == pytest.approx(0.497774612157, abs=2e-12)


def test_ablation_ranges_and_levels() -> None:
    assert Ablation(discretization="vp").range == pytest.approx((0.010485992786706403, 152.16697028394634), rel=1e-12)
    levels = Ablation(discretization="iddpm").sigmas(992)[:-1]
    assert (levels.unique().numel(), levels[0].item()) == (992, pytest.approx(80.2037, abs=1e-4))
    assert Ablation(discretization="ve").sigmas(1).tolist() == [100, 0]
    narrow = Ablation(precondition=VE())
    assert narrow.range == (0.02, 80)
    rounded = Ablation(precondition=IDDPM()).sigmas(10)[:-1]
    torch.testing.assert_close(IDDPM().round(rounded), rounded, atol=0, rtol=0)


def test_default_ablation_is_heun() -> None:
    oracle, sigmas = mixture(), karras_sigmas(12)
    x = 80 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a, b in zip(Ablation()(oracle, x, sigmas), heun(oracle, x, sigmas), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    # Unscaled on the way out: at every level the states of the scaled VP sampler follow the same trajectory.
    vp = Ablation("heun", "vp", "vp", "vp", sigma_min=0.01, sigma_max=80)
    fine = vp.sigmas(200)
    scaled = list(vp(oracle, x, fine))
    plain = list(heun(oracle, x, fine))
    torch.testing.assert_close(torch.stack(scaled), torch.stack(plain), atol=5e-3, rtol=5e-3)


# Truth: a Gaussian's trajectories are known, and so is the variance of what a stochastic sampler makes of it.


def mixture() -> MixtureDenoiser:
    means = f64([[-1.0, 0.5], [0.8, -0.2]])
    return MixtureDenoiser(f64([0.3, 0.7]), means, f64([0.04, 0.09]))


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (taylor2, 2), (dpmpp_2m, 2)])
def test_order_of_the_ode_samplers(sampler: Sampler, order: int) -> None:
    variances = f64([0.05, 0.5])
    oracle = GaussianDenoiser(f64([0.3, -0.2]), variances.diag())
    x = f64([[2.0, 1.0], [-1.0, 0.5]])
    high, low = 1.0, 0.3
    exact = oracle.means + (x - oracle.means) * ((variances + low**2) / (variances + high**2)).sqrt()
    errors = []
    for n in (12, 24, 48, 96, 192):
        levels = high * (low / high) ** torch.linspace(0, 1, n + 1, dtype=torch.float64)
        states = list(sampler(oracle, x, torch.cat([levels, levels.new_zeros(1)])))
        errors.append((states[-2] - exact).norm().item())
    assert slopes(errors)[-4:] == pytest.approx([order] * 4, abs=0.1)


def variance(sampler: Sampler, oracle: nn.Module, levels: Tensor, draws: int) -> float:
    """The exact variance of the state after each source of noise: for a linear denoiser the state is a sum over the
    sources, and each element of the batch carries one of them.
    """
    sources = iter(torch.eye(1 + draws * (len(levels) - 2), dtype=torch.float64)[1:, :, None])
    x = torch.zeros(1 + draws * (len(levels) - 2), 1, dtype=torch.float64)
    x[0] = (0.3 + levels[0] ** 2).sqrt()
    states = sampler(oracle, x, levels, noise=lambda x: next(sources))
    return list(islice(states, len(levels) - 2))[-1].square().sum().item()


@pytest.mark.parametrize("kappa", [0.5, 1.0])
@pytest.mark.parametrize(
    ("sampler", "draws", "order"),
    [
        (euler_maruyama, 1, 1),
        (ancestral, 1, 1),
        (dpmpp_2m_sde, 1, 2),
        (stochastic_heun, 1, 2),
        (ito_taylor, 2, 2),
        (partial(ito_taylor, noise_pair="simplified"), 1, 2),
    ],
)
def test_order_of_the_variance_of_stochastic_samplers(sampler: Sampler, draws: int, order: int, kappa: float) -> None:
    oracle = GaussianDenoiser(torch.zeros(1, dtype=torch.float64), 0.3)
    errors = []
    for n in (64, 128):
        levels = 2.0 * 0.1 ** torch.linspace(0, 1, n + 1, dtype=torch.float64)
        levels = torch.cat([levels, levels.new_zeros(1)])
        errors.append(abs(variance(partial(sampler, kappa=kappa), oracle, levels, draws) - 0.3 - 0.2**2))
    assert slopes(errors)[-1] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("sampler", [ancestral, dpmpp_2m_sde])
def test_exponential_integrators_are_exact_for_a_single_point(sampler: Sampler) -> None:
    levels = karras_sigmas(6, sigma_min=0.1, sigma_max=2)
    sources = iter(torch.eye(6, dtype=torch.float64)[1:, :, None])
    x = torch.zeros(6, 1, dtype=torch.float64)
    x[0] = 2.0
    states = sampler(shrink(0.0), x, levels, kappa=1.7, noise=lambda x: next(sources))
    for state, sigma in zip(states, levels[1:], strict=True):
        assert state.norm().item() == pytest.approx(sigma.item(), abs=1e-12)


def test_churn_keeps_the_marginals() -> None:
    n = 100
    oracle = GaussianDenoiser(torch.zeros(1, dtype=torch.float64), 0.3)
    levels = karras_sigmas(n, sigma_min=0.02, sigma_max=5)
    for sampler in (churn, taylor2):
        sampler = partial(sampler, S_churn=5, S_min=0.05, S_max=3)
        sources = iter(torch.eye(1 + n, dtype=torch.float64)[1:, :, None])
        x = torch.zeros(1 + n, 1, dtype=torch.float64)
        x[0] = (0.3 + levels[0] ** 2).sqrt()
        states = sampler(oracle, x, levels, noise=lambda x, s=sources: next(s))
        for state, sigma in zip(states, levels[1:], strict=True):
            assert state.square().sum().item() == pytest.approx(0.3 + sigma.item() ** 2, rel=4e-3)


def test_multistep_denoises_and_renoises() -> None:
    oracle = GaussianDenoiser(torch.zeros(1, dtype=torch.float64), 0.3)
    levels = f64([4.0, 0.5, 0.0])
    first, final = multistep(oracle, torch.full((1, 1), 2.0).double(), levels, noise=torch.ones_like)
    expected = 2 * 0.3 / 16.3 + 0.5
    assert first.item() == pytest.approx(expected)
    assert final.item() == pytest.approx(expected * 0.3 / 0.55)


# The same samplers as k-diffusion writes them, in t = -ln(sigma), with its noise factors; eta = kappa.


def ancestral_of_k_diffusion(denoise: Denoise, x: Tensor, sigmas: list[float], eta: float, noise: Noise) -> Tensor:
    """Euler ancestral: down to sigma_down without noise, up to the next level with it."""
    for sigma, after in pairwise(sigmas):
        up = min(after, eta * (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5)
        down = (after**2 - up**2) ** 0.5
        x = x + (x - denoise(x, f64(sigma))) / sigma * (down - sigma)
        x = x + up * noise(x) if after > 0 else x
    return x


def dpmpp_2m_sde_of_k_diffusion(denoise: Denoise, x: Tensor, sigmas: list[float], eta: float, noise: Noise) -> Tensor:
    """SDE-DPM-Solver++(2M), solver type midpoint; DPM-Solver++(2M) with eta = 0."""
    past, h_past = None, math.nan
    for sigma, after in pairwise(sigmas):
        x0 = denoise(x, f64(sigma))
        if after == 0:
            x = x0
        else:
            h = math.log(sigma) - math.log(after)
            x = after / sigma * math.exp(-eta * h) * x - math.expm1(-h - eta * h) * x0
            if past is not None:
                x = x - 0.5 * math.expm1(-h - eta * h) / (h_past / h) * (x0 - past)
            if eta:
                x = x + noise(x) * after * math.sqrt(-math.expm1(-2 * eta * h))
            h_past = h
        past = x0
    return x


@pytest.mark.parametrize(
    ("sampler", "literal", "eta"),
    [
        (ancestral, ancestral_of_k_diffusion, 1.0),
        (partial(ancestral, kappa=0.0), ancestral_of_k_diffusion, 0.0),
        (dpmpp_2m_sde, dpmpp_2m_sde_of_k_diffusion, 1.0),
        (partial(dpmpp_2m_sde, kappa=0.4), dpmpp_2m_sde_of_k_diffusion, 0.4),
        (dpmpp_2m, dpmpp_2m_sde_of_k_diffusion, 0.0),
    ],
)
def test_exponential_integrators_are_those_of_k_diffusion(sampler: Sampler, literal: Any, eta: float) -> None:
    oracle, sigmas = mixture(), karras_sigmas(7)
    x = 80 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {} if eta == 0 else {"noise": images(1, 2, 3, 4)}
    expected = literal(oracle, x, sigmas.tolist(), eta, images(1, 2, 3, 4))
    torch.testing.assert_close(last(sampler(oracle, x, sigmas, **options)), expected, atol=1e-11, rtol=1e-11)


# Laws

STOCHASTIC = [
    multistep,
    partial(churn, S_churn=10),
    partial(taylor2, S_churn=10),
    Ablation(S_churn=10),
    ancestral,
    dpmpp_2m_sde,
    euler_maruyama,
    stochastic_heun,
    ito_taylor,
    partial(ito_taylor, laplacian="hutchinson"),
    partial(ito_taylor, noise_pair="simplified"),
]
SAMPLERS = [euler, heun, dpmpp_2m, taylor2, Ablation(), *STOCHASTIC]


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_an_image_depends_on_its_seed_only(sampler: Sampler) -> None:
    oracle, sigmas = mixture(), karras_sigmas(6)
    x = 80 * torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = last(sampler(oracle, x, sigmas, noise=images(7, 8, 9)))
    torch.testing.assert_close(last(sampler(oracle, x[1:2], sigmas, noise=images(8))), together[1:2])
    torch.testing.assert_close(last(sampler(oracle, x.flip(0), sigmas, noise=images(9, 8, 7))), together.flip(0))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_yields_each_level_without_gradients_and_leaves_its_states_alone(sampler: Sampler) -> None:
    oracle, sigmas = mixture(), karras_sigmas(6)
    x = (80 * torch.randn(3, 2, dtype=torch.float64)).requires_grad_()
    before = x.detach().clone()
    seen, copies = [], []
    for state in sampler(oracle, x, sigmas):
        seen.append(state)
        copies.append(state.clone())
    assert len(seen) == 6
    assert all(s.dtype == torch.float64 and not s.requires_grad and s.isfinite().all() for s in seen)
    assert torch.equal(x, before)
    assert all(map(torch.equal, seen, copies))
    assert all(s.grad_fn is None for s in sampler(oracle, x, sigmas))


@pytest.mark.parametrize(
    ("sampler", "nfe", "jvp"),
    [
        (euler, 8, 0),
        (heun, 15, 0),
        (partial(churn, S_churn=5), 15, 0),
        (multistep, 8, 0),
        (dpmpp_2m, 8, 0),
        (dpmpp_2m_sde, 8, 0),
        (ancestral, 8, 0),
        (euler_maruyama, 8, 0),
        (stochastic_heun, 15, 0),
        (taylor2, 8, 7),
        (ito_taylor, 1, 7),
        (partial(ito_taylor, kappa=0.5), 8, 7),
        (partial(ito_taylor, laplacian="hutchinson"), 8, 14),
    ],
)
def test_cost(sampler: Sampler, nfe: int, jvp: int) -> None:
    denoise, sigmas = counted(mixture()), karras_sigmas(8)
    last(sampler(denoise, 80 * torch.ones(2, 2).double(), sigmas))
    assert (denoise.nfe, denoise.jvp) == (nfe, jvp)


@pytest.mark.parametrize(
    ("sampler", "draws"),
    [
        (partial(churn, S_churn=5, S_min=1), 8),
        (partial(churn, S_churn=5, S_min=1, idle_noise=False), 5),  # as EDM2: of the 8 levels 5 are at least 1
        (churn, 0),
        (taylor2, 0),
        (multistep, 7),
        (ancestral, 7),
        (partial(ancestral, kappa=0.0), 0),
        (stochastic_heun, 7),
        (ito_taylor, 14),
        (partial(ito_taylor, noise_pair="simplified"), 7),
        (partial(ito_taylor, kappa=0.0), 0),
    ],
)
def test_noise_is_drawn_only_when_needed(sampler: Sampler, draws: int) -> None:
    drawn = []

    def noise(x: Tensor) -> Tensor:
        drawn.append(x.shape)
        return torch.randn_like(x)

    last(sampler(mixture(), 80 * torch.ones(2, 2).double(), karras_sigmas(8), noise=noise))
    assert len(drawn) == draws


def test_limits_of_stochastic_samplers() -> None:
    oracle, sigmas = mixture(), karras_sigmas(9)
    x = 80 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a, b in (
        (churn, heun),
        (partial(ancestral, kappa=0.0), euler),
        (partial(dpmpp_2m_sde, kappa=0.0), dpmpp_2m),
        (partial(stochastic_heun, kappa=0.0), heun),
        (partial(euler_maruyama, kappa=0.0), euler),
    ):
        torch.testing.assert_close(last(a(oracle, x, sigmas)), last(b(oracle, x, sigmas)))


class Zeros(nn.Module):
    in_channels, resolution, num_classes = 1, 4, 0

    def encode(self, x: Tensor, c_noise: Tensor, label: Tensor | None, augment: Tensor | None) -> Tensor:
        return x

    def decode(self, features: Tensor) -> Tensor:
        return 0 * features


def test_edm_levels_are_clamped_and_rounded_for_the_network() -> None:
    plain = Denoiser(Zeros()).sigmas(18)
    torch.testing.assert_close(plain, karras_sigmas(18), atol=0, rtol=0)
    clamped = Denoiser(Zeros(), precondition=VE()).sigmas(18)
    torch.testing.assert_close(clamped, karras_sigmas(18, sigma_min=0.02), atol=0, rtol=0)
    rounded = Denoiser(Zeros(), precondition=IDDPM()).sigmas(18, sigma_max=50, rho=5)
    wanted = karras_sigmas(18, sigma_min=IDDPM().sigma_min, sigma_max=50, rho=5)
    torch.testing.assert_close(rounded[:-1], IDDPM().round(wanted[:-1]), atol=0, rtol=0)
    assert rounded[-1] == 0
    assert not torch.equal(rounded, wanted)


def test_churn_rounds_the_raised_level() -> None:
    levels = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        levels.append(sigma.item())
        return shrink(0.25)(x, sigma)

    grid = IDDPM()
    sigmas = Denoiser(Zeros(), precondition=grid).sigmas(6)
    last(churn(denoise, 80 * ONE, sigmas, S_churn=1, round_sigma=grid.round))
    torch.testing.assert_close(grid.round(f64(levels)).tolist(), levels)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("levels", [[1.0], [1.0, 0.5], [0.5, 1.0, 0.0], [1.0, math.nan, 0.0], [1.0, 0.0, 0.0]])
def test_schedules_that_are_none_are_refused(sampler: Sampler, levels: list[float]) -> None:
    with pytest.raises(ValueError, match="noise levels"):
        last(sampler(mixture(), torch.ones(2, 2).double(), f64(levels)))


def test_errors() -> None:
    x, sigmas, oracle = torch.ones(2, 2).double(), karras_sigmas(4), mixture()
    with pytest.raises(ValueError, match="at least one step"):
        last(iter(()))
    with pytest.raises(ValueError, match="distinct"):
        last(dpmpp_2m(oracle, x, f64([2.0, 1.0, 1.0, 0.5, 0.0])))
    for sampler in (ancestral, dpmpp_2m_sde, euler_maruyama, stochastic_heun, ito_taylor):
        with pytest.raises(ValueError, match="kappa must be 0"):
            last(sampler(oracle, x, sigmas, kappa=-0.5))
    for sampler in (churn, taylor2):
        with pytest.raises(ValueError, match="S_churn"):
            last(sampler(oracle, x, sigmas, S_churn=-1.0))
    with pytest.raises(ValueError, match="at least 1 step"):
        Denoiser(Zeros()).sigmas(0)
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        Denoiser(Zeros()).sigmas(5, sigma_min=3, sigma_max=2)
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        Ablation(sigma_min=3, sigma_max=2)
    with pytest.raises(ValueError, match="at least 1 step"):
        Ablation(discretization="ve").sigmas(0)
    with pytest.raises(ValueError, match="solver must be one of euler, heun"):
        Ablation(solver=cast("Any", "rk4"))
    with pytest.raises(ValueError, match="alpha"):
        Ablation(alpha=0.0)
