"""Writing files so that nothing is ever half-written: to a temporary name, synced, then renamed."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from fewstep.runtime.environment import CACHE, cached
from fewstep.runtime.locks import lock, locked


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
    with partial_of(writable(path)) as folder, errors_naming(path):
        partial = folder / path.name
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)


PARTIAL = re.compile(r"\..+\.partial-(\d+|[0-9a-f]{8})")


@contextmanager
def partial_of(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, locked while it is filled; if it is still there at the end, it goes.

    Those of processes that were killed have no lock, and go when another one begins to write beside them.
    """
    clear_once(path.parent.absolute())  # the current folder may be another one later
    while True:
        partial = path.with_name(f".{path.name[:48]}.partial-{secrets.token_hex(4)}")  # no longer than a name may be
        partial.mkdir()
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if lock(descriptor) is not False and partial.exists():
            break
        os.close(descriptor)  # another process took it for one that was left
    try:
        yield partial
    finally:
        remove(partial)
        os.close(descriptor)


@lru_cache(maxsize=1024)
def clear_once(folder: Path) -> None:
    clear(folder)


def clear(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder."""
    for entry in sorted(folder.iterdir()):
        if PARTIAL.fullmatch(entry.name):
            remove_free(entry)


def remove_free(path: Path) -> None:
    """Remove a file or folder unless its process lives, or it cannot be known."""
    try:
        with locked(path) as free:
            if free:
                remove(path)
    except OSError:
        pass  # another process removes it, or owns it


def remove(path: Path) -> None:
    """Remove a file or folder, as far as that is possible; what stays is found and removed later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """An error of the system that names no file, as that of a full disk, or a temporary one, is reported for `path`."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if error.errno is not None and (name is None or is_partial(name)):
            error.filename, error.filename2 = str(path), None
        raise


def is_partial(name: object) -> bool:
    """Whether the name of a file lies in a temporary folder of `partial_of`."""
    return isinstance(name, (str, Path)) and any(PARTIAL.fullmatch(part) for part in Path(name).parts)


@contextmanager
def new_folder(path: Path, names: Collection[str]) -> Iterator[Path]:
    """A temporary folder to fill with `names`; it becomes `path`, in place of an older one, if the block succeeds.

    At every moment the whole old or the whole new folder lies at `path`; a link is followed. Raises ValueError at once if
    anything else lies there, for it would be lost.
    """
    path = replaceable(path, names)
    with partial_of(path) as partial, errors_naming(path):
        yield partial
        for left in [file for file in partial.rglob(".*") if PARTIAL.fullmatch(file.name)]:
            shutil.rmtree(left)  # it could not be removed the first time
        for file in partial.rglob("*"):
            sync(file)
        sync(partial)
        if not path.exists():
            os.rename(partial, path)
        elif not exchange(partial, path):
            exchange_in_two(partial, path)
        sync(path.parent)


def replaceable(path: Path, names: Collection[str]) -> Path:
    """Where `new_folder` writes: the path, or the folder that it is a link to, if nothing but `names` lies there."""
    path = folder_place(path)
    if path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(
            f"{path}: expected the name of a folder to write; it holds the current folder; name another one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    if others := sorted(p.name for p in path.glob("*") if p.name not in names and not PARTIAL.fullmatch(p.name)):
        raise ValueError(f"{path} holds {listed(others)}, which would be lost; choose another folder, or empty it")
    return path


def folder_place(path: Path) -> Path:
    """Where the folder `path` lies or will lie; a link to a folder is followed. ValueError if anything else is there."""
    linked = path.is_symlink()
    found = kind(path.resolve() if linked else path)
    if found not in (None, "a folder"):
        raise ValueError(f"{path}: expected a folder to write; it is {found}; choose another name")
    if linked and found is None:
        raise ValueError(f"{path}: expected a folder to write; it is a link that leads nowhere; choose another name")
    return path.resolve() if linked or path.name in ("", "..") else path


def exchange(a: Path, b: Path) -> bool:
    """Two files or folders change places in one step (Linux's `renameat2`); False if system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(a), here, os.fsencode(b), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def exchange_in_two(new: Path, path: Path) -> None:
    """As `exchange`, by two renames: a kill between them leaves the old folder beside `path`, for `recover`."""
    old = path.with_name(f".{path.name}.old-{secrets.token_hex(4)}")
    with locked(path):  # which `recover` of another process asks
        os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(old, path)
            raise
        remove(old)


def recover(path: Path) -> None:
    """Finish the exchange of a folder that a kill cut in two: the old one returns if there is no new one, else it goes."""
    for old in sorted(path.parent.glob(f".{glob.escape(path.name)}.old-*")):
        with suppress(FileNotFoundError), locked(old) as free:
            if free is False:
                continue
            if path.exists():
                remove(old)
            else:
                os.rename(old, path)


def tidy(folder: Path) -> None:
    """Clear a folder and those in it of what killed processes left, and finish their exchanges."""
    for place, names, _ in os.walk(folder):
        clear(Path(place))
        for name in names:
            if match := re.fullmatch(r"\.(.+)\.old-\w+", name):
                recover(Path(place, match[1]))


def numbered(path: Path) -> Iterator[Path]:
    """The path, then the same with -1, -2, ... at its end."""
    return (path.with_name(f"{path.name}-{i}") if i else path for i in count())


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + ("" if len(names) <= 3 else f" and {len(names) - 3} more")


KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind(path: Path) -> str | None:
    """What lies at a path, links not followed; None for nothing."""
    try:
        return KINDS[stat.S_IFMT(path.lstat().st_mode)]
    except FileNotFoundError:
        return None


def file_place(path: Path) -> Path:
    """The path, if a regular file or nothing lies there; what else does would be lost, as files are replaced as a whole."""
    if not path.name:
        raise ValueError(f"expected the name of a file to write; got {str(path)!r}")
    if (found := kind(path)) not in (None, "a file"):
        there = f" to {os.readlink(path)}; name a file instead" if found == "a link" else ""
        raise ValueError(f"{path}: expected the name of a file to write; it is {found}{there}")
    return path


def writable(path: Path) -> Path:
    """The path, if a file can be written there; its folder is made."""
    try:
        file_place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "the folder cannot be written to", str(path.parent))
    except OSError as error:
        if cached(path):
            error.strerror = f"{error.strerror}; set {CACHE} to a folder that can be written"
        raise
    return path


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: an infinite or undefined number is an error, not a word that other readers refuse."""
    with new_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


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


SIGNATURES = {
    b"PK\x03\x04": "a zip archive, such as torch.save writes",
    b"\x80": "a pickle",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file: run git lfs pull",
    b"<": "a web page",
    b"": "of an unknown kind",
}
"""How files begin that are found under the name of another kind."""


def read_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; ValueError names what else a file is.

    They are in memory of their own: as parts of a file that is mapped, they would end the process if it is cut off.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular(path), framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it is no dict
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file") from error
        with path.open("rb") as file:
            start = file.read(32)
        if start[8:9] == b"{":
            raise ValueError(f"{path} is truncated or corrupt ({error}); restore it from its source") from error
        kind = (
            "empty"
            if not start.strip()
            else next(kind for signature, kind in SIGNATURES.items() if start.lstrip().startswith(signature))
        )
        raise ValueError(f"{path} is damaged or no safetensors file, but {kind} ({error})") from error


def regular(path: Path) -> Path:
    """The path, if a regular file or nothing at all lies there: a pipe or a device would be read for ever."""
    if path.exists() and not path.is_file():
        raise ValueError(
            f"{path}: expected a regular file; it is a {'folder' if path.is_dir() else 'pipe or a device'}"
        )
    return path


DEEPEST = 100
"""Of values within values in JSON: what goes through them calls itself, which has a limit of its own."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError if it is not valid, or nested too deeply."""
    level = [value := json.loads(text)]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in parts(outer)]
        if not level:
            return value
    raise ValueError(f"it has values within values, more than {DEEPEST} deep")


def parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_json(path: Path) -> Any:
    regular(path)
    try:
        with errors_naming(path):
            return parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); restore it or remove it") from error


def sha256(path: Path) -> str:
    with errors_naming(path), regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
