"""Ito-Taylor samplers: noise pairs, the heat identity, strong and weak orders on common paths, marginals, refusals."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.convergence import Paths, anisotropic, arrive, f64, geometric, law, on_a_line, slope
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Guidance
from fewstep.core.noise import karras_sigmas
from fewstep.core.oracle import GaussianDenoiser, MixtureDenoiser
from fewstep.core.plan import Plan
from fewstep.core.precondition import IDDPM
from fewstep.io.card import Card
from fewstep.io.model_folder import save
from fewstep.runtime import autodiff
from fewstep.sample import generate
from fewstep.samplers import (
    Sampler,
    check_differentiable,
    counted,
    euler_maruyama,
    ito_taylor,
    ito_taylor_sde,
    last,
    taylor2,
)
from fewstep.samplers.ito_taylor import expansion, laplace
from fewstep.samplers.sde import Kappa, diffusion_moments, rate
from tests.conftest import tiny_net
from tests.convergence import expectation
from tests.nets.test_nets import tiny


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_steps_of_any_size_are_exact_for_gaussian_data(kappa: float, sigma_data: float) -> None:
    """The state is affine in where it begins and in the normals, so that a batch of unit vectors gives its law."""
    oracle, levels = GaussianDenoiser(f64([0.3]), sigma_data**2), f64([20.0, 3.0, 0.4, 0.05])
    units = iter(f64(np.eye(8))[2:, :, None])
    x = f64(np.eye(8))[1][:, None]
    end = arrive(
        ito_taylor, oracle, x, levels, kappa=kappa, sigma_data=sigma_data, noise=lambda x: next(units)
    ).flatten()
    origin, start, noise = end[0], end[1] - end[0], end[2:] - end[0]
    assert (origin + 0.3 * start).item() == pytest.approx(0.3, abs=1e-9)
    variance = start**2 * (20.0**2 + sigma_data**2) + noise.square().sum()
    assert variance.item() == pytest.approx(0.05**2 + sigma_data**2, rel=1e-9)


def test_expansion() -> None:
    """Closed forms at kappa = 1, and one for a stochasticity that depends on the level."""
    a, b, variance = 2.0, 0.7, 0.25
    decay, _, (V, C, Z) = expansion(1.0, f64(a), f64(b), 0.5)
    s = b + (torch.arange(200_000, dtype=torch.float64) + 0.5) * (a - b) / 200_000
    phi, R, density = (b / s) ** 2, (variance + a**2) / (variance + s**2), 2 * s * (a - b) / 200_000
    q = (1 - phi) * R
    expected = torch.stack([f64(b**2 / a**2), *((density * w).sum() for w in (phi**2, phi * q, q**2))])
    torch.testing.assert_close(torch.stack([decay, V, C, Z]), expected, atol=1e-8, rtol=1e-8)
    decay = expansion(growing(1.5), f64(a), f64(b), 0.5).decay.item()  # kappa / s = 1.5 / (1 + s)
    assert decay == pytest.approx(b / a * ((1 + b) / (1 + a)) ** 1.5)


def strong_errors(oracle: MixtureDenoiser, paths: Paths, runs: dict[Sampler, tuple[int, ...]]) -> Iterator[list[float]]:
    """For each sampler the mean distances to the fine solution on the same paths, by numbers of steps."""
    x = oracle.sample(paths.pairs.shape[2] // 2, float(paths.fine[0]), generator=rng(1)).repeat(2, 1)
    truth = paths.end(ito_taylor, oracle, x, len(paths.fine) - 1)
    for sampler, counts in runs.items():
        draw = "increment" if sampler is euler_maruyama else "pair"
        yield [(paths.end(sampler, oracle, x, n, draw) - truth).norm(dim=1).mean().item() for n in counts]


def test_strong_order() -> None:
    oracle, paths = on_a_line(), Paths(geometric(2.0, 0.3, 512), (400, 1), generator=rng(0))
    without = partial(ito_taylor, laplacian="none")
    runs = {ito_taylor: (8, 16, 32, 64, 128), without: (16, 32, 64), euler_maruyama: (16, 32, 64)}
    errors, *controls = strong_errors(oracle, paths, runs)
    assert slope(errors) == pytest.approx(1.5, abs=0.1)
    # Negative control: without the Laplacian it is first order, as is Euler-Maruyama.
    for control in controls:
        assert slope(control) == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize(("dim", "kappa"), [(1, 0.5), (2, 1.0), (8, 1.0)])
def test_strong_order_elsewhere(dim: int, kappa: float) -> None:
    """At another stochasticity, and with anisotropic components."""
    oracle = anisotropic(dim) if dim > 1 else on_a_line()
    paths = Paths(geometric(2.0, 0.3, 256), (300, dim), kappa, generator=rng(0))
    (errors,) = strong_errors(oracle, paths, {ito_taylor: (8, 16, 32, 64)})
    assert slope(errors) == pytest.approx(1.5, abs=0.12)


def test_weak_order() -> None:
    oracle, counts = on_a_line(), (24, 48, 96, 192, 384)
    levels = {n: geometric(2.0, 0.3, n) for n in counts}
    exact = expectation(lambda x: np.cos(2 * x), ito_taylor, oracle, levels[24][-1:])
    for sampler, order, some in (
        (ito_taylor, 2.0, counts),
        (partial(ito_taylor, laplacian="none"), 1.0, counts[:2]),
    ):
        errors = [abs(expectation(lambda x: np.cos(2 * x), sampler, oracle, levels[n]) - exact) for n in some]
        assert slope(errors) == pytest.approx(order, abs=0.2)


def test_strong_errors_on_uniform_steps() -> None:
    """From sigma = 2 to 0.3 at kappa = 1; Euler-Maruyama makes 1.5e-1, 7.0e-2, 3.4e-2, 1.7e-2 here."""
    oracle, fine = on_a_line(), torch.linspace(2.0, 0.3, 257, dtype=torch.float64)
    (errors,) = strong_errors(oracle, Paths(fine, (1500, 1), generator=rng(0)), {ito_taylor: (8, 16, 32, 64)})
    for error, known in zip(errors, (5.1e-2, 2.0e-2, 7.2e-3, 2.6e-3), strict=True):
        assert error < known


def driven(sampler: Callable, *args: object, **options: object) -> Tensor:
    """The states of a sampler that draws from one stream."""
    g = rng(1)
    noise = lambda x: torch.randn(x.shape, dtype=x.dtype, generator=g)  # noqa: E731
    return torch.stack(list(islice(sampler(*args, **options, noise=noise), 7)))


@pytest.mark.parametrize("kappa", [1.0, 0.4, 2.0, growing(1.5)])
def test_exact_laplacian_and_identity_agree(kappa: Kappa) -> None:
    oracle, levels = anisotropic(2), karras_sigmas(8, sigma_min=0.1, sigma_max=3)
    x = oracle.sample(4, 3.0, generator=rng(0))
    identity = driven(ito_taylor, oracle, x, levels, kappa=kappa)
    exact = driven(ito_taylor, oracle, x, levels, kappa=kappa, laplacian="exact")
    torch.testing.assert_close(exact, identity, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kappa", [0.0, 1.0, 0.4, 2.0, growing(1.5)])
def test_a_step_has_the_law_of_the_general_scheme_to_third_order(kappa: Kappa) -> None:
    """Given the state a step is Gaussian: mean and covariance of the two schemes differ by O(h^3)."""
    oracle = anisotropic(2)
    x = oracle.sample(1, 1.0, generator=rng(0)).expand(5, 2)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return -(1 + rate(kappa, -t)) * (x - oracle(x, -t)) / -t

    def moments(sampler: Callable, *args: object, **options: object) -> Tensor:
        units = iter(torch.eye(5, dtype=torch.float64)[1:].reshape(2, 2, 5).mT)  # a row of the batch for each normal
        states = next(sampler(*args, **options, noise=lambda x: next(units)))
        spread = states[1:] - states[0]
        return torch.cat([states[:1], spread.T @ spread])

    gaps = []
    for h in (0.04, 0.02, 0.01):
        own = moments(ito_taylor, oracle, x, f64([1.0, 1.0 - h, 0.0]), kappa=kappa)
        diffusion = lambda t: (2 * rate(kappa, -t) * -t).sqrt()  # noqa: E731
        gaps.append((own - moments(ito_taylor_sde, drift, diffusion, x, f64([-1.0, h - 1.0]))).norm().item())
    assert slope(gaps) == pytest.approx(3.0, abs=0.15)


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
        errors.append(expectation(np.square, ito_taylor, oracle, levels) - (covariance + mean**2).item())
    assert max(map(abs, errors)) < 3e-3
    assert errors == pytest.approx([-4.35e-4, -1.05e-3], abs=5e-5)


def test_samples_at_kappa_1_cost_one_dual_evaluation_a_step() -> None:
    torch.manual_seed(0)
    denoise = counted(on_a_line())
    x = last(ito_taylor(denoise, 20 * torch.randn(20_000, 1, dtype=torch.float64), karras_sigmas(41, sigma_max=20)))
    assert (denoise.nfe, denoise.jvp) == (1, 40)
    assert x.square().mean().item() == pytest.approx(0.3 * 1.04 + 0.7 * 0.73, abs=0.02)


@pytest.mark.parametrize(
    ("name", "sampler", "options"),
    [
        *((name, sampler, {}) for name in ("ddpmpp", "adm", "edm2") for sampler in (taylor2, ito_taylor)),
        ("ddpmpp", ito_taylor, {"kappa": 0.5, "laplacian": "hutchinson"}),
    ],
)
def test_networks_make_guided_images_that_depend_on_their_seed_only(
    name: str, sampler: Sampler, options: dict[str, Any]
) -> None:
    denoiser = tiny(name)
    guidance = Guidance(1.5, tiny(name, label_dim=0))
    plan = Plan(sampler, karras_sigmas(2, sigma_min=0.1, sigma_max=5), options, guidance)
    both, alone = (np.stack(list(generate(denoiser, [3, 7], plan=plan, batch_size=n))).astype(int) for n in (2, 1))
    assert both.shape == (2, 8, 8, 3)
    assert np.abs(both[0] - both[1]).max() > 20
    assert np.abs(both - alone).max() <= 1  # a rounding


@pytest.mark.parametrize("name", ["ddpmpp", "adm", "edm2"])
def test_a_dual_evaluation_has_twice_the_operations_of_a_plain_one(name: str) -> None:
    denoiser, x, sigma = tiny(name), torch.ones(1, 3, 8, 8), torch.tensor(1.0)
    flops = []
    with torch.no_grad():
        for evaluate in (lambda: denoiser(x, sigma), lambda: torch.func.jvp(denoiser, (x, sigma), (x, sigma))):
            with FlopCounterMode(display=False) as counter:
                evaluate()
            flops.append(counter.get_total_flops())
    assert 1.9 < flops[1] / flops[0] < 2.3


@pytest.fixture
def rounding() -> Denoiser:
    """A network that knows only some noise levels."""
    return Denoiser(tiny_net(out_channels=2), precondition=IDDPM()).eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sampler ito_taylor --kappa -1", "kappa must be 0"),
        ("--sampler ito_taylor --steps 0", "at least 1 step"),
        ("--sampler taylor2 --sigma_min 3 --sigma_max 2", "0 < sigma_min < sigma_max"),
        ("--sampler ito_taylor --steps 2 --sigma_min 0.1", "rounds noise levels"),
        ("--sampler taylor2 --steps 2", "rounds noise levels"),
        ("--sampler mine.py:blind", "forward mode"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    options: str,
    message: str,
    denoiser: Denoiser,
    rounding: Denoiser,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import torch\nfrom fewstep.samplers import ito_taylor\n"
        "def blind(denoise, x, sigmas):\n"
        "    fused = torch.nn.functional.scaled_dot_product_attention\n"
        "    return ito_taylor(lambda x, sigma: fused(x, x, x), x, sigmas)\n"
    )
    save(rounding if "rounds" in message else denoiser, Path("model"), Card())
    assert main(["sample", "model", "--seeds", "0", "--grid", "grid.png", *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("older", [False, True])
def test_derivatives_are_the_same_in_inference_mode(
    older: bool, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch 2.8 takes none there, and says nothing: the images would be others."""
    if older:
        monkeypatch.setattr(autodiff, "zero_in_inference_mode", lambda: True)
    x, label = torch.randn(2, 1, 8, 8, generator=rng(3)).double(), torch.tensor([1, 3])

    def made(sampler: Sampler) -> Tensor:
        return last(sampler(partial(denoiser, label=label.clone()), 3 * x, f64([3.0, 1.0, 0.0])))

    for sampler in (taylor2, partial(ito_taylor, laplacian="hutchinson", noise=torch.ones_like)):
        with torch.no_grad():
            expected = made(sampler)
        with torch.inference_mode():
            found = made(sampler)
        assert torch.equal(found, expected)


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
def test_refusals_name_the_way_out(sampler: Sampler, denoiser: Denoiser, rounding: Denoiser) -> None:
    sigmas, x = karras_sigmas(4), torch.ones(2, 2).double()
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
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        last(ito_taylor(oracle, x, sigmas, sigma_data=0.0))
    with pytest.raises(ValueError, match="distinct"):
        last(ito_taylor(oracle, x, f64([2.0, 1.0, 1.0, 0.0])))
    with pytest.raises(ValueError, match="times must be"):
        last(ito_taylor_sde(lambda x, t: -x, lambda t: t, x, f64([1.0, 0.5])))
    with pytest.raises(ValueError, match="laplacian must be one of exact"):
        last(ito_taylor_sde(lambda x, t: -x, torch.sqrt, x, f64([0.0, 1.0]), laplacian=unknown))
