"""Writing files so that nothing is ever half-written: to a temporary name, synced, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` if the block succeeds, and goes if it fails."""
    partial = writable(path).with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with told_of(path):
            yield partial
            sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """An error of the system that names no file, as that of a full disk, is told of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def new_folder(path: Path, names: Collection[str]) -> Iterator[Path]:
    """A temporary folder to fill with `names`; it becomes `path`, in place of an older one, if the block succeeds.

    Raises ValueError at once if anything else lies at `path`, for it would be lost.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: expected a folder to write; it is a file; choose another name")
    if others := sorted(p.name for p in path.glob("*") if p.name not in names):
        raise ValueError(f"{path} holds {listed(others)}, which would be lost; choose another folder, or empty it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with told_of(path):
            yield partial
            for file in partial.rglob("*"):
                sync(file)
            sync(partial)
        if path.exists():
            old = path.with_name(f".{path.name}.old-{os.getpid()}")
            os.rename(path, old)
            os.rename(partial, path)
            shutil.rmtree(old)
        else:
            os.rename(partial, path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + ("" if len(names) <= 3 else f" and {len(names) - 3} more")


def writable(path: Path) -> Path:
    """The path, if a file can be written there; its folder is made. What takes long asks before it begins."""
    if not path.name:
        raise ValueError(f"expected the name of a file to write; got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"{path}: expected the name of a file to write; it is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder cannot be written to", str(path.parent))
    return path


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: an infinite or undefined number is an error, not a word that other readers refuse."""
    with new_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Any], *, metadata: Mapping[str, str]) -> None:
    """A safetensors file; a disk that is full is an OSError, as for every other file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
        path.chmod(mode)  # safetensors writes files that only their owner may read
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written; {error}") from error


def cache_folder() -> Path:
    """$FEWSTEP_CACHE, else `fewstep` in $XDG_CACHE_HOME, else ~/.cache/fewstep."""
    if chosen := os.environ.get("FEWSTEP_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep"


OFFLINE = "FEWSTEP_OFFLINE"
"""Environment variable that keeps everything here from the network, if it is 1."""


def offline() -> bool:
    return os.environ.get(OFFLINE) == "1"


def regular(path: Path) -> Path:
    """The path, if a regular file or nothing at all lies there: a pipe or a device would be read for ever."""
    if path.exists() and not path.is_file():
        raise ValueError(
            f"{path}: expected a regular file; it is a {'folder' if path.is_dir() else 'pipe or a device'}"
        )
    return path


def read_json(path: Path) -> Any:
    regular(path)
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); restore it or remove it") from error


def sha256(path: Path) -> str:
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
