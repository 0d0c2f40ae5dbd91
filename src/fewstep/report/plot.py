"""Charts as SVG text: lines and points on linear or logarithmic axes, in colours that the colour-blind tell apart.

A chart is self-contained: it carries its own style, follows the reader's light or dark scheme, and says in its caption
what it could not draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.report.markup import escape
from fewstep.report.numerals import human, linear_ticks, log_ticks, tick_labels

Style = Literal["line", "points", "line+points", "smoothed"]
Points = NDArray[np.float64]

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
LARGEST = 1e100
"""Beyond this, or below its inverse on a logarithmic axis, a value cannot be drawn and is treated like infinity."""

BUCKETS = 240
FONT, SMALL = 12, 11


def css(colours: Sequence[str], **names: str) -> str:
    variables = {f"s{i}": colour for i, colour in enumerate(colours)} | names
    return ".fewstep-chart{" + ";".join(f"--{name}:{value}" for name, value in variables.items()) + "}"


STYLE = (
    css(LIGHT, ink="#22252b", soft="#656b75", rule="#e4e4df", paper="#fff")
    + "@media (prefers-color-scheme:dark){"
    + css(DARK, ink="#e8e8e4", soft="#9ba1ab", rule="#33373e", paper="#17191d")
    + "}"
    + f""".fewstep-chart text{{fill:var(--soft);
font:{FONT}px Inter,system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
.fewstep-chart .title{{font-size:14px;font-weight:600;fill:var(--ink)}}.fewstep-chart .small{{font-size:{SMALL}px}}
.fewstep-chart .name,.fewstep-chart .value{{fill:var(--ink)}}
.fewstep-chart .value{{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}}
.fewstep-chart .rule{{stroke:var(--rule)}}.fewstep-chart .axis{{stroke:var(--soft)}}
.fewstep-chart .reference{{stroke:var(--soft);stroke-dasharray:5 4}}
.fewstep-chart .line{{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}}
.fewstep-chart .cloud{{fill:none;stroke-dasharray:none;
stroke:var(--c);stroke-width:2.4;stroke-linecap:round;stroke-opacity:.32}}
.fewstep-chart .marker{{fill:var(--c);stroke-dasharray:none;stroke:var(--paper);stroke-width:1}}"""
)


@dataclass(frozen=True)
class Series:
    """One curve: `x` and `y` (N,), in the order in which a line joins them.

    style: "smoothed" draws the points lightly and their moving average as a line. labels: text beside the points, (N,);
    one for which there is no room is left out. slot: of the palette, the position in the chart by default; a name keeps
    its colour over several charts if it keeps its slot.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    style: Style = "line"
    labels: Sequence[str] = ()
    slot: int | None = None


class Reference(NamedTuple):
    """A horizontal line to compare with."""

    label: str
    y: float


class Curve(NamedTuple):
    """What of a Series can be drawn, and how many of its points cannot."""

    x: Points
    y: Points
    labels: list[str]
    infinite: int
    negative: int


class Axis(NamedTuple):
    """A map of [low, high] onto pixels [start, stop]."""

    low: float
    high: float
    log: bool
    start: float
    stop: float

    def __call__(self, values: ArrayLike) -> Points:
        scale = np.log10 if self.log else np.asarray
        low, high = scale(self.low), scale(self.high)
        return self.start + (scale(np.asarray(values, float)) - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        n = max(2, round(abs(self.stop - self.start) / (32 if self.stop < self.start else 75)))
        return log_ticks(self.low, self.high, n) if self.log else linear_ticks(self.low, self.high, n)


def drawable(series: Series, log_x: bool, log_y: bool) -> Curve:
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    if x.ndim != 1 or x.shape != y.shape or len(series.labels) not in (0, len(x)):
        raise ValueError(
            f"series {series.name!r} needs x and y of one length, and as many labels or none; "
            f"got shapes {x.shape}, {y.shape} and {len(series.labels)} labels"
        )
    finite = (abs(x) < LARGEST) & (abs(y) < LARGEST)  # false for NaN
    kept = finite & ((x > 1 / LARGEST) | (not log_x)) & ((y > 1 / LARGEST) | (not log_y))
    labels = [label for label, keep in zip(series.labels, kept, strict=False) if keep]
    return Curve(x[kept], y[kept], labels, int((~finite).sum()), int((finite & ~kept).sum()))


def limits(values: Points, log: bool, margin: float) -> tuple[float, float]:
    """The ends of an axis: the range of the values and a margin; from 0 where that costs little of it."""
    low, high = (float(values.min()), float(values.max())) if values.size else (1.0, 10.0)
    if log:
        if math.log10(high / low) < 1e-6:
            return low / 2, high * 2
        room = (high / low) ** margin
        return low / room, high * room
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # also where both are 0
        room = abs(high) / 2 or 1.0
        return low - room, high + room
    room = margin * (high - low)
    return 0.0 if 0 <= low < 0.35 * high else low - room, high + room


def thin(x: Points, y: Points, buckets: int = BUCKETS) -> tuple[Points, Points]:
    """At most 2 `buckets` + 2 points: of each run of neighbours the least and the greatest y, and both ends."""
    if len(x) <= 2 * buckets:
        return x, y
    kept = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), buckets):
        kept |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
    index = sorted(kept)
    return x[index], y[index]


def smooth(y: Points) -> Points:
    """The moving average over a twentieth of the points, centred, with shorter windows at the ends."""
    half = max(1, len(y) // 40)
    total = np.concatenate([[0.0], y.cumsum()])
    index = np.arange(len(y))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(y))
    return (total[last] - total[first]) / (last - first)


def text_width(text: str, size: float = FONT) -> float:
    return 0.58 * size * len(text)


def clip_text(text: str, room: float, size: float = FONT) -> str:
    n = max(1, int(room / (0.58 * size)))
    return text if len(text) <= n else text[: n - 1] + "\u2026"


def path(x: Points, y: Points) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def look(slot: int) -> str:
    """The attributes that give a mark the colour of a series, and a line its dashes once the colours are used up."""
    dashes = DASHES[slot // len(LIGHT) % len(DASHES)]
    return f'style="--c:var(--s{slot % len(LIGHT)})" stroke-dasharray="{dashes}"'


def draw(index: int, series: Series, curve: Curve, across: Axis, up: Axis) -> Iterable[str]:
    """The marks of one curve, those in front last."""
    if not curve.x.size:
        return
    slot = index if series.slot is None else series.slot
    colour = look(slot)
    x, y = thin(curve.x, curve.y)
    if series.style == "smoothed" and len(curve.y) >= 20:
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(across(x), up(y), strict=True))
        yield f'<path class="cloud" {colour} d="{dots}"/>'
        x, y = thin(curve.x, smooth(curve.y))
    if series.style != "points":
        yield f'<path class="line" {colour} d="{path(across(x), up(y))}"/>'
    if series.style in ("points", "line+points") or len(x) == 1:
        marker = MARKERS[slot % len(MARKERS)]
        for a, b, u, v in zip(across(x), up(y), x, y, strict=True):
            yield (
                f'<path class="marker" {colour} transform="translate({a:.1f} {b:.1f})" d="{marker}">'
                f"<title>{escape(series.name)}: {human(u)}, {human(v)}</title></path>"
            )


def place_labels(curves: Sequence[Curve], across: Axis, up: Axis, taken: list[tuple[float, ...]]) -> Iterable[str]:
    """Labels beside their points, at the first of four sides that is free; `taken` holds boxes (x0, y0, x1, y1)."""
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
                middle, base = left + w / 2, top + h - 2
                at = f'x="{middle:.1f}" y="{base:.1f}" text-anchor="middle"'
                yield f'<text class="value small" {at}>{escape(label)}</text>'
                break


def legend(series: Sequence[Series], top: float, width: float) -> tuple[list[str], float]:
    """Rows of swatches and names from `top` down, and where they end."""
    parts, x, y = [], 0.0, top
    for i, s in enumerate(series):
        slot = i if s.slot is None else s.slot
        name = clip_text(s.name, width - 30)
        size = 26 + text_width(name) + 14
        if x and x + size > width:
            x, y = 0.0, y + 18
        swatch = f'<path class="line" {look(slot)} d="M1 0H19"/>'
        if s.style in ("points", "line+points"):
            marker = (
                f'<path class="marker" {look(slot)} transform="translate(10 0)" d="{MARKERS[slot % len(MARKERS)]}"/>'
            )
            swatch = (swatch if s.style == "line+points" else "") + marker
        parts.append(
            f'<g transform="translate({x:.1f} {y + 8:.1f})">{swatch}'
            f'<text class="name" x="26" y="4">{escape(name)}</text></g>'
        )
        x += size
    return parts, y + 22


def omissions(curves: Sequence[Curve]) -> str:
    infinite, negative = sum(c.infinite for c in curves), sum(c.negative for c in curves)
    reasons = [f"{infinite} not finite"] * bool(infinite) + [f"{negative} not positive (log axis)"] * bool(negative)
    return f"Not drawn: {', '.join(reasons)}." if reasons else ""


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
    """An SVG of the series, as text, with a legend where there are several.

    Points that are not finite, or not positive on a logarithmic axis, are left out and counted in a line below; of
    thousands, the extremes of `BUCKETS` neighbourhoods are drawn. reference_lines: horizontal; the axis grows to hold
    them. width, height: in CSS pixels; the drawing scales.
    """
    curves = [drawable(s, log_x, log_y) for s in series]
    lines = [r for r in reference_lines if abs(r.y) < LARGEST and (not log_y or r.y > 1 / LARGEST)]
    caption = omissions(curves)
    empty = not any(c.x.size for c in curves)

    top = 26.0
    names, top = legend(series, top, width) if len(series) > 1 else ([], top)
    head = top + 10 if y_label else top - 8
    xs = np.concatenate([np.empty(0), *(c.x for c in curves)])
    ys = np.concatenate([np.array([float(r.y) for r in lines]), *(c.y for c in curves)])
    bottom = height - 24 - 18 * bool(x_label) - 16 * bool(caption)
    up = Axis(*limits(ys, log_y, 0.06), log_y, bottom, head + 10)
    rows = list(zip(up.ticks(), tick_labels(up.ticks()), strict=True))
    left = 10 + max((text_width(label, SMALL) for _, label in rows), default=0)
    pointed = any(s.style in ("points", "line+points") for s in series)
    across = Axis(*limits(xs, log_x, 0.06 if pointed else 0.01), log_x, left, width - 12)

    parts = [f'<text class="title" x="0" y="15">{escape(clip_text(title, width, 14))}</text>', *names]
    if y_label:
        parts.append(f'<text class="small" x="0" y="{head - 2:.1f}">{escape(y_label)}</text>')
    for value, label in rows:
        y = float(up(value))
        parts.append(f'<path class="rule" d="M{left:.1f} {y:.1f}H{across.stop:.1f}"/>')
        parts.append(f'<text class="small" x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{across.stop:.1f}"/>')
    free = -math.inf  # the right end of the last label on the x axis: no two may touch
    for value, label in zip(across.ticks(), tick_labels(across.ticks()), strict=True):
        x, half = float(across(value)), text_width(label, SMALL) / 2
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom:.1f}v4"/>')
        if x - half > free:
            anchor = "end" if x + half > width else "middle"
            parts.append(f'<text class="small" x="{x:.1f}" y="{bottom + 17:.1f}" text-anchor="{anchor}">{label}</text>')
            free = x + half + 6
    if x_label:
        middle, y = (left + across.stop) / 2, bottom + 34
        parts.append(f'<text class="small" x="{middle:.1f}" y="{y:.1f}" text-anchor="middle">{escape(x_label)}</text>')
    taken = []
    for label, value in lines:
        y, label = float(up(value)), clip_text(label, across.stop - left, SMALL)
        taken.append((across.stop - text_width(label, SMALL), y - 15, across.stop, y))
        parts.append(f'<path class="reference" d="M{left:.1f} {y:.1f}H{across.stop:.1f}"/>')
        parts.append(
            f'<text class="small" x="{across.stop:.1f}" y="{y - 5:.1f}" text-anchor="end">{escape(label)}</text>'
        )
    for i, (s, curve) in reversed(list(enumerate(zip(series, curves, strict=True)))):
        parts.extend(draw(i, s, curve, across, up))
    parts.extend(place_labels(curves, across, up, taken))
    if empty:
        x, y = (left + across.stop) / 2, (head + bottom) / 2
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">no data</text>')
    if caption:
        parts.append(f'<text class="small" x="0" y="{height - 4}">{escape(caption)}</text>')

    told = [
        f"{s.name}: {len(c.y)} points, y from {human(c.y.min())} to {human(c.y.max())}"
        for s, c in zip(series, curves, strict=True)
        if c.y.size
    ]
    axes = f"{y_label or 'y'} over {x_label or 'x'}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="fewstep-chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"<desc>{escape('. '.join([axes, *told, caption]).strip('. '))}.</desc><style>{STYLE}</style>"
        f"{''.join(parts)}</svg>"
    )
