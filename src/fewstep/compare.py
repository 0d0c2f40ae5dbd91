"""Methods of distillation side by side: one teacher, the same data and budget, every model measured in the same way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan
from fewstep.data import images as open_images
from fewstep.data.grid import grid, save_png
from fewstep.data.images import ImageData
from fewstep.io.model_folder import card, find_model_folder, load
from fewstep.metrics.evaluation import Options, evaluate
from fewstep.metrics.protocol import show_seeds
from fewstep.recipes import build, get, required
from fewstep.report.page import write_report
from fewstep.report.records import Result as Row
from fewstep.report.records import read_log, read_results
from fewstep.runtime import outputs
from fewstep.runtime.display import visible
from fewstep.runtime.distributed import device, rank
from fewstep.runtime.files import sha256, write_json
from fewstep.runtime.precision import chosen_dtype
from fewstep.sample import count_evaluations, describe, gather_images, generate, generated
from fewstep.train.evaluation import Evaluation
from fewstep.train.loop import fit

MOST = 10_000
"""Images that are made to measure a model, unless there are fewer real ones."""
TEACHER_STEPS = (5, 9, 18)
"""Of Heun's method: 9, 17 and 35 network evaluations."""
GENERATIVE_STEPS = (1, 4)


def compare(
    teacher: Path,
    recipes: Sequence[str],
    out: Path,
    *,
    data: str,
    until: int | None = None,
    share: float = 1.0,
    evaluations: int = 6,
    metrics: tuple[str, ...] = ("fd_pixels",),
    seed: int = 0,
    fresh: bool = False,
    command: str = "",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: str = "float32",
    teacher_steps: tuple[int, ...] | None = None,
) -> list[dict[str, Any]]:
    """Distil one teacher by several recipes, measure all models in the same way, and write results.json and report.html.

    A second call continues, and measures only what is new. A recipe that starts from a student of SiD gets the one of this
    comparison.

    Args:
        teacher: model or run folder.
        recipes: names of recipes, such as digits:sid. Each has a folder of its own in `out`.
        out: folder of the comparison.
        data: images for training and as the reference.
        until: training images of every method; `share` times those of its recipe if None.
        evaluations: measurements of each run while it trains.
        metrics: names of metrics, see `fewstep eval`.
        seed: of weights, data order and noise.
        fresh: start over.
        command: the command line, for the records of the runs.
        settings: by recipe, values of its settings other than its own.
        dtype: the precision in which the models are measured, as of `runtime.precision.chosen_dtype`.
        teacher_steps: steps of Heun's method at which the teacher is measured; 5, 9 and 18 if None.

    Returns:
        The rows of results.json.

    Raises:
        ValueError: A recipe has no teacher, or two would have the same folder.
    """
    real = open_images(data)
    folders = {name: out / name.rpartition(":")[2] for name in recipes}
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"every recipe gets a folder of its own name; two are alike in {', '.join(recipes)}")
    if evaluations < 0:
        raise ValueError(f"the number of evaluations must be 0 or more; got {evaluations}")
    plans = {
        name: dataclasses.replace(
            planned(name, teacher, data, until, share, seed, folders), **(settings or {}).get(name, {})
        )
        for name in recipes
    }
    outputs.folder(out)
    for name in ("results.json", "report.html"):
        outputs.file(out / name, apart=[data], overwrite=True)
    for folder in folders.values():
        outputs.folder(folder, apart=[teacher, data])
    for name, folder in folders.items():
        run = build(plans[name], name=folder.name, command=command)
        if evaluations:
            evaluation = Evaluation(every=max(1, run.until // evaluations), metrics=metrics, n=count(real))
            run = dataclasses.replace(run, evaluation=evaluation)
        fit(run, folder, fresh=fresh)
    models = {"teacher": teacher} | {f.name: f for f in folders.values()}
    rows = measure(models, real, out, metrics=metrics, dtype=dtype, teacher_steps=teacher_steps or TEACHER_STEPS)
    if rank() == 0:
        write_report(out)
    return rows


def planned(
    name: str, teacher: Path, data: str, until: int | None, share: float, seed: int, folders: dict[str, Path]
) -> Any:
    """The settings of a recipe in this comparison."""
    recipe = get(name)
    known = {field.name for field in dataclasses.fields(recipe)}
    if "teacher" not in known:
        raise ValueError(f"{name} distils no teacher; fewstep recipes lists what does")
    settings: dict[str, Any] = {"teacher": teacher, "data": data, "seed": seed}
    default: Any = getattr(recipe, "until", None)
    if until is not None or default is not None:
        settings["until"] = round(share * default) if until is None else until
    elif share != 1:
        raise ValueError(f"how long {name} trains depends on its teacher, so there is no share of it; give --until")
    if "student" in required(recipe):
        start = next((folder for other, folder in folders.items() if other.endswith(":sid")), None)
        if start is None or list(folders.values()).index(start) > list(folders).index(name):
            raise ValueError(f"{name} starts from a student of SiD; put {name.rpartition(':')[0]}:sid before it")
        settings["student"] = start
    return dataclasses.replace(recipe, **{key: value for key, value in settings.items() if key in known})


def count(real: ImageData) -> int:
    return min(len(real), MOST)


def measure(
    folders: dict[str, Path],
    real: ImageData,
    out: Path,
    *,
    metrics: tuple[str, ...] = ("fd_pixels",),
    dtype: str = "float32",
    teacher_steps: tuple[int, ...],
) -> list[dict[str, Any]]:
    """A row for each model and number of steps, written to `out`/results.json. Rows of an earlier call are reused for the
    same model, metrics and precision.
    """
    known = known_rows(out)
    values = {name for metric in Options(metrics).parsed() for name in metric.values}
    rows = []
    for name, folder in folders.items():
        model = load(folder, device=device())
        model.dtype = chosen_dtype(dtype)
        precision = str(model.dtype).removeprefix("torch.")
        weights = sha256(find_model_folder(folder) / "model.safetensors")
        for steps in step_counts(model, teacher_steps):
            plan = model.plan(steps)
            same = (name, weights, count_evaluations(plan), values, precision)
            old = [r for r in known if identity(r, out) == same]
            rows.append(old[0] if old else row(name, folder, model, weights, plan, real, out, metrics))
    if rank() == 0:
        write_json(out / "results.json", rows)
    return rows


def known_rows(out: Path) -> list[dict[str, Any]]:
    """The rows that an earlier call wrote to `out`/results.json; those of other commands, which lack entries, are left out."""
    path = out / "results.json"
    rows = [result.row for result in read_results(path)] if path.exists() else []
    return [r for r in rows if {"model", "nfe", "protocol"} <= set(r) and "weights" in r["protocol"]]


def identity(known: dict[str, Any], out: Path) -> tuple[Any, ...]:
    """What was measured in a row: name, weights, evaluations, metrics, precision."""
    protocol = known["protocol"]
    metrics = set(Row(known, out).metrics)
    return known["model"], protocol["weights"], known["nfe"], metrics, protocol.get("precision")


def step_counts(model: Denoiser, teacher_steps: tuple[int, ...]) -> tuple[int | None, ...]:
    """The numbers of steps at which a model is measured; None for those that it was distilled to."""
    if model.draws:
        return GENERATIVE_STEPS
    return teacher_steps if model.levels is None else (None,)


def row(
    name: str,
    folder: Path,
    model: Denoiser,
    weights: str,
    plan: Plan,
    real: ImageData,
    out: Path,
    metrics: tuple[str, ...],
) -> dict[str, Any]:
    """Make as many images as there are real ones, of the same classes, measure them, keep a grid of the first."""
    n, about = count(real), card(folder)
    seeds, label = range(n), None
    if model.num_classes and real.labels is not None:  # evenly spaced, as data sets may be sorted by class
        label = torch.from_numpy(real.labels[np.linspace(0, len(real) - 1, n).round().astype(int)])
    protocol = {"model": about.name, "weights": weights}
    if label is not None:
        protocol["labels"] = "of the reference"
    began = time.monotonic()
    made = generated(model, seeds, label=label, plan=plan, batch_size=256)
    results = evaluate(made, real, Options(metrics), protocol=protocol)
    seconds = time.monotonic() - began
    picture = out / "samples" / f"{name}-nfe{count_evaluations(plan):03d}.png"
    columns = min(model.num_classes, 10) or 10
    fixed = torch.arange(5 * columns) % columns if model.num_classes else None
    shown = gather_images(generate(model, range(5 * columns), label=fixed, plan=plan), 5 * columns)
    if rank() == 0:
        save_png(grid(np.stack(shown), columns=columns), picture)
    return {
        "model": name,
        "method": about.method,
        "sampler": describe(plan)["sampler"],
        "nfe": count_evaluations(plan),
        **{r.metric: r.value for r in results},
        "n": n,
        "seeds": show_seeds(seeds),
        "images_per_second": n / seconds,
        "training_images": about.nimg,
        "training_seconds": read_log(folder / "log.jsonl").seconds,
        "grid": str(picture.relative_to(out)),
        "protocol": results[0].protocol,
    }


def show(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Print the table, with what is common to its rows in the title."""
    metrics = list(dict.fromkeys(name for r in rows for name in Row(r, out).metrics))
    table = Table(
        title=f"{rows[0]['n']:,} images, seeds {rows[0]['seeds']}",
        caption="every number with its protocol: results.json",
    )
    for heading in ("model", "method", "sampler"):
        table.add_column(heading)
    for heading in ("NFE", *metrics, "images/s", "trained on", "in s"):
        table.add_column(heading, justify="right")
    for r in rows:
        seconds = r["training_seconds"]
        values = [
            *(f"{r[name]:.3f}" for name in metrics),
            f"{r['images_per_second']:,.0f}",
            f"{r['training_images']:,}",
        ]
        names = [visible(r[name]) for name in ("model", "method", "sampler")]
        table.add_row(*names, str(r["nfe"]), *values, "" if seconds is None else f"{seconds:.0f}")
    Console(markup=False, emoji=False, highlight=False, color_system=None).print(table)
