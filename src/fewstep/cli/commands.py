"""The commands. Only what a command needs is imported, when it runs: `fewstep --help` does not import torch."""

from __future__ import annotations

import inspect
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from fewstep.cli import data, evaluation, restoration, sharing
from fewstep.cli.arguments import command_line, joined, parse_seeds, shown, with_config
from fewstep.cli.sampling import Sampling
from fewstep.cli.sampling import levels as parse_levels
from fewstep.files import OFFLINE, writable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fewstep.train.run import Run


def demo(
    *,
    out: Path = Path("runs/demo"),
    minutes: float = 5.0,
    all_methods: bool = False,
    fresh: bool = False,
    seed: int = 0,
) -> None:
    """The whole path on a laptop: teacher, one-step student, samples, measurements, restorations, report.

    Args:
        out: where everything is written; a second call continues or reuses what is there.
        minutes: about how long training of teacher and one student may take on two cores; more is better.
        all_methods: a student by every method of distillation, about three minutes each.
        fresh: start over.
        seed: of weights, data order and noise.
    """
    from fewstep.demo import demo as run_demo
    from fewstep.distributed import process_group

    with process_group():
        run_demo(out, minutes=minutes, all_methods=all_methods, fresh=fresh, seed=seed)


def ema(run: Positional[Path], *, std: str, nimg: int | None = None, out: Path | None = None) -> None:
    """Averages of any length after training, from the snapshots of power-function averages (EDM2).

    Args:
        run: run folder trained with power-function averages, or a folder of EDM2's snapshot pickles.
        std: relative lengths of the averages, such as 0.05,0.10.
        nimg: training images at which the averages end; the last snapshot if left out.
        out: folder for the model folders; RUN/posthoc if left out.
    """
    from fewstep.train.posthoc import reconstruct

    try:
        stds = [float(part) for part in std.split(",")]
    except ValueError as error:
        raise ValueError(f'--std are numbers such as "0.05,0.10"; got {std!r}') from error
    for path in reconstruct(run, stds, nimg=nimg, out=out):
        print(path)


