"""The commands that prepare data."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fewstep.cli.arguments import Device, next_step
from fewstep.runtime import outputs
from fewstep.runtime.display import visible

Resize = Literal["lanczos", "bilinear", "bicubic", "box"]
Transform = Literal["center-crop", "center-crop-wide", "center-crop-dhariwal"]
Rule = Literal["plain", "rgb", "edm2"]


def pack(
    source: Positional[Path],
    dest: Positional[Path],
    *,
    resolution: str | None = None,
    transform: Transform | None = None,
    resize: Resize = "lanczos",
    convert: Rule | None = None,
    max_images: int | None = None,
    skip_bad: bool = False,
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Pack images and their labels into one zip of PNG files of equal size, the format of StyleGAN and EDM.

    Args:
        source: folder, zip or tar of images, CIFAR-10's python tar, MNIST's idx file, npz, npy, LMDB of LSUN, or
            hf:NAME[:CONFIGURATION][@SPLIT] of the Hugging Face hub.
        dest: zip to write.
        resolution: width x height of the result, such as 64x64, or 64 for both.
        transform: crop for images of other shapes.
        resize: resampling filter.
        convert: how pixels are converted. plain: apply the EXIF orientation, keep grey images grey, and reject images that would
            lose information. rgb, for photographs: apply the EXIF orientation and convert every image to 8-bit RGB, also
            from CMYK, with transparency composited over white. edm2: convert every image to RGB as EDM2's tool does,
            which ignores transparency and EXIF. If unset: edm2 with --transform, else plain.
        max_images: maximum number of images to pack.
        skip_bad: skip unusable images, and list them at the end.
        strict: reject images that are not 8-bit grey or RGB instead of converting them.
        overwrite: replace an existing zip.
    """
    from fewstep.data.pack import pack as run_pack
    from fewstep.data.ranks import ranks
    from fewstep.report.wording import plural
    from fewstep.runtime.files import listed

    outputs.file(dest, outside=[source], overwrite=overwrite)
    with group():
        packed = run_pack(
            source,
            dest,
            resolution=resolution,
            transform=transform,
            resize=resize,
            convert=convert,
            max_images=max_images,
            skip_bad=skip_bad,
            strict=strict,
            report=print if ranks()[0] == 0 else None,
        )
        if ranks()[0] == 0:
            print("".join(f"skipped: {visible(reason)}\n" for reason in packed.skipped), end="")
            for how, (count, example) in packed.converted.items():
                print(f"converted: {count:,} x {visible(how)}, the first: {visible(example)}")
            if packed.ignored:
                print(f"ignored: {plural(len(packed.ignored), 'other file')}: {visible(listed(packed.ignored))}")
            shape = "x".join(map(str, packed.shape))
            print(f"{dest}: {packed.images:,} images, {shape}, {len(packed.skipped)} skipped")


def group() -> AbstractContextManager[None]:
    """The ranks of torchrun; without it nothing, and no torch."""
    if "RANK" not in os.environ:
        return nullcontext()
    from fewstep.runtime.distributed import process_group

    return process_group()


def latents(
    source: Positional[Path],
    dest: Positional[Path],
    *,
    encoder: Annotated[str, arg(aliases=["--vae"])] = "stabilityai/sd-vae-ft-mse",
    batch: int = 8,
    overwrite: bool = False,
    device: Device = None,
) -> None:
    """Encode images with Stable Diffusion's VAE, as EDM2 trains on them at 512x512; needs fewstep[vae].

    Args:
        source: RGB images of one size, from any source of data pack.
        dest: the zip of latents to write.
        encoder: folder of diffusers' AutoencoderKL, or its name on the hub.
        batch: images at a time; more are faster and need more memory.
        overwrite: replace an existing zip.
    """
    from fewstep.data import images as open_images
    from fewstep.data.codec import StabilityVAE
    from fewstep.data.latents import encode_images
    from fewstep.runtime import distributed

    distributed.use(device)
    outputs.file(dest, outside=[source], overwrite=overwrite)
    codec = StabilityVAE(encoder, batch_size=batch)
    with distributed.process_group():
        place = distributed.device()
        codec.prepare(place)
        n = encode_images(open_images(source, memory=0), dest, codec, batch_size=batch, device=place)
        if distributed.rank() == 0:
            print(f"{dest}: latents of {n:,} images; {next_step('recipes', 'imagenet512:teacher')}")


def stats(data: Positional[str]) -> None:
    """Measure a data set: size, classes, standard deviation; and propose noise distribution and recipe.

    For images of several sizes, it proposes how to pack them; small:teacher packs them so by itself.

    Args:
        data: any source of data pack, such as a folder or zip, or the built-in digits.
    """
    import json

    from fewstep.data import images as open_images
    from fewstep.data.prepare import Layout, survey
    from fewstep.data.ranks import ranks
    from fewstep.data.stats import stats as measure

    with group():
        mixed = survey(data)
        if mixed is not None:
            layout: Layout = mixed.pop("layout")
            found = {**mixed, "proposal": {**layout._asdict(), "pack": layout.command(data), "recipe": "small:teacher"}}
        else:
            found = measure(open_images(data))
        if ranks()[0] == 0:
            print(json.dumps(found, indent=2))


def check(
    data: Positional[Path],
    *,
    resolution: str | None = None,
    transform: Transform | None = None,
    convert: Rule | None = None,
) -> None:
    """Find every file of a data set that cannot be used for training or, with the options of data pack, be packed.

    Args:
        data: any source of data pack, such as a folder or zip, or a zip of latents.
        resolution: of data pack, such as 64x64.
        transform: of data pack.
        convert: of data pack.
    """
    from fewstep.data.check import check as find_problems
    from fewstep.data.ranks import ranks
    from fewstep.report.wording import plural

    with group():
        problems = find_problems(
            data,
            resolution=resolution,
            transform=transform,
            convert=convert,
            report=print if ranks()[0] == 0 else None,
        )
        if problems:
            raise ValueError(
                "\n".join(
                    [f"{data}: {plural(len(problems), 'problem')}", *(f"{file}: {why}" for file, why in problems)]
                )
            )
        if ranks()[0] == 0:
            print(f"{data}: no problems")
