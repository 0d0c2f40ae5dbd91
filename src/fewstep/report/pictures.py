"""Images of the page: decoded, reduced where they are large, and embedded."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.data.color_modes import open_image
from fewstep.data.files import check_bytes
from fewstep.runtime.files import regular

WIDEST, COARSE = 1400, 240
"""Pixels of the longer side: larger images are reduced, images up to COARSE are magnified without blur."""


@dataclass(frozen=True)
class Picture:
    """An embedded image and its caption: a title, lines below it, and a protocol to unfold."""

    address: str
    width: int
    height: int
    alternative: str
    title: str = ""
    lines: Sequence[str] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)

    @property
    def coarse(self) -> bool:
        return max(self.width, self.height) <= COARSE


def embed(path: Path, alternative: str, **caption: Any) -> Picture:
    """The image in a file as a `data:` address, decoded and encoded again so that the page contains nothing but pixels.

    Args:
        path: of the image.
        alternative: text for readers who do not see the image.
        **caption: `title`, `lines` and `protocol` of the Picture.

    Raises:
        ValueError: the file is not an image.
    """
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
    address = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(address, image.width, image.height, alternative, **caption)
