"""Turns an image of any kind into one of a data set: converted to grey or RGB, cropped, resized, and encoded as a PNG.

Worker processes import this module, so it must not import torch.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.data.color_modes import RULES, Entry, Rule, convert, load

Crop = Literal["center-crop", "center-crop-wide", "center-crop-dhariwal"]
Resize = Literal["lanczos", "bilinear", "bicubic", "box"]
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}
CROPS = ("center-crop", "center-crop-wide", "center-crop-dhariwal")


def parse_resolution(resolution: str | None) -> tuple[int, int] | None:
    """(width, height) of a text such as "64x64", or "64" for both."""
    if resolution is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", resolution)
    if match is None:
        raise ValueError(f"the resolution is width x height, such as 64x64, or one number for both; got {resolution!r}")
    return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True)
class Transform:
    """Crops and resizes an image that was converted to grey (L) or RGB.

    Args:
        size: (width, height) of the result, None to keep the size. Without a crop the aspect ratio is not kept.
        crop: "center-crop" takes the largest centred square. "center-crop-wide" cuts the height to width * size[1] / size[0],
            resizes, and centres the result on a black square of size[0]. Both give RGB. "center-crop-dhariwal" is that of ADM
            (Dhariwal & Nichol, 2021): the image is halved (box filter) while its short side is at least twice the size,
            resized (bicubic) until the short side is the size, and its centre is cut out.
        resize: the filter, except for center-crop-dhariwal.
        rule: how an image of any mode becomes grey or RGB, see `fewstep.data.color_modes`. The default is "edm2" with a crop, to
            repeat published results, and "plain" without.

    Raises:
        ValueError: an argument is not one of those, or a crop has no size that fits it.
    """

    size: tuple[int, int] | None = None
    crop: Crop | None = None
    resize: Resize = "lanczos"
    rule: Rule | None = None

    @property
    def chosen_rule(self) -> Rule:
        return self.rule or ("plain" if self.crop is None else "edm2")

    def __post_init__(self) -> None:
        if self.rule not in (None, *RULES):
            raise ValueError(f"convert must be one of {', '.join(RULES)}; got {self.rule!r}")
        if self.resize not in FILTERS:
            raise ValueError(f"resize must be one of {', '.join(FILTERS)}; got {self.resize!r}")
        if self.crop is None:
            return
        if self.crop not in CROPS:
            raise ValueError(f"transform must be one of {', '.join(CROPS)}, or none; got {self.crop!r}")
        if self.size is None:
            raise ValueError(f"transform {self.crop} needs a resolution, such as 64x64")
        if self.crop == "center-crop-dhariwal" and self.size[0] != self.size[1]:
            raise ValueError(f"transform {self.crop} needs a square resolution; got {self.size[0]}x{self.size[1]}")
        if self.crop == "center-crop-wide" and self.size[0] < self.size[1]:
            raise ValueError(f"transform {self.crop} needs width >= height; got {self.size[0]}x{self.size[1]}")

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image
        if self.crop is None:
            return self.scale(image)
        if self.crop == "center-crop-dhariwal":
            return self.dhariwal(image)
        if self.crop == "center-crop":
            side = min(image.size)
            return self.scale(centre(image.convert("RGB"), (side, side)))
        return self.wide(image.convert("RGB"))

    def scale(self, image: Image.Image) -> Image.Image:
        assert self.size is not None
        return image if image.size == self.size else image.resize(self.size, FILTERS[self.resize])

    def wide(self, image: Image.Image) -> Image.Image:
        assert self.size is not None
        width, height = self.size
        kept = round(width * image.height / image.width)
        if image.width < width or kept < height:
            raise ValueError(f"it has {image.width}x{image.height} pixels, too few for {width}x{height}")
        canvas = Image.new("RGB", (width, width))
        canvas.paste(self.scale(centre(image, (image.width, kept))), (0, (width - height) // 2))
        return canvas

    def dhariwal(self, image: Image.Image) -> Image.Image:
        assert self.size is not None
        side = self.size[0]
        while min(image.size) >= 2 * side:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        return centre(image.resize(size, Image.Resampling.BICUBIC), self.size)


def centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of the image, rounded to the upper left."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def stored_zlib(data: bytes) -> bytes:
    """A zlib stream of stored blocks (RFC 1950, 1951): no compression, the same bytes with every build of zlib."""
    blocks = [data[i : i + 65535] for i in range(0, len(data), 65535)]
    heads = [struct.pack("<BHH", i == len(blocks) - 1, len(b), len(b) ^ 0xFFFF) for i, b in enumerate(blocks)]
    body = b"".join(part for pair in zip(heads, blocks, strict=True) for part in pair)
    return b"\x78\x01" + body + struct.pack(">I", zlib.adler32(data))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An uncompressed PNG of pixels (H, W) or (H, W, 3); for small images three times faster than Pillow."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), dtype=np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", stored_zlib(rows.tobytes()))
        + chunk(b"IEND", b"")
    )


class Encoded(NamedTuple):
    """An image to be stored, a PNG or an array; its shape is (channels, height, width), and notes say how it was converted."""

    data: bytes
    shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    def as_rgb(self) -> Encoded:
        """A grey image as RGB."""
        grey = np.asarray(Image.open(io.BytesIO(self.data)))
        return Encoded(png(np.dstack([grey] * 3)), (3, *grey.shape), (*self.notes, "grey to RGB"))

    @property
    def extension(self) -> str:
        """PNGs hold grey and RGB; other numbers of channels are stored as EDM2 reads them."""
        return ".png" if self.shape[0] in (1, 3) else ".npy"


def encode(transform: Transform, entry: Entry) -> Encoded | ValueError:
    """The entry as a PNG or an array, or a ValueError that names it and says what is wrong."""
    try:
        loaded = load(entry)
    except ValueError as error:
        return error
    try:
        if isinstance(loaded, np.ndarray):
            return encode_array(transform, loaded)
        image, notes = convert(loaded, transform.chosen_rule)
        pixels = np.asarray(transform(image))
    except ValueError as error:
        return ValueError(f"{entry.where}: {error}")
    if image.mode == "L" and pixels.ndim == 3:
        notes = (*notes, "grey to RGB")
    return Encoded(png(pixels), (1 if pixels.ndim == 2 else 3, *pixels.shape[:2]), notes)


def encode_array(transform: Transform, pixels: NDArray[np.uint8]) -> Encoded:
    """Pixels (H, W, C) of any number of channels as a `.npy` (C, H, W); each channel is resized as a grey image."""
    if transform.crop not in (None, "center-crop-dhariwal"):
        raise ValueError(f"transform {transform.crop} makes RGB; it has {pixels.shape[2]} channels")
    planes = [transform(Image.fromarray(np.ascontiguousarray(plane))) for plane in pixels.transpose(2, 0, 1)]
    array = np.stack([np.asarray(plane) for plane in planes])
    np.save(buffer := io.BytesIO(), array)
    channels, height, width = array.shape
    return Encoded(buffer.getvalue(), (channels, height, width))


def encode_all(transform: Transform, entries: Sequence[Entry]) -> list[Encoded | ValueError]:
    return [encode(transform, entry) for entry in entries]
