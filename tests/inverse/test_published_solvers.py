"""DPS, DiffPIR, DAPS and PnP-GD against their published algorithms, written out in the authors' variables and units.

The prior is Gaussian, the arithmetic float64, and both sides see the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep import inverse
from fewstep.core.noise import karras_sigmas
from fewstep.core.oracle import GaussianDenoiser
from fewstep.inverse import Likelihood
from fewstep.inverse.pnp_gd import PUBLISHED
from fewstep.samplers import last
from tests import GOLDEN
from tests.linear import F64, generative, matrix


class Draws:
    """The same sequence of unit noise for each side."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=self.generator)


def smooth(shape: tuple[int, int, int], mean: float = 0.1) -> GaussianDenoiser:
    """Pixels of deviation 1/2, correlated with their neighbours."""
    _, h, w = shape
    place = torch.cartesian_prod(torch.arange(float(h)), torch.arange(float(w))).double()
    covariance = 0.25 * torch.exp(-(torch.cdist(place, place) ** 2) / 8) + 1e-3 * torch.eye(h * w).double()
    return GaussianDenoiser(torch.full(shape, mean, dtype=F64), covariance)


@pytest.mark.parametrize(("kind", "unit"), [("norm", 1.0), ("square", 2.0)])
@pytest.mark.parametrize(("suffix", "weight"), [("03", 0.3), ("1", 1.0)])
def test_dps_is_algorithm_1(kind: str, unit: float, suffix: str, weight: float) -> None:
    """The whole trajectory of the variance-preserving algorithm; the paper's text takes steps twice as long."""
    g = {k: torch.from_numpy(np.asarray(v, np.float64)) for k, v in np.load(GOLDEN / "dps.npz").items()}
    d = len(g["mean"])
    prior = GaussianDenoiser(g["mean"].view(1, 1, d), g["covariance"])
    A = g["operator"]
    op = inverse.LinearFunction(lambda x: x.flatten(1) @ A.to(x).T, (1, 1, d))
    y = g["measurement"].view(-1, A.shape[0]).expand(3, -1)
    likelihood = Likelihood(op, y, float(g["noise_std"]))
    expected = g[f"{kind}_{suffix}_trajectory"]
    start = g["start"].view(3, 1, 1, d) * (1 + g["sigmas"][0] ** 2).sqrt()
    torch.testing.assert_close(start.flatten(1), expected[0], rtol=1e-12, atol=0)
    draws = iter(g["noise"].view(-1, 3, 1, 1, d))
    found = inverse.dps(prior, likelihood, start, g["sigmas"], weight=unit * weight, noise=lambda x: next(draws))
    torch.testing.assert_close(torch.stack(list(found)).flatten(2), expected[1:], rtol=1e-10, atol=1e-10)


def authors_diffpir(
    prior: GaussianDenoiser, A: Tensor, y: Tensor, x: Tensor, sigmas: Tensor, scale: Tensor, sigma_n: float, **o: float
) -> Iterator[Tensor]:
    """Zhu et al.'s code: x_t = `scale` (x0 + sigma eps) of images in [-1, 1], y and sigma_n of images in [0, 1]."""
    noise = Draws()
    for k in range(len(sigmas) - 1):
        root, sigma = scale[k], sigmas[k]
        x0 = prior(x / root, sigma)
        rho = o["lambda_"] * sigma_n**2 / sigma**2
        unit = (x0 / 2 + 0.5).flatten(1)
        normal = A.T @ A + rho * torch.eye(A.shape[1]).double()
        x0 = (torch.linalg.solve(normal, (y @ A + rho * unit).T).T * 2 - 1).view_as(x)
        yield x0
        if sigmas[k + 1] == 0:
            return
        eps = (x - root * x0) / (root * sigma)
        down = scale[k + 1] * sigmas[k + 1]
        x = scale[k + 1] * x0 + math.sqrt(1 - o["zeta"]) * down * eps + math.sqrt(o["zeta"]) * down * noise(x)


