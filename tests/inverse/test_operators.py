"""Measurement operators: adjoints, exact proximal draws, kernels as published, no shift, Langevin steps, clear refusals."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fewstep import inverse
from fewstep.core.noise import SeededNoise
from fewstep.inverse.operator import LANGEVIN_STEPS, Decomposed, LinearOperator, Operator
from tests.linear import F64, Impulses, affine, matrix

SHAPE = (2, 8, 6)
KERNEL = inverse.motion_kernel(5)
LINEAR = {
    "box": inverse.Inpainting(inverse.box_mask(8, 6), SHAPE),
    "random": inverse.Inpainting(inverse.random_mask(8, 6), SHAPE),
    "circular_gaussian": inverse.CircularBlur(inverse.gaussian_kernel(0.6), SHAPE),
    "circular_motion": inverse.CircularBlur(KERNEL, SHAPE),
    "circular_even_kernel": inverse.CircularBlur(KERNEL[:4, :4] / KERNEL[:4, :4].sum(), SHAPE),
    "separable": inverse.separable_blur(SHAPE, inverse.gaussian_line(0.6)),
    "bicubic": inverse.super_resolution(SHAPE, 2),
    "bicubic_odd": inverse.super_resolution(SHAPE, 1.7),
    "average": inverse.super_resolution(SHAPE, 2.5, "average"),
    "enlarged": inverse.Separable(SHAPE, rows=torch.randn(11, 8, generator=torch.Generator().manual_seed(0))),
    "colorization": inverse.colorization(SHAPE),
    "reflect": inverse.real_blur(KERNEL, SHAPE, "reflect"),
    "zeros": inverse.real_blur(KERNEL, SHAPE, "zeros"),
    "replicate": inverse.real_blur(KERNEL, SHAPE, "replicate"),
    "valid": inverse.real_blur(KERNEL, SHAPE, "valid"),
}
CLOSED = {name: op for name, op in LINEAR.items() if isinstance(op, Decomposed)}


def image(n: int = 2, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LINEAR)
def test_adjoint(name: str) -> None:
    op, x = LINEAR[name], image()
    y = op(x)
    v = image(shape=tuple(y.shape[1:]), seed=2)
    assert (y * v).sum().item() == pytest.approx((x * op.A_adjoint(v)).sum().item(), abs=1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_decomposition(name: str) -> None:
    """V is orthonormal, and A's singular values are those of its matrix."""
    op, x = CLOSED[name], image()
    torch.testing.assert_close(op.V(op.V_adjoint(x)), x)
    largest = torch.linalg.matrix_norm(matrix(op), ord=2)
    assert float(op.singular.max()) == pytest.approx(float(largest), rel=1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_dagger_is_the_pseudo_inverse(name: str) -> None:
    op, y = LINEAR[name], LINEAR[name](image())
    expected = torch.linalg.pinv(matrix(op), rtol=1e-6) @ y.flatten(1).T
    if name in CLOSED:
        torch.testing.assert_close(op.A_dagger(y).flatten(1).T, expected, atol=1e-6, rtol=1e-6)
    else:  # conjugate gradients on a badly conditioned blur: what it measures counts
        assert (op.A(op.A_dagger(y)) - y).abs().max() < 1e-2


@pytest.mark.parametrize("name", LINEAR)
def test_prox_l2(name: str) -> None:
    op, z, A = LINEAR[name], image(), matrix(LINEAR[name])
    y, gamma = op(image(seed=3)), 7.0
    expected = torch.linalg.solve(
        torch.eye(A.shape[1]).to(A) + gamma * A.T @ A, z.flatten(1).T + gamma * A.T @ y.flatten(1).T
    )
    torch.testing.assert_close(op.prox_l2(z, y, gamma).flatten(1).T, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rho", [0.03, 1.0, 80.0])
@pytest.mark.parametrize("name", LINEAR)
def test_proximal_draws_are_the_exact_gaussian(name: str, rho: float) -> None:
    """Mean and covariance, read off unit impulses of the noise: N(u; x, rho^2) N(y; A u, sigma_y^2)."""
    op, A, sigma_y = LINEAR[name], matrix(LINEAR[name]), 0.2
    x, y = image(1), LINEAR[name](image(1, seed=3)) + 0.1
    d = A.shape[1]
    noise = Impulses((d,) if name in CLOSED else (d, len(A)))
    drawn = op.prox_sample(x.expand(noise.rows, *SHAPE), y.expand(noise.rows, *y.shape[1:]), sigma_y, rho, noise)
    mean, covariance = affine(drawn)
    expected = torch.linalg.inv(A.T @ A / sigma_y**2 + torch.eye(d).to(A) / rho**2)
    error = (1e-6 if name in CLOSED else 1e-3) * rho
    torch.testing.assert_close(covariance, expected, atol=error * rho, rtol=1e-6)
    expected_mean = expected @ (A.T @ y.flatten() / sigma_y**2 + x.flatten() / rho**2)
    torch.testing.assert_close(mean, expected_mean, atol=error, rtol=1e-6)


def test_kernels_are_the_published_ones() -> None:
    gaussian, motion = inverse.gaussian_kernel(3.0), inverse.motion_kernel(61, 0.5, seed=0)
    assert gaussian.shape == (25, 25) and gaussian.max().item() == pytest.approx(0.0176849, abs=1e-7)
    place = torch.arange(61, dtype=F64)
    centre = [(motion.sum(axis) * place).sum().item() for axis in (1, 0)]
    assert (motion > 0).sum() == 149 and motion.max().item() == pytest.approx(0.0172484, abs=1e-7)
    assert centre == pytest.approx([31.62, 31.85], abs=0.005)
    assert motion.sum().item() == pytest.approx(1) and not torch.equal(motion, inverse.motion_kernel(61, 0.5, seed=1))


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 15, 9)])
def test_circular_blur_does_not_shift(shape: tuple[int, int, int]) -> None:
    point = torch.zeros(1, *shape, dtype=F64)
    point[..., 7, 4] = 1
    blurred = inverse.CircularBlur(inverse.gaussian_kernel(0.9), shape)(point)
    assert blurred.argmax() == point.argmax()
    torch.testing.assert_close(blurred[..., 5:10, 2:7], blurred[..., 5:10, 2:7].flip(2, 3))
    off = torch.zeros(3, 3, dtype=F64)
    off[0, 2] = 1  # a convolution moves the image the way that the kernel's weight lies
    assert inverse.CircularBlur(off, shape)(point)[0, 0, 6, 5].item() == pytest.approx(1)
    assert inverse.real_blur(off, shape, "zeros")(point)[0, 0, 6, 5].item() == pytest.approx(1)


