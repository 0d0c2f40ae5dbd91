"""The axes of a chart, and the points that can be drawn on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.report.numerals import linear_ticks, log_ticks, tick_labels

Style = Literal["line", "points", "line+points", "smoothed"]
Points = NDArray[np.float64]

LARGEST = 1e100
"""Values beyond this, or below its inverse on a logarithmic axis, cannot be drawn and count as infinite."""

BUCKETS = 240
"""Groups of neighbouring points of which a chart draws the lowest and the highest."""


@dataclass(frozen=True)
class Series:
    """One curve of a chart.

    Attributes:
        name: in the legend.
        x, y: (N,), in the order in which a line joins the points.
        style: "smoothed" draws the points lightly and their moving average as a line.
        labels: text beside the points, (N,) or empty; labels without room are left out.
        slot: of the palette; the position in the chart if None. A model keeps its colour over several charts if it keeps
            its slot.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    style: Style = "line"
    labels: Sequence[str] = ()
    slot: int | None = None


class Curve(NamedTuple):
    """The points of a Series that can be drawn, and how many cannot."""

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

    def ticks(self) -> list[tuple[float, str]]:
        """Values and their labels, as many as have room."""
        n = max(2, round(abs(self.stop - self.start) / (32 if self.stop < self.start else 75)))
        values = log_ticks(self.low, self.high, n) if self.log else linear_ticks(self.low, self.high, n)
        return list(zip(values, tick_labels(values), strict=True))


def drawable(series: Series, log_x: bool, log_y: bool) -> Curve:
    """The points that lie on the axes. Raises ValueError for lengths that differ."""
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
    """The ends of an axis: the range of the values and a margin; from 0 where that takes little room."""
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
    """At most 2 `buckets` + 2 points: the lowest and the highest of each group of neighbours, and both ends."""
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