@pytest.mark.parametrize(("lambda_", "zeta"), [(7.0, 0.3), (1.0, 0.1), (15.0, 0.25), (1.0, 1.0)])
def test_diffpir_is_the_authors_code_at_a_quarter_of_lambda(lambda_: float, zeta: float) -> None:
    """Their sigma_n counts for images in [0, 1], their sigma for images in [-1, 1]."""
    shape, sigma_n = (1, 6, 5), 0.05
    prior, op = smooth(shape), inverse.separable_blur(shape, inverse.gaussian_line(0.6))
    truth = prior.sample(2, generator=torch.Generator().manual_seed(3))
    y = op(truth) + 2 * sigma_n * torch.randn(2, *shape, dtype=F64, generator=torch.Generator().manual_seed(4))
    sigmas = karras_sigmas(12, sigma_min=0.02, sigma_max=20)
    scale, x = (1 + sigmas**2).rsqrt(), 20 * torch.randn(2, *shape, dtype=F64)
    # a row of the blur sums to one, so that the measurement of (x + 1) / 2 is (y + 1) / 2
    theirs = authors_diffpir(
        prior, matrix(op), (y / 2 + 0.5).flatten(1), scale[0] * x, sigmas, scale, sigma_n, lambda_=lambda_, zeta=zeta
    )
    ours = inverse.diffpir(
        prior, Likelihood(op, y, 2 * sigma_n), x, sigmas, trust=lambda_ / 4, zeta=zeta, noise=Draws()
    )
    torch.testing.assert_close(torch.stack(list(ours)), torch.stack(list(theirs)), rtol=1e-9, atol=1e-9)


def test_diffpirs_default_is_the_authors_seven() -> None:
    prior, op = smooth((1, 4, 4)), inverse.Inpainting(inverse.random_mask(4, 4, 0.5), (1, 4, 4))
    x, y = torch.randn(2, 1, 1, 4, 4, dtype=F64)
    sigmas = torch.tensor([1.0, 0.3, 0.0], dtype=F64)
    a, b = (
        last(inverse.diffpir(prior, Likelihood(op, y, 0.1), x, sigmas, noise=Draws(), **o))
        for o in ({}, {"trust": 7 / 4})
    )
    assert torch.equal(a, b)
    wrongs: list[dict[str, Any]] = [{"trust": 0.0}, {"trust": float("nan")}, {"zeta": 1.5}, {"zeta": -0.1}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"trust > 0 and zeta in \[0, 1\]"):
            next(inverse.diffpir(prior, Likelihood(op, y, 0.1), x, sigmas, **wrong))


