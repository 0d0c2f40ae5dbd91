"""Recipes: one function per configuration, returning a Run. Its signature is its command line.

`digits:teacher` names the function `teacher` of the module here; `mine.py:anything` one in a file of the user's.
"""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

Recipe = Callable[..., Any]


def modules() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def of_module(module: Any) -> dict[str, Recipe]:
    """The public functions that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def recipes() -> dict[str, Recipe]:
    """All recipes of the library by name, `module:function`."""
    return {
        f"{module}:{name}": recipe
        for module in modules()
        for name, recipe in of_module(import_module(f"{__name__}.{module}")).items()
    }


def find(name: str) -> Recipe:
    """The recipe called `name`; a path to a Python file before the colon means the user's own."""
    module, _, function = name.rpartition(":")
    if module.endswith(".py"):
        return load_file(Path(module), function)
    known = recipes()
    if name not in known:
        same = sorted((n for n in known if n.endswith(f":{name}")), key=lambda n: not n.startswith("digits:"))
        near = ", ".join(same or get_close_matches(name, known, cutoff=0.5))
        raise ValueError(
            f"there is no recipe {name!r}{near and f'; near it are {near}'}; fewstep recipes lists all, mine.py:function is "
            "one of your own"
        )
    return known[name]


def load_file(path: Path, function: str) -> Recipe:
    """A function of a Python file, which is imported, that is: run."""
    if not path.is_file():
        raise ValueError(f"expected a Python file; {path} is missing")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    value = getattr(module, function, None)
    if not callable(value):
        raise ValueError(f"{path} has no function {function!r}; it has {', '.join(of_module(module)) or 'none'}")
    return value
