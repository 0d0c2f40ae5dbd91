"""Numbers for readers: short decimals, times, and the ticks of an axis."""

from __future__ import annotations

import math
from itertools import pairwise

SUFFIXES = {0: "", 1: "k", 2: "M", 3: "G", 4: "T"}


def human(value: float, digits: int = 4, *, zeros: bool = False) -> str:
    """A number to `digits` significant digits: 3.871, 51.2k, 200M, 2e-4; `zeros` keeps those at the end: 41.20."""
    if not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "NaN")
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")  # rounds before the unit is chosen: 999.96k is 1M
    rounded, power = float(f"{mantissa}e{exponent}"), int(exponent)
    thousands = power // 3 if power >= 4 else 0
    end = str if zeros else trim
    if power < -3 or thousands not in SUFFIXES:
        return f"{end(mantissa)}e{power}"
    return end(f"{rounded / 1000**thousands:.{max(0, digits - 1 - power + 3 * thousands)}f}") + SUFFIXES[thousands]


def trim(decimal: str) -> str:
    return decimal.rstrip("0").rstrip(".") if "." in decimal else decimal


def duration(seconds: float) -> str:
    """A time in its two largest units: 42 s, 3 min 5 s, 2 h 10 min, 6 d 4 h; below a minute with three digits."""
    if not math.isfinite(seconds) or seconds < 0:
        return human(seconds)
    if seconds < 59.95:
        return f"{human(seconds, 3)} s"
    count, units = round(seconds), ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    if count >= 3600:
        count = round(seconds / 60) * 60
    parts = []
    for size, unit in units:
        if count >= size:
            parts.append(f"{count // size} {unit}")
            count %= size
    return " ".join(parts[:2])


def linear_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About `n` multiples of 1, 2, 2.5 or 5 times a power of ten within [low, high]."""
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda multiple: abs(math.log(multiple * power / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded to the decimals of the step, so that 3 * 0.1 is 0.3.
    decimals = 1 - math.floor(math.log10(step))
    return [round(i * step, decimals) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, n: int = 6) -> list[float]:
    """About `n` ticks for a logarithmic axis over [low, high], both positive: decades, or their 1, 2, 5, or linear."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    ticks = [float(f"{m}e{k}") for k in range(first - 1, last + 1) for m in (1, 2, 5)]
    ticks = [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
    if len(ticks) > n + 2 and last > first:
        stride = math.ceil((last - first + 1) / n)
        return [10.0**k for k in range(first, last + 1) if k % stride == 0]
    return ticks if len(ticks) >= 3 else linear_ticks(low, high, n)


def tick_labels(ticks: list[float]) -> list[str]:
    """Labels short enough to read and long enough to differ; in even steps, all with the same decimals."""
    digits = 4
    while len(set(labels := [human(t, digits) for t in ticks])) < len(set(ticks)) and digits < 16:
        digits += 1
    gaps = [b - a for a, b in pairwise(ticks)]
    even = bool(gaps) and max(gaps) < 1.01 * min(gaps)
    if even and all(label.lstrip("-").replace(".", "", 1).isdigit() for label in labels):
        decimals = max(len(label.partition(".")[2]) for label in labels)
        labels = [f"{t:.{decimals}f}" if t else "0" for t in ticks]
    return labels
