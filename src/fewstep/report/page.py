"""One self-contained HTML page from the records of runs: no script, no font, no request to anywhere."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewstep.report import records, theme
from fewstep.files import new_file
from fewstep.report.numerals import duration, human
from fewstep.report.plot import Reference, Series, Style, escape, line_chart
from fewstep.report.records import Curve, Result, RunRecord

WIDEST = 1400
"""Pixels beyond which an image is reduced before it is embedded."""

ACRONYMS = {"fd", "fid", "kid", "is", "psnr", "ssim", "lpips", "nfe", "lr", "ema"}
FALLING = {"fd", "fid", "kid", "lpips", "mse"}
RISING = {"is", "precision", "recall", "psnr", "ssim", "density", "coverage"}


def write_report(folder: str | Path, *, title: str | None = None) -> Path:
    """Write `folder`/report.html from all that `folder`, one run or many, holds; returns its path.

    Read are results.json (a list of rows: model, method, sampler, nfe, n, seeds, any metric by name, images_per_second,
    training_images, training_seconds, grid, protocol), run folders (run.json, log.jsonl, samples/*.png) and the cards of
    model folders (README.md beside config.json), at any depth. Lines of a log that a kill has torn are skipped and
    counted on the page; an unreadable results.json or run.json, or an image that is none, is a ValueError that names it.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ValueError(f"a report is made from a folder of runs; {folder} is not a folder")
    results = [result for path in records.find(folder, "results.json") for result in records.read_results(path)]
    runs = [records.read_run(path.parent) for path in records.find(folder, "run.json")]
    if not results and not runs:
        raise ValueError(f"{folder} holds neither results nor runs: no results.json with rows, no run.json beneath it")
    title = title or folder.name
    sections = (
        header(title, runs),
        section("Results", results_table(results)),
        section("Quality", quality(results, runs)),
        section("Samples", result_grids(results)),
        section("Training", "".join(training(run) for run in runs)),
        section("Model cards", cards(folder)),
        section("How to reproduce", commands(runs)),
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';img-src data:;style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{theme.STYLE}</style></head><body>{''.join(sections)}"
        "<footer>Made by fewstep report. Every figure was read from the records of the runs.</footer></body></html>\n"
    )
    path = folder / "report.html"
    with new_file(path) as partial:
        partial.write_text(page)
    return path


def section(heading: str, content: str) -> str:
    return f"<h2>{heading}</h2>{content}" if content else ""


def header(title: str, runs: Sequence[RunRecord]) -> str:
    """The title and what all runs have in common; what differs is told with each run."""
    lines = [f"Written {datetime.now().astimezone():%d %B %Y, %H:%M}"]
    for key in ("date", "machine", "versions"):
        known = {spoken(run.info[key]) for run in runs if run.info.get(key)}
        if len(known) == 1:
            lines.append(f"{key.capitalize()}: {escape(known.pop())}")
    return f"<header><h1>{escape(title)}</h1>" + "".join(f'<p class="meta">{line}</p>' for line in lines) + "</header>"


def spoken(value: Any) -> str:
    """A JSON value in one line: `torch 2.11, numpy 2.1` for an object, `0-63` for a run of integers."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {spoken(v)}" for k, v in value.items())
    if isinstance(value, list):
        consecutive = (
            len(value) > 2 and all(type(v) is int for v in value) and value == [*range(value[0], value[-1] + 1)]
        )
        return f"{value[0]}-{value[-1]}" if consecutive else ", ".join(map(spoken, value))
    return value if isinstance(value, str) else json.dumps(value)


def label(key: str) -> str:
    """A key as words: fd_pixels -> FD pixels."""
    words = key.replace("_", " ").split(" ")
    return " ".join(w.upper() if w in ACRONYMS else w for w in words)


def direction(metric: str) -> str:
    words = set(re.split(r"[^a-z]+", metric.lower()))
    return "lower is better" if words & FALLING else "higher is better" if words & RISING else ""


def count(value: Any) -> str:
    return f"{value:,}" if type(value) is int else spoken(value)


def number(value: Any) -> str:
    return human(value) if records.is_number(value) else spoken(value)


def metric_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def definitions(values: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(spoken(v))}</td></tr>" for k, v in values.items())
    return f"<table>{rows}</table>"


def results_table(results: Sequence[Result]) -> str:
    """The rows with all that qualifies their numbers; equal protocols are told once, and lettered if there are several."""
    if not results:
        return ""
    protocols: list[dict[str, Any]] = []
    for result in results:
        if result.protocol not in protocols:
            protocols.append(result.protocol)
    letters = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(protocols))]

    Cell = Callable[[Result], str]

    def column(key: str, show: Callable[[Any], str]) -> Cell:
        return lambda result: show(result.row[key]) if result.row.get(key) is not None else ""

    columns: list[tuple[str, str, Cell]] = [
        ("model", "text", column("model", spoken)),
        ("method", "text", column("method", spoken)),
        ("sampler", "text", column("sampler", spoken)),
        ("NFE", "", column("nfe", count)),
        *((label(name), "metric", column(name, number)) for name in metric_names(results)),
        ("n", "", column("n", count)),
        ("seeds", "seeds", column("seeds", spoken)),
        ("images/s", "", column("images_per_second", number)),
        ("training images", "", column("training_images", number)),
        ("training time", "", column("training_seconds", lambda s: duration(s) if records.is_number(s) else spoken(s))),
    ]
    if len(protocols) > 1:
        columns.append(("protocol", "", lambda result: letters[protocols.index(result.protocol)]))
    columns = [(name, kind, cell) for name, kind, cell in columns if any(cell(result) for result in results)]
    head = "".join(f'<th class="{kind}" scope="col">{escape(name)}</th>' for name, kind, _ in columns)
    rows = (
        "".join(f'<td class="{kind}">{escape(cell(result))}</td>' for _, kind, cell in columns) for result in results
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    told = "".join(
        f"<details><summary>Protocol{f' {letter}' if len(protocols) > 1 else ''}</summary>{definitions(protocol)}</details>"
        for letter, protocol in zip(letters, protocols, strict=True)
        if protocol
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{told}'


def quality(results: Sequence[Result], runs: Sequence[RunRecord]) -> str:
    """Each metric over NFE, one series per model, and over training images where several runs measured it."""
    charts = [chart for name in metric_names(results) if (chart := metric_over_nfe(name, results))]
    shared = dict.fromkeys(key for run in runs for key in run.log.curves if direction(key))
    for key in shared:
        measured = [run for run in runs if key in run.log.curves]
        if len(measured) > 1:
            series = [Series(run.name, *run.log.curves[key], style="line+points") for run in measured]
            charts.append(
                line_chart(
                    series,
                    title=f"{label(key)} over training",
                    x_label="images seen in training",
                    y_label=direction(key),
                    log_y=wide([run.log.curves[key] for run in measured]),
                )
            )
    return f'<div class="charts">{"".join(figure(chart) for chart in charts)}</div>' if charts else ""


def metric_over_nfe(name: str, results: Sequence[Result]) -> str:
    """Log-log; a row without NFE, such as one of real images, is a horizontal line."""
    rows = [r for r in results if name in r.metrics]
    placed = [r for r in rows if records.is_number(r.row.get("nfe"))]
    if not placed:
        return ""
    samplers: dict[Any, set[str]] = {}
    for r in placed:
        samplers.setdefault(spoken(r.row.get("model")), set()).add(spoken(r.row.get("sampler")))
    groups: dict[str, list[Result]] = {}
    for r in placed:
        model = spoken(r.row.get("model"))
        several = len(samplers[model]) > 1
        groups.setdefault(f"{model}, {spoken(r.row.get('sampler'))}" if several else model, []).append(r)
    series = []
    for group, members in groups.items():
        members = sorted(members, key=lambda r: r.row["nfe"])
        y = [r.metrics[name] for r in members]
        labels = [human(v, 3) for v in y] if len(placed) <= 16 else ()
        series.append(Series(group, [r.row["nfe"] for r in members], y, "line+points", labels))
    return line_chart(
        series,
        title=f"{label(name)} over NFE",
        x_label="network evaluations per image (NFE)",
        y_label=direction(name),
        log_x=True,
        log_y=True,
        reference_lines=[Reference(spoken(r.row.get("model")), r.metrics[name]) for r in rows if r not in placed],
    )


def figure(content: str, caption: str = "") -> str:
    return f"<figure>{content}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def embed(path: Path, alternative: str) -> str:
    """An image as a data address; decoded and written anew, so that nothing but pixels enters the page."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB") if opened.mode not in ("L", "RGB", "RGBA") else opened.copy()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); remove it, or draw it again") from error
    fine = max(image.size) > WIDEST
    if fine:
        image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    kind = ' class="fine"' if fine else ""
    return (
        f'<img{kind} src="data:image/png;base64,{data}" width="{image.width}" height="{image.height}" '
        f'alt="{escape(alternative)}">'
    )


def result_grids(results: Sequence[Result]) -> str:
    figures = []
    for result in results:
        row = result.row
        if row.get("grid") is None:
            continue
        path = (result.folder / str(row["grid"])).resolve()
        if not path.is_relative_to(result.folder.resolve()):
            raise ValueError(f"a grid lies within the folder of its results.json, {result.folder}; got {row['grid']!r}")
        model = spoken(row.get("model", path.stem))
        how = [spoken(row["sampler"])] if row.get("sampler") else []
        how += [f"NFE {count(row['nfe'])}"] if row.get("nfe") is not None else []
        measured = [f"{label(name)} {human(value)}" for name, value in result.metrics.items()]
        under = [
            f"{key} {show(row[key])}" for key, show in (("n", count), ("seeds", spoken)) if row.get(key) is not None
        ]
        qualified = ", ".join(measured) + (f" ({', '.join(under)})" if under else "") if measured else ""
        text = "<br>".join(escape(line) for line in (", ".join(how), qualified) if line)
        figures.append(figure(embed(path, f"Samples of {model}"), f"<b>{escape(model)}</b><br>{text}"))
    return f'<div class="grids">{"".join(figures)}</div>' if figures else ""


def evenly(paths: Sequence[Path], n: int) -> list[Path]:
    """At most `n` of them, the first and the last among them."""
    return [paths[i] for i in dict.fromkeys(np.linspace(0, len(paths) - 1, min(n, len(paths))).round().astype(int))]


def training(run: RunRecord) -> str:
    """One run: facts, the fixed seeds as training went on, and its curves."""
    log, info = run.log, run.info
    seen = max((curve.nimg[-1] for curve in log.curves.values()), default=None)
    speed = log.curves.get("images_per_second")
    facts = [
        ("method", spoken(info["method"]) if info.get("method") else None),
        ("images", human(seen) if seen is not None else None),
        ("time", duration(log.seconds) if log.seconds is not None else None),
        ("images/s", human(float(np.median(speed.value)), 3) if speed else None),
        ("seed", spoken(info["seed"]) if info.get("seed") is not None else None),
    ]
    told = "".join(f"<li>{name} <b>{escape(value)}</b></li>" for name, value in facts if value is not None)
    shots = "".join(
        figure(embed(path, f"Fixed seeds at {path.stem} images"), f"after {at(path)}")
        for path in evenly(run.samples, 4)
    )
    notes = [f"{log.unreadable} unreadable line(s) of log.jsonl skipped."] * bool(log.unreadable)
    notes += [f"{log.repeated} line(s) of log.jsonl superseded by a resume."] * bool(log.repeated)
    rest = {k: v for k, v in info.items() if k not in ("name", "method", "seed", "command")}
    return (
        f'<section><h3>{escape(run.name)}</h3><ul class="facts">{told}</ul>'
        + (f'<div class="grids series">{shots}</div>' if shots else "")
        + f'<div class="charts small">{"".join(figure(chart) for chart in curves(log.curves))}</div>'
        + "".join(f'<p class="note">{note}</p>' for note in notes)
        + (f"<details><summary>Configuration</summary>{definitions(rest)}</details>" if rest else "")
        + "</section>"
    )


def at(path: Path) -> str:
    return f"{human(int(path.stem))} images" if path.stem.isascii() and path.stem.isdecimal() else escape(path.stem)


def curves(logged: dict[str, Curve]) -> Iterable[str]:
    """Losses first, then metrics, then groups such as gradient norms.

    `a/b` is a detail of the key `a` and has a chart of its own; without such a key, `a/...` share one, as grad_norm/... do.
    """
    groups: dict[str, list[str]] = {}
    for key in logged:
        root = re.split("[/.]", key, maxsplit=1)[0]
        groups.setdefault(key if root in logged else root, []).append(key)

    def order(group: str) -> tuple[int, str]:
        return (0 if "loss" in group else 1 if direction(group) else 2 if "grad_norm" in group else 3, group)

    for group in sorted(groups, key=order):
        keys = groups[group]
        members = [logged[key] for key in keys]
        measured = all(len(curve.value) <= 60 for curve in members)
        style: Style = "line+points" if measured else "smoothed" if len(keys) == 1 else "line"
        yield line_chart(
            [Series(label(re.sub(f"^{re.escape(group)}[/.]", "", key)), *logged[key], style=style) for key in keys],
            title=label(group) if len(keys) > 1 else label(keys[0]),
            x_label="images seen in training",
            log_y=wide(members),
            width=360,
            height=230,
        )


def wide(members: Sequence[Curve]) -> bool:
    """Whether the values are positive and span so much that only a logarithmic axis shows them."""
    values = np.concatenate([curve.value[np.isfinite(curve.value)] for curve in members])
    return bool(values.size) and values.min() > 0 and values.max() > 30 * values.min()


def cards(folder: Path) -> str:
    told = []
    for path in records.find_cards(folder):
        name = path.parent.relative_to(folder)
        name = folder.name if name == Path() else name.as_posix()
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        told.append(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>")
    return "".join(told)


def commands(runs: Sequence[RunRecord]) -> str:
    lines = [run.info["command"] for run in runs if run.info.get("command")]
    lines = [shlex.join(map(str, line)) if isinstance(line, list) else str(line) for line in lines]
    return f"<pre>{escape(chr(10).join(dict.fromkeys(lines)))}</pre>" if lines else ""
