"""Measurement operators y = A(x) + sigma_y eps, and proximal draws given a measurement.

Every operator can draw from N(u; x, rho^2 I) p(y | u), up to a constant, the step that split Gibbs sampling needs:
exactly from a known singular value decomposition (`Decomposed`), exactly up to the tolerance of conjugate gradients for
other linear operators (`LinearOperator`), by Langevin steps for the rest (`Operator`). Methods have deepinv's names.
"""

# ruff: noqa: N802 - A, U, V are the names of the field

from __future__ import annotations

import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.noise import Noise

Coupling = Literal["split", "tight"]
"""How strongly proximal draws are tied to the measurement; see `Decomposed.shrinkage`."""

LANGEVIN_STEPS = 25
"""More gain nothing measurable (docs/results.md), because each draw starts where the previous one ended."""
STEP = 1.0
"""Of the Langevin step, in units of 1 / curvature; steps below 2 are stable."""
HALVINGS = 12
POWER_STEPS = 8
CG_STEPS, CG_TOLERANCE, DRAW_TOLERANCE = 500, 1e-6, 1e-4


class LangevinDiverged(UserWarning):
    """Langevin steps diverged for `images` of a batch; `mended` if smaller steps succeeded."""

    def __init__(self, images: list[int], *, mended: bool) -> None:
        self.images, self.mended = images, mended
        fate = "drawn again with a smaller step" if mended else "left as it was before"
        super().__init__(f"Langevin steps diverged for image {', '.join(map(str, images))} of the batch: {fate}")


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each pair, (B, 1, ..., 1) as broadcasts against `a`."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))


def check_levels(sigma_y: float, rho: float) -> None:
    if not sigma_y > 0 or not rho > 0:
        raise ValueError(
            f"the noise of a measurement and the radius of a proximal step must be positive; got sigma_y={sigma_y}, "
            f"rho={rho}. For an exact measurement use a small sigma_y, such as 0.001"
        )


def streams(eps: Tensor) -> Callable[[], Noise]:
    """Noise that can be drawn again: a function of each image's part of the draw `eps` (B, ...).

    One image can then be repeated without touching the random streams of the others.
    """
    # PyTorch's CPU generator reads 32 bits of a seed: they must depend on every bit of the draw
    seeds = [zlib.crc32(part.numpy().tobytes()) for part in eps.detach().double().cpu()]

    def start() -> Noise:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def noise(x: Tensor) -> Tensor:
            drawn = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in generators]
            return torch.stack(drawn).to(x.device)

        return noise

    return start


