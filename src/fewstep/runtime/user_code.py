"""Python files of a user's own, `mine.py:name`: recipes, samplers, operators and extractors; and the line where one fails."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

FILES: dict[str, Path] = {}
"""The files that this process loaded: by their names in tracebacks, the paths that the user gave."""


def load_file(path: Path, name: str) -> Callable[..., Any]:
    """The function or class called `name` of a Python file, which is imported, that is: run.

    Raises ValueError if there is no such file or function; whatever the file itself raises.
    """
    if path.suffix != ".py" or not path.is_file():
        what = "is no .py file" if path.is_file() else "is a folder" if path.is_dir() else "is missing"
        raise ValueError(f"expected a Python file; {path} {what}")
    module = run_file(path)
    value = getattr(module, name, None)
    if not callable(value):
        raise ValueError(f"{path} has no function {name!r}; it has {', '.join(functions(module)) or 'none'}")
    return value


def run_file(path: Path) -> ModuleType:
    """The file as a module. It is registered under a name that no import has: dataclasses look up their module there."""
    spec = importlib.util.spec_from_file_location(f"user.{path.stem}", path)
    assert spec is not None and spec.loader is not None and spec.origin is not None
    FILES[spec.origin] = path
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The public functions that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def place(error: BaseException) -> str | None:
    """File, line and function of the user's own code in which an error, or its cause, came up; None if in none of it."""
    if isinstance(error, SyntaxError) and error.filename in FILES:
        return f"{FILES[error.filename]}, line {error.lineno}"
    found = None
    for frame, line in walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename in FILES:
            inside = "" if code.co_name == "<module>" else f", in {code.co_name}"
            found = f"{FILES[code.co_filename]}, line {line}{inside}"
    return found or (place(error.__cause__) if error.__cause__ is not None else None)
