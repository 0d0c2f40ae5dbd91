"""How an image of any mode becomes 8-bit grey or RGB: three rules, and notes of what they changed.

"plain" loses nothing: grey stays grey, images are upright as their EXIF orientation says, and what does not fit into 8
bits of grey or RGB is refused. "rgb" makes every image RGB as a viewer shows it: upright, transparent pixels on white, CMYK
converted, of 16 bits per channel the upper 8. "edm2" is the rule of EDM2's dataset tool: every image becomes RGB as it is
stored, that is, the EXIF orientation is ignored, CMYK is converted, and alpha is dropped.
"""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fewstep.data.files import (
    FORMATS,
    Files,
    Loaded,
    check_not_empty,
    decoding_error,
    load_image,
    orientation,
    read_array,
)

Rule = Literal["plain", "rgb", "edm2"]
RULES = ("plain", "rgb", "edm2")
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
PACK = "fewstep data pack SOURCE OUT.zip"
GREY = ("1", "L", "LA", "La", *DEEP)


def convert(loaded: Loaded, rule: Rule) -> tuple[Image.Image, tuple[str, ...]]:
    """The image as grey (L) or RGB, and what was done to it; ValueError if the rule refuses it."""
    image, notes = loaded.image, []
    mode, deep = image.mode, loaded.deep or sixteen_bits(image)
    if orientation(image) != 1:
        notes.append("EXIF orientation ignored" if rule == "edm2" else "turned upright as EXIF says")
        image = image if rule == "edm2" else ImageOps.exif_transpose(image)
    if reason := refusal(mode, rule, deep=deep):
        raise ValueError(reason)
    if deep:
        notes.append("16 bits per channel reduced to 8")
        image = upper_bits(image)
    if has_alpha(image):
        transparent = image.convert("LA" if mode in GREY else "RGBA").getextrema()[-1] != (255, 255)
        if transparent and rule == "plain":
            raise ValueError(
                f"it has transparent pixels (mode {mode}); put it on a background first: {PACK} --convert rgb puts it on white"
            )
        if transparent and rule == "rgb":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            notes.append("transparent pixels put on white")
        else:
            notes.append("alpha of transparent pixels dropped" if transparent else "opaque alpha dropped")
        image.info.pop("transparency", None)  # Pillow warns of it when it drops it
    target = "L" if rule == "plain" and mode in GREY else "RGB"
    if mode in GREY and target == "RGB":
        notes.append("grey to RGB")
    elif mode == "1":
        notes.append("black and white to grey")
    elif mode not in ("L", "RGB", "LA", "RGBA"):
        notes.append(f"{'palette' if mode in ('P', 'PA') else mode} to RGB")
    return image if image.mode == target else image.convert(target), tuple(notes)


def refusal(mode: str, rule: Rule, *, deep: bool) -> str | None:
    """Why a rule does not accept images of a mode, and what does; None if it accepts them."""
    if mode in DEEP and not (deep and rule == "rgb"):
        lossy = f"its mode is {mode}, which cannot be stored in 8 bits of grey or RGB without loss; "
        lossy += "EDM2's tool clips its values to 255; " if rule == "edm2" else ""
        return lossy + (f"{PACK} --convert rgb keeps the upper 8 bits" if deep else "reduce it to 8 bits first")
    if deep and rule == "plain":
        return f"expected one intact image of 8 bits per channel; it has 16; {PACK} --convert rgb keeps the upper 8"
    if rule == "plain" and mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        return (
            f"its mode is {mode}, which cannot be stored in 8 bits of grey or RGB without loss; {PACK} --convert rgb makes it "
            "RGB"
        )
    return None


def sixteen_bits(image: Image.Image) -> bool:
    """Whether grey values go from 0 to 65,535, which the mode says, or the format where the mode is 32 bits wide."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def upper_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits of 16, which Pillow keeps itself of RGB; `transparency`, the value of pixels that do not show, too."""
    clear = image.info.get("transparency")
    if image.mode not in DEEP:
        if isinstance(clear, tuple):
            image.info["transparency"] = tuple(value >> 8 for value in clear)
        return image
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def has_alpha(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")


def open_image(data: bytes, where: str) -> Image.Image:
    """One image of 8 bits per channel and of any mode, upright as its EXIF orientation says."""
    image, deep = load_image(data, where)
    if deep:
        raise ValueError(f"{where}: expected one intact image of 8 bits per channel; it has 16")
    return ImageOps.exif_transpose(image) if orientation(image) != 1 else image


class Entry(NamedTuple):
    """One image of a source: where it is from, its class, and a file, pixels (H, W) or (H, W, C), or why it has none."""

    where: str
    label: int | None
    content: bytes | NDArray[np.uint8] | ValueError

    @property
    def nbytes(self) -> int:
        if isinstance(self.content, np.ndarray):
            return self.content.nbytes
        return len(self.content) if isinstance(self.content, bytes) else 0


def load(entry: Entry) -> Loaded | NDArray[np.uint8]:
    """The image of an entry, or pixels (H, W, C) where they have other than one or three channels; ValueError names it."""
    content = entry.content
    if isinstance(content, ValueError):
        raise content
    if isinstance(content, bytes) and not entry.where.lower().endswith(".npy"):
        return load_image(content, entry.where)
    pixels = read_array(content, entry.where).transpose(1, 2, 0) if isinstance(content, bytes) else content
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        return pixels
    grey = pixels.shape[2:] == (1,)
    return Loaded(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels)), deep=False)


def decode(entry: Entry) -> NDArray[np.uint8]:
    """An image as it is trained on and measured, uint8 (C, H, W): grey or RGB by the rule "plain", or any number of channels.

    Raises ValueError that names it.
    """
    loaded = load(entry)
    if isinstance(loaded, np.ndarray):
        return loaded.transpose(2, 0, 1)
    try:
        image, _ = convert(loaded, "plain")
    except ValueError as error:
        raise ValueError(f"{entry.where}: {error}") from error
    return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def header_shape(content: bytes, where: str) -> tuple[int, ...]:
    """The shape (C, H, W) of what `decode` returns, from the header alone."""
    if where.lower().endswith(".npy"):
        return read_array(content, where).shape
    check_not_empty(content, where)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            size = (image.width, image.height) if orientation(image) >= 5 else (image.height, image.width)
            return (1 if image.mode in GREY else 3, *size)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: expected an image; {decoding_error(error)}; fetch it again or remove it") from error


def read_pixels(files: Files, name: str) -> NDArray[np.uint8]:
    """An image of a folder or zip; see `decode`."""
    return decode(Entry(f"{files.path}/{name}", None, files.read(name)))


def fits(shape: tuple[int, ...], first: tuple[int, ...]) -> bool:
    """Whether an image of `shape` (C, H, W) belongs to a set that begins with one of `first`: grey does among RGB."""
    return shape == first or (shape == (1, *first[1:]) and first[0] == 3)


def check_fits(where: str, shape: tuple[int, ...], first: str, first_shape: tuple[int, ...]) -> None:
    """Raise ValueError if the image `where` does not belong to a set that begins with the image `first`."""
    if not fits(shape, first_shape):
        raise ValueError(
            f"{where}: expected (channels, height, width) {first_shape} as in {first}; got {shape}; make them equal with: "
            f"{PACK} --resolution 64x64 --transform center-crop"
        )
