"""Every operator's proximal draws inside PnP-GD: their exact law, and one stream of noise for each seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import inverse
from fewstep.core.noise import Noise, SeededNoise
from fewstep.inverse import Likelihood, Operator, pnp_gd
from fewstep.inverse.operator import Decomposed, LinearOperator, streams
from tests.inverse.test_operators import LINEAR, SHAPE, image
from tests.linear import F64, Impulses, affine, matrix


class Sums:
    """Rows' sums, as deepinv's physics: `A` and `A_adjoint` alone."""

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x.sum(3)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return y[..., None].expand(-1, -1, -1, SHAPE[2])


class Rolled:
    """The measurement has the image's shape."""

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x + 0.5 * x.roll(1, 3)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return y + 0.5 * y.roll(-1, 3)


class Twice(Operator):
    """A user's operator that draws by itself, from one draw of noise."""

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return 2 * x

    def prox_sample(self, x: Tensor, y: Tensor, sigma_y: float, rho: float, noise: Noise = torch.randn_like) -> Tensor:
        variance = 1 / (4 / sigma_y**2 + 1 / rho**2)
        return variance * (2 * y / sigma_y**2 + x / rho**2) + variance**0.5 * noise(x)


class Adjoint(LinearOperator):
    """A user's operator with its own adjoint."""

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x[..., ::2] - x[..., 1::2]

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return torch.stack([y, -y], -1).flatten(-2)


OPERATORS: dict[str, Operator] = {
    **LINEAR,
    "identity function": inverse.LinearFunction(lambda x: x, SHAPE),
    "function": inverse.LinearFunction(lambda x: x.cumsum(2)[:, :, ::2], SHAPE),
    "function with one number": inverse.LinearFunction(lambda x: x.mean((1, 2, 3))[:, None], SHAPE),
    "physics": inverse.from_physics(Sums(), SHAPE),
    "physics of the image's shape": inverse.from_physics(Rolled(), SHAPE),
    "own adjoint": Adjoint(SHAPE),
    "own draws": Twice(SHAPE),
    "shifted blur": inverse.CircularBlur(inverse.gaussian_kernel(0.6), SHAPE, (-1, -1)),
}
ONE_DRAW = [name for name, op in OPERATORS.items() if isinstance(op, (Decomposed, Twice))]


def second_state(
    op: Operator, x: Tensor, y: Tensor, sigma_y: float, rho: float, noise: Noise, **options: Any
) -> Tensor:
    """u of PnP-GD after x0 = x: the denoiser returns x, then what it gets."""
    levels = torch.tensor([2.0, rho, 0.0], dtype=F64)
    likelihood = Likelihood(op, y, sigma_y)
    *_, u = pnp_gd(lambda u, sigma: x if sigma == 2 else u, likelihood, x, levels, noise=noise, **options)
    return u


@pytest.mark.parametrize("rho", [0.1, 0.5])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_solvers_draws_have_the_exact_law(name: str, rho: float) -> None:
    """Mean and covariance of N(u; x, rho^2) N(y; A u, sigma_y^2), read off unit impulses of every draw of the noise."""
    op, A, sigma_y = OPERATORS[name], matrix(OPERATORS[name]), 0.5
    x, y = image(1), OPERATORS[name](image(1, seed=3)) + 0.1
    d = A.shape[1]
    noise = Impulses((d,) if name in ONE_DRAW else (d, len(A)))
    u = second_state(op, x.expand(noise.rows, *SHAPE), y.expand(noise.rows, *y.shape[1:]), sigma_y, rho, noise)
    assert noise.drawn == len(noise.sizes)
    mean, covariance = affine(u)
    expected = torch.linalg.inv(A.T @ A / sigma_y**2 + torch.eye(d).to(A) / rho**2)
    error = (1e-6 if name in ONE_DRAW else 5e-4) * rho
    torch.testing.assert_close(covariance, expected, atol=error * rho, rtol=1e-6)
    torch.testing.assert_close(
        mean, expected @ (A.T @ y.flatten() / sigma_y**2 + x.flatten() / rho**2), atol=error, rtol=1e-6
    )


