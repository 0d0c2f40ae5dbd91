"""The charts of the page: quality over evaluations and over training, and what a run has logged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fewstep.report.axes import Series, Style
from fewstep.report.numerals import human
from fewstep.report.plot import Reference, line_chart
from fewstep.report.records import Curve, Result, RunRecord, is_number
from fewstep.report.wording import as_text, capitalized, label

LOWER_IS_BETTER = {"fd", "fid", "kid", "lpips", "mse"}
HIGHER_IS_BETTER = {"is", "precision", "recall", "psnr", "ssim", "density", "coverage"}

MOST_LABELS = 16
"""Points of a chart up to which each is labelled with its value."""

MOST_MARKERS = 24
"""Points of a curve up to which each has a marker; longer curves are smoothed."""

QUARTERS = 4
"""Parts of the training whose means over the noise level are compared."""


def direction(metric: str) -> str:
    parts = set(re.split("[^a-z]+", metric.lower()))
    return "lower is better" if parts & LOWER_IS_BETTER else "higher is better" if parts & HIGHER_IS_BETTER else ""


def needs_log_axis(curves: Sequence[Curve]) -> bool:
    """Whether the values are positive and spread so far that only a logarithmic axis shows both large and small ones."""
    values = np.concatenate([curve.value[np.isfinite(curve.value)] for curve in curves])
    return bool(values.size) and values.min() > 0 and values.max() > 30 * np.quantile(values, 0.05)


def palette(results: Sequence[Result], runs: Sequence[RunRecord]) -> dict[str, int]:
    """The colour slot of each model and run, by casefolded name; a run shares that of the model of its name."""
    names = [as_text(result.row.get("model")) for result in results if result.row.get("nfe") is not None]
    names += [run.name for run in runs]
    return {name: slot for slot, name in enumerate(dict.fromkeys(name.casefold() for name in names))}


def metric_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def quality_charts(results: Sequence[Result], runs: Sequence[RunRecord]) -> list[str]:
    """Each metric over NFE, one series per model, and over training where several runs measured it."""
    slots = palette(results, runs)
    return [*over_nfe(results, slots), *over_training(runs, slots)]


def over_nfe(results: Sequence[Result], slots: Mapping[str, int]) -> Iterator[str]:
    """Log-log charts; a row without NFE, such as one of real images, is a horizontal line."""
    for name in metric_names(results):
        rows = [r for r in results if name in r.metrics]
        placed = sorted((r for r in rows if is_number(r.row.get("nfe"))), key=lambda r: r.row["nfe"])
        ways = {(as_text(r.row.get("model")), as_text(r.row.get("sampler"))) for r in placed}
        groups: dict[tuple[int, str], list[Result]] = {}
        for r in placed:
            model, sampler = as_text(r.row.get("model")), as_text(r.row.get("sampler"))
            single = sum(way[0] == model for way in ways) == 1
            groups.setdefault((slots[model.casefold()], model if single else f"{model}, {sampler}"), []).append(r)
        # Two samplers of one model would share its slot: then colours tell the series apart, not the models.
        distinct = len({slot for slot, _ in groups}) == len(groups)
        series = []
        for (slot, group), members in sorted(groups.items()):
            y = [r.metrics[name] for r in members]
            labels = [human(v, 3, zeros=True) for v in y] if len(placed) <= MOST_LABELS else ()
            nfe = [r.row["nfe"] for r in members]
            series.append(Series(group, nfe, y, "line+points", labels, slot if distinct else None))
        if series:
            yield line_chart(
                series,
                title=f"{capitalized(label(name))} over NFE",
                x_label="network evaluations per image (NFE)",
                y_label=direction(name),
                log_x=True,
                log_y=True,
                reference_lines=[
                    Reference(as_text(r.row.get("model")), r.metrics[name]) for r in rows if r.row.get("nfe") is None
                ],
            )


def over_training(runs: Sequence[RunRecord], slots: Mapping[str, int]) -> Iterator[str]:
    """Each metric over training images and, where the logs contain times, over seconds."""
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
        for axis, positions in axes.items():
            series = [
                Series(run.name, x, run.log.curves[key].value, "line+points", slot=slots[name] if distinct else None)
                for run, x, name in zip(measured, positions, names, strict=True)
            ]
            yield line_chart(
                series,
                title=f"{capitalized(label(key))} over {'training' if 'images' in axis else 'time'}",
                x_label=axis,
                y_label=direction(key),
                log_y=needs_log_axis([run.log.curves[key] for run in measured]),
            )


def log_charts(logged: Mapping[str, Curve]) -> Iterator[str]:
    """What one run has logged: losses first, then metrics, gradient norms, the rest.

    `a/b` is a detail of the key `a` and has its own chart; where there is no key `a`, all `a/...` share one.
    """
    groups: dict[str, list[str]] = {}
    levels = [key for key in logged if "@" in key and key.partition("@")[0] in logged]
    for key in (key for key in logged if key not in levels):
        root = re.split("[/.]", key, maxsplit=1)[0]
        groups.setdefault(key if root in logged else root, []).append(key)

    def order(group: str) -> tuple[int, str]:
        return (0 if "loss" in group else 1 if direction(group) else 2 if group == "grad_norm" else 3, group)

    for group in sorted(groups, key=order):
        members = [logged[key] for key in groups[group]]
        few = all(len(curve.value) <= MOST_MARKERS for curve in members)
        style: Style = "line+points" if few else "line" if group == "lr" else "smoothed"
        names = [label(key.removeprefix(group).lstrip("/.")) or label(key) for key in groups[group]]
        root, _, detail = re.sub("[/.]", "\n", group, count=1).partition("\n")
        subtitle = names[0] if len(names) == 1 and groups[group] != [group] else detail
        yield line_chart(
            [Series(name, *curve, style=style) for name, curve in zip(names, members, strict=True)],
            title=capitalized(label(root)) + (f": {label(subtitle)}" if subtitle else ""),
            x_label="images seen in training",
            log_y=needs_log_axis(members),
            width=360,
            height=230,
        )
    for key in dict.fromkeys(key.partition("@")[0] for key in levels):
        yield over_levels(key, {float(k.partition("@")[2]): logged[k] for k in levels if k.startswith(f"{key}@")})


def over_levels(key: str, logged: Mapping[float, Curve]) -> str:
    """A value logged for bins of the noise level, over that level: its mean in each quarter of training."""
    end = max(curve.nimg[-1] for curve in logged.values())
    series = []
    for quarter in range(QUARTERS):
        points = []
        for sigma, curve in sorted(logged.items()):
            inside = np.ceil(QUARTERS * curve.nimg / end).clip(1) == quarter + 1
            if inside.any():
                points.append((sigma, curve.value[inside].mean()))
        if points:
            x, y = np.array(points).T
            series.append(Series(f"to {human((quarter + 1) * end / QUARTERS)} images", x, y, "line+points"))
    return line_chart(
        series,
        title=f"{capitalized(label(key))} over noise",
        x_label="noise level sigma",
        log_x=True,
        log_y=needs_log_axis([Curve(np.array(s.x), np.array(s.y)) for s in series]),
        width=360,
        height=230,
    )
