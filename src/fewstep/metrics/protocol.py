"""Results that carry how they were measured, tables of them, and warnings where they cannot be compared."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fewstep.files import read_json, write_json
from fewstep.metrics.catalog import key

SMALL = 10_000
ROUNDING = "trunc(clip(127.5 x + 128, 0, 255))"
"""How `data.codec.Pixels` makes bytes of images."""

MEASURE = ("extractor", "reference", "settings", "rounding")
"""What two results must share to be compared, besides metric and n; the rest says whose images they are."""


@dataclass(frozen=True)
class Result:
    """A figure and how it was measured. protocol: all that another measurement must share to be compared."""

    metric: str
    value: float
    n: int
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The metric with its number of images, as fid@50k."""
        return key(self.metric, self.n)

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """One metric over repeated measurements with other seeds. spread: standard deviation, corrected for their number."""

    metric: str
    n: int
    values: tuple[float, ...]
    mean: float
    spread: float
    minimum: float


def differences(a: Result, b: Result) -> list[str]:
    """What keeps two results from being compared; empty if nothing does."""
    found = [f"metric: {a.metric} and {b.metric}"] if a.metric != b.metric else []
    found += [f"n: {a.n:,} and {b.n:,}"] if a.n != b.n else []
    pairs = ((name, a.protocol.get(name), b.protocol.get(name)) for name in MEASURE)
    return found + [f"{name}: {one} and {other}" for name, one, other in pairs if one != other]


def check_comparable(results: Sequence[Result]) -> None:
    """Warn, once for each metric, of results that were not measured in the same way as the first of their metric."""
    first: dict[str, Result] = {}
    warned: set[str] = set()
    for result in results:
        known = first.setdefault(result.metric, result)
        if (found := differences(known, result)) and result.metric not in warned:
            warned.add(result.metric)
            warnings.warn(
                f"these figures of {result.metric} cannot be compared, they differ in {'; '.join(found)}", stacklevel=2
            )


def repeat_seeds(seeds: Sequence[int], repeats: int) -> list[list[int]]:
    """The seeds of repeated measurements: `seeds`, then as many after the largest, and so on."""
    if repeats < 1:
        raise ValueError(f"at least 1 repeat is needed; got {repeats}")
    step = max(seeds) - min(seeds) + 1
    return [[seed + i * step for seed in seeds] for i in range(repeats)]


def summarize(runs: Sequence[Sequence[Result]]) -> list[Summary]:
    """Mean, spread and minimum of each metric over repeated measurements, which must have the same metrics."""
    if len({tuple((r.metric, r.n) for r in run) for run in runs}) != 1:
        raise ValueError("repeated measurements must have the same metrics and numbers of images")
    check_comparable([result for run in runs for result in run])
    summaries = []
    for same in zip(*runs, strict=True):
        values = tuple(r.value for r in same)
        spread = stdev(values) if len(values) > 1 else 0.0
        summaries.append(Summary(same[0].metric, same[0].n, values, mean(values), spread, min(values)))
    return summaries


def rows(results: Sequence[Result] | Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table."""
    if results and isinstance(results[0], Summary):
        heads = ["metric", "mean", "spread", "minimum", "repeats"]
        return heads, [
            [key(r.metric, r.n), f"{r.mean:.6g}", f"{r.spread:.2g}", f"{r.minimum:.6g}", str(len(r.values))]
            for r in results
            if isinstance(r, Summary)
        ]
    heads = ["metric", "value", "note"]
    found = [r for r in results if isinstance(r, Result)]
    return heads, [[r.key, f"{r.value:.6g}", str(r.protocol.get("note", ""))] for r in found]


def markdown(results: Sequence[Result] | Sequence[Summary]) -> str:
    """A table in Markdown; for results with the protocol that they share below it."""
    heads, body = rows(results)
    lines = [" | ".join(heads), " | ".join("---" if i == 0 else "---:" for i in range(len(heads)))]
    lines += [" | ".join(row) for row in body]
    table = "\n".join(f"| {line} |" for line in lines)
    shared = [r.protocol for r in results if isinstance(r, Result)]
    if not shared:
        return f"{table}\n"
    common = {k: v for k, v in shared[0].items() if all(p.get(k) == v for p in shared)}
    return f"{table}\n\n" + "".join(f"- {name}: {value}\n" for name, value in common.items())


def write_results(path: Path, results: Sequence[Result]) -> None:
    """All results as JSON, each with its protocol."""
    write_json(path, [result.asdict() for result in results])


def read_results(path: Path) -> list[Result]:
    content = read_json(path)
    try:
        return [Result(**entry) for entry in content]
    except TypeError as error:
        raise ValueError(f"{path}: expected a list of results as `fewstep eval` writes them; {error}") from error
