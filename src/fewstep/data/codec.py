"""Between stored images and the numbers that a denoiser sees: pixels, or latents of the Stability VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.files import offline


class Codec(Protocol):
    def encode(self, image: Tensor, /) -> Tensor: ...
    def decode(self, x: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Pixels:
    """Pixels in [-1, 1]; `decode` inverts `encode` exactly, and truncates as EDM does: 0.5 is its rounding."""

    def encode(self, image: Tensor) -> Tensor:
        """uint8 (..., C, H, W) -> float32: image / 127.5 - 1."""
        if image.dtype != torch.uint8:
            raise ValueError(f"pixels are uint8 in [0, 255]; got {image.dtype}")
        return image.float() / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """float (..., C, H, W) -> uint8: trunc(clip(127.5 x + 128, 0, 255))."""
        return (x * 127.5 + 128).clip(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class StabilityVAE:
    """Latents (B, 4, H / 8, W / 8) of Stable Diffusion's VAE, whitened as in EDM2 (Karras et al., 2024, App. A).

    x = (latent - raw_mean) final_std / raw_std, per channel. vae: a local folder of `diffusers`' AutoencoderKL, or its
    name on the hub. batch_size: images at a time in the VAE. Needs the package `diffusers`.
    """

    vae: str = "stabilityai/sd-vae-ft-mse"
    raw_mean: tuple[float, ...] = (5.81, 3.25, 0.12, -2.15)
    raw_std: tuple[float, ...] = (4.17, 4.62, 3.71, 3.28)
    final_std: float = 0.5
    batch_size: int = 8

    def moments(self, image: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 8, H / 8, W / 8): mean and deviation of the latents, as data sets store them."""
        if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"the VAE encodes uint8 images (B, 3, H, W); got {image.dtype} of shape {tuple(image.shape)}"
            )

        def encode(part: Tensor) -> Tensor:
            # The VAE sees [0, 1]: the constants above were measured so, though it was trained on [-1, 1].
            law = autoencoder(self.vae, part.device).encode(part.float() / 255).latent_dist
            return torch.cat([law.mean, law.std], dim=1)

        return self.batched(encode, image)

    def whiten(self, moments: Tensor, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Tensor:
        """A draw of the latents (B, 4, h, w) from their stored moments (B, 8, h, w), in the denoiser's units."""
        mean, std = moments.chunk(2, dim=1)
        scale, bias = self.affine(mean)
        return (mean + std * noise(mean)) * scale + bias

    def encode(self, image: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> a draw of the latents (B, 4, H / 8, W / 8)."""
        return self.whiten(self.moments(image))

    def decode(self, x: Tensor) -> Tensor:
        """Latents (B, 4, h, w) -> uint8 (B, 3, 8 h, 8 w), truncated."""
        scale, bias = self.affine(x)
        latents = ((x - bias) / scale).float()
        return self.batched(
            lambda part: (autoencoder(self.vae, part.device).decode(part).sample.clamp(0, 1) * 255).to(torch.uint8),
            latents,
        )

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and bias (4, 1, 1) of the whitening."""
        mean, std = (
            torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.raw_mean, self.raw_std)
        )
        scale = self.final_std / std
        return scale, -mean * scale

    @torch.no_grad()
    def batched(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([function(part) for part in x.split(self.batch_size)])


@lru_cache(maxsize=1)
def autoencoder(name: str, device: torch.device) -> Any:
    """The VAE by folder or name; from the hub only what is not a folder, and offline only what was got before."""
    try:
        kind = import_module("diffusers").AutoencoderKL
    except ImportError as error:
        raise ValueError('latents need the package diffusers: pip install "fewstep[vae]"') from error
    try:
        vae = kind.from_pretrained(name, local_files_only=offline() or Path(name).is_dir())
    except OSError as error:
        raise ValueError(
            f"the VAE {name!r} is neither a folder nor to be had from the hub ({error}); copy the folder of diffusers' "
            "AutoencoderKL (config.json, diffusion_pytorch_model.safetensors) here and name it"
        ) from error
    return vae.to(device).eval().requires_grad_(False)
