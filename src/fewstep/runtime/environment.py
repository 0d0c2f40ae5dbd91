"""What surrounds a process: its cache folder, whether it may use the network, and optional packages."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

CACHE = "FEWSTEP_CACHE"
"""Environment variable that says where the cache lies."""


def cache_folder() -> Path:
    """$FEWSTEP_CACHE, else the user's cache folder: on Linux `fewstep` in $XDG_CACHE_HOME, or in ~/.cache.

    Raises ValueError for a user without a home folder, as in some containers.
    """
    if chosen := os.environ.get(CACHE):
        return Path(chosen)
    from platformdirs import user_cache_path

    try:
        return user_cache_path("fewstep", appauthor=False)
    except RuntimeError as error:
        raise ValueError(f"this user has no home folder for the cache; set {CACHE} to a folder") from error


def cached(path: Path) -> bool:
    """Whether a path lies in the cache."""
    try:
        return path.is_relative_to(cache_folder())
    except ValueError:
        return False


OFFLINE = "FEWSTEP_OFFLINE"
"""Environment variable that keeps everything here from the network, if it is 1."""


def optional(package: str, purpose: str, extra: str) -> Any:
    """The module of an optional package; ValueError whatever its import raises, for a broken one raises anything.

    package: which may be a submodule. purpose: what needs it.
    """
    try:
        return import_module(package)
    except Exception as error:
        name = package.partition(".")[0]
        why = "is not installed"
        if not (isinstance(error, ModuleNotFoundError) and error.name == name):
            why = f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise ValueError(f'{purpose} needs the package {name}, which {why}: pip install "fewstep[{extra}]"') from error


def offline() -> bool:
    """Return whether `--offline` or the environment forbids the network."""
    return os.environ.get(OFFLINE) == "1"
