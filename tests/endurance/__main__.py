"""Kills runs of every method at random moments; prints what they lost."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests import endurance
from tests.endurance import BATCH, METHODS, different, finish, kill


def main() -> None:
    parser = argparse.ArgumentParser(
        description=endurance.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=50, help="kills in all")
    parser.add_argument("--steps", type=int, default=60, help="of every run")
    parser.add_argument("--longest", type=float, default=0.5, help="seconds from a new checkpoint to a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
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


if __name__ == "__main__":
    main()
