"""The records of a run that grow while it trains: files of one JSON object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.core.diagnostics import LEVELS
from fewstep.io.configuration import plain
from fewstep.runtime.files import file_place, new_file, numbered, parse_json, regular


class Lines:
    """A file of one JSON object per line, opened to continue at `nimg` images; later lines are dropped.

    Damaged lines are dropped with a warning, and the original file is kept beside it. An incomplete last line, as after a
    kill, is not reported.

    Args:
        path: The file; need not exist.
        nimg: Training images of the state that training resumes from.
        check: Raises ValueError for a line that is damaged although it has its `nimg`.
    """

    def __init__(self, path: Path, nimg: int, check: Callable[[dict[str, Any]], object] = lambda line: None) -> None:
        self.path = file_place(path)
        content = regular(path).read_bytes() if path.exists() else b""
        *whole, last = content.split(b"\n")
        lines = [parsed(text, check) for text in whole]
        if damaged := sum(line is None for line in lines):
            copy = next(p for p in numbered(path.with_name(f"{path.name}.damaged")) if not p.exists())
            with new_file(copy) as partial:
                partial.write_bytes(content)
            counted = "line that is" if damaged == 1 else "lines that are"
            print(
                f"warning: {path} has {damaged} {counted} damaged and left out; the original is kept as {copy}",
                file=sys.stderr,
            )
        self.kept = [line for line in (*lines, parsed(last, check)) if line is not None and line["nimg"] <= nimg]
        if path.exists() and content != self.text():
            self.rewrite()

    def text(self) -> bytes:
        """What the file should contain."""
        return "".join(json.dumps(line) + "\n" for line in self.kept).encode()

    def rewrite(self) -> None:
        """Replace the file by the lines that are kept."""
        with new_file(self.path) as partial:
            partial.write_bytes(self.text())

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        self.kept.append(dict(line))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def amend(self, nimg: int, more: Mapping[str, Any]) -> None:
        """Add entries to the last line, if it is for this number of images."""
        if self.kept and self.kept[-1]["nimg"] == nimg:
            self.kept[-1] |= more
            self.rewrite()


def parsed(text: bytes, check: Callable[[dict[str, Any]], object]) -> dict[str, Any] | None:
    """The content of a line; None if it is damaged."""
    try:
        line = parse_json(text)
        if type(line) is not dict or type(line["nimg"]) is not int:
            return None
        check(line)
        return line
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


class Log:
    """`log.jsonl`: metrics averaged since the last line."""

    def __init__(self, path: Path, nimg: int) -> None:
        self.lines = Lines(path, nimg)
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, logs: dict[str, torch.Tensor]) -> None:
        """Add what a step logged."""
        for key, value in logs.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1

    def metrics(self) -> dict[str, float]:
        """The metrics of the next line so far: averages, and sums of counts (`nonfinite/...`).

        Entries by noise level become their mean over all samples, and as `KEY@LEVEL` the mean of each bin that has samples.
        """
        metrics: dict[str, float] = {}
        for key, total in self.sums.items():
            if total.ndim == 0:
                metrics[key] = float(total) / (1 if key.startswith("nonfinite/") else self.counts[key])
                continue
            sums, counts = total.tolist()
            metrics[key] = sum(sums) / sum(counts) if any(counts) else np.nan
            metrics |= {f"{key}@{level}": s / n for level, s, n in zip(LEVELS, sums, counts, strict=True) if n}
        return metrics

    def write(self, entry: dict[str, Any]) -> dict[str, float]:
        """Append a line with an entry and the metrics; returns the metrics."""
        metrics = self.metrics()
        self.sums, self.counts = {}, {}
        self.lines.append({k: plain(v) for k, v in (entry | metrics).items()})
        return metrics
