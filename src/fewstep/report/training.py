"""The section of one training run: facts, samples of the fixed seeds, curves, and what the log lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.report.charts import log_charts
from fewstep.report.numerals import duration, human
from fewstep.report.pictures import Picture, embed
from fewstep.report.records import RunRecord, flat
from fewstep.report.wording import as_text, plural

MOST_SAMPLES = 4
"""Sample grids of a run that are shown, evenly spaced over its training."""


@dataclass(frozen=True)
class Training:
    """What the page shows of one run."""

    title: str
    facts: Mapping[str, str]
    samples: Sequence[Picture]
    charts: Sequence[str]
    notes: Sequence[str]
    settings: Mapping[str, Any]


def training(run: RunRecord) -> Training:
    """The section of a run."""
    changing = {key: curve for key, curve in run.log.curves.items() if curve.value.any()}
    return Training(
        title=run.title,
        facts=facts(run),
        samples=[sample(path) for path in evenly(run.samples, MOST_SAMPLES)],
        charts=list(log_charts(changing)),
        notes=notes(run),
        settings=flat({k: v for k, v in run.info.items() if k not in ("name", "started", "command")}),
    )


def facts(run: RunRecord) -> dict[str, str]:
    log, method = run.log, run.setting("method")
    seen = max((curve.nimg[-1] for curve in log.curves.values()), default=None)
    speed = log.curves.get("images_per_second")
    values = {
        "method": as_text(method.get("kind") if isinstance(method, dict) else method) if method else None,
        "images": human(seen) if seen is not None else None,
        "time": duration(log.seconds) if log.seconds is not None else None,
        "images/s, median": human(float(np.median(speed.value)), 3) if speed else None,
        "seed": as_text(run.setting("seed")) if run.setting("seed") is not None else None,
        "started": started(run),
    }
    return {name: value for name, value in values.items() if value is not None}


def notes(run: RunRecord) -> list[str]:
    """What the curves do not show."""
    found, log = [], run.log
    if zero := [key for key, curve in log.curves.items() if not curve.value.any()]:
        found.append(f"Zero throughout: {', '.join(zero)}.")
    if log.unreadable:
        found.append(f"{plural(log.unreadable, 'unreadable line')} of log.jsonl skipped.")
    if log.repeated:
        found.append(f"{plural(log.repeated, 'line')} of log.jsonl left out: training resumed before.")
    return found


def sample(path: Path) -> Picture:
    nimg = path.stem
    progress = f"after {human(int(nimg))} images" if nimg.isascii() and nimg.isdecimal() else nimg
    return embed(path, f"Fixed seeds, {progress}", lines=[progress])


def evenly(paths: Sequence[Path], n: int) -> list[Path]:
    """At most `n` of them, the first and the last among them."""
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(n, len(paths))).round().astype(int)]


def moment(time: datetime) -> str:
    return f"{time:%d %B %Y, %H:%M %Z}".removeprefix("0")


def started(run: RunRecord) -> str | None:
    """When the run started, for readers; text that is not an ISO date is shown as it is."""
    text = run.info.get("started")
    try:
        return None if text is None else moment(datetime.fromisoformat(str(text)))
    except ValueError:
        return str(text)
