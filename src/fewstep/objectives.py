"""What a denoiser is trained to: the weighted squared error to a target, and the one-player Method made of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.method import Batch, Loss, Method, Phase
from fewstep.noise import LogNormal, add_noise

NoiseLevels = Callable[[Tensor], Tensor]
"""Draws noise levels (B,) for images (B, ...)."""

Target = Callable[[Tensor, Tensor, Batch], Tensor]
"""`(x, sigma, batch) -> x0`: what the denoiser should answer at `x`."""


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2 (Karras et al., 2022, Table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def clean(x: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
    """The image itself: denoising score matching."""
    return batch.image


class DenoisingLoss:
    """lambda(sigma) |D(x0 + sigma eps; sigma) - target|^2, summed over pixels (Karras et al., 2022, Eq. 3).

    noise: the distribution of sigma. target: what is regressed; its expectation given x must be E[x0 | x].
    """

    def __init__(self, noise: NoiseLevels = LogNormal(), *, target: Target = clean) -> None:
        self.noise, self.target = noise, target

    def __call__(self, denoiser: Denoiser, batch: Batch) -> Loss:
        sigma = self.noise(batch.image)
        x = add_noise(batch.image, sigma)
        error = denoiser(x, sigma, batch.label) - self.target(x, sigma, batch)
        return edm_weight(sigma, denoiser.sigma_data) * error.square().flatten(1).sum(1), {}


class Pretraining(Method):
    """Diffusion training: the Method with one player."""

    product = "denoiser"

    def __init__(self, denoiser: Denoiser, objective: DenoisingLoss) -> None:
        super().__init__()
        self.denoiser, self.objective = denoiser, objective
        self.phases = (Phase("denoiser", self.denoising_loss),)

    def denoising_loss(self, batch: Batch) -> Loss:
        return self.objective(self.denoiser, batch)
