"""Recipes: one function per configuration, returning a Run. Its signature is its command line.

`digits:teacher` names the function `teacher` of the module here; `mine.py:anything` one in a file of the user's.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from fewstep.runtime.own import functions, load_file

Recipe = Callable[..., Any]


def modules() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def recipes() -> dict[str, Recipe]:
    """All recipes of the library by name, `module:function`."""
    return {
        f"{module}:{name}": recipe
        for module in modules()
        for name, recipe in functions(import_module(f"{__name__}.{module}")).items()
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
