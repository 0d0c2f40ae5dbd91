"""Images in and out: sets of images, endless batches of them, and the tool that makes them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewstep.data.builtin import digits
from fewstep.data.images import ImageData, images

if TYPE_CHECKING:
    from fewstep.data.stream import ImageStream

__all__ = ["ImageData", "ImageStream", "digits", "images"]

# What needs torch comes when it is asked for: the dataset tool and its worker processes start without.
LAZY = {"ImageStream": "stream"}


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(f"{__name__}.{LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