class Operator(nn.Module, ABC):
    """A measurement operator y = A(x) for images x (B, C, H, W), differentiable.

    Subclasses define `A`; linear ones derive from `fewstep.inverse.operator.LinearOperator`.

    Args:
        shape: shape of the images (C, H, W).

    Example:
        >>> class Gamma(fs.inverse.Operator):
        ...     def A(self, x):
        ...         return ((x + 1) / 2).clamp_min(1e-3) ** 2.2
        >>> y = Gamma((1, 8, 8))(x0)
    """

    shape: tuple[int, ...]

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """Return the measurement (B, ...) of images (B, C, H, W), without noise."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            raise ValueError(f"this operator measures images of shape {self.shape}; got a batch of {tuple(x.shape)}")
        return self.A(x)

    def view(self, y: Tensor) -> Tensor:
        """Return the measurement as an image in [-1, 1], of any size, for display."""
        return y

    def observed(self, y: Tensor) -> Tensor:
        """Return the observed part of a measurement; zero where it does not depend on the image."""
        return y

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Return J^T v, (B, C, H, W), for the Jacobian J of A at `x` and a measurement `v`."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.A(x), x, v)[0]

    def gradient(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the gradient of |A(u) - y|^2 / 2 as a function u -> J^T (A(u) - y), (B, C, H, W)."""

        def gradient(u: Tensor) -> Tensor:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                return torch.autograd.grad((self.A(u) - y).square().sum() / 2, u)[0]

        return gradient

    def curvature(self, x: Tensor) -> Tensor:
        """Return an upper estimate of |J|^2, the largest eigenvalue of J^T J at `x`, (B, 1, ..., 1), by power iteration.

        The iteration converges from below; a margin of 1.3 covers the remaining error.
        """
        drawn = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0))
        v = drawn.to(x).expand(x.shape)
        value = torch.ones_like(dots(v, v))
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):  # fused attention, as in a VAE, has no second derivative
            at = x.detach().requires_grad_()
            out = self.A(at)
            w = torch.zeros_like(out, requires_grad=True)
            (pulled,) = torch.autograd.grad(out, at, w, create_graph=True)  # J^T w, whose derivative in w is J v
            for _ in range(POWER_STEPS):
                v = v / dots(v, v).sqrt().clamp_min(1e-30)
                (pushed,) = torch.autograd.grad(pulled, w, v, retain_graph=True)
                (v,) = torch.autograd.grad(out, at, pushed, retain_graph=True)
                value = dots(v, v).sqrt()
        return 1.3 * value.detach().clamp_min(1e-12)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        """Return argmin_u gamma / 2 |A(u) - y|^2 + 1/2 |u - z|^2, by gradient steps; a stationary point if A is not linear."""
        return self.descend(z, y, gamma**-0.5, 1.0, z, lambda: torch.zeros_like)

    def prox_sample(self, x: Tensor, y: Tensor, sigma_y: float, rho: float, noise: Noise = torch.randn_like) -> Tensor:
        """Draw from exp(-|A(u) - y|^2 / (2 sigma_y^2) - |u - x|^2 / (2 rho^2)), by Langevin steps from `x`.

        The step is `STEP` over the curvature |J|^2 / sigma_y^2 + 1 / rho^2 at `x`, hence stable where J varies little.
        An image that still diverges is drawn again with half the step, and so on, with the warning `LangevinDiverged`;
        the others are not changed.
        """
        check_levels(sigma_y, rho)
        return self.descend(x, y, sigma_y, rho, x, streams(noise(x)))

    def descend(
        self, z: Tensor, y: Tensor, sigma_y: float, rho: float, start: Tensor, noise: Callable[[], Noise]
    ) -> Tensor:
        """Take Langevin steps on |A(u) - y|^2 / (2 sigma_y^2) + |u - z|^2 / (2 rho^2); `noise` starts one stream anew."""
        step = STEP / (self.curvature(z) / sigma_y**2 + rho**-2)
        before = self.energy(start, y, z, sigma_y, rho)
        result, bad = start, torch.ones(len(z), dtype=torch.bool, device=z.device)
        again = torch.zeros_like(bad)
        for _ in range(HALVINGS):
            u = self.walk(z, y, sigma_y, rho, start, step, noise())
            after = self.energy(u, y, z, sigma_y, rho)  # not finite if u is not
            good = after <= 10 * (before + z[0].numel() + y[0].numel())
            result = torch.where((bad & good).view(step.shape), u, result)
            bad = bad & ~good
            if not bad.any():
                break
            again = again | bad
            step = step / 2  # the others have their result
        for which, mended in ((again & ~bad, True), (bad, False)):
            if which.any():
                warnings.warn(LangevinDiverged(which.nonzero().flatten().tolist(), mended=mended), stacklevel=3)
        return result

    def walk(self, z: Tensor, y: Tensor, sigma_y: float, rho: float, u: Tensor, step: Tensor, noise: Noise) -> Tensor:
        """Take steps u <- u - h grad E + (h / 2)^(1/2) (eps_k + eps_(k+1)) of Leimkuhler & Matthews (2013).

        Neighbouring steps share their noise: so a Gaussian's stationary variances are exact at every stable h, where plain
        Langevin steps make them 1 / (1 - h lambda / 2) times as large along a direction of curvature lambda.
        """
        eps, gradient = noise(u), self.gradient(y)
        for _ in range(LANGEVIN_STEPS):
            fresh = noise(u)
            downhill = gradient(u) / sigma_y**2 + (u - z) / rho**2
            u, eps = u - step * downhill + (step / 2).sqrt() * (eps + fresh), fresh
        return u

    def energy(self, u: Tensor, y: Tensor, z: Tensor, sigma_y: float, rho: float) -> Tensor:
        with torch.no_grad():
            gap = (self.A(u) - y) / sigma_y
            return (dots(gap, gap).flatten() + dots(u - z, u - z).flatten() / rho**2) / 2


