"""The commands. Only what a command needs is imported, when it runs: `fewstep --help` does not import torch."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from fewstep.cli import data, evaluation, models, restoration, training
from fewstep.cli.arguments import parse_seeds, placed, shown, with_config
from fewstep.cli.parsing import call
from fewstep.cli.sampling import Sampling
from fewstep.runtime import outputs
from fewstep.runtime.files import OFFLINE
from fewstep.runtime.launch import launched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    from fewstep.runtime.distributed import process_group

    outputs.folder(out)
    with process_group():
        run_demo(out, minutes=minutes, all_methods=all_methods, fresh=fresh, seed=seed)


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
        out: folder for one PNG per seed, or one npy (C, H, W) where images are neither grey nor RGB.
        grid: PNG file for all images side by side; of images that are neither grey nor RGB, channel beside channel.
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
            outputs.file(path)
    if out is not None:
        outputs.folder(out)
    if batch is not None and batch < 1:
        raise ValueError(f"--batch must be at least 1; got {batch}")

    import numpy as np

    from fewstep.data.grid import grid as make_grid
    from fewstep.data.grid import save_image, save_png
    from fewstep.runtime.distributed import process_group, rank, world_size
    from fewstep.runtime.files import new_file
    from fewstep.runtime.progress import track
    from fewstep.sample import gathered, generate

    with process_group():
        network = sampling.load(model)
        mine = chosen[rank() :: world_size()]
        made = generate(network, chosen, label=label, plan=sampling.plan(network), batch_size=batch, tf32=sampling.tf32)

        def written() -> Iterator[NDArray[np.uint8]]:
            for seed, image in zip(mine, track(made, total=len(mine), description="sample"), strict=True):
                if out is not None:
                    folder = out / f"{seed - seed % 1000:06d}" if subdirs else out
                    save_image(image, folder / f"{seed:06d}")
                yield image

        if grid is None and npz is None:
            deque(written(), maxlen=0)
            return
        images = list(gathered(written(), len(chosen)))
        if grid is not None and rank() == 0:
            save_png(make_grid(np.stack(images)), grid)
            print(f"{grid}: {len(images):,} images")
        if npz is not None and rank() == 0:
            with new_file(npz) as partial, partial.open("wb") as file:
                np.savez(file, arr_0=np.stack(images))
            print(f"{npz}: {len(images):,} images")


def report(folder: Positional[Path]) -> None:
    """Write report.html, one self-contained page, from the runs and results in a folder.

    Args:
        folder: a run, or a folder of runs.
    """
    from fewstep.report.page import write_report

    print(write_report(folder))


COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "demo": (demo, "the whole path on a laptop, without a download"),
    "data pack": (data.pack, "pack images into a data set"),
    "data latents": (data.latents, "encode images with a VAE, for training on latents"),
    "data stats": (data.stats, "measure a data set, and propose how to train on it"),
    "data check": (data.check, "find every bad file of a data set"),
    "train": (training.fit_recipe, "train a teacher by a recipe"),
    "distill": (training.fit_recipe, "distil a teacher by a recipe"),
    "compare": (training.compare, "distil one teacher by several methods, side by side"),
    "sample": (sample, "make images"),
    "restore": (restoration.restore, "solve inverse problems: inpainting, deblurring, super-resolution, ..."),
    "ema": (models.ema, "weight averages of any length after training (EDM2)"),
    "convert": (models.convert, "convert an upstream file to a model folder, executing nothing"),
    "export": (models.export, "write a model's weights under their upstream names"),
    "push": (models.push, "send a model to the Hugging Face hub"),
    "pull": (models.pull, "get a model from the Hugging Face hub"),
    "eval": (evaluation.evaluate, "measure a model or images"),
    "eval reference": (evaluation.reference, "compute once what metrics need of real images"),
    "eval pairs": (evaluation.pairs, "measure how close images are to those they should be"),
    "eval compare": (evaluation.compare, "one table of several results, with warnings"),
    "assets list": (evaluation.assets_list, "list the weights of feature networks"),
    "assets fetch": (evaluation.assets_fetch, "get the weights of a feature network"),
    "assets check": (evaluation.assets_check, "check the weights that are there"),
    "report": (report, "one HTML page from a folder of runs"),
    "recipes": (training.list_recipes, "list the recipes"),
}


COMPUTING = {
    *("demo", "data latents", "compare", "sample", "restore", "eval", "eval reference", "eval pairs"),
}
"""Commands that compute with networks, beside `train` and `distill`; all of them take `--device`."""

SHARED = {
    *("demo", "train", "distill", "compare", "sample", "restore", "eval", "eval reference", "eval pairs"),
    *("data pack", "data latents", "data stats", "data check"),
}
"""Commands that all ranks of torchrun work on; the others are the first rank's alone."""


def overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    more = [
        "fewstep COMMAND --help shows the options of one.",
        "--offline, with any of them: never touch the network.",
        "--debug, with any of them: the whole trace of an error.",
    ]
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


def unknown(words: list[str], group: Sequence[str]) -> str:
    """What to say of a command that there is not: those like it, else all."""
    given = " ".join(words)
    if group:
        return f"expected one of {', '.join(f'fewstep {name}' for name in group)}; got {given!r}"
    near = [*get_close_matches(given, COMMANDS, n=3), *get_close_matches(words[0], COMMANDS, n=3)]
    there = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else f"there are {', '.join(COMMANDS)}"
    return f"there is no command {(words[0] if near else given)!r}; {there}"


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
        raise ValueError(unknown(argv[:2], group))
    function, _ = COMMANDS[name]
    if name not in SHARED and launched().rank:
        return
    try:
        if function is training.fit_recipe:
            training.fit_recipe(argv[words:], name)
        else:
            function = placed(function) if name in COMPUTING else function
            call(shown(function), with_config(argv[words:]), f"fewstep {name}")
    finally:
        if "fewstep.runtime.distributed" in sys.modules:  # the choice is this command's, not the process's
            sys.modules["fewstep.runtime.distributed"].use(None)
