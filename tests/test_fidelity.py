"""The page on fidelity is true: every row has a verdict and a test that exists, and every option is there, or is not."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import math
import re
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

import pytest
import torch

import fewstep as fs
from fewstep import inverse
from fewstep.cli import main
from fewstep.cli.dispatch import COMMANDS
from fewstep.cli.sampling import Sampling
from fewstep.core.noise import karras_sigmas
from fewstep.core.precondition import EDM, IDDPM, VE, VP
from fewstep.metrics.catalog import parse
from fewstep.metrics.evaluation import BATCH
from fewstep.metrics.extractors import FeatureNetwork
from fewstep.nets.layers import GroupNorm
from fewstep.recipes import get
from fewstep.train import ema

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "fidelity.md"
VERDICTS = ("same", "better", "different", "not offered")
HEADS = ["original", "here", "verdict", "test"]


class Row(NamedTuple):
    """line: of the page. commands: that the row's section names."""

    line: int
    original: str
    here: str
    verdict: str
    tests: str
    commands: tuple[str, ...]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def rows() -> list[Row]:
    """The tables of the page whose heads are HEADS, with the commands of their sections."""
    found: list[Row] = []
    commands: list[str] = []
    table = False
    paragraph = ""
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#"):
            commands = []
        paragraph = f"{paragraph} {line}" if line else ""
        if paragraph.startswith(" Command: "):
            commands = [word.removeprefix("fewstep ") for word in code(paragraph)]
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            table = False
        elif cells == HEADS:
            table = True
        elif table and set(line) != set("|-"):
            assert len(cells) == len(HEADS), f"line {number} has {len(cells)} cells"
            original, here, verdict, tests = cells
            found.append(Row(number, original, here, verdict, tests, tuple(commands)))
    return found


ROWS = rows()


@functools.cache
def options(command: str) -> frozenset[str]:
    """The options in the help of a command such as `sample` or `train cifar10:teacher`, spelled with hyphens."""
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
    heads = re.findall(r"^\W (--\w.*)", text.getvalue(), re.MULTILINE)
    return frozenset(word.replace("_", "-") for head in heads for word in re.findall(r"--[\w-]+", head.split("  ")[0]))


def flags(span: str) -> list[str]:
    return [word.partition("=")[0].replace("_", "-") for word in span.split() if word.startswith("--")]


def command_of(span: str) -> str | None:
    """The command of `fewstep COMMAND ...`."""
    words = span.split()
    if words[0] != "fewstep":
        return None
    for n in (2, 1):
        if (name := " ".join(words[1 : 1 + n])) in COMMANDS:
            return f"{name} {words[2]}" if name in ("train", "distill") else name
    raise AssertionError(f"there is no command {span!r}")


def test_every_row_has_a_verdict_and_a_test_that_exists() -> None:
    assert len(ROWS) > 200
    known = {
        path.name: set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in TESTS.rglob("test_*.py")
    }
    for row in ROWS:
        assert row.original and row.here and row.verdict.startswith(VERDICTS), f"line {row.line}: {row.verdict}"
        assert ": " in row.verdict or not row.verdict.startswith(("different", "not")), f"line {row.line} has no reason"
        assert code(row.tests), f"line {row.line} names no test"
        for test in code(row.tests):
            file, _, name = test.partition("::")
            assert name in known.get(file, set()), f"line {row.line}: there is no {test}"


def test_options_exist() -> None:
    """Each option under "here" is one of a command of the section, or of the command that is written before it."""
    for row in ROWS:
        for span in code(row.here):
            named = command_of(span)
            commands = (named,) if named else row.commands
            for flag in flags(span):
                assert commands, f"line {row.line}: {flag} of no command"
                assert any(flag in options(command) for command in commands), f"line {row.line}: {flag}, {commands}"


def test_what_is_not_offered_is_no_option() -> None:
    """Of any command of the section; so a row is corrected when somebody adds the option."""
    for row in ROWS:
        if row.verdict.startswith("not offered"):
            for flag in (flag for span in code(row.original) for flag in flags(span)):
                there = [command for command in row.commands if flag in options(command)]
                assert not there, f"line {row.line}: {flag} is an option of {there}"


def test_what_is_not_offered_is_not_there() -> None:
    """Parts that are no options of a command."""
    assert "data decode" not in COMMANDS
    assert "max_size" not in inspect.signature(fs.images).parameters
    with pytest.raises(ValueError, match="no metric is called 'ppl2_wend'"):
        parse("ppl2_wend")
    assert get_args(get_type_hints(type(get("cifar10:gdd")))["backbone"]) == ("deit", "vgg", "lite")
    assert not {"poisson", "kind"} & set(inspect.signature(inverse.Likelihood).parameters)
    assert not {"hmc", "mh"} & set(inspect.signature(inverse.daps).parameters)
    assert not {"ts", "daps"} & set(inspect.signature(inverse.pnp_gd).parameters)
    assert not hasattr(ema, "power_function_response")


DEFAULTS = {
    "sample": {"seeds": "0-63", "batch": None},
    "eval": {"metrics": "fid", "repeats": 1, "batch": None},
    "eval reference": {"batch": 64},
    "restore": {"preset": "published", "sigma_y": 0.05, "nfe": 49, "seed": 0, "batch": 32, "samples": 4},
    "data latents": {"encoder": "stabilityai/sd-vae-ft-mse"},
}
"""By command. A batch of None is 64, or on GPUs as many as fit."""
SAMPLING = {
    "rho": 7.0,
    "S_churn": 0.0,
    "S_min": 0.0,
    "S_max": math.inf,
    "S_noise": 1.0,
    "guidance": 1.0,
    "steps": None,
    "sigma_min": None,
    "sigma_max": None,
}
"""Of EDM's and EDM2's samplers. What is None depends on the model, see `test_golden.py`."""


def test_defaults_are_the_published_ones() -> None:
    for command, expected in DEFAULTS.items():
        parameters = inspect.signature(COMMANDS[command][0]).parameters
        assert {name: parameters[name].default for name in expected} == expected, command
    assert {name: getattr(Sampling(), name) for name in SAMPLING} == SAMPLING
    assert BATCH == 64
    levels = inspect.signature(karras_sigmas).parameters
    assert [levels[name].default for name in ("sigma_min", "sigma_max", "rho")] == [0.002, 80.0, 7.0]
    assert karras_sigmas(1).tolist() == [80.0, 0.0]


def test_ranges_of_the_preconditionings() -> None:
    """In the float32 arithmetic of the original."""
    ranges = {type(p).__name__: (p.sigma_min, p.sigma_max) for p in (VP(), VE(), IDDPM(), EDM())}
    assert ranges["VP"] == (0.0009765625, pytest.approx(152.16697692871094, rel=1e-7))
    assert ranges["VE"] == (0.02, 100.0)
    assert ranges["IDDPM"] == (pytest.approx(0.006422337, rel=1e-6), pytest.approx(20291.17, rel=1e-6))
    assert {c: GroupNorm(c).num_groups for c in (64, 128, 192, 132)} == {64: 16, 128: 32, 192: 32, 132: 22}
    assert ranges["EDM"] == (0.0, math.inf)


def test_grey_images_are_measured_as_rgb() -> None:
    images = torch.arange(2 * 8 * 8, dtype=torch.uint8).view(2, 1, 8, 8)
    network = FeatureNetwork("same", torch.nn.Module(), lambda x: x, resize="none", sha256=None)
    network.network.forward = lambda x: {"features": x}
    assert torch.equal(network(images)["features"], images.repeat(1, 3, 1, 1).float())
