"""One self-contained HTML page from the records of runs: no script, no font, no request to anywhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from fewstep.io.card import body
from fewstep.report import records, theme
from fewstep.report.comparison import direction, grids, palette, quality, results_table, wide
from fewstep.report.markup import definitions, disclosure, embed, escape, figure, heading, plural, spoken, words
from fewstep.report.numerals import duration, human
from fewstep.report.plot import Series, Style, line_chart
from fewstep.report.records import Curve, RunRecord
from fewstep.report.restorations import restorations
from fewstep.runtime.files import new_file, writable

SNAPSHOTS = 4
"""Sample grids of a run that are shown, evenly spaced over its training."""

POINTS = 24
"""Points of a curve up to which each is marked; longer ones are smoothed."""

CARD_BYTES = 2**20
"""Of a model's card that are shown."""

QUARTERS = 4
"""Parts of the training whose means over the noise level are compared."""


def write_report(folder: str | Path, *, title: str | None = None) -> Path:
    """Write `folder`/report.html from all that `folder`, one run or many, holds; returns its path.

    Read are, at any depth: results.json (a list of rows: model, method, sampler, nfe, n, seeds, any metric by its name,
    images_per_second, training_images, training_seconds, grid, protocol), files of any name that `fewstep eval --json` wrote,
    run folders (run.json, log.jsonl, samples/*.png), folders of `fewstep restore` (sheet.png beside metrics.json), and the
    cards of model folders (README.md beside config.json).

    Only regular files are read: links are left out with a warning. Lines of a log that a kill has torn are skipped and
    counted on the page. ValueError names a file of results, a run.json or metrics.json that cannot be read, and an image
    that is none.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ValueError(f"a report is made from a folder of runs; {folder} is not a folder")
    out = writable(folder / "report.html")
    results = [result for path in records.find(folder, "results.json") for result in records.read_results(path)]
    results += [row for path in records.find_evaluations(folder) for row in records.read_evaluation(path)]
    runs = [records.read_run(path.parent) for path in records.find(folder, "run.json")]
    restored = restorations(folder)
    if not results and not runs and not restored:
        raise ValueError(
            f"{folder} holds neither results nor runs nor restored images: no results.json with rows, no file of fewstep "
            "eval --json, no run.json, no metrics.json with a sheet.png, at any depth"
        )
    slots = palette(results, runs)
    runs.sort(key=lambda run: slots[run.name.casefold()])
    title = title or folder.name
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    body = (
        header(title, runs)
        + section("Results", results_table(results))
        + section("Quality", quality(results, runs))
        + section("Samples", grids(results))
        + section("Restorations", restored)
        + section("Training", "".join(map(training, runs)))
        + section("Model cards", cards(folder))
        + section("How to reproduce", commands(runs))
        + "<footer>Made by fewstep report from the records of the runs.</footer>"
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{theme.STYLE}</style></head><body>{body}</body></html>\n"
    )
    with new_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


def section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def header(title: str, runs: Sequence[RunRecord]) -> str:
    """The title and what all runs have in common; what differs is told with each run."""
    facts = [("Written", moment(datetime.now().astimezone()))]
    for key in ("versions", "machine"):
        known = {spoken(run.info[key]) for run in runs if run.info.get(key)}
        if len(known) == 1:
            facts.append((heading(key), known.pop()))
    told = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<header><h1>{escape(title)}</h1><dl>{told}</dl></header>"


def moment(time: datetime) -> str:
    return f"{time:%d %B %Y, %H:%M %Z}".removeprefix("0")


def started(run: RunRecord) -> str | None:
    """When, as people write it; a text that is no ISO date stays as it is."""
    text = run.info.get("started")
    try:
        return None if text is None else moment(datetime.fromisoformat(str(text)))
    except ValueError:
        return str(text)


def evenly(paths: Sequence[Path], n: int) -> list[Path]:
    """At most `n` of them, the first and the last among them."""
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(n, len(paths))).round().astype(int)]


def training(run: RunRecord) -> str:
    """One run: facts, the fixed seeds as training went on, and its curves."""
    log, method = run.log, run.setting("method")
    seen = max((curve.nimg[-1] for curve in log.curves.values()), default=None)
    speed = log.curves.get("images_per_second")
    facts = {
        "method": spoken(method.get("kind") if isinstance(method, dict) else method) if method else None,
        "images": human(seen) if seen is not None else None,
        "time": duration(log.seconds) if log.seconds is not None else None,
        "images/s, median": human(float(np.median(speed.value)), 3) if speed else None,
        "seed": spoken(run.setting("seed")) if run.setting("seed") is not None else None,
        "started": started(run),
    }
    told = "".join(f"<li>{name} <b>{escape(value)}</b></li>" for name, value in facts.items() if value is not None)
    shots = "".join(
        figure(embed(path, f"Fixed seeds, {progress(path)}"), escape(progress(path)))
        for path in evenly(run.samples, SNAPSHOTS)
    )
    charts = "".join(map(figure, curves({key: curve for key, curve in log.curves.items() if curve.value.any()})))
    zero = [key for key, curve in log.curves.items() if not curve.value.any()]
    notes = [f"Zero throughout: {escape(', '.join(zero))}."] * bool(zero)
    notes += [f"{plural(log.unreadable, 'unreadable line')} of log.jsonl skipped."] * bool(log.unreadable)
    notes += [f"{plural(log.repeated, 'line')} of log.jsonl left out: training resumed before."] * bool(log.repeated)
    rest = records.flat({k: v for k, v in run.info.items() if k not in ("name", "started", "command")})
    return (
        f'<h3>{escape(run.title)}</h3><ul class="facts">{told}</ul>'
        + (f'<div class="grids row">{shots}</div>' if shots else "")
        + (f'<div class="charts small">{charts}</div>' if charts else "")
        + "".join(f'<p class="note">{note}</p>' for note in notes)
        + (disclosure("Configuration", definitions(rest)) if rest else "")
    )


def progress(path: Path) -> str:
    nimg = path.stem
    return f"after {human(int(nimg))} images" if nimg.isascii() and nimg.isdecimal() else nimg


def curves(logged: dict[str, Curve]) -> Iterable[str]:
    """Losses first, then metrics, gradient norms, the rest.

    `a/b` is a detail of the key `a` and has a chart of its own; where there is no key `a`, all `a/...` share one.
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
        few = all(len(curve.value) <= POINTS for curve in members)
        style: Style = "line+points" if few else "line" if group == "lr" else "smoothed"
        names = [words(key.removeprefix(group).lstrip("/.")) or words(key) for key in groups[group]]
        root, _, detail = re.sub("[/.]", "\n", group, count=1).partition("\n")
        alone = names[0] if len(names) == 1 and groups[group] != [group] else detail
        yield line_chart(
            [Series(name, *curve, style=style) for name, curve in zip(names, members, strict=True)],
            title=heading(words(root)) + (f": {words(alone)}" if alone else ""),
            x_label="images seen in training",
            log_y=wide(members),
            width=360,
            height=230,
        )
    for key in dict.fromkeys(key.partition("@")[0] for key in levels):
        yield over_levels(key, {float(k.partition("@")[2]): logged[k] for k in levels if k.startswith(f"{key}@")})


def over_levels(key: str, logged: dict[float, Curve]) -> str:
    """A figure that is logged for bins of the noise level, over it: the mean of each quarter of training."""
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
        title=f"{heading(words(key))} over noise",
        x_label="noise level sigma",
        log_x=True,
        log_y=wide([Curve(np.array(s.x), np.array(s.y)) for s in series]),
        width=360,
        height=230,
    )


def cards(folder: Path) -> str:
    told = []
    for path in records.find_cards(folder):
        name = path.parent.relative_to(folder)
        with path.open("rb") as file:
            start = file.read(CARD_BYTES + 1)
        text = body(start[:CARD_BYTES].decode(errors="replace"))
        text += "\n[the rest is left out]" if len(start) > CARD_BYTES else ""
        told.append(disclosure(name.as_posix() if name != Path() else folder.name, f"<pre>{escape(text)}</pre>"))
    return "".join(told)


def commands(runs: Sequence[RunRecord]) -> str:
    lines = [run.info["command"] for run in runs if run.info.get("command")]
    lines = [shlex.join(map(str, line)) if isinstance(line, list) else str(line) for line in lines]
    return f"<pre>{escape(chr(10).join(dict.fromkeys(lines)))}</pre>" if lines else ""
