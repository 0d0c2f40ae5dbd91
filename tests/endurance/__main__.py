"""Kills runs of every method at random moments, and commands there and at their changes of files; prints what they lost."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from tests import endurance
from tests.endurance import BATCH, METHODS, commands, different, finish, kill
from tests.endurance.trial import FAULTS, INJECTIONS, Trial


@dataclass
class Row:
    """What was done to one command or run, and what it lost."""

    name: str
    kills: int = 0
    changes: int = 0
    faults: int = 0
    calls: int = 0
    injected: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    steps_lost: int = 0

    def tried(self, trial: Callable[[], object]) -> object:
        """The result of a trial; a loss is recorded, and the next trial can follow."""
        try:
            return trial()
        except AssertionError as error:
            self.lost.append(str(error))
            return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=endurance.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="*", help="names of commands and methods; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="commands at a time")
    parser.add_argument("--n", type=int, default=50, help="kills of runs in all")
    parser.add_argument("--steps", type=int, default=60, help="of every run")
    parser.add_argument("--longest", type=float, default=0.5, help="seconds from a new checkpoint to a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=50, help="kills of each command that writes; 0 for no commands")
    parser.add_argument("--calls", type=int, default=12, help="of each fault, at random system calls of each command")
    options = parser.parse_args()
    names = (*(commands.COMMANDS if options.commands else ()), *(METHODS if options.n else ()))
    if unknown := set(options.only) - set(names):
        parser.error(f"expected names among {', '.join(names)}; got {', '.join(sorted(unknown))}")
    if shutil.which("strace") is None:
        print("strace is not installed: no faults at system calls")
        options.calls = 0
    place = Path(tempfile.mkdtemp(prefix="fewstep-endurance-"))
    rows = run_all([n for n in names if n in options.only or not options.only], place, options)
    if any(row.lost for row in rows):
        print(f"The folders are kept in {place}")
        sys.exit(1)
    shutil.rmtree(place)


def run_all(names: list[str], place: Path, options: argparse.Namespace) -> list[Row]:
    """Run every job and print a line for each as it ends, then a table."""
    began = time.monotonic()
    world = place / "world"
    world.mkdir()
    if any(name in commands.COMMANDS for name in names):
        commands.world(world)
    rows: list[Row] = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
        jobs = [pool.submit(run_one, name, place, options) for name in names]
        for job in as_completed(jobs):
            rows.append(row := job.result())
            print(f"{len(rows)}/{len(names)} {line(row)}", flush=True)
            for loss in row.lost:
                print(f"  LOST: {loss}", flush=True)
    print(table(rows))
    print(f"seed {options.seed}, {options.jobs} jobs, {time.monotonic() - began:.0f} s")
    return rows


def run_one(name: str, place: Path, options: argparse.Namespace) -> Row:
    """All trials of a command, or of the runs of a method."""
    began, moments = time.monotonic(), random.Random(f"{options.seed} {name}")
    row = Row(name)
    try:
        if name in METHODS:
            kill_runs(row, place, options, moments)
        else:
            kill_command(row, place, options, moments)
    except Exception as error:  # other jobs go on
        row.lost.append(f"{type(error).__name__}: {error}")
    row.seconds = time.monotonic() - began
    return row


def kill_command(row: Row, place: Path, options: argparse.Namespace, moments: random.Random) -> None:
    folder = place / row.name.replace(" ", "-")
    shutil.copytree(place / "world", folder)
    with Trial(folder, row.name) as trial:
        for _ in range(options.commands):
            row.tried(lambda: trial.killed(moments))
            row.kills += 1
        for fault in FAULTS:
            number = 0
            while row.tried(lambda number=number, fault=fault: trial.faulty(number, fault)):
                row.faults, number = row.faults + 1, number + 1
            row.changes = max(row.changes, number)
        calls = trial.system_calls() if options.calls else []
        row.calls = len(calls)
        for _ in range(options.calls):
            for fault in INJECTIONS:
                at = moments.choice(calls)
                row.injected += bool(row.tried(lambda at=at, fault=fault: trial.faulty_call(*at, fault)))


def kill_runs(row: Row, place: Path, options: argparse.Namespace, moments: random.Random) -> None:
    """Kill runs of one method; each must end with the bits of a run that was never killed."""
    whole, killed, runs = place / f"{row.name}-whole", place / f"{row.name}-killed", 0
    finish(row.name, options.steps, whole)
    while row.kills < options.n // len(METHODS):
        lost = kill(row.name, options.steps, killed, moments, options.longest)
        if lost is not None:
            row.kills, row.steps_lost = row.kills + 1, max(row.steps_lost, lost // BATCH)
            continue
        compare(whole, killed)
        runs += 1
        killed = place / f"{row.name}-killed-{runs}"
    finish(row.name, options.steps, killed)
    compare(whole, killed)


def compare(whole: Path, killed: Path) -> None:
    if wrong := different(whole, killed):
        raise AssertionError(f"{killed.name}: {len(wrong)} tensors differ, such as {wrong[:3]}")


def line(row: Row) -> str:
    if row.name in METHODS:
        return f"{row.name}: {row.kills} kills, at most {row.steps_lost} step(s) lost by one, {row.seconds:.0f} s"
    return (
        f"{row.name}: {row.kills} kills, {row.faults} faults at {row.changes} changes of files, "
        f"{row.injected} at {row.calls} system calls; lost: {len(row.lost)}, {row.seconds:.0f} s"
    )


def table(rows: list[Row]) -> str:
    """A table of all rows and their sums."""
    total = Row("all", lost=[loss for r in rows for loss in r.lost], seconds=sum(r.seconds for r in rows))
    for name in ("kills", "changes", "faults", "calls", "injected"):
        setattr(total, name, sum(getattr(r, name) for r in rows))
    lines = [
        "| command or run | kills | changes of files | faults there | system calls | faults there | lost | seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in (*rows, total):
        numbers = (r.kills, r.changes, r.faults, r.calls, r.injected, len(r.lost), round(r.seconds))
        lines.append(f"| {r.name} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
