"""Losses of denoisers: the weighted squared error to a target, and the Method that trains one denoiser with it.

| paper | sigma | weight |
|---|---|---|
| EDM | `LogNormal(-1.2, 1.2)` | `edm_weight` |
| EDM2 | `LogNormal(-0.4, 1.0)` for latents, (-0.8, 1.6) for pixels | `edm_weight`, and a head that learns the log-variance |
| VP | `VPTime()` | `inverse_variance` |
| VE | `LogUniform(0.02, 100)` | `inverse_variance` |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.diagnostics import by_sigma
from fewstep.core.method import Batch, Clean, Loss, Method, Phase, sanitize
from fewstep.core.noise import LogNormal, add_noise
from fewstep.core.oracle import EmpiricalDenoiser
from fewstep.core.precondition import VP

NoiseLevels = Callable[[Tensor], Tensor]
"""Draws noise levels (B,) for images (B, ...)."""

Weight = Callable[[Tensor, float], Tensor]
"""`(sigma, sigma_data) -> lambda`, both (B,)."""

Target = Callable[[Tensor, Tensor, Batch], Tensor]
"""`(x, sigma, batch) -> x0`: what the denoiser should answer at `x`, for the class and augmentation of the batch."""


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """Return EDM's loss weight lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2.

    Source: Karras et al., 2022, Table 1.
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def inverse_variance(sigma: Tensor, sigma_data: float) -> Tensor:
    """Return lambda(sigma) = 1 / sigma^2, with which the VP and VE SDEs weight the error in the noise (Song et al., 2021)."""
    return 1 / sigma**2


@dataclass(frozen=True)
class VPTime:
    """Training noise levels of the variance-preserving SDE: sigma(t) with t uniform on [epsilon_t, 1] (Song et al., 2021).

    Called with images (B, ...), it draws levels (B,).

    Args:
        schedule: the VP preconditioning, which has sigma(t) and epsilon_t.
    """

    schedule: VP = VP()

    def __call__(self, x: Tensor) -> Tensor:
        t = 1 - (1 - self.schedule.epsilon_t) * torch.rand(len(x), device=x.device)
        return self.schedule.sigma(t)


