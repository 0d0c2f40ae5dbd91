"""Models side by side: the table of results, and the images that its rows name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.report.charts import metric_names
from fewstep.report.numerals import duration, human
from fewstep.report.pictures import Picture, embed
from fewstep.report.records import Result, is_number
from fewstep.report.wording import as_text, label

MOST_CELLS = 2_000_000
"""Results times metrics that a table shows."""


class Column(NamedTuple):
    """A column of the table. kind: its class in the style sheet. cell: the text for a row, empty where it has no value."""

    name: str
    kind: str
    cell: Callable[[Result], str]


@dataclass(frozen=True)
class Table:
    """The table of results. protocol: what qualifies its numbers; what all rows share comes once."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    protocol: Mapping[str, Any]


def count(value: Any) -> str:
    return f"{value:,}" if type(value) is int else as_text(value)


def number(value: Any) -> str:
    return human(value) if is_number(value) else as_text(value)


def measurement(value: Any) -> str:
    return human(value, zeros=True) if is_number(value) else as_text(value)


def time(value: Any) -> str:
    return duration(value) if is_number(value) else as_text(value)


def column(name: str, kind: str, key: str, show: Callable[[Any], str]) -> Column:
    return Column(name, kind, lambda result: show(result.row[key]) if result.row.get(key) is not None else "")


def results_table(results: Sequence[Result]) -> Table | None:
    """The rows of all results with the protocol of their numbers; None if there are no results."""
    if not results:
        return None
    metrics = metric_names(results)
    if len(results) * len(metrics) > MOST_CELLS:
        raise ValueError(
            f"{len(results)} results with {len(metrics)} metrics are more than a table shows; the first is "
            f"{results[0].folder / 'results.json'}"
        )
    known: dict[str, dict[str, Any]] = {}
    keys = {id(result): json.dumps(result.protocol, sort_keys=True) for result in results}
    for result in results:
        known.setdefault(keys[id(result)], result.protocol)
    protocols = list(known.values())
    letters = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(protocols))]
    columns = [
        column("model", "text", "model", as_text),
        column("method", "text", "method", as_text),
        column("sampler", "text", "sampler", as_text),
        column("NFE", "", "nfe", count),
        *(column(label(name), "metric", name, measurement) for name in metrics),
        column("n", "", "n", count),
        column("seeds", "", "seeds", as_text),
        column("images/s", "", "images_per_second", number),
        column("training images", "", "training_images", number),
        column("training time", "", "training_seconds", time),
    ]
    if len(protocols) > 1:
        places = dict(zip(known, letters, strict=True))
        columns.append(Column("protocol", "", lambda result: places[keys[id(result)]]))
    columns = [column for column in columns if any(column.cell(result) for result in results)]
    shared = {k: v for k, v in protocols[0].items() if all(k in p and p[k] == v for p in protocols)}
    own = [{k: v for k, v in p.items() if k not in shared} for p in protocols]
    described = shared | {letter: special for letter, special in zip(letters, own, strict=True) if special}
    return Table(columns, [[column.cell(result) for column in columns] for result in results], described)


def sample_grids(results: Sequence[Result]) -> list[Picture]:
    """The images that rows name, each with how it was made and what was measured."""
    pictures = []
    for result in results:
        row = result.row
        if row.get("grid") is None:
            continue
        path = Path(
            os.path.realpath(result.folder / str(row["grid"]))
        )  # unlike Path.resolve, it ends in a loop of links
        if not path.is_relative_to(result.folder.resolve()):
            raise ValueError(f"a grid lies within the folder of its results.json, {result.folder}; got {row['grid']!r}")
        model = as_text(row.get("model", path.stem))
        how = [as_text(row["sampler"])] if row.get("sampler") else []
        how += [f"NFE {count(row['nfe'])}"] if "nfe" in row else []
        measured = [f"{label(name)} {human(value)}" for name, value in result.metrics.items()]
        sizes = [
            f"{key} {show(row[key])}" for key, show in (("n", count), ("seeds", as_text)) if row.get(key) is not None
        ]
        lines = [", ".join(how), ", ".join(measured), ", ".join(sizes) if measured else ""]
        pictures.append(embed(path, f"Samples of {model}", title=model, lines=[line for line in lines if line]))
    return pictures
