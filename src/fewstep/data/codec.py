"""The codec of latents: the Stability VAE, from a folder or the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.codec import Codec
from fewstep.runtime.environment import offline
from fewstep.runtime.files import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
EXPECTED = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "scaling_factor": 0.18215}
"""Configuration of Stable Diffusion's VAE. The scaling factor is not used here, but another one means other latents."""
DEFAULTS: dict[str, Any] = EXPECTED | {"block_out_channels": (64,)}
"""Defaults of diffusers for what a config.json leaves out."""


@dataclass(frozen=True)
class StabilityVAE:
    """Latents (B, 4, H / 8, W / 8) of Stable Diffusion's VAE, whitened as in EDM2 (Karras et al., 2024, App. A).

    x = (latent - raw_mean) final_std / raw_std, per channel. Needs the package `diffusers`.

    Args:
        vae: a local folder of `diffusers`' AutoencoderKL, or its name on the hub.
        raw_mean: of the latents of each channel.
        raw_std: of the latents of each channel.
        final_std: of x.
        batch_size: images at a time in the VAE.
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

    def prepare(self, device: torch.device) -> None:
        """Load the VAE, so that anything missing is reported before images are made."""
        check_config(autoencoder(self.vae, device).config, len(self.raw_mean), self.vae)

    @torch.no_grad()
    def batched(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([function(part) for part in x.split(self.batch_size)])


def with_vae(codec: Codec, vae: str | Path) -> Codec:
    """The codec of a model of latents with another copy of its VAE.

    Args:
        codec: of the model.
        vae: a folder, or a name on the hub.

    Raises:
        ValueError: the model generates pixels, or the folder does not hold a VAE that fits.
    """
    if not isinstance(codec, StabilityVAE):
        raise ValueError(f"vae {vae}: this model generates pixels and needs no VAE; leave it out")
    folder = Path(vae)
    if not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(vae)):
        return replace(codec, vae=str(vae))
    check_folder(folder, len(codec.raw_mean))
    return replace(codec, vae=str(folder.resolve()))


ADVICE = (
    f"give --vae FOLDER (fs.load(path, vae=...)) with diffusers' AutoencoderKL: config.json and {WEIGHTS}, such as "
    f"those of https://huggingface.co/{StabilityVAE.vae}"
)


def check_folder(folder: Path, channels: int) -> None:
    """Refuse a folder that is not that of a VAE whose latents have this many channels; its weights are not read."""
    if not folder.is_dir():
        raise ValueError(
            f"vae {folder}: expected a folder; it is {'a file' if folder.exists() else 'missing'}; {ADVICE}"
        )
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            nested = f"; name {folder / 'vae'}" if (folder / "vae" / name).is_file() else f"; {ADVICE}"
            raise ValueError(f"vae {folder}: expected the folder of a VAE; there is no {name} in it{nested}")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        found = config.get("_class_name") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"vae {folder}: expected an AutoencoderKL; its config.json is that of {found!r}; {ADVICE}")
    check_config(config, channels, str(folder))


def check_config(config: Mapping[str, Any], channels: int, where: str) -> None:
    """Refuse a VAE whose latents are not those of Stable Diffusion: other channels, size or scale."""
    given = DEFAULTS | dict(config)
    found = {name: given[name] for name in EXPECTED}
    found["levels"] = len(given["block_out_channels"]) if isinstance(given["block_out_channels"], Sequence) else None
    for name, value in (EXPECTED | {"latent_channels": channels, "levels": 4}).items():
        if found[name] != value:
            raise ValueError(
                f"vae {where}: the model's latents are those of Stable Diffusion's VAE, {name} {value}; this one has "
                f"{found[name]!r}"
            )


@lru_cache(maxsize=1)
def autoencoder(name: str, device: torch.device) -> Any:
    """The VAE by folder or name, from safetensors alone; from the hub only what is not a folder, and offline only what was
    fetched before.

    Raises ValueError if diffusers or the VAE is missing, or if its weights are not intact.
    """
    local = Path(name).is_dir()
    if local:
        check_folder(Path(name), len(StabilityVAE.raw_mean))
    try:
        kind = import_module("diffusers").AutoencoderKL
    except Exception as error:  # its imports fail in many ways where versions do not fit
        raise ValueError(
            f'latents need the package diffusers: pip install "fewstep[vae]" ({first_line(error)})'
        ) from error
    options = {"use_safetensors": True, "low_cpu_mem_usage": False, "local_files_only": offline() or local}
    try:
        vae, report = kind.from_pretrained(name, output_loading_info=True, **options)
    except Exception as error:  # of the hub, of safetensors, of diffusers: each has its own
        what = "cannot be read" if local else "is neither a folder nor to be had from the hub"
        raise ValueError(f"the VAE {name!r} {what} ({first_line(error)}); {ADVICE}") from error
    if wrong := [key for part in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[part]]:
        raise ValueError(
            f"the VAE {name!r}: {len(wrong)} tensors do not fit its config.json, such as {wrong[0]}; {ADVICE}"
        )
    if not all(tensor.isfinite().all() for tensor in vae.parameters()):
        raise ValueError(f"the VAE {name!r} has weights that are not finite; {ADVICE}")
    return vae.to(device).eval().requires_grad_(False)


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
