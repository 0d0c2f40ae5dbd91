"""`fewstep demo` and `report`. What a command needs is imported when it runs, so that `--help` needs no torch."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from fewstep.cli.arguments import Device
from fewstep.runtime import outputs


def demo(
    *,
    out: Path = Path("runs/demo"),
    minutes: float = 5.0,
    all_methods: bool = False,
    fresh: bool = False,
    seed: int = 0,
    device: Device = None,
) -> None:
    """Train, distil, sample, evaluate and restore on a laptop with the built-in digits, and write a report.

    Args:
        out: folder for everything; repeat the command to continue.
        minutes: training time of teacher and one student, about, on two CPU cores; longer gives better images.
        all_methods: distil with every method, about three minutes each.
        fresh: delete earlier results and start over.
        seed: seed of weights, data order and noise.
    """
    from fewstep.demo import demo as run_demo
    from fewstep.runtime.distributed import process_group, use

    use(device)
    outputs.folder(out)
    with process_group():
        run_demo(out, minutes=minutes, all_methods=all_methods, fresh=fresh, seed=seed)


def report(folder: Positional[Path]) -> None:
    """Write report.html, a self-contained page about the runs and results in a folder.

    Args:
        folder: run folder, or folder of runs.
    """
    from fewstep.report.page import write_report

    print(write_report(folder))
