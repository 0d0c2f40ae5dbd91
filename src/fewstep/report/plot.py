"""Charts as SVG text: lines and points on linear or logarithmic axes, in colours that colour-blind readers can tell apart.

A chart is self-contained: it brings its own style, follows the reader's light or dark scheme, and its caption says what
could not be drawn. matplotlib would do neither, and costs ten packages and a second to import.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fewstep.report.axes import LARGEST, Axis, Curve, Points, Series, drawable, limits, smooth, thin
from fewstep.report.numerals import human
from fewstep.runtime.display import visible

# Hues of Okabe and Ito (2008), darkened on white and lightened on black to a contrast of 3 or more; grey last.
LIGHT = ("#0068a8", "#c44e00", "#008060", "#a8428a", "#9a6a00", "#2f87c0", "#5f6670")
DARK = ("#4ba3e3", "#f0884a", "#35c397", "#e08cc4", "#e8b53a", "#8fd0f5", "#a9b0ba")
DASHES = ("none", "7 4", "2 4")
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.5-3.5h7v7h-7z",
    "M0-5l5 5-5 5-5-5z",
    "M0-4.6l4.6 8h-9.2z",
    "M0 4.6l4.6-8h-9.2z",
)
FONT, TITLE, SMALL = 12, 14, 11
"""Sizes of text in pixels."""


def css(colours: Sequence[str], **names: str) -> str:
    """Colours as variables of the style sheet."""
    variables = {f"s{i}": colour for i, colour in enumerate(colours)} | names
    return ".fewstep-chart{" + ";".join(f"--{name}:{value}" for name, value in variables.items()) + "}"


STYLE = (
    css(LIGHT, ink="#22252b", soft="#656b75", rule="#e4e4df", paper="#fff")
    + "@media (prefers-color-scheme:dark){"
    + css(DARK, ink="#e8e8e4", soft="#9ba1ab", rule="#33373e", paper="#17191d")
    + "}"
    + f""".fewstep-chart text{{fill:var(--soft);
font:{FONT}px Inter,system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
.fewstep-chart .title{{font-size:{TITLE}px;font-weight:600;fill:var(--ink)}}.fewstep-chart .small{{font-size:{SMALL}px}}
.fewstep-chart .name,.fewstep-chart .value{{fill:var(--ink)}}
.fewstep-chart .value{{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}}
.fewstep-chart .rule{{stroke:var(--rule)}}.fewstep-chart .axis{{stroke:var(--soft)}}
.fewstep-chart .reference{{stroke:var(--soft);stroke-dasharray:5 4}}
.fewstep-chart .line{{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}}
.fewstep-chart .cloud{{fill:none;stroke-dasharray:none;
stroke:var(--c);stroke-width:2.4;stroke-linecap:round;stroke-opacity:.32}}
.fewstep-chart .marker{{fill:var(--c);stroke-dasharray:none;stroke:var(--paper);stroke-width:1}}"""
)


class Reference(NamedTuple):
    """A horizontal line to compare with."""

    label: str
    y: float


class Frame(NamedTuple):
    """The place of the curves in the drawing, in pixels from its top left."""

    across: Axis
    up: Axis
    width: int


def element(tag: str, content: str = "", **attributes: object) -> str:
    """An SVG element. Attributes are escaped, `content` is SVG; x_y stands for x-y, class_ for class, numbers are rounded."""
    text = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{f"{value:.1f}" if isinstance(value, float) else escape(value)}"'
        for name, value in attributes.items()
    )
    return f"<{tag}{text}>{content}</{tag}>" if content else f"<{tag}{text}/>"


def escape(value: object) -> str:
    """Text for XML, quotes included; control characters are shown as escapes."""
    return html.escape(visible(value, keep="\t\n\r"))


def text(content: str, x: float, y: float, **attributes: object) -> str:
    return element("text", escape(content), **attributes, x=float(x), y=float(y))


def line(class_: str, x: float, y: float, move: str) -> str:
    """A straight line from a point: `move` is "H30.0" or "v4"."""
    return element("path", class_=class_, d=f"M{x:.1f} {y:.1f}{move}")


def text_width(content: str, size: float = FONT) -> float:
    return 0.58 * size * len(content)


def clip_text(content: str, room: float, size: float = FONT) -> str:
    n = max(1, int(room / (0.58 * size)))
    return content if len(content) <= n else content[: n - 1] + "\u2026"


def look(slot: int) -> dict[str, str]:
    """The attributes that give a mark the colour of a series, and a line its dashes once the colours are used up."""
    dashes = DASHES[slot // len(LIGHT) % len(DASHES)]
    return {"style": f"--c:var(--s{slot % len(LIGHT)})", "stroke_dasharray": dashes}


def marker(slot: int, x: float, y: float, content: str = "") -> str:
    shape = MARKERS[slot % len(MARKERS)]
    return element("path", content, class_="marker", **look(slot), transform=f"translate({x:.1f} {y:.1f})", d=shape)


def draw_curve(slot: int, series: Series, curve: Curve, frame: Frame) -> Iterator[str]:
    """The marks of one curve, those in front last."""
    if not curve.x.size:
        return
    x, y = thin(curve.x, curve.y)
    if series.style == "smoothed" and len(curve.y) >= 20:
        yield element("path", class_="cloud", **look(slot), d="".join(f"M{a}h0" for a in positions(x, y, frame)))
        x, y = thin(curve.x, smooth(curve.y))
    if series.style != "points":
        yield element("path", class_="line", **look(slot), d="M" + "L".join(positions(x, y, frame)))
    if series.style in ("points", "line+points") or len(x) == 1:
        for a, b, u, v in zip(frame.across(x), frame.up(y), x, y, strict=True):
            yield marker(slot, a, b, element("title", escape(f"{series.name}: {human(u)}, {human(v)}")))


def positions(x: Points, y: Points, frame: Frame) -> list[str]:
    """Points in pixels, as they stand in the data of a path."""
    return [f"{a:.1f} {b:.1f}" for a, b in zip(frame.across(x), frame.up(y), strict=True)]


def draw_labels(curves: Sequence[Curve], frame: Frame, taken: list[tuple[float, ...]]) -> Iterator[str]:
    """Labels beside their points, at the first of four sides that is free; `taken` holds boxes (x0, y0, x1, y1)."""
    across, up = frame.across, frame.up
    centres = [(float(a), float(b)) for c in curves if c.labels for a, b in zip(across(c.x), up(c.y), strict=True)]
    taken = taken + [(a - 4, b - 4, a + 4, b + 4) for a, b in centres]
    labels = [label for c in curves for label in c.labels]
    for (a, b), label in zip(centres, labels, strict=True):
        w, h = text_width(label, SMALL), SMALL
        for left, top in ((a - w / 2, b - h - 6), (a + 7, b - h / 2), (a - w / 2, b + 7), (a - w - 7, b - h / 2)):
            box = (left, top, left + w, top + h)
            inside = across.start <= left and box[2] <= across.stop + 8 and up.stop - 4 <= top and box[3] <= up.start
            if inside and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                taken.append(box)
                yield text(label, left + w / 2, top + h - 2, class_="value small", text_anchor="middle")
                break


def draw_legend(series: Sequence[Series], slots: Sequence[int], top: float, width: float) -> tuple[list[str], float]:
    """Rows of swatches and names from `top` down, and where they end."""
    parts, x, y = [], 0.0, top
    for s, slot in zip(series, slots, strict=True):
        name = clip_text(s.name, width - 30)
        size = 26 + text_width(name) + 14
        if x and x + size > width:
            x, y = 0.0, y + 18
        swatch = element("path", class_="line", **look(slot), d="M1 0H19") if s.style != "points" else ""
        swatch += marker(slot, 10, 0) if s.style in ("points", "line+points") else ""
        named = element("text", escape(name), class_="name", x=26, y=4)
        parts.append(element("g", swatch + named, transform=f"translate({x:.1f} {y + 8:.1f})"))
        x += size
    return parts, y + 22


def draw_axes(frame: Frame, x_label: str) -> Iterator[str]:
    """Rules and labels of both axes; no two labels of the x axis touch."""
    across, up = frame.across, frame.up
    for value, label in up.ticks():
        y = float(up(value))
        yield line("rule", across.start, y, f"H{across.stop:.1f}")
        yield text(label, across.start - 7, y + 4, class_="small", text_anchor="end")
    yield line("axis", across.start, up.start, f"H{across.stop:.1f}")
    free = -math.inf  # the right end of the last label
    for value, label in across.ticks():
        x, half = float(across(value)), text_width(label, SMALL) / 2
        yield line("axis", x, up.start, "v4")
        if x - half > free:
            anchor = "end" if x + half > frame.width else "middle"
            yield text(label, x, up.start + 17, class_="small", text_anchor=anchor)
            free = x + half + 6
    if x_label:
        middle = (across.start + across.stop) / 2
        yield text(x_label, middle, up.start + 34, class_="small", text_anchor="middle")


def draw_references(lines: Sequence[Reference], frame: Frame) -> tuple[list[str], list[tuple[float, ...]]]:
    """Horizontal lines with their labels, and the boxes that the labels take up."""
    parts, taken = [], []
    left, right = frame.across.start, frame.across.stop
    for label, value in lines:
        y, shown = float(frame.up(value)), clip_text(label, right - left, SMALL)
        taken.append((right - text_width(shown, SMALL), y - 15, right, y))
        parts.append(line("reference", left, y, f"H{right:.1f}"))
        parts.append(text(shown, right, y - 5, class_="small", text_anchor="end"))
    return parts, taken


def omissions(curves: Sequence[Curve]) -> str:
    infinite, negative = sum(c.infinite for c in curves), sum(c.negative for c in curves)
    reasons = [f"{infinite} not finite"] * bool(infinite) + [f"{negative} not positive (log axis)"] * bool(negative)
    return f"Not drawn: {', '.join(reasons)}." if reasons else ""


def description(series: Sequence[Series], curves: Sequence[Curve], axes: str, caption: str) -> str:
    """The chart in words, for readers who do not see it."""
    ranges = [
        f"{s.name}: {len(c.y)} points, y from {human(c.y.min())} to {human(c.y.max())}"
        for s, c in zip(series, curves, strict=True)
        if c.y.size
    ]
    return ". ".join([axes, *ranges, caption]).strip(". ") + "."


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    reference_lines: Sequence[Reference] = (),
    width: int = 480,
    height: int = 300,
) -> str:
    """A chart of the series, with a legend where there are several.

    Points that are not finite, or not positive on a logarithmic axis, are left out and counted in a caption. Of thousands
    of points, the extremes of `axes.BUCKETS` groups of neighbours are drawn.

    Args:
        series: the curves.
        title, x_label, y_label: text above the chart, below it and above its y axis.
        log_x, log_y: logarithmic axes.
        reference_lines: horizontal lines; the y axis grows to hold them.
        width, height: in CSS pixels; the drawing scales.

    Returns:
        SVG as text.

    Raises:
        ValueError: a series has x, y or labels of different lengths.

    Example:
        >>> svg = line_chart([Series("loss", [1, 2, 3], [0.5, 0.2, 0.1])], title="Loss")
    """
    curves = [drawable(s, log_x, log_y) for s in series]
    slots = [i if s.slot is None else s.slot for i, s in enumerate(series)]
    lines = [r for r in reference_lines if abs(r.y) < LARGEST and (not log_y or r.y > 1 / LARGEST)]
    caption = omissions(curves)

    legend, top = draw_legend(series, slots, 26.0, width) if len(series) > 1 else ([], 26.0)
    head = top + 10 if y_label else top - 8
    bottom = height - 24 - 18 * bool(x_label) - 16 * bool(caption)
    xs = np.concatenate([np.empty(0), *(c.x for c in curves)])
    ys = np.concatenate([np.array([float(r.y) for r in lines]), *(c.y for c in curves)])
    up = Axis(*limits(ys, log_y, 0.06), log_y, bottom, head + 10)
    left = 10 + max((text_width(label, SMALL) for _, label in up.ticks()), default=0)
    margin = 0.06 if any(s.style in ("points", "line+points") for s in series) else 0.01
    frame = Frame(Axis(*limits(xs, log_x, margin), log_x, left, width - 12), up, width)
    references, taken = draw_references(lines, frame)

    parts = [element("text", escape(clip_text(title, width, TITLE)), class_="title", x=0, y=15), *legend]
    if y_label:
        parts.append(text(y_label, 0, head - 2, class_="small"))
    parts += [*draw_axes(frame, x_label), *references]
    for slot, s, curve in reversed(list(zip(slots, series, curves, strict=True))):
        parts += draw_curve(slot, s, curve, frame)
    parts += draw_labels(curves, frame, taken)
    if not any(c.x.size for c in curves):
        parts.append(text("no data", (left + frame.across.stop) / 2, (head + bottom) / 2, text_anchor="middle"))
    if caption:
        parts.append(text(caption, 0, height - 4, class_="small"))

    described = description(series, curves, f"{y_label or 'y'} over {x_label or 'x'}", caption)
    return element(
        "svg",
        element("title", escape(title))
        + element("desc", escape(described))
        + f"<style>{STYLE}</style>"
        + "".join(parts),
        xmlns="http://www.w3.org/2000/svg",
        class_="fewstep-chart",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=title,
    )
