"""`fewstep demo` and `report`. What a command needs is imported when it runs, so that `--help` needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from fewstep.cli.arguments import Device
from fewstep.runtime import outputs


def demo(
    *,
    out: Path = Path("runs/demo"),
    method: Literal["sid", "sida", "sid2a", "dmd2", "gdd", "ncvsd"] = "ncvsd",
    minutes: float = 2.5,
    all_methods: bool = False,
    fresh: bool = False,
    seed: int = 0,
    device: Device = None,
) -> None:
    """Train, distil, sample, evaluate and restore on a laptop with the built-in digits, and write a report.

    Args:
        out: output folder; repeat the command to continue.
        method: how the teacher is distilled to one step.
        minutes: approximate duration on two idle CPU cores; longer gives better images.
        all_methods: distil with every method, about one minute each.
        fresh: delete earlier results and start over.
        seed: seed of weights, data order and noise.
    """
    from fewstep.demo import demo as run_demo
    from fewstep.runtime.distributed import process_group, use

    use(device)
    outputs.folder(out)
    with process_group():
        run_demo(out, method=method, minutes=minutes, all_methods=all_methods, fresh=fresh, seed=seed)


def report(folder: Positional[Path]) -> None:
    """Write report.html, a self-contained page about the runs and results in a folder.

    Args:
        folder: run folder, or folder of runs.
    """
    from fewstep.report.page import write_report

    print(write_report(folder))