def test_circular_and_real_blur_agree_inside() -> None:
    x = image(1, (1, 16, 16))
    circular, real = (f(KERNEL, (1, 16, 16))(x) for f in (inverse.CircularBlur, inverse.real_blur))
    torch.testing.assert_close(circular[..., 3:-3, 3:-3], real[..., 3:-3, 3:-3])
    valid = inverse.real_blur(KERNEL, (1, 16, 16), "valid")(x)
    torch.testing.assert_close(valid, circular[..., 2:-2, 2:-2])
    line = inverse.gaussian_line(0.6)
    both = (
        inverse.separable_blur((1, 16, 16), line, "zeros"),
        inverse.real_blur(line[:, None] * line, (1, 16, 16), "zeros"),
    )
    torch.testing.assert_close(both[0](x), both[1](x))


def test_bicubic_is_torchs_inside_and_mirrored_at_the_ends() -> None:
    x = image(1, (1, 32, 32))
    ours = inverse.super_resolution((1, 32, 32), 4)(x)
    theirs = F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
    assert ours.shape == (1, 1, 8, 8)
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2])
    mirrored = F.pad(torch.cat([x.flip(3), x, x.flip(3)], 3), (0, 0, 0, 0))
    mirrored = torch.cat([mirrored.flip(2), mirrored, mirrored.flip(2)], 2)
    wide = F.interpolate(mirrored, scale_factor=0.25, mode="bicubic", antialias=True)
    torch.testing.assert_close(ours, wide[..., 8:16, 8:16])


