"""The commands that prepare data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

Resize = Literal["lanczos", "bilinear", "bicubic", "box"]
Transform = Literal["center-crop", "center-crop-wide", "center-crop-dhariwal"]


def pack(
    source: Positional[Path],
    dest: Positional[Path],
    *,
    resolution: str | None = None,
    transform: Transform | None = None,
    resize: Resize = "lanczos",
    max_images: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Pack images and their labels into one zip of equal PNGs, as StyleGAN and EDM have it.

    Args:
        source: folder, zip, tar, CIFAR-10's python tar, MNIST's idx file, or npz.
        dest: the zip to write.
        resolution: width x height of the result, such as 64x64.
        transform: how images of other shapes are cropped.
        resize: the filter.
        max_images: stop after so many.
        skip_bad: leave out what cannot be read, and list it at the end.
    """
    from fewstep.data.prepare import pack as run_pack

    packed = run_pack(
        source,
        dest,
        resolution=resolution,
        transform=transform,
        resize=resize,
        max_images=max_images,
        skip_bad=skip_bad,
    )
    print("".join(f"left out: {reason}\n" for reason in packed.skipped), end="")
    print(f"{dest}: {packed.images:,} images, {'x'.join(map(str, packed.shape))}, {len(packed.skipped)} left out")


def latents(
    source: Positional[Path],
    dest: Positional[Path],
    *,
    encoder: str = "stabilityai/sd-vae-ft-mse",
    batch: int = 8,
) -> None:
    """Encode images with Stable Diffusion's VAE, as EDM2 trains on them at 512x512; needs fewstep[vae].

    Args:
        source: image zip or folder, RGB of one size.
        dest: the zip of latents to write.
        encoder: folder of diffusers' AutoencoderKL, or its name on the hub.
        batch: images at a time; more are faster and need more memory.
    """
    from fewstep.data import images as open_images
    from fewstep.data.codec import StabilityVAE
    from fewstep.data.latents import encode_images
    from fewstep.distributed import device

    codec = StabilityVAE(encoder, batch_size=batch)
    n = encode_images(open_images(source, memory=0), dest, codec, batch_size=batch, device=device())
    print(f"{dest}: latents of {n:,} images; next: fewstep recipes imagenet512:teacher")


def stats(data: Positional[str]) -> None:
    """Measure a data set: size, classes, standard deviation; and propose noise distribution and recipe.

    Args:
        data: image zip or folder, or the built-in digits.
    """
    import json

    from fewstep.data import images as open_images
    from fewstep.data.prepare import stats as measure

    print(json.dumps(measure(open_images(data)), indent=2))


def check(data: Positional[Path]) -> None:
    """Find every file of a data set that cannot be used.

    Args:
        data: image zip or folder.
    """
    from fewstep.data.prepare import check as find_problems

    if problems := find_problems(data):
        raise ValueError(
            "\n".join([f"{data}: {len(problems)} problems", *(f"{file}: {why}" for file, why in problems)])
        )
    print(f"{data}: no problems")
