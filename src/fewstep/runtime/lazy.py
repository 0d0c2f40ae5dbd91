"""Public names of a package that are imported on first use, so that help and reports do not wait for torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module


def read_stub(stub: str) -> dict[str, str]:
    """The module that defines each name, from the lines `from MODULE import NAME as NAME` of a stub."""
    with open(stub, encoding="utf-8") as lines:
        words = [line.split() for line in lines if line.startswith("from ")]
    return {name: module for _, module, _, name, *_ in words}


def lazy(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose public names are in the stub beside its `__init__.py`.

    Args:
        package: its `__name__`.
        file: its `__file__`.
    """
    table = read_stub(f"{file.removesuffix('.py')}.pyi")

    def get(name: str) -> object:
        if name not in table:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = table[name]
        names = vars(import_module(module))
        value = names[name] if name in names else import_module(f"{module}.{name}")
        setattr(sys.modules[package], name, value)
        return value

    names = sorted(table)
    return get, lambda: names, names