def clean(x: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
    """The image itself: denoising score matching."""
    return batch.image


Rule = Literal["matched", "published"]
"""Which references count in a stable target; see `StableTarget`."""


class Augment(Protocol):
    """Transforms the images of a batch at random, and stores how in `Batch.augment`; `data.augment` has one."""

    def __call__(self, batch: Batch, /) -> Batch: ...
    def exact(self, batch: Batch, /) -> Batch:
        """The pixel-exact transformations alone."""
        ...


class References(Protocol):
    """A source of independent training images, a function of torch's random stream."""

    def sample(self, n: int, device: torch.device) -> Batch: ...


class StableTarget:
    """The stable target field (Xu et al., 2023): the mean of x0 given x, for x0 one of `n` reference images r_k,

    sum_k w_k r_k with w = softmax_k(-|x - r_k|^2 / (2 sigma^2)),

    that is `oracle.EmpiricalDenoiser` of the reference batch: the batch itself and n - B more images of `stream`, drawn
    anew each time. Being the expectation of the clean image given x and the references, it has the same mean as the
    clean image given x, for every `n`, and less variance; n = B = 1 is the clean image.

    This holds if the references could have been the image itself. The rule says which count:

    matched: those of its class and with its augmentation. The references pass the pixel-exact part of the pipe, so that
    images which were only mirrored, turned or shifted by whole pixels get a stable target, and others the clean one.
    published: all of them, each with an augmentation of its own, whatever the class of the image and what was done to
    it, as in the authors' code. Every image has its references, but the target is biased where there are classes or
    augmentation: it is the mean over all classes and augmentations.

    It is computed in float64, as float32 loses the digits by which references differ, in B x n memory.

    Args:
        stream: Where the other references come from.
        n: The number of references, including the images of the micro-batch; the authors' `--rbatch`, per GPU.
        augment: The augmentation of the loss; None for none.
        rule: Which references count, see above.

    Raises:
        ValueError: The rule is unknown, or `n` is below 1; on a call, `n` is below the size of the micro-batch.

    Example:
        >>> loss = fs.DenoisingLoss(target=fs.StableTarget(stream, 1024))
    """

    def __init__(
        self, stream: References, n: int = 4096, *, augment: Augment | None = None, rule: Rule = "matched"
    ) -> None:
        if rule not in get_args(Rule):
            raise ValueError(f"the rules of the stable target are {', '.join(get_args(Rule))}; got {rule!r}")
        if n < 1:
            raise ValueError(f"the stable target needs at least one reference; got n={n}")
        self._stream, self.n, self.augment, self.rule = stream, n, augment, rule

    def __call__(self, x: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        return posterior_mean(x, sigma, *self.references(batch))

    def references(self, batch: Batch) -> tuple[Batch, Batch | None]:
        """Return the reference images of a batch, with the conditions in which they must agree with an image to count.

        Args:
            batch: the micro-batch.

        Returns:
            The batch itself and the other references, None if there are no others.

        Raises:
            ValueError: `n` is below the size of the batch.
        """
        more = self.n - len(batch.image)
        if more < 0:
            raise ValueError(f"the references include the micro-batch; got n={self.n} for {len(batch.image)} images")
        others = None if more == 0 else self._stream.sample(more, batch.image.device)
        if others is not None and self.augment is not None:
            others = self.augment(others) if self.rule == "published" else self.augment.exact(others)
        if self.rule == "published":
            batch, others = Batch(batch.image), None if others is None else Batch(others.image)
        return batch, others


def exact_denoiser(batch: Batch, others: Batch | None = None) -> tuple[EmpiricalDenoiser, Tensor | None]:
    """The exact denoiser, in float64, of the images of one or two batches.

    Returns:
        The denoiser; and the label with which it is called for noisy images of `batch`: their class and augmentation (B, n),
        or None if they have neither.
    """
    parts = [batch] if others is None else [batch, others]
    points = torch.cat([part.image for part in parts]).double()
    columns = [
        torch.cat([getattr(part, name) for part in parts]).view(len(points), -1).double()
        for name in ("label", "augment")
        if getattr(batch, name) is not None
    ]
    if not columns:
        return EmpiricalDenoiser(points), None
    conditions = torch.cat(columns, dim=1)
    return EmpiricalDenoiser(points, conditions), conditions[: len(batch.image)]


@torch.no_grad()
def posterior_mean(x: Tensor, sigma: Tensor, batch: Batch, others: Batch | None = None) -> Tensor:
    """E[x0 | x] for x0 among the images of `batch`, from which `x` was made, and of `others`, of the same condition."""
    denoise, label = exact_denoiser(batch, others)
    return denoise(x, sigma, label)


class DenoisingLoss:
    """lambda(sigma) |D(x0 + sigma eps; sigma) - target|^2, summed over pixels (Karras et al., 2022, Eq. 3).

    For a denoiser with a log-variance head u(sigma), of n pixels, it is lambda / e^u |D - target|^2 + n u, whose
    minimum in u is the logarithm of the weighted error per pixel (Karras et al., 2024, Eq. 21).

    Args:
        noise: The distribution of sigma.
        weight: lambda.
        target: The regression target; its expectation given x must be E[x0 | x].
        augment: Transforms the images first, and passes the transformation to the network; None for none.

    Example:
        >>> method = fs.Pretraining(model, fs.DenoisingLoss(fs.LogNormal(-0.4, 1.0)))
    """

    def __init__(
        self,
        noise: NoiseLevels = LogNormal(),
        *,
        weight: Weight = edm_weight,
        target: Target = clean,
        augment: Augment | None = None,
    ) -> None:
        self.noise, self.weight, self.target, self.augment = noise, weight, target, augment

    def __call__(self, denoiser: Denoiser, batch: Batch) -> Loss:
        sigma = self.noise(batch.image)
        if not denoiser.num_classes:
            batch = batch._replace(label=None)
        if self.augment is not None:
            batch = self.augment(batch)
        x = add_noise(batch.image, sigma)
        error = denoiser(x, sigma, batch.label, augment=batch.augment) - self.target(x, sigma, batch)
        return self.weigh(denoiser, sigma, error)

    def weigh(self, denoiser: Denoiser, sigma: Tensor, error: Tensor) -> Loss:
        """Return the loss of given errors.

        Args:
            denoiser: the denoiser, whose log-variance head weights the loss if there is one.
            sigma: noise levels (B,).
            error: D - target (B, C, H, W).

        Returns:
            The loss (B,) and its metrics.
        """
        loss = self.weight(sigma, denoiser.sigma_data) * error.square().flatten(1).sum(1)
        diagnostics = {"error": by_sigma(sigma, loss)}
        if denoiser.uncertainty is None:
            return loss, diagnostics
        u = denoiser.log_variance(sigma)
        return loss / u.exp() + u * error[0].numel(), diagnostics


class Pretraining(Method):
    """Diffusion training: the Method with one player.

    Args:
        denoiser: the denoiser to train.
        objective: its loss.
        clean: replaces gradients that are not finite before an optimizer step.

    Example:
        >>> method = fs.Pretraining(model, fs.DenoisingLoss())
        >>> run = fs.Run(method, stream, {"denoiser": fs.Adam(1e-3)}, batch_size=8, until=16)
    """

    product = "denoiser"
    ramp_after_transfer = False

    def __init__(self, denoiser: Denoiser, objective: DenoisingLoss, *, clean: Clean = sanitize) -> None:
        super().__init__()
        self.denoiser, self.objective = denoiser, objective
        self.phases = (Phase("denoiser", self.denoising_loss, clean=clean),)

    def denoising_loss(self, batch: Batch) -> Loss:
        """Return the loss (B,) of a batch and its metrics."""
        return self.objective(self.denoiser, batch)