class LinearOperator(Operator):
    """A linear operator. Its adjoint is derived from `A` by differentiation unless a subclass defines a faster one."""

    def A_adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (B, *shape)."""
        return super().A_vjp(y.new_zeros(len(y), *self.shape), y)

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.A_adjoint(v)

    def A_dagger(self, y: Tensor) -> Tensor:
        """The least-squares solution of least norm."""
        return self.solve(self.A_adjoint(y), lambda u: self.A_adjoint(self.A(u)), y.new_zeros(len(y), *self.shape))

    def gradient(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda u: self.A_adjoint(self.A(u) - y)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        """argmin_u gamma / 2 |A u - y|^2 + 1/2 |u - z|^2 = (I + gamma A^T A)^-1 (z + gamma A^T y)."""
        return self.solve(z + gamma * self.A_adjoint(y), lambda u: u + gamma * self.A_adjoint(self.A(u)), z)

    def prox_sample(self, x: Tensor, y: Tensor, sigma_y: float, rho: float, noise: Noise = torch.randn_like) -> Tensor:
        """A draw of exp(-|A u - y|^2 / (2 sigma_y^2) - |u - x|^2 / (2 rho^2)) by perturbing and optimising (Papandreou &
        Yuille, 2010): the minimiser for x + rho eps and y + sigma_y eps' has exactly this law.
        """
        check_levels(sigma_y, rho)
        gamma, z = (rho / sigma_y) ** 2, x + rho * noise(x)
        b = z + gamma * self.A_adjoint(y + sigma_y * noise(y))
        # the deviation of the draw is rho or less, and the residual is an error in units of at least that
        goal = DRAW_TOLERANCE * rho * x[0].numel() ** 0.5
        return self.solve(b, lambda u: u + gamma * self.A_adjoint(self.A(u)), z, goal)

    @staticmethod
    def solve(b: Tensor, normal: Callable[[Tensor], Tensor], u: Tensor, tolerance: float | None = None) -> Tensor:
        """Conjugate gradients for normal(u) = b, separately for each image, until the residual is below `tolerance` or
        1e-6 of |b|. Warns if they do not converge.
        """
        r = b - normal(u)
        p, rr, goal = r, dots(r, r), CG_TOLERANCE**2 * dots(b, b)
        goal = goal if tolerance is None else torch.full_like(goal, tolerance**2)
        for _ in range(CG_STEPS):
            if (rr <= goal).all():
                return u
            Ap = normal(p)
            going = rr > goal  # an image that has converged stays as it is, whatever its neighbours need
            alpha = torch.where(going, rr / dots(p, Ap).clamp_min(1e-300 if u.dtype == torch.float64 else 1e-38), 0.0)
            u, r = u + alpha * p, r - alpha * Ap
            after = torch.where(going, dots(r, r), rr)
            p = torch.where(going, r + after / rr.clamp_min(1e-38) * p, p)
            rr = after
        left = (rr / goal.clamp_min(1e-38)).sqrt().max().item()
        if left > 100:
            warnings.warn(
                f"conjugate gradients did not converge in {CG_STEPS} steps: the residual is {left:.0f} times the tolerance. "
                "The measurement is nearly exact (use a larger sigma_y), or A_adjoint is not the adjoint of A",
                stacklevel=3,
            )
        return u


class Decomposed(LinearOperator):
    """A linear operator with a known singular value decomposition A = U diag(s) V^T.

    Subclasses define `V`, `V_adjoint`, `U` and `U_adjoint`, which map between coefficients and images or measurements.
    V is a complete orthonormal basis of the images. Where s = 0 the result of U_adjoint is ignored.

    Attributes:
        singular: s; values within rounding of zero are set to zero.
    """

    singular: Tensor

    @abstractmethod
    def V(self, c: Tensor) -> Tensor:
        """V c: coefficients to images."""

    @abstractmethod
    def V_adjoint(self, x: Tensor) -> Tensor:
        """V^T x: images to coefficients."""

    @abstractmethod
    def U(self, c: Tensor) -> Tensor:
        """U c: coefficients to measurements."""

    @abstractmethod
    def U_adjoint(self, y: Tensor) -> Tensor:
        """U^T y: measurements to coefficients."""

    def keep_singular(self, singular: Tensor) -> None:
        small = singular < 1e-6 * singular.max()
        self.register_buffer("singular", torch.where(small, 0.0, singular))

    def s(self, like: Tensor) -> Tensor:
        """The singular values in the precision of `like`."""
        return self.singular.to(like.device, like.real.dtype if like.is_complex() else like.dtype)

    def A(self, x: Tensor) -> Tensor:
        return self.U(self.s(x) * self.V_adjoint(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.V(self.s(y) * self.U_adjoint(y))

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.V(self.inverse(self.s(y)) * self.U_adjoint(y))

    @staticmethod
    def inverse(s: Tensor) -> Tensor:
        return torch.where(s > 0, 1 / torch.where(s > 0, s, 1.0), 0.0)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        s = self.s(z)
        return self.V((self.V_adjoint(z) + gamma * s * self.U_adjoint(y)) / (1 + gamma * s**2))

    def shrinkage(self, sigma_y: float, rho: float, coupling: Coupling, like: Tensor) -> Tensor:
        """g, of each singular direction: u ~ N(g x + (1 - g) U^T y / s, rho^2 g), with w = (rho s / sigma_y)^2.

        split: g = 1 / (1 + w), the Gaussian proportional to N(u; x, rho^2) p(y | u). A denoiser that interprets u as an
        observation at level rho then samples p(x) given a measurement with noise hypot(sigma_y, rho s).
        tight: g = max(1 - w, 0). The noise is then max(sigma_y, rho s), which is exact if rho s <= sigma_y: y and u
        together carry the information of one observation at level rho. For rho s > sigma_y no coupling by a Gaussian u
        is better.
        """
        w = (rho * self.s(like) / sigma_y) ** 2
        return 1 / (1 + w) if coupling == "split" else (1 - w).clamp_min(0)

    def prox_sample(
        self,
        x: Tensor,
        y: Tensor,
        sigma_y: float,
        rho: float,
        noise: Noise = torch.randn_like,
        coupling: Coupling = "split",
    ) -> Tensor:
        """A draw of N(u; x, rho^2 I) p(y | u), exact in closed form, or its `tight` variant."""
        check_levels(sigma_y, rho)
        g = self.shrinkage(sigma_y, rho, coupling, x)
        known = (1 - g) * self.inverse(self.s(x)) * self.U_adjoint(y)
        return self.V(g * self.V_adjoint(x) + known + rho * g.sqrt() * self.V_adjoint(noise(x)))

    def shrink(self, v: Tensor, sigma_y: float, rho: float, coupling: Coupling) -> Tensor:
        """g^(1/2) v: the part of white noise `v` that a proximal draw at `rho` contains."""
        return self.V(self.shrinkage(sigma_y, rho, coupling, v).sqrt() * self.V_adjoint(v))
