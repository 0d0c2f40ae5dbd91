"""Results that carry how they were measured, tables of them, and warnings where they cannot be compared."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fewstep.metrics.catalog import key
from fewstep.runtime.display import inline
from fewstep.runtime.files import read_json, write_json

SMALL = 10_000
ROUNDING = "trunc(clip(127.5 x + 128, 0, 255))"
"""How `data.codec.Pixels` makes bytes of images."""

MEASURE = ("extractor", "reference", "settings", "rounding")
"""What two results must share to be compared, besides metric and n; the rest says whose images they are."""


@dataclass(frozen=True)
class MetricResult:
    """The value of a metric, and how it was measured.

    Attributes:
        metric: name of the metric, such as `fid`.
        value: its value.
        n: number of images.
        protocol: what another measurement must share to be compared, and whose images they are.

    Example:
        >>> result = fs.metrics.MetricResult("fid", 1.97, 50_000)
        >>> result.key
        'fid@50k'
    """

    metric: str
    value: float
    n: int
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The metric with its number of images, as fid@50k."""
        return key(self.metric, self.n)

    def asdict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """One metric over repeated measurements with other seeds; `spread` is the corrected standard deviation."""

    metric: str
    n: int
    values: tuple[float, ...]
    mean: float
    spread: float
    minimum: float


def differences(a: MetricResult, b: MetricResult) -> list[str]:
    """What keeps two results from being compared; empty if nothing does."""
    found = [f"metric: {a.metric} and {b.metric}"] if a.metric != b.metric else []
    found += [f"n: {a.n:,} and {b.n:,}"] if a.n != b.n else []
    pairs = ((name, a.protocol.get(name), b.protocol.get(name)) for name in MEASURE)
    return found + [
        f"{name}: {words(one)} and {words(other)}" for name, one, other in pairs if bare(one) != bare(other)
    ]


def bare(value: Any) -> Any:
    """An entry as it is compared: without the name of a file, which may have been renamed."""
    return {k: v for k, v in value.items() if k != "name"} if isinstance(value, dict) else value


def words(value: Any) -> str:
    """A part of a protocol on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {words(v)}" for k, v in value.items()) or "none"
    return str(value)


def show_seeds(seeds: Sequence[int]) -> str:
    """Seeds as ranges: 0-49999."""
    parts: list[str] = []
    start = 0
    for i in range(1, len(seeds) + 1):
        if i == len(seeds) or seeds[i] != seeds[i - 1] + 1:
            parts.append(f"{seeds[start]}-{seeds[i - 1]}" if i - start > 1 else f"{seeds[start]}")
            start = i
    return ",".join(parts)


def check_comparable(results: Sequence[MetricResult]) -> None:
    """Warn, once for each metric, of results that were not measured in the same way as the first of their metric."""
    first: dict[str, MetricResult] = {}
    warned: set[str] = set()
    for result in results:
        known = first.setdefault(result.metric, result)
        if (found := differences(known, result)) and result.metric not in warned:
            warned.add(result.metric)
            warnings.warn(
                f"these values of {result.metric} cannot be compared; they differ in {'; '.join(found)}", stacklevel=2
            )


def repeat_seeds(seeds: Sequence[int], repeats: int) -> list[list[int]]:
    """The seeds of repeated measurements: `seeds`, then as many after the largest, and so on."""
    if repeats < 1:
        raise ValueError(f"at least 1 repeat is needed; got {repeats}")
    step = max(seeds) - min(seeds) + 1
    return [[seed + i * step for seed in seeds] for i in range(repeats)]


def summarize(runs: Sequence[Sequence[MetricResult]]) -> list[Summary]:
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


def table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, in columns of equal width."""
    heads, *body = [[inline(cell) for cell in row] for row in (heads, *body)]
    widths = [max(len(row[i]) for row in (heads, *body)) for i in range(len(heads))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    padded = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in body
    ]
    head = [name.ljust(w) for name, w in zip(heads, widths, strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *padded))