def test_averages() -> None:
    x = image(1, (3, 8, 8))
    torch.testing.assert_close(inverse.super_resolution((3, 8, 8), 2, "average")(x), F.avg_pool2d(x, 2))
    torch.testing.assert_close(inverse.colorization((3, 8, 8))(x), x.mean(1, keepdim=True))
    assert inverse.box_mask(256, 256)[64:192, 64:192].sum() == 0
    assert inverse.box_mask(256, 256).sum() == 256**2 - 128**2
    assert inverse.random_mask(10, 10).sum() == 30


def test_phase_retrieval() -> None:
    op, x = inverse.PhaseRetrieval((1, 8, 8)), image(1, (1, 8, 8))
    y = op(x)
    assert y.shape == (1, 1, 16, 16)
    assert y.square().sum().item() == pytest.approx(((x + 1) / 2).square().sum().item())
    assert y[0, 0, 8, 8].item() == pytest.approx(abs(((x + 1) / 2).sum().item()) / 16)  # the centre is frequency 0
    gradient = op.gradient(torch.zeros_like(y))(x)  # |A|^2 / 2 is |(x + 1) / 2|^2 / 2
    torch.testing.assert_close(gradient, (x + 1) / 4)
    slopes = torch.autograd.functional.jacobian(op, x).view(256, 64)
    assert torch.linalg.matrix_norm(slopes, 2).square().item() == pytest.approx(op.curvature(x).item())


@pytest.mark.parametrize(("shape", "oversampling"), [((1, 8, 8), 4.0), ((3, 9, 7), 3.0), ((2, 5, 6), 0.0)])
def test_phase_retrieval_knows_its_gradient(shape: tuple[int, ...], oversampling: float) -> None:
    """Also for a measurement with noise, which is no even function of the frequency."""
    op, x = inverse.PhaseRetrieval(shape, oversampling), image(2, shape)  # pyright: ignore[reportArgumentType]
    y = op(image(2, shape, seed=2)) + 0.1 * image(2, tuple(op(x).shape[1:]), seed=3)
    torch.testing.assert_close(op.gradient(y)(x), Operator.gradient(op, y)(x))
    v = image(2, tuple(y.shape[1:]), seed=4)
    nudged = (op(x + 1e-6 * op.A_vjp(x, v)) - op(x)) / 1e-6
    torch.testing.assert_close((nudged * v).sum(), op.A_vjp(x, v).square().sum(), rtol=1e-4, atol=0)


