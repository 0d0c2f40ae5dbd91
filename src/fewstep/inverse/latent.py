"""Operators seen from the latents of a model: images are measured behind a decoder."""

# ruff: noqa: N802 - A is the name of the field

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.core.codec import Pixels
from fewstep.core.denoiser import Denoiser
from fewstep.data.codec import StabilityVAE, autoencoder
from fewstep.inverse.operator import Operator

Shape = tuple[int, int, int]


class Latent(Operator):
    """An operator on images, applied to their latents: A(decode(x)) for latents x (B, C, H, W).

    Args:
        operator: measures images.
        decode: latents to images in [-1, 1], differentiable.
        shape: shape of the latents (C, H, W).

    Example:
        >>> latent = fs.inverse.Latent(operator, lambda x: 2 * x, (1, 8, 8))
    """

    def __init__(self, operator: Operator, decode: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.operator, self.decode = operator, decode

    def A(self, x: Tensor) -> Tensor:
        """Return the measurement (B, ...) of the images of latents (B, C, H, W), without noise."""
        return self.operator.A(self.decode(x))

    def view(self, y: Tensor) -> Tensor:
        return self.operator.view(y)


def pixel_decoder(denoiser: Denoiser) -> Callable[[Tensor], Tensor]:
    """From the denoiser's units to pixels in [-1, 1], differentiable."""
    codec = denoiser.codec
    if isinstance(codec, Pixels):
        return lambda x: x
    if not isinstance(codec, StabilityVAE):
        raise ValueError(
            "restoration supports models of pixels and of Stability VAE latents; this model has another codec"
        )

    def decode(x: Tensor) -> Tensor:
        scale, bias = codec.affine(x)
        return autoencoder(codec.vae, x.device).decode(((x - bias) / scale).float()).sample * 2 - 1

    return decode


def pixel_shape(denoiser: Denoiser) -> Shape:
    """The shape (C, H, W) of the images that the denoiser models, behind its decoder if it has one."""
    channels, height, width = denoiser.shape
    return (3, 8 * height, 8 * width) if isinstance(denoiser.codec, StabilityVAE) else (channels, height, width)
