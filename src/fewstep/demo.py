"""The whole path on a laptop: a teacher on the built-in digits, a one-step student, samples, measurements, a report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fewstep.checkpoint import card, load, model_folder
from fewstep.cli.arguments import command_line, show_seeds
from fewstep.data import digits
from fewstep.files import read_json, sha256, write_json
from fewstep.generate import Plan, default_plan, generate
from fewstep.metrics.evaluate import evaluate
from fewstep.progress import track
from fewstep.recipes import digits as recipes
from fewstep.report.grid import grid, save_png
from fewstep.report.page import write_report
from fewstep.train.run import Run, fit

TEACHER_STEPS = (5, 9, 18)
"""Of Heun's method: 9, 17 and 35 network evaluations."""
BASE_MINUTES = 5.0
BATCH = 128
TEACHER_IMAGES, STUDENT_IMAGES = 89_600, 57_600


def demo(out: Path, *, minutes: float, fresh: bool, seed: int) -> None:
    """Run what is not there yet, then measure, write `results.json` and `report.html`, and print the table."""
    if minutes <= 0:
        raise ValueError(f"--minutes must be positive; got {minutes:g}")
    began = time.monotonic()
    share = minutes / BASE_MINUTES
    folders = {"teacher": out / "teacher", "student": out / "student"}

    def scaled(until: int, batch_size: int) -> int:
        return max(1, round(until * share / batch_size)) * batch_size

    run = recipes.teacher(until=scaled(TEACHER_IMAGES, BATCH), seed=seed)
    train(run, folders["teacher"], fresh=fresh)
    run = recipes.sid(folders["teacher"], until=scaled(STUDENT_IMAGES, BATCH), seed=seed)
    train(run, folders["student"], fresh=fresh)

    rows = measure(folders, out)
    write_json(out / "results.json", rows)
    page = write_report(out, title="fewstep demo")
    show(rows)
    print(f"Done in {time.monotonic() - began:.0f} s. Look at {page}")
    print(
        f"Models: {folders['teacher']} and {folders['student']}. Next: fewstep sample {folders['student']} --grid grid.png"
    )


def train(run: Run, folder: Path, *, fresh: bool) -> None:
    run.command = command_line(["demo", "--out", str(folder.parent)])
    fit(run, folder, fresh=fresh)


def measure(folders: dict[str, Path], out: Path) -> list[dict[str, Any]]:
    """A row for each model and number of steps; rows of an earlier call are kept where the model is the same."""
    known = read_json(out / "results.json") if (out / "results.json").exists() else []
    rows = []
    for name, folder in folders.items():
        model = load(folder)
        weights = sha256(model_folder(folder) / "model.safetensors")
        for steps in TEACHER_STEPS if name == "teacher" else (None,):
            plan = default_plan(model, steps)
            old = [r for r in known if (r["protocol"]["weights"], r["nfe"]) == (weights, plan.nfe)]
            rows.append(old[0] if old else row(name, folder, model, weights, plan, out))
    return rows


def row(name: str, folder: Path, model: Any, weights: str, plan: Plan, out: Path) -> dict[str, Any]:
    """Generate as many images as there are digits, measure them, keep a grid of the first."""
    real = digits()
    seeds = range(len(real))
    about = card(folder)
    began = time.monotonic()
    made = generate(model, seeds, label=torch.from_numpy(real.labels), plan=plan, batch_size=256)
    images = np.stack(list(track(made, total=len(seeds), description=f"{name} NFE {plan.nfe}")))
    seconds = time.monotonic() - began
    protocol = {"model": about.name, "weights": weights, "seeds": show_seeds(seeds), "labels": "of the reference"}
    protocol |= plan.describe()
    result = evaluate(images.transpose(0, 3, 1, 2), real, protocol=protocol)[0]
    picture = out / "samples" / f"{name}-nfe{plan.nfe:03d}.png"
    save_png(grid(fixed_grid(model, plan), columns=10), picture)
    log = (folder / "log.jsonl").read_text().splitlines()
    return {
        "model": name,
        "method": about.method,
        "sampler": plan.describe()["sampler"],
        "nfe": plan.nfe,
        result.metric: result.value,
        "n": result.n,
        "seeds": show_seeds(seeds),
        "images_per_second": len(seeds) / seconds,
        "training_images": about.nimg,
        "training_seconds": json.loads(log[-1])["seconds"],
        "grid": str(picture.relative_to(out)),
        "protocol": result.protocol,
    }


def fixed_grid(model: Any, plan: Plan) -> Any:
    """Ten columns, one for each class, from the same seeds for every model."""
    label = torch.arange(50) % 10
    return np.stack(list(generate(model, range(50), label=label, plan=plan)))


def show(rows: list[dict[str, Any]]) -> None:
    """The table, with what is common to its rows in the title."""
    first = rows[0]
    table = Table(
        title="Frechet distance in pixel space (lower is better)\n"
        f"{first['n']:,} images, seeds {first['seeds']}, against all digits",
        caption="every number with its protocol: results.json",
    )
    for heading in ("model", "method", "sampler"):
        table.add_column(heading)
    for heading in ("NFE", "distance", "images/s", "trained on", "in s"):
        table.add_column(heading, justify="right")
    for r in rows:
        figures = (f"{r['fd_pixels']:.3f}", f"{r['images_per_second']:,.0f}", f"{r['training_images']:,}")
        table.add_row(r["model"], r["method"], r["sampler"], str(r["nfe"]), *figures, f"{r['training_seconds']:.0f}")
    Console().print(table)
