"""Exact denoisers: what a perfect network would answer for data whose law is known.

For a Gaussian, a mixture of Gaussians and a finite set of points, E[x0 | x0 + sigma eps = x] is a formula, and so are
the density and the samples of every noise level and the posterior under a linear measurement. Oracles are denoisers by
signature; samplers, distillation and inverse solvers are tested against them, and over a batch of training images the
empirical one is the stable target field (Xu et al., 2023).

They compute in the wider of the precisions of `x` and of their own tensors, and answer in that of `x`; sigma must be
positive. Everything is differentiable, in forward mode too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewstep.core.inputs import readable
from fewstep.core.noise import expand


def select(logits: Tensor, classes: Tensor | None, label: Tensor | None) -> Tensor:
    """Log weights (B, K), -inf where the class differs from the label (B,) or (B, n); unchanged without a label."""
    if label is None:
        return logits
    if classes is None:
        raise ValueError("this oracle has no classes; pass label=None, or give it the class of each component")
    matches = (label.view(len(label), 1, -1) == classes.view(len(classes), -1)).all(-1)
    if readable(label) and not matches.any(1).all():
        found = label.unique(dim=0).tolist()
        raise ValueError(f"labels must be among the classes {classes.unique(dim=0).tolist()}; got {found}")
    return logits.masked_fill(~matches, -math.inf)


def check_measurement(A: Tensor, y: Tensor, sigma_y: float, dim: int) -> None:
    if A.ndim != 2 or A.shape[1] != dim or y.shape != A.shape[:1]:
        raise ValueError(f"a measurement needs A (m, {dim}) and y (m,); got {tuple(A.shape)} and {tuple(y.shape)}")
    if sigma_y < 0:
        raise ValueError(f"sigma_y must not be negative; got {sigma_y}")


class MixtureDenoiser(nn.Module):
    """The exact denoiser of data x0 ~ sum_k w_k N(mu_k, S_k), over events of any shape with d elements.

    D(x; sigma) = sum_k r_k (mu_k + K_k (x - mu_k)), with K_k = S_k (S_k + sigma^2 I)^-1 and
    r = softmax_k(ln w_k + ln N(x; mu_k, S_k + sigma^2 I)).

    Args:
        weights: positive weights (K,), normalised here.
        means: the means (K, ...), each of the shape of an event.
        covariances: positive semi-definite matrices (K, d, d), or variances (K,) of isotropic components.
        classes: the class of each component (K,) int64, with which a label selects the mixture of its components; None
            without classes.

    Raises:
        ValueError: the shapes do not agree, or a covariance has a negative eigenvalue.

    Example:
        >>> means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> denoise = fs.oracle.MixtureDenoiser(torch.ones(2), means, torch.full((2,), 0.01), classes=torch.arange(2))
        >>> x0 = denoise(torch.randn(5, 2), 1.0, label=torch.ones(5, dtype=torch.int64))
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    vectors: Tensor | None
    classes: Tensor | None

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, classes: Tensor | None = None) -> None:
        super().__init__()
        n, dim = len(means), means[0].numel()
        if weights.shape != (n,) or covariances.shape not in ((n,), (n, dim, dim)):
            raise ValueError(
                f"a mixture of {n} components in {dim} dimensions needs weights ({n},) and covariances "
                f"({n}, {dim}, {dim}) or ({n},); got {tuple(weights.shape)} and {tuple(covariances.shape)}"
            )
        if classes is not None and classes.shape != (n,):
            raise ValueError(f"classes must have shape ({n},); got {tuple(classes.shape)}")
        variances, vectors = covariances[:, None], None
        if covariances.ndim == 3:
            variances, vectors = torch.linalg.eigh(covariances)
        smallest, largest = variances.min(), variances.max()
        if smallest < -1e-6 * largest.abs():
            raise ValueError(f"covariances must be positive semi-definite; got an eigenvalue {smallest.item():g}")
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("means", means)
        self.register_buffer("variances", variances.clamp_min(0).expand(n, dim))  # eigenvalues of the covariances
        self.register_buffer("vectors", vectors)
        self.register_buffer("classes", classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an event."""
        return tuple(self.means.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if unconditional."""
        return 0 if self.classes is None else int(self.classes.max()) + 1

    def forward(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """Return E[x0 | x].

        Args:
            x: noisy events (B, ...).
            sigma: their noise level: a number, () or (B,).
            label: class indices (B,); None for all classes.

        Returns:
            The expected clean events (B, ...).

        Raises:
            ValueError: the shapes do not agree, or there is no such class.
        """
        z, total, logits = self.components(x, sigma, label)
        shrunk = z * self.variances.to(z) / total
        if self.vectors is not None:
            shrunk = torch.einsum("kde,bke->bkd", self.vectors.to(z), shrunk)
        expected = self.means.flatten(1).to(z) + shrunk
        return torch.einsum("bk,bkd->bd", logits.softmax(1), expected).reshape(x.shape).to(x.dtype)

    def components(self, x: Tensor, sigma: float | Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Per component: x - mu in its eigenbasis (B, K, d), the noisy variances there, and ln(w N(x)) (B, K)."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"this oracle takes events of shape {self.shape}; got a batch of shape {tuple(x.shape)}")
        flat = x.flatten(1).to(torch.promote_types(x.dtype, self.means.dtype))
        z = flat[:, None] - self.means.flatten(1).to(flat)
        if self.vectors is not None:
            z = torch.einsum("kde,bkd->bke", self.vectors.to(z), z)
        total = self.variances.to(z) + expand(sigma, z) ** 2
        log_normal = -0.5 * (z**2 / total + (2 * math.pi * total).log()).sum(-1)
        log_weights = select(self.log_weights.to(z).expand(len(x), -1), self.classes, label)
        return z, total, log_weights.log_softmax(1) + log_normal

    def log_density(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """Return ln p(x; sigma), of the class if a label is given.

        Args:
            x: noisy events (B, ...).
            sigma: their noise level: a number, () or (B,).
            label: class indices (B,); None for all classes.

        Returns:
            The log-densities (B,).
        """
        return self.components(x, sigma, label)[2].logsumexp(1).to(x.dtype)

    def score(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """Return the gradient of `log_density` in `x`, (B, ...); the arguments are the same."""
        return (self(x, sigma, label) - x) / expand(sigma, x) ** 2

    def sample(
        self, n: int, sigma: float = 0.0, label: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw from the marginal p(x; sigma).

        Args:
            n: number of draws.
            sigma: noise level; 0 for the data.
            label: class indices (n,); None for all classes.
            generator: source of the random numbers; None for torch's own.

        Returns:
            The draws (n, ...).
        """
        weights = select(self.log_weights.expand(n, -1), self.classes, label).exp()
        k = weights.multinomial(1, generator=generator).squeeze(1)
        z = torch.randn(
            n, self.variances.shape[1], dtype=self.means.dtype, device=self.means.device, generator=generator
        )
        z = z * (self.variances[k] + sigma**2).sqrt()
        if self.vectors is not None:
            for j, vectors in enumerate(self.vectors):
                z = torch.where((k == j)[:, None], z @ vectors.T, z)
        return self.means[k] + z.reshape(n, *self.shape)

    def covariances(self) -> Tensor:
        """The covariances of the components, (K, d, d)."""
        if self.vectors is None:
            return self.variances.diag_embed()
        return torch.einsum("kde,ke,kfe->kdf", self.vectors, self.variances, self.vectors)

    def moments(self, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return mean (...) and covariance (d, d) of the marginal p(x; sigma)."""
        weights, means = self.log_weights.exp(), self.means.flatten(1)
        mean = weights @ means
        spread = torch.einsum("k,kd,ke->de", weights, means - mean, means - mean)
        within = torch.einsum("k,kde->de", weights, self.covariances())
        noise = sigma**2 * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        return mean.reshape(self.shape), spread + within + noise

    def posterior(self, A: Tensor, y: Tensor, sigma_y: float) -> MixtureDenoiser:
        """Return the distribution of x0 given y = A x0 + sigma_y eps, again a mixture, of the same classes.

        With G_k = A S_k A^T + sigma_y^2 I the components are N(mu_k + S_k A^T G_k^-1 (y - A mu_k), S_k - S_k A^T G_k^-1 A S_k),
        weighted by w_k N(y; A mu_k, G_k).

        Args:
            A: a matrix (m, d), which acts on the flattened event.
            y: the measurement (m,).
            sigma_y: its noise level; 0 for none.

        Returns:
            The exact denoiser of the posterior.

        Raises:
            ValueError: the shapes do not agree, or `sigma_y` is negative.
        """
        means, S = self.means.flatten(1), self.covariances()
        check_measurement(A, y, sigma_y, means.shape[1])
        A, y = A.to(means), y.to(means)
        G = A @ S @ A.T + sigma_y**2 * torch.eye(len(y), dtype=y.dtype, device=y.device)
        gap = y - means @ A.T
        factor = torch.linalg.cholesky(G)
        gain = torch.cholesky_solve(A @ S, factor).mT
        white = torch.linalg.solve_triangular(factor, gap[..., None], upper=False).squeeze(-1)
        log_weights = self.log_weights - 0.5 * white.square().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        keep = torch.eye(means.shape[1], dtype=means.dtype, device=means.device) - gain @ A
        covariances = keep @ S @ keep.mT + sigma_y**2 * gain @ gain.mT  # Joseph's form stays symmetric and positive
        moved = (means + (gain @ gap[..., None]).squeeze(-1)).reshape(self.means.shape)
        return MixtureDenoiser(log_weights.softmax(0), moved, covariances, self.classes)


class GaussianDenoiser(MixtureDenoiser):
    """The exact denoiser of data x0 ~ N(mean, S): D(x; sigma) = mean + S (S + sigma^2 I)^-1 (x - mean).

    Args:
        mean: the mean, of the shape of an event.
        covariance: S, a positive semi-definite matrix (d, d), or a number for an isotropic variance.

    Raises:
        ValueError: the shapes do not agree, or the covariance has a negative eigenvalue.

    Example:
        >>> denoise = fs.oracle.GaussianDenoiser(torch.zeros(3, 8, 8), 0.25)
        >>> x0 = denoise(torch.randn(2, 3, 8, 8), 0.5)
    """

    def __init__(self, mean: Tensor, covariance: Tensor | float) -> None:
        covariance = torch.as_tensor(covariance, dtype=mean.dtype, device=mean.device)
        super().__init__(mean.new_ones(1), mean[None], covariance[None])


class EmpiricalDenoiser(nn.Module):
    """The exact denoiser of a finite set of points r_k, such as a training set.

    D(x; sigma) = sum_k p_k r_k with p = softmax_k(ln w_k - |x - r_k|^2 / (2 sigma^2)), in B x K memory. The squared distances
    come from a matrix product, so they lose digits far from the origin: keep the points in float64 where sigma is much smaller
    than |x - r|.

    Args:
        points: the points (K, ...), on the device of the `x` to come.
        classes: None without classes; (K,) int64, the class of each point; or (K, n), the n conditions of each point. A
            label (B,) or (B, n) then selects the points that agree with it in all n.
        weights: positive weights (K,); None for equal ones.

    Raises:
        ValueError: the shapes do not agree. When it is called on the CPU: no point has the class of a label. On a GPU this
            is not checked, as it would wait for the device; the result is then NaN.

    Example:
        >>> denoise = fs.oracle.EmpiricalDenoiser(x0.double())
        >>> mean = denoise(x, sigma=0.5)
    """

    points: Tensor
    log_weights: Tensor
    classes: Tensor | None

    def __init__(self, points: Tensor, classes: Tensor | None = None, weights: Tensor | None = None) -> None:
        super().__init__()
        weights = points.new_ones(len(points)) if weights is None else weights
        n = len(points)
        if weights.shape != (n,):
            raise ValueError(f"weights must have shape ({n},), one a point; got {tuple(weights.shape)}")
        if classes is not None and (classes.ndim not in (1, 2) or len(classes) != n):
            raise ValueError(f"classes must have shape ({n},) or ({n}, conditions); got {tuple(classes.shape)}")
        self.register_buffer("points", points)
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("classes", classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a point."""
        return tuple(self.points.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if unconditional, or if the points have several conditions."""
        return 0 if self.classes is None or self.classes.ndim == 2 else int(self.classes.max()) + 1

    def forward(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """Return E[x0 | x].

        Args:
            x: noisy points (B, ...).
            sigma: their noise level: a number, () or (B,).
            label: classes (B,) or conditions (B, n); None for all points.

        Returns:
            The expected clean points (B, ...).

        Raises:
            ValueError: the shapes do not agree, or no point has such a class.
        """
        _, points, logits = self.logits(x, sigma, label)
        return (logits.softmax(1) @ points).reshape(x.shape).to(x.dtype)

    def weights(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """Return the probability p (B, K) that each point is the clean one of `x`; 1 / sum p^2 is their effective number.

        Args:
            x: noisy points (B, ...).
            sigma: their noise level: a number, () or (B,).
            label: classes (B,) or conditions (B, n); None for all points.
        """
        return self.logits(x, sigma, label)[2].softmax(1)

    def logits(self, x: Tensor, sigma: float | Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, d) and the points (K, d), flat and in one precision, and ln w_k - |x - r_k|^2 / (2 sigma^2) (B, K)."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"this oracle takes points of shape {self.shape}; got a batch of shape {tuple(x.shape)}")
        flat = x.flatten(1).to(torch.promote_types(x.dtype, self.points.dtype))
        points = self.points.flatten(1).to(flat)
        distance = (flat**2).sum(1, keepdim=True) + (points**2).sum(1) - 2 * flat @ points.T
        log_weights = select(self.log_weights.to(flat).expand(len(x), -1), self.classes, label).log_softmax(1)
        return flat, points, log_weights - distance / (2 * expand(sigma, flat) ** 2)

    def log_density(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """Return ln p(x; sigma) (B,), of the class if a label is given.

        Args:
            x: noisy points (B, ...).
            sigma: their noise level: a number, () or (B,).
            label: classes (B,) or conditions (B, n); None for all points.
        """
        flat, _, logits = self.logits(x, sigma, label)
        log_scale = 0.5 * (2 * math.pi * expand(sigma, flat).flatten() ** 2).log()
        return (logits.logsumexp(1) - flat.shape[1] * log_scale).to(x.dtype)

    def score(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        """Return the gradient of `log_density` in `x`, (B, ...); the arguments are the same."""
        return (self(x, sigma, label) - x) / expand(sigma, x) ** 2

    def sample(
        self, n: int, sigma: float = 0.0, label: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw from the marginal p(x; sigma).

        Args:
            n: number of draws.
            sigma: noise level; 0 for the points themselves.
            label: class indices (n,); None for all points.
            generator: source of the random numbers; None for torch's own.

        Returns:
            The draws (n, ...).
        """
        weights = select(self.log_weights.expand(n, -1), self.classes, label).exp()
        x0 = self.points[weights.multinomial(1, generator=generator).squeeze(1)]
        return x0 + sigma * torch.randn(x0.shape, dtype=x0.dtype, device=x0.device, generator=generator)

    def posterior(self, A: Tensor, y: Tensor, sigma_y: float) -> EmpiricalDenoiser:
        """Return the distribution of x0 given y = A x0 + sigma_y eps: the same points, weighted by w_k N(y; A r_k, sigma_y^2 I).

        Args:
            A: a matrix (m, d), which acts on the flattened point.
            y: the measurement (m,).
            sigma_y: its noise level, above 0.

        Returns:
            The exact denoiser of the posterior.

        Raises:
            ValueError: the shapes do not agree, or `sigma_y` is not positive.
        """
        points = self.points.flatten(1)
        check_measurement(A, y, sigma_y, points.shape[1])
        if sigma_y == 0:
            raise ValueError(
                "the posterior of a finite set of points needs a noisy measurement; sigma_y must be positive"
            )
        gap = y.to(points) - points @ A.to(points).T
        weights = (self.log_weights - gap.square().sum(1) / (2 * sigma_y**2)).softmax(0)
        return EmpiricalDenoiser(self.points, self.classes, weights)
