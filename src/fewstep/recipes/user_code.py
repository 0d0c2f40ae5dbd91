"""Recipes of a user's own, `mine.py:name`: a dataclass with a method `run`, or a function that returns a Run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from fewstep.recipes.base import REQUIRED, record
from fewstep.runtime.user_code import load_file

if TYPE_CHECKING:
    from fewstep.train.settings import Run


@dataclass(frozen=True, kw_only=True)
class Called:
    """A function as a recipe: its parameters are the settings."""

    function: ClassVar[Callable[..., Any]]

    def run(self) -> Any:
        return type(self).function(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


def load(path: Path, name: str) -> Any:
    """The recipe called `name` in a Python file, which is executed. Settings without a default are REQUIRED."""
    value = load_file(path, name)
    recipe = value if dataclasses.is_dataclass(value) else from_function(value)
    if not callable(getattr(recipe, "run", None)):
        raise ValueError(f"{path}:{name} is a dataclass without a method run(); add one that returns a Run")
    missing = dataclasses.MISSING
    needed = [f.name for f in dataclasses.fields(recipe) if f.default is missing and f.default_factory is missing]
    return recipe(**dict.fromkeys(needed, REQUIRED)) if isinstance(recipe, type) else recipe


def from_function(function: Callable[..., Any]) -> type[Called]:
    """A dataclass with the function's parameters as fields, whose `run` calls it."""
    hints = get_type_hints(function, include_extras=True)
    fields = []
    for parameter in inspect.signature(function).parameters.values():
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        field = dataclasses.field(default_factory=lambda value=default: value)  # which may be a list
        fields.append((parameter.name, hints.get(parameter.name, Any), field))
    namespace = {
        "function": staticmethod(function),
        "__doc__": function.__doc__ or "",
        "__module__": function.__module__,
    }
    return dataclasses.make_dataclass(
        function.__name__, fields, bases=(Called,), frozen=True, kw_only=True, namespace=namespace
    )


def build(recipe: Any, **options: Any) -> Run:
    """Return the run of a recipe, the library's or a user's own.

    Args:
        recipe: a dataclass with a method `run`.
        **options: further arguments of `Run`, such as `strategy="shard"`.

    Returns:
        The run, with a record of the recipe.

    Raises:
        ValueError: the recipe returned something else than a Run, or its settings do not make a valid one.

    Example:
        >>> run = fs.recipes.build(fs.recipes.get("digits:teacher"), track=("tensorboard",))
    """
    from fewstep.train.settings import Run

    run = recipe.run()
    if not isinstance(run, Run):
        raise ValueError(f"a recipe returns a Run; {type(recipe).__name__} returned {type(run).__name__}")
    return dataclasses.replace(run, recipe=record(recipe), **options)
