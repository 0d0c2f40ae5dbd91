"""The whole path on a laptop: a teacher on the built-in digits, students, samples, measurements, restorations, a report."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from fewstep import recipes
from fewstep.compare import compare, show
from fewstep.data.grid import grid, save_png
from fewstep.inverse import restore
from fewstep.io.model_folder import load
from fewstep.report.page import write_report
from fewstep.runtime.distributed import rank
from fewstep.runtime.launch import command_line
from fewstep.sample import gather_images, generate
from fewstep.train.loop import fit

Method = Literal["sid", "sida", "sid2a", "dmd2", "gdd", "ncvsd"]
METHODS: tuple[Method, ...] = get_args(Method)
BASE_MINUTES = 2.5
"""How long the demo takes with `TEACHER` and one of `STUDENTS`, about, on two cores (157 s measured)."""
TEACHER: dict[str, Any] = {"cbase": 16, "p_mean": -0.6, "dtype": "auto", "until": 96_000}
"""What makes the teacher of `digits:teacher` quicker: two thirds of its width, noise levels where digits differ."""
STUDENTS: dict[Method, dict[str, Any]] = {
    "sid": {"until": 35_840},
    "sida": {"until": 35_840, "warmup": 4_480},
    "sid2a": {"until": 17_920},
    "dmd2": {"until": 33_280},
    "gdd": {"until": 23_040},
    "ncvsd": {"until": 46_080, "batch_size": 128, "lr": 8.5e-4, "fake_lr": 3.4e-3},
}
"""Settings of the students' recipes, of equal training time (SiD2A follows SiD)."""
TEACHER_STEPS = (5, 18)
"""Steps of Heun's method at which the teacher is measured: 9 and 35 network evaluations."""
TASKS = ("box_inpainting", "gaussian_deblur")


def demo(
    out: Path, *, method: Method = "ncvsd", minutes: float, all_methods: bool = False, fresh: bool, seed: int
) -> None:
    """Run what is not there yet, then measure, restore digits, write `results.json` and `report.html`, print the tables.

    Args:
        out: folder of everything.
        method: what makes the student.
        minutes: about how long it takes in all; training is longer or shorter in proportion.
        all_methods: a student by every method.
        fresh: start over.
        seed: of weights, data order and noise.

    Raises:
        ValueError: `minutes` is not positive.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes must be positive; got {minutes:g}")
    began = time.monotonic()
    share = minutes / BASE_MINUTES
    command = command_line(["demo", "--out", str(out)])
    teacher = out / "teacher"
    first_picture(out / "first.png")
    if rank() == 0:
        print(f"Pictures of the teacher while it trains: {teacher / 'samples'}", flush=True)
    recipe = dataclasses.replace(recipes.get("digits:teacher", seed=seed), **scaled(TEACHER, share))
    fit(recipes.build(recipe, command=command), teacher, fresh=fresh)
    methods = METHODS if all_methods else ("sid", "sid2a") if method == "sid2a" else (method,)
    names = {f"digits:{name}": {"dtype": "auto", **scaled(STUDENTS[name], share)} for name in methods}
    rows = compare(
        teacher,
        [*names],
        out,
        data="digits",
        evaluations=2,
        seed=seed,
        fresh=fresh,
        command=command,
        settings=names,
        dtype="auto",
        teacher_steps=TEACHER_STEPS,
    )
    if rank() == 0:
        show(rows, out)
    restorations(out / "ncvsd" if "ncvsd" in methods else teacher, out / "restored", seed=seed)
    if rank() != 0:
        return
    write_report(out)
    print(f"Done in {time.monotonic() - began:.0f} s. Look at {out / 'report.html'}")
    following = command_line(["sample", str(out / methods[-1]), "--grid", "grid.png"])
    print(f"Models: {teacher} and {out / methods[-1]}. Next: {following}")


def scaled(settings: dict[str, Any], share: float) -> dict[str, Any]:
    """The settings with a share of the training images, and of the other entries that count images."""
    counts = {name: round(share * settings[name]) for name in ("until", "warmup") if name in settings}
    return {**settings, **counts}


def first_picture(path: Path) -> None:
    """Write 50 digits by the one-step student that comes with the package, before anything is trained."""
    shown = gather_images(generate(load("digits"), range(50), label=torch.arange(50) % 10), 50)
    if rank() == 0:
        save_png(grid(np.stack(shown), columns=10), path)
        print(f"First picture: {path}, by the model 'digits' that comes with fewstep (not by this demo)", flush=True)


def restorations(model: Path, out: Path, *, seed: int, nfe: int = 49) -> None:
    """Restore eight digits that are half hidden, and eight that are blurred, four samples each: by an NCVSD student, which
    draws in one evaluation, or by a teacher, which takes three.
    """
    for task in TASKS:
        restore(model, "digits", task, out=out / task, preset="balanced", nfe=nfe, first=8, label="data", seed=seed)
        if rank() == 0:
            print(f"Restored digits, {task}: {out / task / 'sheet.png'}")