def test_perturb_and_optimise_at_equal_noise() -> None:
    """A = I, sigma_y = rho = 0.5: the deviation is sqrt(1/8) = 0.354, not 0.5; for 20,000 seeds in float32."""
    op, n = inverse.LinearFunction(lambda x: x, (1, 1, 1)), 20_000
    x = torch.zeros(n, 1, 1, 1)
    u = second_state(op, x, x + 1, 0.5, 0.5, SeededNoise(range(n)))
    assert u.std().item() == pytest.approx(8**-0.5, rel=0.02) and u.mean().item() == pytest.approx(0.5, abs=0.01)


NONLINEAR: dict[str, Operator] = {
    "phase retrieval": inverse.PhaseRetrieval(SHAPE),
    "quantization": inverse.Quantization(SHAPE),
    "jpeg": inverse.JPEG(SHAPE),
    "cubes": inverse.Function(lambda x: x + 0.1 * x**3, SHAPE),
    "latents": inverse.Latent(LINEAR["bicubic"], lambda x: 0.5 * x, SHAPE),
}


@pytest.mark.parametrize("name", [*OPERATORS, *NONLINEAR])
def test_a_draw_depends_on_its_own_seed_alone(name: str) -> None:
    """In float32, as restorations are: equal seeds give equal draws, others others, whatever is in the batch."""
    op = {**OPERATORS, **NONLINEAR}[name]
    x = image(1).float()
    y = op(image(1, seed=3).float())

    def drawn(seeds: list[int]) -> Tensor:
        n = len(seeds)
        return second_state(op, x.expand(n, *SHAPE), y.expand(n, *y.shape[1:]), 0.3, 0.4, SeededNoise(seeds))

    together, alone = drawn([5, 9, 5, 6]), drawn([9])
    torch.testing.assert_close(together[0], together[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-5)
    for i, j in ((0, 1), (0, 3), (1, 3)):
        assert (together[i] - together[j]).abs().mean() > 0.02


def test_langevin_streams_are_as_many_as_the_images() -> None:
    """PyTorch's generator reads the low 32 bits of a seed: of a float32 draw, seen as float64, they are 8 numbers."""
    for dtype in (torch.float32, F64, torch.bfloat16):
        eps = torch.randn(2000, 1, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
        first = streams(eps)()(torch.zeros(2000, 1, 1, 1, dtype=F64)).flatten()
        assert len(first.unique()) > 1990
        assert torch.equal(first[7:8], streams(eps[7:8])()(torch.zeros(1, 1, 1, 1, dtype=F64)).flatten())


def test_langevin_draws_of_many_seeds_have_the_law_through_the_solver() -> None:
    """A linear map made a `Function`, 6,000 seeds in float32: means, deviations and the correlation of samples."""
    A = torch.tensor([[2.0, 0.3], [0.2, 1.6], [0.5, 0.5]])
    op, n, sigma_y, rho = inverse.Function(lambda x: x.flatten(1) @ A.to(x).T, (1, 1, 2)), 6000, 0.5, 0.5
    x, y = torch.tensor([0.5, -0.2]).view(1, 1, 1, 2).expand(n, 1, 1, 2), torch.tensor([3.0, 0.0, 1.0]).expand(n, 3)
    u = second_state(op, x, y, sigma_y, rho, SeededNoise(range(n))).flatten(1).double()
    B = A.double()
    exact = torch.linalg.inv(B.T @ B / sigma_y**2 + torch.eye(2).double() / rho**2)
    mean = exact @ (B.T @ y[0].double() / sigma_y**2 + x[0].flatten().double() / rho**2)
    torch.testing.assert_close(u.T.cov(), exact, atol=0.06 * float(exact.max()), rtol=0)
    torch.testing.assert_close(u.mean(0), mean, atol=4 * float(exact.max() / n) ** 0.5, rtol=0)
    deviations = (u - mean) / exact.diagonal().sqrt()
    assert (deviations[::2] * deviations[1::2]).mean(0).abs().max() < 4 * (n / 2) ** -0.5


@pytest.mark.parametrize("name", ["physics", "function", "own draws"])
def test_persistence_needs_a_decomposition(name: str) -> None:
    op = OPERATORS[name]
    with pytest.raises(ValueError, match="persistent noise needs"):
        second_state(op, image(1), op(image(1)), 0.3, 0.4, torch.randn_like, persistence=0.5)
