"""Text, values and images as HTML."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.data.convert import open_image
from fewstep.data.files import check_bytes
from fewstep.runtime.files import regular
from fewstep.runtime.foreign import visible

WIDEST, COARSE = 1400, 240
"""Pixels of the longer side: an image beyond the one is reduced, one up to the other is magnified without blur."""

WORDS = {word: word.upper() for word in ("fd", "fid", "kid", "is", "psnr", "ssim", "lpips", "nfe", "ema")}
WORDS |= {"lr": "learning rate", "grad": "gradient", "gib": "GiB"}


def escape(text: object) -> str:
    """Text for HTML and XML, quotes included; control characters and those of direction are shown as escapes."""
    return html.escape(visible(text, keep="\t\n\r"))


def spoken(value: Any) -> str:
    """A JSON value in one line: `torch 2.11, numpy 2.1` for an object, `0-63` for a run of integers, a hash shortened."""
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {spoken(v)}" for k, v in value.items())
    if isinstance(value, list):
        consecutive = (
            len(value) > 2 and all(type(v) is int for v in value) and value == [*range(value[0], value[-1] + 1)]
        )
        return f"{value[0]}-{value[-1]}" if consecutive else ", ".join(map(spoken, value))
    if isinstance(value, str):
        return re.sub(r"\b([0-9a-f]{16})[0-9a-f]{48}\b", "\\1", value)
    return f"{value:.10g}" if isinstance(value, float) else json.dumps(value)


def words(key: str) -> str:
    """The key of a record as words: fd_pixels -> FD pixels, lr -> learning rate."""
    return " ".join(WORDS.get(word, word) for word in key.split("_"))


def heading(text: str) -> str:
    return text[:1].upper() + text[1:]


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + "s" * (n != 1)


def figure(content: str, caption: str = "") -> str:
    return f"<figure>{content}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def definitions(values: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(spoken(v))}</td></tr>" for k, v in values.items())
    return f"<table>{rows}</table>"


def disclosure(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def embed(path: Path, alternative: str) -> str:
    """An image as a data address; decoded and written anew, so that nothing but pixels enters the page."""
    try:
        check_bytes(path.stat().st_size, str(path))
        opened = open_image(regular(path).read_bytes(), str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); remove it, or draw it again") from error
    image = opened.convert("RGB") if opened.mode not in ("L", "RGB", "RGBA") else opened
    image.info.clear()
    if max(image.size) > WIDEST:
        image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    coarse = ' class="coarse"' if max(image.size) <= COARSE else ""
    return (
        f'<img{coarse} src="data:image/png;base64,{data}" width="{image.width}" height="{image.height}" '
        f'alt="{escape(alternative)}">'
    )