def test_jpeg_is_that_of_pillow_and_quantization_rounds() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (4, 4)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=30)
    theirs = torch.from_numpy(np.asarray(Image.open(file)).astype(np.float64))
    x = torch.from_numpy(pixels / 127.5 - 1)[None, None]
    ours = ((inverse.JPEG((1, 16, 16), 30)(x)[0, 0] + 1) * 127.5).clamp(0, 255)
    assert (ours - theirs).abs().max() < 2
    assert (ours - torch.from_numpy(pixels.astype(np.float64))).abs().max() > 10
    coarse = inverse.Quantization((1, 16, 16), bits=1)
    assert set(coarse(x).flatten().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(coarse.gradient(coarse(x) - 0.5)(x), torch.full_like(x, 0.5))
    assert inverse.JPEG((1, 13, 9))(image(1, (1, 13, 9))).shape == (1, 1, 13, 9)


def test_langevin_draws_are_the_exact_gaussian_of_a_linear_operator() -> None:
    """Mean and covariance, read off unit impulses of the noise; plain Langevin steps have variances up to twice as large."""
    A = torch.tensor([[2.0, 0.3, 0.1], [0.0, 1.6, 0.4], [0.2, 0.0, 1.8], [0.5, 0.5, 0.5]], dtype=F64)
    op, sigma_y, rho = inverse.Function(lambda x: (x.flatten(1) @ A.T).view(-1, 1, 1, 4), (1, 1, 3)), 0.5, 1.0
    noise = Impulses((3,) * (LANGEVIN_STEPS + 1))
    x, y = torch.full((noise.rows, 1, 1, 3), 0.5, dtype=F64), torch.full((noise.rows, 1, 1, 4), 3.0, dtype=F64)
    step = 1 / (op.curvature(x[:1]) / 1.3 / sigma_y**2 + 1)
    mean, covariance = affine(op.walk(x, y, sigma_y, rho, x, step, noise))
    exact = torch.linalg.inv(A.T @ A / sigma_y**2 + torch.eye(3).to(A) / rho**2)
    torch.testing.assert_close(covariance, exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(mean, exact @ (A.T @ y[0].flatten() / sigma_y**2 + x[0].flatten()), atol=1e-6, rtol=0)


def test_langevin_draws_of_many_images_have_that_law() -> None:
    op, n, sigma_y, rho = inverse.Function(lambda x: 2 * x, (1, 1, 1)), 600, 0.5, 1.0
    torch.manual_seed(0)
    x, y = torch.full((n, 1, 1, 1), 0.5, dtype=F64), torch.full((n, 1, 1, 1), 3.0, dtype=F64)
    u = op.prox_sample(x, y, sigma_y, rho)
    precision = 4 / sigma_y**2 + 1
    assert u.mean().item() == pytest.approx((2 * 3 / sigma_y**2 + 0.5) / precision, abs=4 * (precision * n) ** -0.5)
    assert u.var().item() * precision == pytest.approx(1, abs=0.2)
    nearest = op.prox_l2(x[:1], y[:1], 1 / sigma_y**2)
    assert nearest.item() == pytest.approx((2 * 3 / sigma_y**2 + 0.5) / precision, abs=1e-6)


def test_a_diverging_image_is_drawn_again_and_leaves_the_others_alone() -> None:
    op = inverse.Function(lambda x: x + 3 * x**3, (1, 2, 2))
    x = torch.full((2, 1, 2, 2), 0.1, dtype=F64)
    y = torch.stack([op(x[:1])[0], torch.full((1, 2, 2), 60.0, dtype=F64)])

    both, one = SeededNoise([0, 1]), SeededNoise([0])
    with pytest.warns(UserWarning, match="image 1 of the batch: drawn again with a smaller step"):
        u = op.prox_sample(x, y, 0.1, 1.0, both)
    alone = op.prox_sample(x[:1], y[:1], 0.1, 1.0, one)
    assert torch.equal(u[:1], alone)
    assert torch.equal(both(x)[:1], one(x[:1]))  # nor did its random stream move on
    torch.testing.assert_close(op(u)[1], y[1], atol=40, rtol=0)  # it is on its way; it began 60 away

    never = inverse.Function(lambda x: torch.where(x > 1e9, x, x * float("nan")), (1, 2, 2))
    with pytest.warns(UserWarning, match="left as it was"):
        kept = never.prox_sample(x, y, 0.1, 1.0)
    assert torch.equal(kept, x)


def test_user_functions_and_deepinv_objects() -> None:
    class Sums:
        """As deepinv's physics."""

        def A(self, x: torch.Tensor) -> torch.Tensor:  # noqa: N802
            return x.sum(3)

        def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:  # noqa: N802
            return y[..., None].expand(-1, -1, -1, 6)

    physics = inverse.from_physics(Sums(), SHAPE)
    function = inverse.LinearFunction(lambda x: x.sum(3), SHAPE)
    assert isinstance(physics, LinearOperator)
    y = physics(image())
    torch.testing.assert_close(physics.A_adjoint(y), function.A_adjoint(y))
    torch.testing.assert_close(physics.prox_l2(image(), y, 3.0), function.prox_l2(image(), y, 3.0))
    torch.testing.assert_close(function.A_vjp(image(), y), physics.A_adjoint(y))

    class Squares(Sums, torch.nn.Module):
        """As deepinv's phase retrieval, which calls something its adjoint without being linear."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def A(self, x: torch.Tensor) -> torch.Tensor:  # noqa: N802
            return (self.weight * x).square().sum(3)

    squares = inverse.from_physics(Squares(), SHAPE)
    assert isinstance(squares, inverse.Function)
    assert squares.double().A(image()).dtype == F64 and dict(squares.named_parameters())["owner.weight"].dtype == F64

    class Scanner(Sums):
        """Of complex images, as deepinv's scattering and some of its magnetic resonance."""

        def A(self, x: torch.Tensor) -> torch.Tensor:  # noqa: N802
            return (torch.eye(6, dtype=torch.complex64) @ x[..., None]).real[..., 0]

    class Moire(Sums):
        def A(self, x: torch.Tensor) -> torch.Tensor:  # noqa: N802
            return torch.fft.fft2(x)

    class Other(Sums):
        def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:  # noqa: N802
            return 2 * super().A_adjoint(y)

    class Unfolded(Sums):
        def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:  # noqa: N802
            return y

    class Stairs(Sums):
        def A(self, x: torch.Tensor) -> torch.Tensor:  # noqa: N802
            return torch.from_numpy(np.square(x.detach().numpy()))

    unfit = {
        r"fails for real images \(2, 2, 8, 6\) torch.float32 on the CPU: RuntimeError: .*two channels": Scanner(),
        r"returned torch.complex64 \(2, 2, 8, 6\). Return complex ones as torch.view_as_real": Moire(),
        r"A_adjoint of this physics object is not the adjoint of its A: <A x, v> = .* the adjoint is derived": Other(),
        r"A_adjoint of this physics object is not the adjoint of its A: .* nan, of shape \(1, 2, 8\)": Unfolded(),
        "has no gradient": Stairs(),
    }
    for match, unfitting in unfit.items():
        with pytest.raises(ValueError, match=match) as caught:
            inverse.from_physics(unfitting, SHAPE)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="has no gradient"):
        inverse.LinearFunction(lambda x: torch.from_numpy(x.detach().numpy()), SHAPE)
    with pytest.raises(ValueError, match="method A"):
        inverse.from_physics(object(), SHAPE)
    with pytest.raises(ValueError, match="not linear"):
        inverse.LinearFunction(lambda x: x + 1, SHAPE)
    wrong = {
        "into a tensor; this one returned list": lambda x: [x],
        "one for each; this one returned torch.float32": lambda x: x.reshape(1, -1),
        "one for each; this one returned torch.complex64": lambda x: torch.fft.fft2(x),
        "returned NaN or inf for random images": lambda x: x.log(),
        "fails for real images .* KeyError": lambda x: {}[x],
        "changes its images in place": lambda x: x.mul_(2),
        "depends on the other images of the batch": lambda x: x - x.mean(0),
        "or changes at each call": lambda x: x + torch.randn_like(x),
    }
    for match, function in wrong.items():
        with pytest.raises(ValueError, match=match):
            inverse.LinearFunction(function, SHAPE)


def test_real_deepinv_objects() -> None:
    """A blur, an undersampling and a phase retrieval of deepinv's, and an operator of ours as its physics."""
    deepinv = pytest.importorskip("deepinv")
    shape, kernel = (1, 16, 16), inverse.gaussian_kernel(1.0).float()
    x = image(2, shape).float()
    theirs = deepinv.physics.Blur(filter=kernel[None, None], padding="circular")
    blur, ours = inverse.from_physics(theirs, shape), inverse.CircularBlur(kernel, shape)
    torch.testing.assert_close(blur(x), ours(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(blur.prox_l2(x, blur(x), 2.0), ours.prox_l2(x, ours(x), 2.0), atol=1e-4, rtol=0)
    for physics in (theirs, deepinv.physics.Downsampling(shape, filter="bicubic", factor=4)):
        op = inverse.from_physics(physics, shape)
        assert isinstance(op, LinearOperator)
        assert inverse.Likelihood(op, op(x), 0.1).sample(x, 0.5).isfinite().all()
    phase = inverse.from_physics(deepinv.physics.PhaseRetrieval(theirs), shape)
    assert isinstance(phase, inverse.Function) and phase.prox_sample(x, phase(x), 0.5, 0.1).isfinite().all()
    fidelity = deepinv.optim.L2()
    torch.testing.assert_close(fidelity.grad(x, ours(x) + 1, ours), -ours.A_adjoint(torch.ones_like(x)))
    torch.testing.assert_close(fidelity.prox(x, ours(x), ours, gamma=2.0), ours.prox_l2(x, ours(x), 2.0))


def test_latents_are_measured_through_their_decoder() -> None:
    pixels = inverse.super_resolution((1, 8, 8), 2, "average")
    op = inverse.Latent(pixels, lambda x: F.interpolate(2 * x, scale_factor=2.0), (1, 4, 4))
    x = image(1, (1, 4, 4))
    torch.testing.assert_close(op(x), 2 * x)
    torch.testing.assert_close(
        op.prox_l2(x, op(image(1, (1, 4, 4), 5)), 50.0), (x + 200 * image(1, (1, 4, 4), 5)) / 201
    )


def test_a_decoder_with_fused_attention() -> None:
    """Its second derivative, which the power iteration takes, does not exist; the plain attention's does."""

    def decode(x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        return x + F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0].transpose(1, 2).view(x.shape)

    op = inverse.Latent(inverse.Inpainting(inverse.box_mask(4, 4), (4, 4, 4)), decode, (4, 4, 4))
    x = image(2, (4, 4, 4)).float()
    largest = torch.linalg.matrix_norm(torch.func.jacfwd(lambda v: op.A(v[None])[0].flatten())(x[0]).flatten(1), ord=2)
    assert 0.8 * float(largest) ** 2 < float(op.curvature(x)[0]) < 1.4 * float(largest) ** 2
    assert op.prox_sample(x, op(x) + 0.1, 0.1, 0.5).isfinite().all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"has shape \(8, 6\)"):
        inverse.Inpainting(torch.ones(8, 8), SHAPE)
    for mask in (torch.zeros(8, 6), -torch.ones(8, 6), torch.full((8, 6), float("nan"))):
        with pytest.raises(ValueError, match="non-negative and not zero everywhere"):
            inverse.Inpainting(mask, SHAPE)
    for kernel in (torch.ones(3), torch.ones(0, 0), torch.zeros(3, 3), torch.full((3, 3), float("inf"))):
        with pytest.raises(ValueError, match="a finite matrix .* not zero everywhere"):
            inverse.CircularBlur(kernel, SHAPE)
    with pytest.raises(ValueError, match="larger than the images"):
        inverse.CircularBlur(torch.ones(9, 3) / 27, SHAPE)
    with pytest.warns(UserWarning, match="sums to 2"):
        inverse.CircularBlur(torch.full((2, 2), 0.5), SHAPE)
    with pytest.raises(ValueError, match="factor above 1"):
        inverse.super_resolution(SHAPE, 0.5)
    with pytest.raises(ValueError, match="several channels"):
        inverse.colorization((1, 8, 8))
    with pytest.raises(ValueError, match="measures images of shape"):
        LINEAR["box"](torch.zeros(1, 2, 8, 8))
    for sigma_y, rho in ((0, 1), (-1, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            LINEAR["box"].prox_sample(image(), image(), sigma_y, rho)
    y = torch.zeros(2, 2, 4, 3)
    for sigma_y in (0.0, -0.1, float("inf")):
        with pytest.raises(ValueError, match="noise level"):
            inverse.Likelihood(LINEAR["bicubic"], y, sigma_y)
    with pytest.raises(ValueError, match=r"measurements of shape \(2, 4, 3\)"):
        inverse.Likelihood(LINEAR["bicubic"], y[..., :2], 0.1)
    y[1] = float("nan")
    with pytest.raises(ValueError, match=r"\[1\] of the batch are not finite"):
        inverse.Likelihood(LINEAR["bicubic"], y, 0.1)
    with pytest.raises(ValueError, match="tight coupling"):
        inverse.Likelihood(LINEAR["zeros"], torch.zeros(1, *SHAPE), 0.1, "tight")


def test_conjugate_gradients_say_when_they_fail() -> None:
    class Wrong(inverse.LinearFunction):
        def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:  # noqa: N802
            return -y

    op = Wrong(lambda x: x, (1, 2, 2))
    with pytest.warns(UserWarning, match="conjugate gradients did not converge"):
        op.prox_l2(image(1, (1, 2, 2)), image(1, (1, 2, 2), 5), 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LINEAR["reflect"].prox_l2(image(), LINEAR["reflect"](image()), 100.0)
