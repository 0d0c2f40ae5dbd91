"""An option of every run is one field of `RunOptions`: it has its help and its flag, and arrives in the run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from fewstep import recipes
from fewstep.cli import training
from fewstep.cli.parsing import call_settings, field_docs
from fewstep.train.options import RunOptions
from fewstep.train.settings import Run
from tests.train.test_run import teacher_run

HINTS = get_type_hints(RunOptions)
PROG = "fewstep train mine"


@dataclasses.dataclass(frozen=True)
class Mine:
    """A recipe without settings."""

    def run(self) -> Run:
        return teacher_run()


def another(hint: Any, value: Any) -> Any:
    """A value of a type other than `value`."""
    if get_origin(hint) in (Union, UnionType):
        return next(another(kind, value) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    return {bool: not value, int: (value or 0) + 1, tuple[str, ...]: ("one", "two")}[hint]


def flag(name: str, value: Any) -> str:
    if value is True:
        return f"--{name}"
    return f"--{name}={','.join(value) if isinstance(value, tuple) else value}"


@pytest.mark.parametrize("field", dataclasses.fields(RunOptions), ids=lambda f: f.name)
def test_each_field_arrives_in_the_run(field, monkeypatch):
    monkeypatch.setattr("fewstep.train.settings.check_trackers", lambda names: None)
    value = another(HINTS[field.name], field.default)
    _, options = call_settings(Mine(), training.Options(), [flag(field.name, value), "--out", "run"], PROG, "")
    run = recipes.build(Mine(), **options.of_run())
    assert getattr(run, field.name) == value
    others = [f for f in dataclasses.fields(RunOptions) if f.name != field.name]
    assert [getattr(run, f.name) for f in others] == [f.default for f in others]


@pytest.mark.parametrize("word", ["1e6", "1_000_000", "1000000.0"])
def test_integers_in_the_words_of_people(word):
    recipe, options = call_settings(
        recipes.get("digits:teacher"), training.Options(), ["--until", word, "--out", "x"], PROG, ""
    )
    assert recipe.until == 1_000_000 and type(recipe.until) is int and options.keep == 3


@pytest.mark.parametrize("word", ["1.5", "1e-3", "inf", "nan", "many"])
def test_other_words_are_no_integers(word):
    with pytest.raises(ValueError, match=f"--until: expected an integer; got '{word}'"):
        call_settings(recipes.get("digits:teacher"), training.Options(), ["--until", word, "--out", "x"], PROG, "")


def test_each_field_is_explained(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        call_settings(Mine(), training.Options(), ["--help"], PROG, "")
    text = " ".join(capsys.readouterr().out.split())
    docs = field_docs(RunOptions)
    for field in dataclasses.fields(RunOptions):
        assert f"--{field.name}" in text and docs[field.name] in text, field.name


def test_a_new_field_needs_no_other_place(capsys, monkeypatch):
    more = dataclasses.make_dataclass("More", [("patience", int, 5)], bases=(RunOptions,), frozen=True, kw_only=True)
    options = dataclasses.make_dataclass("Options", [], bases=(training.Options, more), frozen=True, kw_only=True)
    monkeypatch.setattr(training, "RunOptions", more)
    _, chosen = call_settings(Mine(), options(), ["--patience", "7", "--out", "run"], PROG, "")
    assert chosen.of_run()["patience"] == 7


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom fewstep.cli import main\ntry:\n    main(['train', 'digits:teacher', '--help'])\nfinally:\n"
        "    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--strategy" in done.stdout and done.stdout.endswith("False\n")
