"""Kills runs of every method at random moments, and commands there and at their changes of files; prints what they lost."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests import endurance
from tests.endurance import BATCH, METHODS, commands, different, finish, kill


def main() -> None:
    parser = argparse.ArgumentParser(
        description=endurance.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=50, help="kills in all")
    parser.add_argument("--steps", type=int, default=60, help="of every run")
    parser.add_argument("--longest", type=float, default=0.5, help="seconds from a new checkpoint to a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=50, help="kills of each command that writes")
    parser.add_argument("--calls", type=int, default=12, help="of each fault, at random system calls of each command")
    given = parser.parse_args()
    if given.n:
        kill_runs(given)
    if given.commands:
        kill_commands(given)


def kill_runs(given: argparse.Namespace) -> None:
    moments = random.Random(given.seed)
    worst, kills, began = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        for kind in METHODS:
            whole, killed = Path(place, f"{kind}-whole"), Path(place, f"{kind}-killed")
            finish(kind, given.steps, whole)
            count, runs = 0, 0
            while count < given.n // len(METHODS):
                lost = kill(kind, given.steps, killed, moments, given.longest)
                if lost is not None:
                    count, worst = count + 1, max(worst, lost // BATCH)
                    continue
                runs += 1
                if wrong := different(whole, killed):
                    raise AssertionError(f"{kind}: {len(wrong)} tensors differ, such as {wrong[:3]}")
                killed = Path(place, f"{kind}-killed-{runs}")
            finish(kind, given.steps, killed)
            if wrong := different(whole, killed):
                raise AssertionError(f"{kind}: {len(wrong)} tensors differ, such as {wrong[:3]}")
            kills += count
            print(f"{kind}: {count} kills, the same bits as without; {runs + 1} run(s)", flush=True)
    print(f"{kills} kills in {time.monotonic() - began:.0f} s, seed {given.seed}; at most {worst} step(s) lost by one")


def kill_commands(given: argparse.Namespace) -> None:
    moments, began = random.Random(given.seed), time.monotonic()
    traced = shutil.which("strace") is not None
    if not traced:
        print("strace is not installed: faults at Python's calls alone")
    with tempfile.TemporaryDirectory() as place:
        commands.world(Path(place))
        for kind in commands.COMMANDS:
            trial, counts = commands.Trial(Path(place), kind), [0, 0, 0]
            for _ in range(given.commands):
                trial.killed(moments)
                counts[0] += 1
            for fault in commands.FAULTS:
                number = 0
                while trial.faulty(number, fault):
                    counts[1], number = counts[1] + 1, number + 1
            calls = trial.traced("", moments, 0) if traced else 0
            for _ in range(given.calls if traced else 0):
                for fault in ("error=EIO", "error=ENOSPC", "signal=KILL"):
                    trial.traced(fault, moments, calls)
                    counts[2] += 1
            trial.clear()
            print(
                f"{kind}: {counts[0]} kills, {counts[1]} faults at its changes of files, {counts[2]} at its {calls} system "
                "calls; nothing lost, nothing left",
                flush=True,
            )
    print(f"{len(commands.COMMANDS)} commands in {time.monotonic() - began:.0f} s, seed {given.seed}")


if __name__ == "__main__":
    main()
