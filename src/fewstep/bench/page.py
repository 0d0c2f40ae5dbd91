"""Results of a benchmark as files: records, a Markdown table, figures, and a page that holds them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.report.markup import escape, figure
from fewstep.report.numerals import human
from fewstep.report.plot import Series, line_chart
from fewstep.report.theme import STYLE
from fewstep.runtime.files import new_file, write_json

AXES = {
    "steps": "steps",
    "equivalent": "plain evaluations, a dual one counted as 2.5",
    "seconds": "seconds for all samples",
}
MEASURES = {
    "path_error": "Distance to the fine solution on the same path",
    "law_error": "Error of the law (characteristic function)",
    "fd_pixels": "Frechet distance in pixel space",
}
SHOWN = (("path_error", "steps"), ("law_error", "equivalent"), ("fd_pixels", "equivalent"))
"""The charts of samplers.svg; the page has all."""

WIDTH, HEIGHT = 480, 420


def write(out: Path, rows: Sequence[dict[str, Any]], *, order: Sequence[str]) -> None:
    """Write results.json, samplers.md, samplers.svg and samplers.html. order: of the samplers, which fixes colours."""
    write_json(out / "results.json", list(rows))
    measured = [m for m in MEASURES if any(m in row for row in rows)]
    charts = {(m, axis): chart(rows, m, axis, order) for m in measured for axis in AXES}
    text(out / "samplers.svg", beside([charts[key] for key in SHOWN if key in charts]))
    text(out / "samplers.md", "\n".join(table(rows, m, order) for m in measured))
    figures = "".join(figure(c) for c in charts.values())
    notes = "".join(f"<pre>{escape(table(rows, m, order))}</pre>" for m in measured)
    text(
        out / "samplers.html",
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Samplers</title>'
        f'<style>{STYLE}</style></head><body><h1>Samplers</h1><div class="charts">{figures}</div>{notes}</body></html>\n',
    )
    print(f"{out / 'samplers.html'}\n\n{(out / 'samplers.md').read_text(encoding='utf-8')}")


def text(path: Path, content: str) -> None:
    with new_file(path) as partial:
        partial.write_text(content, encoding="utf-8")


def chart(rows: Sequence[dict[str, Any]], measure: str, axis: str, order: Sequence[str]) -> str:
    """One measure over one axis, a curve for each sampler."""
    series = []
    for slot, name in enumerate(order):
        mine = [row for row in rows if row["sampler"] == name and measure in row]
        if mine:
            x, y = [row[axis] for row in mine], [row[measure] for row in mine]
            series.append(Series(name, x, y, "line+points", slot=slot))
    return line_chart(
        series,
        title=MEASURES[measure],
        x_label=AXES[axis],
        y_label="lower is better",
        log_x=True,
        log_y=True,
        width=WIDTH,
        height=HEIGHT,
    )


def beside(charts: Sequence[str]) -> str:
    """Charts side by side in one drawing."""
    gap = 24
    placed = (
        chart.replace("<svg ", f'<svg x="{i * (WIDTH + gap)}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for i, chart in enumerate(charts)
    )
    width = len(charts) * (WIDTH + gap) - gap
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}">{"".join(placed)}</svg>\n'


def table(rows: Sequence[dict[str, Any]], measure: str, order: Sequence[str]) -> str:
    """Markdown: a row for each sampler, its values with the cost of each."""
    lines = []
    for name in order:
        mine = [row for row in rows if row["sampler"] == name and measure in row]
        if mine:
            cells = [f"{human(row[measure], 3)} ({human(row['equivalent'])})" for row in mine]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    n = lines[0].count("|") - 2
    title = f"{MEASURES[measure]}; in brackets the cost in {AXES['equivalent']}"
    return "\n".join([title, "", f"| sampler |{' |' * n}", f"|---|{'---|' * n}", *lines, ""])
