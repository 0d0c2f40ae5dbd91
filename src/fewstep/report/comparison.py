"""The sections that compare models: the table of results, quality over NFE and over training, grids side by side."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.report.markup import definitions, disclosure, embed, escape, figure, heading, spoken, words
from fewstep.report.numerals import duration, human
from fewstep.report.plot import Reference, Series, line_chart
from fewstep.report.records import Curve, Result, RunRecord, is_number

FALLING = {"fd", "fid", "kid", "lpips", "mse"}
RISING = {"is", "precision", "recall", "psnr", "ssim", "density", "coverage"}
LABELLED = 16
"""Points of a chart up to which each is labelled with its value."""

CELLS = 2_000_000
"""Of the table of results, by metrics."""

Cell = Callable[[Result], str]


def direction(metric: str) -> str:
    parts = set(re.split("[^a-z]+", metric.lower()))
    return "lower is better" if parts & FALLING else "higher is better" if parts & RISING else ""


def wide(curves: Sequence[Curve]) -> bool:
    """Whether the values are positive and rise so far above their low ones that only a logarithmic axis shows both."""
    values = np.concatenate([curve.value[np.isfinite(curve.value)] for curve in curves])
    return bool(values.size) and values.min() > 0 and values.max() > 30 * np.quantile(values, 0.05)


def palette(results: Sequence[Result], runs: Sequence[RunRecord]) -> dict[str, int]:
    """A slot of the palette for each model and run; a run has that of the model of its name. Keys are casefolded."""
    names = [spoken(result.row.get("model")) for result in results if result.row.get("nfe") is not None]
    names += [run.name for run in runs]
    return {name: slot for slot, name in enumerate(dict.fromkeys(name.casefold() for name in names))}


def metric_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def count(value: Any) -> str:
    return f"{value:,}" if type(value) is int else spoken(value)


def number(value: Any) -> str:
    return human(value) if is_number(value) else spoken(value)


def measurement(value: Any) -> str:
    return human(value, zeros=True) if is_number(value) else spoken(value)


def time(value: Any) -> str:
    return duration(value) if is_number(value) else spoken(value)


def column(key: str, show: Callable[[Any], str]) -> Cell:
    return lambda result: show(result.row[key]) if result.row.get(key) is not None else ""


def results_table(results: Sequence[Result]) -> str:
    """The rows with all that qualifies their numbers; what their protocols share is told once."""
    if not results:
        return ""
    names = metric_names(results)
    if len(results) * len(names) > CELLS:
        raise ValueError(
            f"{len(results)} results with {len(names)} metrics are more than a table shows; the first is "
            f"{results[0].folder / 'results.json'}"
        )
    known: dict[str, dict[str, Any]] = {}
    keys = {id(result): json.dumps(result.protocol, sort_keys=True) for result in results}
    for result in results:
        known.setdefault(keys[id(result)], result.protocol)
    protocols = list(known.values())
    letters = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(protocols))]
    columns: list[tuple[str, str, Cell]] = [
        ("model", "text", column("model", spoken)),
        ("method", "text", column("method", spoken)),
        ("sampler", "text", column("sampler", spoken)),
        ("NFE", "", column("nfe", count)),
        *((words(name), "metric", column(name, measurement)) for name in names),
        ("n", "", column("n", count)),
        ("seeds", "", column("seeds", spoken)),
        ("images/s", "", column("images_per_second", number)),
        ("training images", "", column("training_images", number)),
        ("training time", "", column("training_seconds", time)),
    ]
    if len(protocols) > 1:
        places = dict(zip(known, letters, strict=True))
        columns.append(("protocol", "", lambda result: places[keys[id(result)]]))
    columns = [(name, kind, cell) for name, kind, cell in columns if any(cell(result) for result in results)]
    head = "".join(f'<th class="{kind}" scope="col">{escape(name)}</th>' for name, kind, _ in columns)
    rows = (
        "".join(f'<td class="{kind}">{escape(cell(result))}</td>' for _, kind, cell in columns) for result in results
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    shared = {k: v for k, v in protocols[0].items() if all(k in p and p[k] == v for p in protocols)}
    own = [{k: v for k, v in p.items() if k not in shared} for p in protocols]
    told = shared | {letter: special for letter, special in zip(letters, own, strict=True) if special}
    return table + (disclosure("Protocol", definitions(told)) if told else "")


def quality(results: Sequence[Result], runs: Sequence[RunRecord]) -> str:
    """Each metric over NFE, one series per model, and over training where several runs measured it."""
    slots = palette(results, runs)
    charts = [*over_nfe(results, slots), *over_training(runs, slots)]
    return f'<div class="charts">{"".join(map(figure, charts))}</div>' if charts else ""


def over_nfe(results: Sequence[Result], slots: dict[str, int]) -> Iterable[str]:
    """Log-log charts; a row without NFE, such as one of real images, is a horizontal line."""
    for name in metric_names(results):
        rows = [r for r in results if name in r.metrics]
        placed = sorted((r for r in rows if is_number(r.row.get("nfe"))), key=lambda r: r.row["nfe"])
        ways = {(spoken(r.row.get("model")), spoken(r.row.get("sampler"))) for r in placed}
        groups: dict[tuple[int, str], list[Result]] = {}
        for r in placed:
            model, sampler = spoken(r.row.get("model")), spoken(r.row.get("sampler"))
            single = sum(way[0] == model for way in ways) == 1
            groups.setdefault((slots[model.casefold()], model if single else f"{model}, {sampler}"), []).append(r)
        # Two samplers of one model would share its slot: then colours tell the series apart, not the models.
        distinct = len({slot for slot, _ in groups}) == len(groups)
        series = []
        for (slot, group), members in sorted(groups.items()):
            y = [r.metrics[name] for r in members]
            labels = [human(v, 3, zeros=True) for v in y] if len(placed) <= LABELLED else ()
            nfe = [r.row["nfe"] for r in members]
            series.append(Series(group, nfe, y, "line+points", labels, slot if distinct else None))
        if series:
            yield line_chart(
                series,
                title=f"{heading(words(name))} over NFE",
                x_label="network evaluations per image (NFE)",
                y_label=direction(name),
                log_x=True,
                log_y=True,
                reference_lines=[
                    Reference(spoken(r.row.get("model")), r.metrics[name]) for r in rows if r.row.get("nfe") is None
                ],
            )


def over_training(runs: Sequence[RunRecord], slots: dict[str, int]) -> Iterable[str]:
    """Each metric over training images and, where the logs tell the time, over seconds."""
    for key in dict.fromkeys(key for run in runs for key in run.log.curves if direction(key)):
        measured = [run for run in runs if key in run.log.curves]
        if len(measured) < 2:
            continue
        names = [run.name.casefold() for run in measured]
        distinct = len(set(names)) == len(names)
        axes = {"images seen in training": [run.log.curves[key].nimg for run in measured]}
        if all(run.log.clock.nimg.size for run in measured):
            axes["seconds of training"] = [
                np.interp(run.log.curves[key].nimg, run.log.clock.nimg, run.log.clock.value) for run in measured
            ]
        for label, positions in axes.items():
            yield line_chart(
                [
                    Series(
                        run.name, x, run.log.curves[key].value, "line+points", slot=slots[name] if distinct else None
                    )
                    for run, x, name in zip(measured, positions, names, strict=True)
                ],
                title=f"{heading(words(key))} over {'training' if 'images' in label else 'time'}",
                x_label=label,
                y_label=direction(key),
                log_y=wide([run.log.curves[key] for run in measured]),
            )


def grids(results: Sequence[Result]) -> str:
    """The images that rows name, each with what was measured on its model, and how."""
    figures = []
    for result in results:
        row = result.row
        if row.get("grid") is None:
            continue
        path = Path(os.path.realpath(result.folder / str(row["grid"])))  # which loops of links do not stop
        if not path.is_relative_to(result.folder.resolve()):
            raise ValueError(f"a grid lies within the folder of its results.json, {result.folder}; got {row['grid']!r}")
        model = spoken(row.get("model", path.stem))
        how = [spoken(row.get("sampler"))] * bool(row.get("sampler")) + [f"NFE {count(row.get('nfe'))}"] * (
            "nfe" in row
        )
        measured = [f"{words(name)} {human(value)}" for name, value in result.metrics.items()]
        terms = [
            f"{key} {show(row[key])}" for key, show in (("n", count), ("seeds", spoken)) if row.get(key) is not None
        ]
        lines = [", ".join(how), ", ".join(measured), ", ".join(terms) if measured else ""]
        text = "<br>".join([f"<b>{escape(model)}</b>", *(escape(line) for line in lines if line)])
        figures.append(figure(embed(path, f"Samples of {model}"), text))
    return f'<div class="grids">{"".join(figures)}</div>' if figures else ""
