"""The table of commands, and the one place that finds, checks and calls them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

from fewstep.cli import assets, commands, data, evaluation, models, restoration, sampling, training
from fewstep.cli.arguments import shown, with_config
from fewstep.cli.parsing import call
from fewstep.runtime.environment import OFFLINE
from fewstep.runtime.launch import launched


class Command(NamedTuple):
    """One command of the program.

    Attributes:
        function: its signature is the command's options, its docstring the help.
        summary: for the overview.
        all_ranks: of torchrun work on it; other commands run on the first rank alone.
    """

    function: Callable[..., Any]
    summary: str
    all_ranks: bool = False


COMMANDS = {
    "demo": Command(commands.demo, "train, distil, sample and evaluate on a laptop", all_ranks=True),
    "data pack": Command(data.pack, "pack images into a data set", all_ranks=True),
    "data latents": Command(data.latents, "encode images with a VAE, for training on latents", all_ranks=True),
    "data stats": Command(data.stats, "measure a data set and suggest training settings", all_ranks=True),
    "data check": Command(data.check, "list every unusable file of a data set", all_ranks=True),
    "train": Command(training.fit_recipe, "train a teacher with a recipe", all_ranks=True),
    "distill": Command(training.fit_recipe, "distil a teacher with a recipe", all_ranks=True),
    "compare": Command(training.compare, "distil one teacher with several methods and compare them", all_ranks=True),
    "sample": Command(sampling.sample, "generate images", all_ranks=True),
    "restore": Command(restoration.restore, "solve inverse problems: inpainting, deblurring, ...", all_ranks=True),
    "ema": Command(models.ema, "reconstruct EMA weights of any length (post-hoc, EDM2)"),
    "convert": Command(models.convert, "convert an upstream checkpoint to a model folder"),
    "export": Command(models.export, "export a model's weights under their upstream names"),
    "push": Command(models.push, "upload a model to the Hugging Face hub"),
    "pull": Command(models.pull, "download a model from the Hugging Face hub"),
    "eval": Command(
        evaluation.evaluate, "evaluate a model or images: FID, KID, precision, recall, ...", all_ranks=True
    ),
    "eval reference": Command(evaluation.reference, "compute reference statistics of real images", all_ranks=True),
    "eval pairs": Command(evaluation.pairs, "compare images with their targets: PSNR, SSIM, LPIPS", all_ranks=True),
    "eval compare": Command(evaluation.compare, "compare results in one table, with warnings"),
    "assets list": Command(assets.assets_list, "list the weights of feature networks"),
    "assets fetch": Command(assets.assets_fetch, "download the weights of a feature network"),
    "assets check": Command(assets.assets_check, "verify the weights that were downloaded"),
    "report": Command(commands.report, "write an HTML report of a folder of runs"),
    "recipes": Command(training.list_recipes, "list the recipes, or the settings of one"),
}


def overview() -> str:
    return "\n".join(
        [
            "usage: fewstep COMMAND ...",
            "",
            "Start here: fewstep demo (a few minutes, no download, no GPU).",
            "",
            *listing([*COMMANDS], "  "),
            "",
            "fewstep COMMAND --help                    show the options of a command",
            "fewstep --version                         print the version",
            "fewstep --install-completion              complete commands and options with the tab key (bash, zsh, fish)",
            "fewstep --print-completion bash|zsh|fish  print the script for it",
            "",
            "With any command:",
            "  --offline  do not use the network",
            "  --debug    print the full traceback of an error",
        ]
    )


def listing(names: Sequence[str], prefix: str) -> list[str]:
    """Commands with their summaries, in two columns."""
    width = max(map(len, names))
    return [f"{prefix}{name:{width}}  {COMMANDS[name].summary}" for name in names]


def run(words: list[str]) -> None:
    """Find the command in `words`, parse its options and call it. `--offline` may stand anywhere."""
    if "--offline" in words:
        with without_network():
            run([word for word in words if word != "--offline"])
        return
    match words:
        case ["--version" | "-V", *_]:
            from importlib.metadata import version

            print(f"fewstep {version('fewstep')}")
        case [] | ["-h" | "--help", *_]:
            print(overview())
        case ["--print-completion", *shell]:
            from fewstep.cli.completion import script

            print(script(shell))
        case ["--install-completion", *shell]:
            from fewstep.cli.completion import install

            print(install(shell))
        case _:
            find_and_call(words)


def find_and_call(words: list[str]) -> None:
    length = 2 if " ".join(words[:2]) in COMMANDS else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        group = [command for command in COMMANDS if command.startswith(f"{name} ")]
        if not group or words[1:2] not in ([], ["-h"], ["--help"]):
            raise ValueError(unknown(words[:2], group))
        print("\n".join(listing(group, "fewstep ")))
        return
    command = COMMANDS[name]
    if not command.all_ranks and launched().rank:
        return
    try:
        if command.function is training.fit_recipe:
            training.fit_recipe(words[length:], name)
        else:
            call(signature(name), with_config(words[length:]), f"fewstep {name}")
    finally:
        if "fewstep.runtime.distributed" in sys.modules:  # --device is this command's choice, not the process's
            sys.modules["fewstep.runtime.distributed"].use(None)


def signature(name: str) -> Callable[..., Any]:
    """The function of a command as the parser sees it."""
    return shown(COMMANDS[name].function)


def unknown(words: list[str], group: Sequence[str]) -> str:
    """The message about a command that does not exist: similar ones, otherwise all."""
    command = " ".join(words)
    if group:
        return f"expected one of {', '.join(f'fewstep {name}' for name in group)}; got {command!r}"
    near = [*get_close_matches(command, COMMANDS, n=3), *get_close_matches(words[0], COMMANDS, n=3)]
    there = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"there is no command {(words[0] if near else command)!r}; {there}"


NO_NETWORK = {
    OFFLINE: "1",
    **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK"), "1"),
    **dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_IMPLICIT_TOKEN"), "1"),
    "WANDB_MODE": "offline",
}
"""Environment variables that keep this library, and the packages that it may use, off the network."""


@contextmanager
def without_network() -> Iterator[None]:
    """Keep this process, and those that it starts, off the network."""
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