def authors_daps(
    prior: GaussianDenoiser, A: Callable[[Tensor], Tensor], y: Tensor, x: Tensor, n: int, *, rate: float, steps: int
) -> Iterator[Tensor]:
    """Zhang et al.'s code: EDM's ramps with n + 1 and 5 + 1 points whose last one is replaced by 0."""

    def ramp(points: int, high: float, low: float) -> list[float]:
        p = [i / (points - 1) for i in range(points)]
        return [*((high ** (1 / 7) + r * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for r in p[:-1]), 0.0]

    noise, tau, annealing = Draws(), 0.01, ramp(n + 1, 100.0, 0.1)
    for k in range(n):
        x0, levels = x, ramp(6, annealing[k], 0.01)
        for a, b in pairwise(levels):
            x0 = x0 + (b - a) * (x0 - prior(x0, torch.tensor(a, dtype=F64))) / a
        u, h = x0, (1 + k / (n + 1) * (0.01 - 1)) * rate
        for _ in range(steps):
            v = u.detach().requires_grad_()
            (slope,) = torch.autograd.grad((A(v) - y).square().sum(), v)
            prior_term, xt_term = (x0 - x) / annealing[k] ** 2, (x - u) / annealing[k] ** 2
            u = u + h * (-slope / tau**2 + xt_term + prior_term) + math.sqrt(2 * h) * noise(u)
        yield u
        x = u + annealing[k + 1] * noise(u)


@pytest.mark.parametrize("operator", ["blur", "phase"])
def test_daps_with_langevin_steps_is_the_authors_code(operator: str) -> None:
    shape = (1, 6, 5)
    prior = smooth(shape)
    op = (
        inverse.PhaseRetrieval(shape, 2.0)
        if operator == "phase"
        else inverse.separable_blur(shape, inverse.gaussian_line(0.6))
    )
    truth = prior.sample(2, generator=torch.Generator().manual_seed(3))
    y = op(truth) + 0.05 * Draws(4)(op(truth))
    x = 100 * Draws(5)(truth)
    levels = karras_sigmas(9, sigma_min=0.1, sigma_max=100)
    sigmas = torch.cat([levels[:-2], levels[-1:]])
    theirs = authors_daps(prior, op.A, y, x, 8, rate=2e-5, steps=20)
    langevin = inverse.Langevin(rate=2e-5, steps=20)
    ours = inverse.daps(
        inverse.estimate_by_ode(prior, 5), Likelihood(op, y, 0.05), x, sigmas, langevin=langevin, noise=Draws()
    )
    torch.testing.assert_close(torch.stack(list(ours)), torch.stack(list(theirs)), rtol=1e-8, atol=1e-8)


def test_daps_constants() -> None:
    published = inverse.Langevin()
    assert (published.rate, published.steps, published.tau, published.last) == (1e-4, 100, 0.01, 0.01)
    with pytest.raises(ValueError, match="Langevin steps need"):
        inverse.Langevin(rate=0)
    with pytest.raises(ValueError, match="positive radius"):
        next(inverse.daps(smooth((1, 4, 4)), Likelihood(*MASKED, 0.1), MASKED[1], torch.tensor([1.0, 0.0]), radius=0))


MASKED = inverse.Inpainting(inverse.box_mask(4, 4), (1, 4, 4)), torch.zeros(1, 1, 4, 4, dtype=F64)


def ncvsd_blur(kernel: Tensor, size: int) -> Tensor:
    """NCVSD's spectrum: the kernel in the middle of the image; `fftshift` afterwards moves it to the corner."""
    before = (size - len(kernel)) // 2
    after = size - len(kernel) - before
    return torch.fft.fft2(torch.nn.functional.pad(kernel, (before, after, before, after)))


@pytest.mark.parametrize("task", ["box_inpainting", "gaussian_deblur_circ", "motion_deblur_circ"])
def test_pnp_gd_is_the_authors_code(task: str) -> None:
    """Levels, the effective noise of beta, the closed-form draws and the running mean; the blurs shifted as theirs are."""
    size, preset = 16, PUBLISHED[task]
    prior, noise, n = smooth((1, size, size)), Draws(), 12
    y = 0.5 * Draws(7)(torch.zeros(2, 1, size, size, dtype=F64))
    fft, ifft = torch.fft.fft2, torch.fft.ifft2
    sigma_y = (0.5 * {"box_inpainting": 1e-4, "gaussian_deblur_circ": 2e-3, "motion_deblur_circ": 3e-3}[task]) ** 0.5
    mask = torch.ones(size, size, dtype=F64)
    mask[4:12, 4:12] = 0
    kernel = inverse.motion_kernel(5) if "motion" in task else inverse.gaussian_kernel(1.0)[1:8, 1:8].contiguous()
    kernel = kernel / kernel.sum()
    spectrum = ncvsd_blur(kernel, size)

    def draw(x: Tensor, rho: Tensor) -> Tensor:
        if task == "box_inpainting":
            mean = x + (y - x * mask) / (sigma_y**2 + mask * rho**2) * mask * rho**2
            return mean + noise(x) / (1 / rho**2 + mask / sigma_y**2) ** 0.5
        inverted = 1 / (spectrum * spectrum.conj() / sigma_y**2 + 1 / rho**2)
        spread = ifft(inverted.sqrt() * fft(noise(x))).real
        pulled = torch.fft.fftshift(ifft(spectrum.conj() * fft(y / sigma_y**2)).real, dim=(-2, -1))
        return ifft(inverted * fft(pulled + x / rho**2)).real + spread

    ramp = torch.linspace(0, 1, n + 1, dtype=F64)
    levels = (80**0.5 + ramp * (0.002**0.5 - 80**0.5)) ** 2
    u = 80 * noise(y)
    student, mean, expected = generative(prior, noise), None, []
    decay = 0.2 if task == "box_inpainting" else 0.6
    for k in range(n):
        x = student(u, levels[k])
        mean = x if mean is None else decay * mean + (1 - decay) * x
        expected.append(mean)
        u = draw(x, levels[k + 1])

    noise, shape = Draws(), (1, size, size)
    op = inverse.Inpainting(mask, shape) if task == "box_inpainting" else inverse.CircularBlur(kernel, shape, (-1, -1))
    sigmas = preset.sigmas(n, 0.05)
    likelihood = Likelihood(op, y, 0.05).measured(preset.beta)
    states = inverse.pnp_gd(generative(prior, noise), likelihood, sigmas[0] * noise(y), sigmas, noise=noise)
    found = list(inverse.averaged(states, sigmas, below=preset.ema_below, decay=preset.ema_decay))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-8, atol=1e-8)


def test_ncvsds_blur_is_ours_moved_by_a_pixel() -> None:
    """At 256x256 with 61 taps, their published sizes."""
    x, kernel = Draws()(torch.zeros(1, 3, 256, 256, dtype=F64)), inverse.motion_kernel(61)
    spectrum = ncvsd_blur(kernel, 256)
    theirs = torch.fft.fftshift(torch.fft.ifft2(spectrum * torch.fft.fft2(x)).real, dim=(-2, -1))
    shifted = inverse.CircularBlur(kernel, (3, 256, 256), (-1, -1))
    torch.testing.assert_close(shifted(x), theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inverse.CircularBlur(kernel, (3, 256, 256))(x).roll((-1, -1), (2, 3)), theirs)
    pulled = torch.fft.fftshift(torch.fft.ifft2(spectrum.conj() * torch.fft.fft2(x)).real, dim=(-2, -1))
    torch.testing.assert_close(shifted.A_adjoint(x), pulled, rtol=1e-10, atol=1e-10)
