"""Progress of what takes longer than a few seconds: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import TypeVar

from fewstep.runtime.display import visible

T = TypeVar("T")
LINE_SECONDS = 10.0
REFRESH_SECONDS = 0.1


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, s = divmod(int(seconds + 0.5), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def first_rank() -> bool:
    """Whether this process is the one that reports. A process without torch, as the dataset tool's, has no ranks."""
    if "torch" not in sys.modules:
        return True
    from fewstep.runtime.distributed import rank

    return rank() == 0


LIVE: set[Progress] = set()
"""What is shown as a bar on the terminal."""


def stop() -> None:
    """End all bars, before an error is written below them."""
    for progress in list(LIVE):
        progress.stop()


class Progress:
    """Shows how far a task is, its rate, the remaining time, and its current losses, on standard error.

    Only the first rank shows anything.

    Args:
        description: the name of the task.
        total: its size, in `unit`.
        done: where a resumed task begins, in `unit`.
        unit: what is counted.
        show: whether anything is shown.
    """

    def __init__(self, description: str, *, total: int, done: int = 0, unit: str = "images", show: bool = True) -> None:
        self.description, self.total, self.begin, self.done, self.unit = visible(description), total, done, done, unit
        self.text = ""
        self.started = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.visible = show and first_rank()
        self.bar = None

    def __enter__(self) -> Progress:
        if self.visible and self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            text = partial(TextColumn, markup=False)
            columns = (text("{task.description}"), BarColumn(), text("{task.fields[state]}"))
            self.bar = Bar(*columns, console=Console(stderr=True), auto_refresh=False)
            self.bar.start()
            LIVE.add(self)
            self.task = self.bar.add_task(self.description, total=self.total, completed=self.done, state="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.visible and time.monotonic() - self.started > REFRESH_SECONDS and self.done != self.begin:
            self.show()
        elif self.bar:
            self.bar.live.transient = True  # a bar without numbers says nothing
        self.stop()

    def stop(self) -> None:
        """Let the bar end where it is, and the terminal be as it was."""
        LIVE.discard(self)
        if self.bar:
            self.bar.stop()

    def show_losses(self, values: Mapping[str, float]) -> None:
        """Show the losses among the logged metrics."""
        shown = {k: v for k, v in values.items() if "/" not in k}
        self.text = visible(" ".join(f"{k}={v:.4g}" for k, v in shown.items()))

    def update(self, done: int) -> None:
        """Move to `done`; drawn at most ten times a second, or as a line every ten seconds."""
        self.done = done
        now = time.monotonic()
        if self.visible and now - self.shown > (REFRESH_SECONDS if self.terminal else LINE_SECONDS):
            self.shown = now
            self.show()

    def state(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = (self.done - self.begin) / seconds
        remaining = f"{duration((self.total - self.done) / rate)} left" if rate and self.done < self.total else ""
        counts = f"{self.done:,}/{self.total:,} {self.unit} {rate:,.0f}/s"
        return " ".join(part for part in (counts, duration(seconds), remaining, self.text) if part)

    def show(self) -> None:
        if self.bar:
            self.bar.update(self.task, completed=self.done, state=self.state(), refresh=True)
        else:
            print(f"{self.description}: {self.state()}", file=sys.stderr, flush=True)


def track(iterable: Iterable[T], *, total: int, description: str, unit: str = "images") -> Iterator[T]:
    """Yield from `iterable`, showing progress."""
    with Progress(description, total=total, unit=unit) as progress:
        for i, item in enumerate(iterable, 1):
            yield item
            progress.update(i)
