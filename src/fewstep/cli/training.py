"""`fewstep train`, `distill` and `compare`: recipes as commands."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from fewstep.cli.arguments import command_line, joined, next_step, with_config
from fewstep.cli.parsing import call
from fewstep.runtime.foreign import visible_output

if TYPE_CHECKING:
    from fewstep.train.run import Run


def fitting(
    *,
    out: Path,
    device: str | None = None,
    fresh: bool = False,
    transfer: str | None = None,
    keep: int = 3,
    strategy: Literal["replicate", "shard"] = "replicate",
    compile: bool = False,
    recompute: int | Literal["light"] | None = None,
    tf32: bool = False,
    track: str | None = None,
    eval_every: int | None = None,
    eval_metrics: str = "fd_pixels",
    eval_images: int = 10_000,
    eval_reference: str | None = None,
) -> None:
    """What `train` and `distill` add to a recipe.

    Args:
        out: the run's folder; the same command again resumes it.
        device: where to compute: cpu, cuda, cuda:1, ...; a GPU where there is one, if left out.
        fresh: start over.
        transfer: start from the weights of another network: a model or run folder, hf://owner/name, an upstream .pkl or .pt, or
            its address; tensors are taken by name. A training starts its network so, a distillation its generator.
        keep: how many checkpoints, each the whole state of training, stay on disk.
        strategy: under torchrun, whether each process holds the networks whole or in parts, for those that do not fit.
        compile: compile the blocks of the denoisers first (torch.compile); slow to start, then quicker on GPUs.
        recompute: less memory for more time: light computes norms and activations again for gradients, a number all of
            the blocks on images of at least so many pixels a side (1 means all blocks); nothing if left out.
        tf32: what is computed in float32 may round its factors to 10 bits on GPUs.
        track: also send figures to tensorboard, wandb, trackio, or several of them, with commas between.
        eval_every: measure the averaged model every so many training images and keep the best; not at all if left out.
        eval_metrics: such as fid,fd_dinov2 (fewstep eval); the first decides which model is the best.
        eval_images: how many images are made for it.
        eval_reference: images or statistics, as of fewstep eval; the training images if left out.
    """


def monitored(run: Run, given: Mapping[str, Any]) -> None:
    """Add what `fitting` says to a run."""
    from fewstep.io.reference_files import open_reference
    from fewstep.train.evaluation import Evaluation

    run.keep = given["keep"]
    run.strategy = given["strategy"]
    run.compile = given["compile"]
    run.recompute = given["recompute"]
    run.tf32 = given["tf32"]
    if given["track"] is not None:
        run.track = tuple(given["track"].split(","))
    if given["eval_every"] is not None:
        reference = None if given["eval_reference"] is None else open_reference(given["eval_reference"])
        names = tuple(given["eval_metrics"].split(","))
        run.evaluation = Evaluation(given["eval_every"], names, reference, given["eval_images"])
        return
    for name, option in inspect.signature(fitting).parameters.items():
        if name.startswith("eval_") and given[name] != option.default:
            raise ValueError(f"--{name.replace('_', '-')} has no effect without --eval-every IMAGES")


def fit_recipe(argv: Sequence[str], command: str) -> None:
    """`fewstep train|distill RECIPE [options of the recipe] --out FOLDER [--fresh]`."""
    from fewstep.io.model_folder import card
    from fewstep.recipes import find
    from fewstep.runtime.distributed import process_group, rank
    from fewstep.train.run import Run, fit
    from fewstep.train.transfer import transfer as start_from

    if not argv or argv[0].startswith("-"):
        usage = f"usage: fewstep {command} RECIPE --out FOLDER [options of the recipe]"
        if argv and argv[0] in ("-h", "--help"):
            print(f"{usage}\n\nfewstep recipes lists them; fewstep {command} RECIPE --help shows the options of one.")
            return
        raise ValueError(
            f"expected a recipe first; got {argv[0] if argv else 'none'}; {usage}; fewstep recipes lists them"
        )
    name, *rest = argv
    recipe = find(name)
    wanted = "distill" if "teacher" in inspect.signature(recipe).parameters else "train"
    if wanted != command:
        has = "a" if wanted == "distill" else "no"
        raise ValueError(f"{name} has {has} teacher; the command is: fewstep {wanted} {name}")
    run, given = call(joined(recipe, fitting), with_config(rest), f"fewstep {command} {name}")
    if not isinstance(run, Run):
        raise ValueError(f"a recipe is a function that returns a Run; {name} returned {type(run).__name__}")
    run.command = command_line([command, *argv])
    monitored(run, given)
    with process_group(), visible_output():
        if given["transfer"] is not None:
            taken = start_from(run, given["transfer"])
            if rank() == 0:
                print(taken)
        if rank() == 0:
            print(summary(run.data.data))
        fit(run, given["out"], fresh=given["fresh"])
        if rank() == 0:
            next_one = next_step("sample", given["out"], "--grid", "grid.png")
            print(f"{given['out']}: trained to {card(given['out']).nimg:,} images; {next_one}")


def summary(data: Any) -> str:
    """What a run learns from: how many images, of which shape and classes."""
    from fewstep.data.classes import class_list

    classes = class_list(data.num_classes, getattr(data, "class_names", None)) if data.num_classes else "no classes"
    return f"{data.name}: {len(data):,} images of shape {tuple(data.shape)}, {classes}"


def compare(
    teacher: Positional[Path],
    methods: Positional[tuple[str, ...]],
    *,
    data: str,
    out: Path,
    until: int | None = None,
    evaluations: int = 6,
    metrics: str = "fd_pixels",
    seed: int = 0,
    fresh: bool = False,
) -> None:
    """Distil one teacher by several recipes at equal budget: a table, and a report with quality over NFE, images and seconds.

    Args:
        teacher: model or run folder.
        methods: recipes such as digits:sid digits:gdd, or mine.py:recipe; what takes a student starts from that of SiD.
        data: images for training and as the reference: zip or folder, or the built-in digits.
        out: folder of all runs, results.json and report.html; a second call continues.
        until: training images of every method; those of its recipe if left out.
        evaluations: measurements of each run on its way.
        metrics: such as fid,pr; fewstep eval explains them.
        seed: of weights, data order and noise.
        fresh: start over.
    """
    from fewstep.compare import compare as run_compare
    from fewstep.compare import show
    from fewstep.runtime.distributed import process_group, rank

    if not methods:
        raise ValueError("name the recipes to compare, such as digits:sid digits:sida; fewstep recipes lists them")
    with process_group():
        rows = run_compare(
            teacher,
            methods,
            out,
            data=data,
            until=until,
            evaluations=evaluations,
            metrics=tuple(metrics.split(",")),
            seed=seed,
            fresh=fresh,
            command=command_line(["compare", str(teacher), *methods, "--data", data, "--out", str(out)]),
        )
        if rank() == 0:
            show(rows, out)
            print(f"Look at {out / 'report.html'}")


def recipes(name: Positional[str | None] = None, *, method: str | None = None) -> None:
    """List the recipes, or show the options of one.

    Args:
        name: such as digits:teacher.
        method: list those of one method alone, such as sida or teacher.
    """
    from fewstep.recipes import find
    from fewstep.recipes import recipes as all_recipes

    if name is not None:
        call(joined(find(name), fitting), ["--help"], f"fewstep train|distill {name}")
        return
    known = all_recipes()
    if method is not None:
        methods = dict.fromkeys(n.partition(":")[2] for n in known)
        if method not in methods:
            raise ValueError(f"there is no method {method!r}; there are {', '.join(methods)}")
        known = {n: recipe for n, recipe in known.items() if n.endswith(f":{method}")}
    width = max(len(n) for n in known)
    for n, recipe in known.items():
        print(f"{n:{width}}  {(recipe.__doc__ or '').strip().splitlines()[0]}")
