"""A folder of restorations: samples, means, deviations, measurements and sheets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewstep.core.codec import Pixels
from fewstep.data.grid import grid, save_image, save_png
from fewstep.runtime.distributed import from_first, rank
from fewstep.runtime.files import new_file, new_folder, write_json

FOLDERS, FILES = ("samples", "mean", "deviation", "measurements", "sheets"), ("metrics.json", "sheet.png")
"""What a restoration writes."""
TILE, HEADING = 76, 18
"""Pixels: the least width of a column in a sheet, which holds its heading, and the height of the headings."""
ROWS = 8
"""Images in sheet.png."""


@dataclass(frozen=True)
class RestoredImage:
    """One image with its posterior samples.

    Attributes:
        name: name of the image.
        measurement: the measurement y, without the batch axis.
        view: the measurement as an image in [-1, 1], of any size.
        samples: posterior samples (S, C, H, W), pixels in [-1, 1].
        truth: the image itself, uint8 (C, H, W); None where measurements were given.
        diverged: how often Langevin steps of a sample diverged and were drawn again, or were given up, (S, 2).

    Example:
        >>> found = fs.restore(model, "digits", "box_inpainting", label="data", first=1, nfe=6)
        >>> mean, deviation = found.images[0].mean, found.images[0].deviation
    """

    name: str
    measurement: Tensor
    view: Tensor
    samples: Tensor
    truth: NDArray[np.uint8] | None
    diverged: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of the samples (C, H, W), an estimate of the posterior mean."""
        return self.samples.mean(0)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the samples (C, H, W)."""
        return self.samples.std(0, correction=0)


def byte_image(x: Tensor) -> NDArray[np.uint8]:
    """Pixels in [-1, 1] (C, H, W) as uint8 (H, W, C)."""
    return Pixels().decode(x.detach().float()).permute(1, 2, 0).cpu().numpy()


def as_tile(x: Tensor, shape: Sequence[int]) -> NDArray[np.uint8]:
    """An image (c, h, w) of any size as a tile of an image's shape, pixels repeated, grey as needed: uint8 (H, W, C).

    Arrays with fewer or more axes are shown as rows of their last one.
    """
    channels, height, width = shape
    x = x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1])
    x = x.mean(0, keepdim=True) if len(x) not in (1, channels) else x
    x = torch.nn.functional.interpolate(x[None].float(), (height, width), mode="nearest")[0]
    return byte_image(x.expand(channels, -1, -1))


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder for all ranks to fill, which becomes `out`, in place of an earlier restoration, when the block succeeds.

    All ranks leave the block after the last of them has written. Raises ValueError if `out` is not a restoration.
    """
    if rank() != 0:
        yield from_first(out)
        return
    there = sorted(p.name for p in out.glob("*"))
    if there and ("metrics.json" not in there or set(there) - {*FOLDERS, *FILES}):
        raise ValueError(
            f"{out} holds {', '.join(there[:5])}, which is not a complete restoration; choose another folder, or empty it"
        )
    with new_folder(out, (*FOLDERS, *FILES)) as partial:
        yield from_first(partial)


def write_image(image: RestoredImage, out: Path) -> None:
    """Write all files of one restored image below `out`."""
    samples = [byte_image(x) for x in image.samples]
    spread = {"mean": byte_image(image.mean), "deviation": byte_image(4 * image.deviation - 1)}
    view = as_tile(image.view, image.samples.shape[1:])
    for j, picture in enumerate(samples):
        save_image(picture, out / "samples" / str(j) / image.name)
    for kind, picture in spread.items():
        save_image(picture, out / kind / image.name)
    array, png = (out / "measurements" / f"{image.name}{suffix}" for suffix in (".npy", ".png"))
    with new_file(array) as partial, partial.open("wb") as file:
        np.save(file, image.measurement.numpy(), allow_pickle=False)
    save_png(grid(view, scale=1), png)
    columns = {} if image.truth is None else {"truth": image.truth.transpose(1, 2, 0)}
    columns |= {"measurement": view} | {f"sample {j + 1}": picture for j, picture in enumerate(samples)}
    save_png(sheet(columns | (spread if len(samples) > 1 else {})), out / "sheets" / f"{image.name}.png")


def sheet(columns: dict[str, NDArray[np.uint8]]) -> Image.Image:
    """Images (H, W, C) of one shape side by side, each below its heading."""
    tiles = np.stack(list(columns.values()))
    scale = math.ceil(TILE / tiles.shape[2])
    row = grid(tiles, columns=len(tiles), scale=scale)
    page = Image.new(row.mode, (row.width, row.height + HEADING), "white")
    page.paste(row, (0, HEADING))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default()
    step = (row.width + scale) / len(tiles)
    for i, name in enumerate(columns):
        width = pen.textlength(name, font=font)
        pen.text((i * step + (step - scale - width) / 2, 3), name, fill="black", font=font)
    return page


def write_summary(metrics: dict[str, Any], names: Sequence[str], out: Path) -> None:
    """metrics.json, and sheet.png: the first images' sheets below each other, under one row of headings."""
    write_json(out / "metrics.json", metrics)
    strips = []
    for name in names[:ROWS]:
        with Image.open(out / "sheets" / f"{name}.png") as image:
            strips.append(np.asarray(image)[HEADING if strips else 0 :])
    gap = np.full((max(1, math.ceil(strips[0].shape[0] / 40)), *strips[0].shape[1:]), 255, np.uint8)
    stacked = np.concatenate([part for strip in strips for part in (strip, gap)][:-1])
    save_png(Image.fromarray(stacked), out / "sheet.png")
