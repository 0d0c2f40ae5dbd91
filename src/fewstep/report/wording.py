"""Keys and values of records as text for readers."""

from __future__ import annotations

import json
import re
from typing import Any

LABELS = {word: word.upper() for word in ("fd", "fid", "kid", "is", "psnr", "ssim", "lpips", "nfe", "ema")}
LABELS |= {"lr": "learning rate", "grad": "gradient", "gib": "GiB"}


def as_text(value: Any) -> str:
    """A JSON value on one line: `torch 2.11, numpy 2.1` for an object, `0-63` for a run of integers, a hash shortened."""
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {as_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        consecutive = (
            len(value) > 2 and all(type(v) is int for v in value) and value == [*range(value[0], value[-1] + 1)]
        )
        return f"{value[0]}-{value[-1]}" if consecutive else ", ".join(map(as_text, value))
    if isinstance(value, str):
        return re.sub(r"\b([0-9a-f]{16})[0-9a-f]{48}\b", "\\1", value)
    return f"{value:.10g}" if isinstance(value, float) else json.dumps(value)


def label(key: str) -> str:
    """The key of a record in words: fd_pixels -> FD pixels, lr -> learning rate."""
    return " ".join(LABELS.get(word, word) for word in key.split("_"))


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + "s" * (n != 1)
