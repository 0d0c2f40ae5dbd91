"""The whole path on a laptop: a teacher on the built-in digits, students, samples, measurements, restorations, a report."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

from fewstep import recipes
from fewstep.compare import compare, show
from fewstep.inverse import restore
from fewstep.report.page import write_report
from fewstep.runtime.distributed import rank
from fewstep.runtime.launch import command_line
from fewstep.train.loop import fit

BASE_MINUTES = 5.0
METHODS = ("sid", "sida", "sid2a", "dmd2", "gdd", "ncvsd")
TASKS = ("box_inpainting", "gaussian_deblur")


def demo(out: Path, *, minutes: float, all_methods: bool = False, fresh: bool, seed: int) -> None:
    """Run what is not there yet, then measure, restore digits, write `results.json` and `report.html`, print the tables.

    minutes: what teacher and one student may take together. all_methods: a student by every method, not by SiD alone.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes must be positive; got {minutes:g}")
    began = time.monotonic()
    share = minutes / BASE_MINUTES
    command = command_line(["demo", "--out", str(out)])
    teacher = out / "teacher"
    recipe = recipes.get("digits:teacher", seed=seed)
    recipe = dataclasses.replace(recipe, until=round(share * recipe.until))
    fit(recipes.build(recipe, command=command), teacher, fresh=fresh)
    methods = METHODS if all_methods else METHODS[:1]
    rows = compare(
        teacher,
        [f"digits:{method}" for method in methods],
        out,
        data="digits",
        share=share,
        evaluations=4,
        seed=seed,
        fresh=fresh,
        command=command,
    )
    if rank() == 0:
        show(rows, out)
    restorations(out / "ncvsd" if all_methods else teacher, out / "restored", seed=seed)
    if rank() != 0:
        return
    write_report(out)
    print(f"Done in {time.monotonic() - began:.0f} s. Look at {out / 'report.html'}")
    following = command_line(["sample", str(out / methods[0]), "--grid", "grid.png"])
    print(f"Models: {teacher} and {out / methods[0]}. Next: {following}")


def restorations(model: Path, out: Path, *, seed: int, nfe: int = 49) -> None:
    """Restore eight digits that are half hidden, and eight that are blurred, four samples each: by an NCVSD student, which
    draws in one evaluation, or by a teacher, which takes three.
    """
    for task in TASKS:
        restore(model, "digits", task, out=out / task, preset="balanced", nfe=nfe, first=8, label="data", seed=seed)
        if rank() == 0:
            print(f"Restored digits, {task}: {out / task / 'sheet.png'}")
