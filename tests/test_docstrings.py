"""What users call says how: each parameter by name, and an example, which runs."""

from __future__ import annotations

import ast
import copy
import dataclasses
import doctest
import inspect
import io
import re
import textwrap
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch
from fewstep.data import ImageStream, digits
from tests.conftest import tiny_net
from tests.nets.test_registry import ConvConfig, ConvNet

ROOMS = (fs, fs.nets, fs.metrics, fs.inverse, fs.samplers, fs.distill, fs.recipes, fs.oracle, fs.precondition)
RUN = ("core", "nets", "samplers", "distill", "inverse", "metrics")
"""The rooms whose examples run. Those of the others train, or need files: they are compiled."""
DOWNLOADS = ("PerceptualDistance",)
"""Names whose examples need the weights of published networks; they are compiled as well."""


def exported(room: ModuleType) -> list[str]:
    """The names of a room: what it lists, else what it imports; of a module, the classes that it defines."""
    if hasattr(room, "__all__"):
        return room.__all__
    if hasattr(room, "__path__"):
        return [name for name in vars(room) if name[0] != "_"]
    return [name for name, value in vars(room).items() if inspect.isclass(value) and value.__module__ == room.__name__]


def callables() -> dict[str, Callable[..., Any]]:
    """What users call, each once, by its shortest name."""
    found: dict[Callable[..., Any], str] = {}
    for room in ROOMS:
        for name in exported(room):
            value = getattr(room, name)
            if inspect.isroutine(value) or inspect.isclass(value):
                found.setdefault(value, f"{room.__name__}.{name}".replace("fewstep", "fs", 1))
    return {name: value for value, name in found.items()}


CALLABLES = callables()
every_callable = pytest.mark.parametrize("name", CALLABLES)


def sections(text: str | None) -> dict[str, str]:
    """The sections of a Google-style docstring by their titles; the text before the first under ""."""
    parts = re.split(r"^(Args|Attributes|Returns|Yields|Raises|Example):$", inspect.cleandoc(text or ""), flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def fields_with_text(cls: type) -> set[str]:
    """The fields of a dataclass that a string below them documents, as those of settings."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def documented(value: Callable[..., Any]) -> set[str]:
    """The parameters that a docstring explains. A class also has those of the classes from which it inherits, a dataclass
    may list them as attributes.
    """
    owners = [c for c in value.__mro__ if c.__module__.startswith("fewstep")] if isinstance(value, type) else [value]
    found: set[str] = set()
    for owner in owners:
        told = sections(owner.__doc__)
        text = told.get("Args", "")
        if isinstance(owner, type) and dataclasses.is_dataclass(owner):
            text += told.get("Attributes", "")
            found |= fields_with_text(owner)
        found |= set(re.findall(r"^    \*{0,2}(\w+): \S", text, flags=re.M))
    return found


def parameters(value: Callable[..., Any]) -> set[str]:
    """The parameters of a call; none for classes that users inherit, whose call is PyTorch's or a protocol's."""
    if isinstance(value, type):
        own = [vars(c).keys() for c in value.__mro__ if c.__module__.startswith("fewstep")]
        if not any({"__init__", "__new__"} & names for names in own) or getattr(value, "_is_protocol", False):
            return set()
    return set(inspect.signature(value).parameters) - {"_cls"}  # of a named tuple


@every_callable
def test_every_parameter_is_documented(name):
    value = CALLABLES[name]
    assert parameters(value) - documented(value) == set()


@every_callable
def test_every_result_is_documented(name):
    value = CALLABLES[name]
    if not isinstance(value, type) and inspect.signature(value).return_annotation not in (None, "None"):
        assert sections(value.__doc__).keys() & {"Returns", "Yields"}


def test_a_parameter_without_a_line_is_found():
    def half(x, sigma):
        """Half.

        Args:
            x: noisy images.

        Raises:
            sigma: no parameter.
        """

    assert parameters(half) - documented(half) == {"sigma"}


@pytest.fixture(scope="module")
def world() -> dict[str, object]:
    """The variables of examples, by the names that the documentation gives them."""
    torch.manual_seed(0)
    model = Denoiser(tiny_net(label_dropout=0.1)).eval()
    x0, label = torch.rand(2, 1, 8, 8) * 2 - 1, torch.tensor([3, 7])
    method = fs.distill.SiD(model)
    operator = fs.inverse.Inpainting(fs.inverse.box_mask(8, 8), (1, 8, 8))
    return {
        "fs": fs,
        "torch": torch,
        "model": model,
        "teacher": model,
        "net": tiny_net(),
        "method": method,
        "fake_score": method.fake_score,
        "generator": method.generator,
        "denoise": fs.oracle.GaussianDenoiser(torch.zeros(1, 8, 8, dtype=torch.float64), 0.25),
        "sigmas": fs.karras_sigmas(4),
        "z": torch.randn(2, 1, 8, 8, dtype=torch.float64),
        "x0": x0,
        "x": x0 + torch.randn_like(x0),
        "y": x0 + torch.randn_like(x0),
        "sigma": torch.ones(2),
        "c_noise": torch.zeros(2),
        "label": label,
        "batch": Batch(x0, label),
        "stream": ImageStream(digits(), seed=0),
        "operator": operator,
        "likelihood": fs.inverse.Likelihood(operator, operator(x0), sigma_y=0.05),
        "Path": Path,
        "MyNet": ConvNet,
        "MyConfig": ConvConfig,
    }


@every_callable
def test_every_example_runs(name, world, tmp_path, monkeypatch):
    value = CALLABLES[name]
    lines = doctest.DocTestParser().get_examples(sections(value.__doc__).get("Example", ""))
    assert lines, "an example shows how it is called"
    code = [compile(line.source.replace("range(2000)", "range(80)"), name, "single") for line in lines]
    if value.__module__.split(".")[1] not in RUN or value.__name__ in DOWNLOADS:
        return
    monkeypatch.chdir(tmp_path)
    registered: dict[str, object] = {}
    for place in ("nets.registry", "io.model_folder"):
        monkeypatch.setattr(f"fewstep.{place}.REGISTERED", registered)
    for file in ("images.npy", "targets.npy"):
        np.save(file, np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8))
    torch.manual_seed(0)
    names = {key: thing if isinstance(thing, ModuleType) else copy.deepcopy(thing) for key, thing in world.items()}
    for part, line in zip(code, lines, strict=True):
        with redirect_stdout(io.StringIO()) as printed:
            exec(part, names)
        assert not line.want or printed.getvalue() == line.want
