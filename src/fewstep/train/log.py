"""The records of a run that grow while it trains: files of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep import checkpoint
from fewstep.diagnostics import LEVELS
from fewstep.files import file_place, new_file, regular


class Lines:
    """A file of one JSON object a line. Lines beyond the state that training resumes from are dropped."""

    def __init__(self, path: Path, nimg: int) -> None:
        self.path = file_place(path)
        self.kept = [line for line in self.read() if line["nimg"] <= nimg]
        if path.exists() or self.kept:
            with new_file(path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in self.kept), encoding="utf-8")

    def read(self) -> list[dict[str, Any]]:
        lines = []
        for text in regular(self.path).read_bytes().splitlines() if self.path.exists() else []:
            try:
                line = json.loads(text)
                if not isinstance(line["nimg"], int):
                    break
            except (ValueError, LookupError, TypeError, RecursionError):  # torn by a kill; it is written again
                break
            lines.append(line)
        return lines

    def append(self, line: Mapping[str, Any]) -> None:
        self.kept.append(dict(line))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


class Log:
    """`log.jsonl`: figures averaged since the last line."""

    def __init__(self, path: Path, nimg: int) -> None:
        self.lines = Lines(path, nimg)
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, logs: dict[str, torch.Tensor]) -> None:
        for key, value in logs.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1

    def figures(self) -> dict[str, float]:
        """What the next line will say so far: averages, and sums of counts (`nonfinite/...`).

        Figures `by_sigma` become their mean over all samples and that of each bin with samples, as `KEY@LEVEL`.
        """
        figures: dict[str, float] = {}
        for key, total in self.sums.items():
            if total.ndim == 0:
                figures[key] = float(total) / (1 if key.startswith("nonfinite/") else self.counts[key])
                continue
            sums, counts = total.tolist()
            figures[key] = sum(sums) / sum(counts) if any(counts) else np.nan
            figures |= {f"{key}@{level}": s / n for level, s, n in zip(LEVELS, sums, counts, strict=True) if n}
        return figures

    def write(self, entry: dict[str, Any]) -> dict[str, float]:
        """Append a line; returns its `figures`."""
        figures = self.figures()
        self.sums, self.counts = {}, {}
        self.lines.append({k: checkpoint.plain(v) for k, v in (entry | figures).items()})
        return figures
