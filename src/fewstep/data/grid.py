"""Grids of images, exact to the pixel."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fewstep.runtime.files import new_file

TILE = 40
"""Pixels below which the shorter side of a tile is magnified."""


def grid(
    images: ArrayLike,
    *,
    columns: int | None = None,
    scale: int | None = None,
    gap: int = 1,
    background: int | tuple[int, int, int] = 255,
) -> Image.Image:
    """A grid of images in rows from left to right.

    Args:
        images: uint8 (N, H, W, C) or (H, W, C). The channels of images that are not grey or RGB become grey tiles side by side.
        columns: images in a row; ceil(sqrt(N)) by default.
        scale: integer magnification, nearest neighbour; by default the least that makes the shorter side of a tile at least
            `TILE` pixels.
        gap: between tiles, in pixels before magnification.
        background: of the gaps and of an unfinished row.

    Returns:
        An image of mode RGB where C = 3, else L.

    Raises:
        ValueError: the images have another type or shape, or a number is out of range.
    """
    tiles = np.asarray(images)
    if tiles.ndim == 3:
        tiles = tiles[None]
    if tiles.ndim != 4 or tiles.dtype != np.uint8 or tiles.size == 0:
        raise ValueError(
            "a grid takes uint8 images of shape (H, W, C) or (N, H, W, C), at least one; "
            f"got {tiles.dtype} of shape {np.shape(images)}"
        )
    if columns is None:
        columns = math.ceil(math.sqrt(len(tiles)))
    if tiles.shape[3] not in (1, 3):
        columns = min(columns, len(tiles)) * int(tiles.shape[3])
        tiles = tiles.transpose(0, 3, 1, 2).reshape(-1, *tiles.shape[1:3], 1)
    n, height, width, channels = tiles.shape
    scale = math.ceil(TILE / min(height, width)) if scale is None else scale
    if columns < 1 or scale < 1 or gap < 0:
        raise ValueError(f"columns and scale must be at least 1, gap at least 0; got {columns}, {scale}, {gap}")
    if channels == 1 and not isinstance(background, int):
        raise ValueError(f"the background of grey images is one number; got {background}")
    columns = min(columns, n)
    down, right = height + gap, width + gap
    canvas = np.empty((math.ceil(n / columns) * down - gap, columns * right - gap, channels), np.uint8)
    canvas[:] = background
    for i, tile in enumerate(tiles):
        top, left = i // columns * down, i % columns * right
        canvas[top : top + height, left : left + width] = tile
    canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a PNG, completely or not at all; missing folders are created."""
    with new_file(Path(path)) as partial:
        image.save(partial, format="PNG", optimize=True)


def encode_image(image: NDArray[np.uint8]) -> tuple[str, bytes]:
    """An image (H, W, C) as `data pack` stores it: its extension and content, .png if it is grey or RGB, else .npy, (C, H, W)."""
    buffer = io.BytesIO()
    if image.shape[2] in (1, 3):
        pixels = image[..., 0] if image.shape[2] == 1 else image
        Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        return ".png", buffer.getvalue()
    np.save(buffer, np.ascontiguousarray(image.transpose(2, 0, 1)), allow_pickle=False)
    return ".npy", buffer.getvalue()


def save_image(image: NDArray[np.uint8], path: Path) -> None:
    """Write an image (H, W, C) by `encode_image` to `path` and its extension, complete or not at all."""
    extension, content = encode_image(image)
    with new_file(path.with_name(path.name + extension)) as partial:
        partial.write_bytes(content)
