from __future__ import annotations

import argparse
import math
import random
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.fuzz import __doc__ as about
from tests.fuzz.damage import content_like, disturbed, lay, mutated, occupied
from tests.fuzz.readers import Reader, readers
from tests.fuzz.watch import Watch

DRAWN = 4
"""One input in this many is of hypothesis' making; the others are mutations."""
DISTURBED = 0.06


@dataclass
class Tally:
    inputs: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    failures: dict[tuple[str, str], Path] = field(default_factory=dict)
    """By reader and kind of failure: the files that caused the first of them."""
    taken: float = 0.0
    """The most MiB that an input took."""


def trial(reader: Reader, lay_out: Callable[[Path], None], work: Path, watch: Watch, tally: Tally) -> str | None:
    """One input to one reader. Returns how it failed, and keeps a copy of the first of its kind."""
    lay_out(work / "case")
    kept = work / f"failure-{len(tally.failures):03d}"
    shutil.copytree(work / "case", kept, symlinks=True, copy_function=copy)  # before the reader writes there
    beside = sorted(work.iterdir())
    began = time.process_time()
    failure, refused = watch.failure(reader.call, work / "case")
    tally.seconds[reader.name] += time.process_time() - began
    tally.inputs[reader.name] += 1
    tally.taken = max(tally.taken, watch.taken)
    tally.refused[reader.name] += refused
    if failure is None and sorted(work.iterdir()) != beside:
        failure = "wrote beside its folder"
    if failure is not None and (key := (reader.name, re.split(r"[:(]", failure)[0])) not in tally.failures:
        tally.failures[key] = kept
        print(f"{reader.name}: {failure:.300}\n    {kept}", flush=True)
    else:
        shutil.rmtree(kept)
    return failure


def copy(source: str, target: str) -> None:
    """A file, or a pipe as an empty one."""
    if Path(source).is_file():
        shutil.copyfile(source, target, follow_symlinks=False)


def mutate(
    reader: Reader, n: int, rng: random.Random, others: list[bytes], work: Path, watch: Watch, tally: Tally
) -> None:
    for _ in range(n):
        target = rng.choice(reader.targets or tuple(reader.files))

        def lay_out(case: Path, target: str = target) -> None:
            if reader.outputs and rng.random() < DISTURBED:
                occupied(lay(case, reader.files) / rng.choice(reader.outputs), rng)
            elif rng.random() < DISTURBED and not target.endswith(".yaml"):  # which may come through a pipe
                disturbed(lay(case, reader.files) / target, rng)
            else:
                lay(case, mutated(reader.files, target, rng, rng.choice(others)))

        trial(reader, lay_out, work, watch, tally)


def draw(reader: Reader, n: int, seed: int, work: Path, watch: Watch, tally: Tally) -> None:
    """Hypothesis' inputs. One that fails is made small: the smallest is the last one tried."""
    targets = reader.targets or tuple(reader.files)

    @seeded(seed)
    @settings(
        max_examples=n,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck.__members__.values()),
    )
    @given(st.sampled_from(targets).flatmap(lambda t: st.tuples(st.just(t), content_like(t, reader.files[t]))))
    def attempt(drawn: tuple[str, bytes]) -> None:
        target, content = drawn
        files = {**reader.files, target: content}
        failure = trial(reader, lambda case: void(lay(case, files)), work, watch, tally)
        assert failure is None, failure

    with suppress(AssertionError, ExceptionGroup):  # which the tally has
        attempt()


def void(_: object) -> None: ...


def fuzz(n: int, seed: int, only: str = "") -> Tally:
    """`n` inputs or a few more, spread over the readers."""
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    work = Path(tempfile.mkdtemp(prefix="fewstep-fuzz-"))
    (work / "made").mkdir()
    (work / "outside").touch()
    world = [reader for reader in readers(work / "made") if re.search(only, reader.name)]
    others = [data for reader in world for data in reader.files.values() if data]
    watch, tally = Watch(), Tally()
    for reader in world:  # undamaged first: they must be read, and what is imported lazily comes in
        reader.call(lay(work / "case", reader.files))
    total = sum(reader.share for reader in world)
    for i, reader in enumerate(world):
        each = math.ceil(n * reader.share / total)
        mutate(reader, each - each // DRAWN, rng, others, work, watch, tally)
        draw(reader, max(1, each // DRAWN), seed + i, work, watch, tally)
        while (missing := each - tally.inputs[reader.name]) > 0:  # hypothesis may know no more
            mutate(reader, missing, rng, others, work, watch, tally)
        name, inputs, refused = reader.name, tally.inputs[reader.name], tally.refused[reader.name]
        print(f"{name:28} {inputs:6} inputs, {refused:6} refused, {tally.seconds[name]:6.1f} s", flush=True)
    if not tally.failures:
        shutil.rmtree(work)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--n", type=int, default=20_000, help="damaged inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name has this pattern")
    options = parser.parse_args()
    began = time.monotonic()
    tally = fuzz(options.n, options.seed, options.only)
    print(
        f"{sum(tally.inputs.values()):,} inputs to {len(tally.inputs)} readers, {sum(tally.refused.values()):,} refused, "
        f"{len(tally.failures)} kinds of failure, {time.monotonic() - began:.0f} s, "
        f"{sum(tally.seconds.values()):.0f} s of computing, at most {tally.taken:,.0f} MiB for an input, seed {options.seed}"
    )
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
