"""Data sets of images, endless streams of batches, and the tool that packs, checks and measures data sets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewstep.data.builtin import digits
from fewstep.data.images import ImageData, images

if TYPE_CHECKING:
    from fewstep.data.stream import ImageStream

__all__ = ["ImageData", "ImageStream", "digits", "images"]

# Modules that need torch are imported on first use: the dataset tool and its worker processes start without it.
LAZY = {"ImageStream": "stream"}


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(f"{__name__}.{LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