def fitting(
    *,
    out: Path,
    fresh: bool = False,
    keep: int = 3,
    strategy: Literal["replicate", "shard"] = "replicate",
    compile: bool = False,
    recompute: int | None = None,
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
        fresh: start over.
        keep: how many checkpoints, each the whole state of training, stay on disk.
        strategy: under torchrun, whether each process holds the networks whole or in parts, for those that do not fit.
        compile: compile the blocks of the denoisers first (torch.compile); slow to start, then quicker on GPUs.
        recompute: less memory for more time: blocks on images of at least so many pixels a side keep their inputs alone,
            and compute the rest again for gradients; 1 means all blocks, none if left out.
        tf32: what is computed in float32 may round its factors to 10 bits on GPUs.
        track: also send figures to tensorboard, wandb, trackio, or several of them, with commas between.
        eval_every: measure the averaged model every so many training images and keep the best; not at all if left out.
        eval_metrics: such as fid,fd_dinov2 (fewstep eval); the first decides which model is the best.
        eval_images: how many images are made for it.
        eval_reference: images or statistics, as of fewstep eval; the training images if left out.
    """


def monitored(run: Run, given: Mapping[str, Any]) -> None:
    """Add what `fitting` says to a run."""
    from fewstep.convert.references import open_reference
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
    from fewstep.recipes import find

    if not argv or argv[0].startswith("-"):
        usage = f"usage: fewstep {command} RECIPE --out FOLDER [options of the recipe]"
        if argv and argv[0] in ("-h", "--help"):
            print(f"{usage}\n\nfewstep recipes lists them; fewstep {command} RECIPE --help shows the options of one.")
            return
        raise ValueError(
            f"expected a recipe first; got {argv[0] if argv else 'none'}; {usage}; fewstep recipes lists them"
        )
    name, *rest = argv
    options = joined(find(name), fitting)
    run, given = tyro.cli(options, args=with_config(rest), prog=f"fewstep {command} {name}")
    from fewstep.checkpoint import card
    from fewstep.distributed import process_group, rank
    from fewstep.train.run import fit

    run.command = command_line([command, *argv])
    monitored(run, given)
    with process_group():
        fit(run, given["out"], fresh=given["fresh"])
        if rank() == 0:
            print(
                f"{given['out']}: trained to {card(given['out']).nimg:,} images; next: fewstep sample {given['out']} "
                "--grid grid.png"
            )


def sample(
    model: Positional[Path],
    *,
    seeds: str = "0-63",
    out: Path | None = None,
    grid: Path | None = None,
    npz: Path | None = None,
    subdirs: bool = False,
    label: Annotated[int | None, arg(name="class")] = None,
    batch: int | None = None,
    sampling: OmitArgPrefixes[Sampling] = Sampling(),
) -> None:
    """Make images: one for each seed, as PNG files, as one grid, as one array, or all of these.

    Args:
        model: model or run folder.
        seeds: such as 0-63 or 1,2,5-10.
        out: folder for one PNG per seed.
        grid: PNG file for all images side by side.
        npz: file for all images as one array, arr_0 (N, H, W, C).
        subdirs: a folder for every 1,000 seeds.
        label: class index for all images; drawn from the seed if left out.
        batch: images at a time; 64 if left out, on GPUs as many as fit. It does not change them.
        sampling: how.
    """
    if out is None and grid is None and npz is None:
        raise ValueError("nowhere to write to: give --out FOLDER, --grid FILE.png, --npz FILE.npz, or several of them")
    chosen = parse_seeds(seeds)
    for option, path, suffix in (("--grid", grid, ".png"), ("--npz", npz, ".npz")):
        if path is not None and path.suffix.lower() != suffix:
            raise ValueError(
                f"{option} writes {suffix[1:].upper()}; name the file so, such as images{suffix}; got {str(path)!r}"
            )
        if path is not None:
            writable(path)
    if batch is not None and batch < 1:
        raise ValueError(f"--batch must be at least 1; got {batch}")

    import numpy as np

    from fewstep.distributed import process_group, rank, world_size
    from fewstep.files import new_file
    from fewstep.generation import gathered, generate
    from fewstep.progress import track
    from fewstep.report.grid import grid as make_grid
    from fewstep.report.grid import save_png

    with process_group():
        network = sampling.load(model)
        mine = chosen[rank() :: world_size()]
        made = generate(network, chosen, label=label, plan=sampling.plan(network), batch_size=batch, tf32=sampling.tf32)

        def written() -> Iterator[NDArray[np.uint8]]:
            for seed, image in zip(mine, track(made, total=len(mine), description="sample"), strict=True):
                if out is not None:
                    folder = out / f"{seed - seed % 1000:06d}" if subdirs else out
                    save_png(make_grid(image, scale=1), folder / f"{seed:06d}.png")
                yield image

        if grid is None and npz is None:
            deque(written(), maxlen=0)
            return
        images = list(gathered(written(), len(chosen)))
        if grid is not None and rank() == 0:
            save_png(make_grid(np.stack(images)), grid)
        if npz is not None and rank() == 0:
            with new_file(npz) as partial, partial.open("wb") as file:
                np.savez(file, arr_0=np.stack(images))


def convert(
    source: Positional[str],
    out: Positional[Path],
    *,
    levels: str | None = None,
) -> None:
    """Turn an upstream snapshot pickle (EDM, EDM2, SiD, SiDA, GDD) into a model folder; nothing in it is run.

    Args:
        source: path or http(s) address of the file.
        out: model folder to write.
        levels: for a student, the noise levels it generates from, such as 2.5; those known for its kind if left out.
    """
    from fewstep.checkpoint import Card, save
    from fewstep.convert import convert as read
    from fewstep.convert import fetch

    path = fetch(source)
    given = None if levels is None else tuple(parse_levels(levels).tolist()[:-1])
    denoiser, origin = read(path, source=source.rsplit("/", 1)[-1] if "://" in source else None, levels=given)
    print(f"{origin['source']}: {origin['bytes']:,} bytes, sha256 {origin['sha256']}")
    print(f"{' around '.join(origin['classes'])}, {sum(p.numel() for p in denoiser.parameters()):,} parameters")
    method, lineage = " around ".join(origin["classes"]), [f"{source} (sha256 {origin['sha256']})"]
    save(denoiser, out, Card(name=path.stem, method=method, lineage=lineage, license=origin["license"]))
    print(f"License of the weights: {origin['license']}")
    if "no commercial use" in origin["license"]:
        print(
            "fewstep: warning: these weights, and students distilled from them, are not for commercial use",
            file=sys.stderr,
        )
    print(f"{out}: next: fewstep sample {out} --grid grid.png")


def export(model: Positional[Path], out: Positional[Path]) -> None:
    """Write the weights of a model under their upstream names, as one safetensors file, for other tools.

    Args:
        model: model or run folder.
        out: safetensors file to write.
    """
    from fewstep.checkpoint import contiguous, load
    from fewstep.convert import upstream_state_dict
    from fewstep.files import new_file, write_tensors

    if out.suffix != ".safetensors":
        raise ValueError(f"the file of weights is a safetensors file; name it so: {out.with_suffix('.safetensors')}")
    tensors = contiguous(upstream_state_dict(load(model)))
    with new_file(out) as partial:
        write_tensors(partial, tensors, metadata={"format": "pt"})
    print(f"{out}: {len(tensors)} tensors")


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
    from fewstep.distributed import process_group, rank

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


def report(folder: Positional[Path]) -> None:
    """Write report.html, one self-contained page, from the runs and results in a folder.

    Args:
        folder: a run, or a folder of runs.
    """
    from fewstep.report.page import write_report

    print(write_report(folder))


def bench_samplers(
    *,
    out: Path = Path("runs/bench-samplers"),
    model: Path | None = None,
    reference: str | None = None,
    samples: int = 4000,
    seed: int = 0,
) -> None:
    """Compare all samplers: convergence on a mixture whose denoiser is known and, given a model, its distances over cost.

    Args:
        out: folder for the table, the figures and the numbers.
        model: model or run folder; needs a reference.
        reference: real images for the distances: image zip or folder, or the built-in digits.
        samples: points of the mixture.
        seed: of the points and their noise.
    """
    from fewstep.bench.samplers import bench_samplers as run_bench

    run_bench(out, model=model, reference=reference, samples=samples, seed=seed)


def recipes(name: Positional[str | None] = None, *, method: str | None = None) -> None:
    """List the recipes, or show the options of one.

    Args:
        name: such as digits:teacher.
        method: list those of one method alone, such as sida or teacher.
    """
    from fewstep.recipes import find
    from fewstep.recipes import recipes as all_recipes

    if name is not None:
        tyro.cli(joined(find(name), fitting), args=["--help"], prog=f"fewstep train|distill {name}")
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


COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "demo": (demo, "the whole path on a laptop, without a download"),
    "data pack": (data.pack, "pack images into a data set"),
    "data latents": (data.latents, "encode images with a VAE, for training on latents"),
    "data stats": (data.stats, "measure a data set, and propose how to train on it"),
    "data check": (data.check, "find every bad file of a data set"),
    "train": (fit_recipe, "train a teacher by a recipe"),
    "distill": (fit_recipe, "distil a teacher by a recipe"),
    "compare": (compare, "distil one teacher by several methods, side by side"),
    "sample": (sample, "make images"),
    "restore": (restoration.restore, "solve inverse problems: inpainting, deblurring, super-resolution, ..."),
    "ema": (ema, "averages of any length after training (EDM2)"),
    "convert": (convert, "turn an upstream pickle into a model folder, safely"),
    "export": (export, "write a model's weights under their upstream names"),
    "push": (sharing.push, "send a model to the Hugging Face hub"),
    "pull": (sharing.pull, "get a model from the Hugging Face hub"),
    "eval": (evaluation.evaluate, "measure a model or images"),
    "eval reference": (evaluation.reference, "compute once what metrics need of real images"),
    "eval pairs": (evaluation.pairs, "measure how close images are to those they should be"),
    "eval compare": (evaluation.compare, "one table of several results, with warnings"),
    "assets list": (evaluation.assets_list, "list the weights of feature networks"),
    "assets fetch": (evaluation.assets_fetch, "get the weights of a feature network"),
    "assets check": (evaluation.assets_check, "check the weights that are there"),
    "report": (report, "one HTML page from a folder of runs"),
    "bench samplers": (bench_samplers, "compare the samplers"),
    "recipes": (recipes, "list the recipes"),
}


SHARED = {
    *("demo", "train", "distill", "compare", "sample", "restore", "eval", "eval reference", "eval pairs"),
    *("data pack", "data latents", "data stats", "data check"),
}
"""Commands that all ranks of torchrun work on; the others are the first rank's alone."""


def overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    more = ["fewstep COMMAND --help shows the options of one.", "--offline, with any of them: never touch the network."]
    return "\n".join(["usage: fewstep COMMAND ...", "", *lines, "", *more])


NO_NETWORK = {
    OFFLINE: "1",
    **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK"), "1"),
    **dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_IMPLICIT_TOKEN"), "1"),
    "WANDB_MODE": "offline",
}
"""What keeps this library and the packages that it may use from the network."""


@contextmanager
def without_network() -> Iterator[None]:
    """Everything in here stays off the network, processes that are started included."""
    before = {name: os.environ.get(name) for name in NO_NETWORK}
    os.environ |= NO_NETWORK
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run(argv: list[str]) -> None:
    """Find the command, parse its options, call it. `--offline` goes with every command, in any place."""
    if "--offline" in argv:
        with without_network():
            run([word for word in argv if word != "--offline"])
        return
    if argv[:1] in (["--version"], ["-V"]):
        from importlib.metadata import version

        print(f"fewstep {version('fewstep')}")
        return
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return
    words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    name = " ".join(argv[:words])
    if name not in COMMANDS:
        group = [c for c in COMMANDS if c.startswith(f"{name} ")]
        if group and argv[1:2] in ([], ["-h"], ["--help"]):
            width = max(map(len, group))
            print("\n".join(f"fewstep {c:{width}}  {COMMANDS[c][1]}" for c in group))
            return
        raise ValueError(f"there is no command {' '.join(argv[:2])!r}; there are {', '.join(COMMANDS)}")
    function, _ = COMMANDS[name]
    if name not in SHARED and os.environ.get("RANK", "0") != "0":
        return
    if function is fit_recipe:
        fit_recipe(argv[words:], name)
    else:
        tyro.cli(shown(function), args=with_config(argv[words:]), prog=f"fewstep {name}")