def markdown(runs: Sequence[Sequence[MetricResult]]) -> str:
    """Return a table in Markdown of one evaluation, or of repeated ones, with their protocols below.

    Args:
        runs: the results of each evaluation. Repeated ones are shown by their mean, spread and minimum.

    Returns:
        The table and the protocols.

    Raises:
        ValueError: repeated measurements have other metrics or numbers of images.

    Example:
        >>> print(fs.metrics.markdown([[fs.metrics.MetricResult("fid", 1.97, 50_000)]]).splitlines()[0])
        | metric  | value |
    """
    if len(runs) == 1:
        found = table(["metric", "value"], [[r.key, f"{r.value:.6g}"] for r in runs[0]])
    else:
        found = table(
            ["metric", "mean", "spread", "minimum", "repeats"],
            [
                [key(s.metric, s.n), f"{s.mean:.6g}", f"{s.spread:.2g}", f"{s.minimum:.6g}", str(len(s.values))]
                for s in summarize(runs)
            ],
        )
    return f"{found}\n{protocols([result for run in runs for result in run])}"


def protocols(results: Sequence[MetricResult]) -> str:
    """A line for each entry of the protocols, with the metrics that it applies to unless it applies to all."""
    everything = list(dict.fromkeys(r.key for r in results))
    lines = []
    for name in dict.fromkeys(name for r in results for name in r.protocol):
        said: dict[str, list[str]] = {}
        for r in results:
            if name in r.protocol:
                said.setdefault(words(r.protocol[name]), []).append(r.key)
        for value, keys in said.items():
            of = list(dict.fromkeys(keys))
            whose = "" if of == everything else f" ({', '.join(of)})"
            lines.append(f"- {inline(name)}{whose}: {inline(value)}\n")
    return "".join(lines)


def compare(named: Mapping[str, Sequence[MetricResult]]) -> str:
    """Return a table in Markdown of several evaluations, a column each; it warns about results that are not comparable.

    Args:
        named: the results of each evaluation, by the heading of its column. Repeated measurements are shown by their mean.

    Returns:
        The table.

    Example:
        >>> ours, theirs = ([fs.metrics.MetricResult("fid", value, 50_000)] for value in (1.97, 2.04))
        >>> table = fs.metrics.compare({"ours": ours, "theirs": theirs})
    """
    check_comparable([result for results in named.values() for result in results])
    keys = dict.fromkeys(r.key for results in named.values() for r in results)
    body = []
    for k in keys:
        found = [[r.value for r in results if r.key == k] for results in named.values()]
        several = [f" (mean of {len(values)})" if len(values) > 1 else "" for values in found]
        body.append([k, *(f"{mean(v):.6g}{more}" if v else "" for v, more in zip(found, several, strict=True))])
    return table(["metric", *named], body)


def write_results(path: Path, results: Sequence[MetricResult]) -> None:
    """Write results as JSON, each with its protocol.

    Args:
        path: the file to write.
        results: the results.

    Example:
        >>> fs.metrics.write_results(Path("fid.json"), [fs.metrics.MetricResult("fid", 1.97, 50_000)])
    """
    write_json(path, [result.asdict() for result in results])


def read_results(path: Path) -> list[MetricResult]:
    """Read results that `write_results` or `fewstep eval` wrote.

    Args:
        path: the file.

    Returns:
        The results.

    Raises:
        ValueError: the file does not hold results.

    Example:
        >>> fs.metrics.write_results(Path("fid.json"), [fs.metrics.MetricResult("fid", 1.97, 50_000)])
        >>> fs.metrics.read_results(Path("fid.json"))[0].value
        1.97
    """
    return parse_results(read_json(path), str(path))


def parse_results(content: Any, where: str) -> list[MetricResult]:
    """Results out of JSON, each entry of the type that it must have."""
    kinds = {"metric": (str,), "value": (int, float), "n": (int,), "protocol": (dict,)}
    for entry in content if isinstance(content, list) else [content]:
        if (
            not isinstance(entry, dict)
            or not {"metric", "value", "n"} <= set(entry) <= set(kinds)
            or not all(type(value) in kinds[name] for name, value in entry.items())
            or not abs(entry["value"]) <= sys.float_info.max
        ):
            raise ValueError(
                f"{where}: expected a list of results as `fewstep eval` writes them; got {str(entry)[:100]}"
            )
    return [MetricResult(**entry) for entry in content]
