"""Where a command may write, checked before its work starts.

One rule: a command never writes over its inputs, and replaces what exists only if the user says so (`--overwrite`). Commands
that continue their own earlier work in a folder (train, distill, compare, demo, restore, report) are the exception.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from fewstep.runtime.files import PARTIAL, errors_naming, file_place, folder_place, listed, partial_of, replaceable

Input = str | os.PathLike[str] | None
"""What a command reads: a path, or something else, such as the name of built-in data, which no output can meet."""


def file(path: Path, *, apart: Iterable[Input] = (), outside: Iterable[Input] = (), overwrite: bool = False) -> Path:
    """The path, if a file can be written there.

    Args:
        path: of the file; neither it nor its folder is made here.
        apart: inputs that the file must not replace.
        outside: folders of inputs that it must not lie in either, as it would be read with them the next time.
        overwrite: whether a file at the path may be replaced.

    Raises:
        ValueError: the path is a link, a folder, a pipe, a device, a mount point, an input, where standard output goes, or an
            existing file.
        OSError: the folder cannot be written to.
    """
    file_place(path)
    refuse_inputs(path, apart, outside)
    if mounted(path):
        raise ValueError(
            f"{path} is a mount point, which cannot be replaced; name a file beside it or in another folder"
        )
    if path.exists() and any(same_as_stream(path, number) for number in (1, 2)):
        raise ValueError(f"{path} is where standard output or standard error goes; name another file")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; name another file, or add --overwrite to replace it")
    try_to_write(path)
    return path


def folder(path: Path, *, apart: Iterable[Input] = (), outside: Iterable[Input] = ()) -> Path:
    """The path, if it is a folder, or can become one, in which files can be written. Arguments and errors as of `file`."""
    place = folder_place(path)
    refuse_inputs(path, apart, outside)
    try_to_write(place / "new", named=path)
    return path


def image_folder(path: Path, names: Iterable[str], *, overwrite: bool = False) -> Path:
    """The path, if images can be added there: a folder that is free, or contains numbered images alone.

    Args:
        path: of the folder.
        names: stems of the images to write, numbers of six digits.
        overwrite: whether images with the same numbers may be replaced.

    Raises:
        ValueError: the folder contains other things, or images with these numbers.
    """
    folder(path)
    if not path.is_dir():
        return path
    inside = [p for p in path.iterdir() if not PARTIAL.fullmatch(p.name)]
    if others := sorted(p.name for p in inside if not NUMBERED.fullmatch(p.name)):
        raise ValueError(f"{path} holds {listed(others)}, which are not numbered images; choose an empty folder")
    images = {
        p.stem: p for p in (*inside, *(p for part in inside if part.is_dir() for p in part.iterdir())) if p.suffix
    }
    if not overwrite and (same := next((name for name in names if name in images), None)) is not None:
        raise ValueError(
            f"{images[same]} exists; choose other seeds or another folder, or add --overwrite to replace the images"
        )
    return path


NUMBERED = re.compile(r"\d{6,}(\.png|\.npy)?")
"""Names of images by their seeds, and of folders of them."""


def new_folder(
    path: Path,
    names: Collection[str],
    *,
    apart: Iterable[Input] = (),
    outside: Iterable[Input] = (),
    overwrite: bool = False,
) -> Path:
    """The path, if `files.new_folder` can put a folder of `names` there. Arguments and errors as of `file`."""
    refuse_inputs(path, apart, outside)
    place = replaceable(path, names)
    if mounted(place):
        raise ValueError(f"{path} is a mount point, which cannot be replaced; choose a folder in it, {path / 'model'}")
    if not overwrite and place.exists() and (found := sorted(p.name for p in place.iterdir() if p.name in names)):
        raise ValueError(f"{path} holds {listed(found)}; choose another folder, or add --overwrite to replace them")
    try_to_write(place)
    return path


def try_to_write(path: Path, *, named: Path | None = None) -> None:
    """Do what writing `path` begins with, as near to it as there is a folder, and undo it; errors name `named`."""
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    with errors_naming(named or path), partial_of(nearest / path.name):
        pass


def refuse_inputs(path: Path, apart: Iterable[Input], outside: Iterable[Input] = ()) -> None:
    """Raise ValueError if writing `path` would replace an input, or a folder that holds one, or lies in one of `outside`."""
    place, outside = path.resolve(), list(outside)
    for given in (*apart, *outside):
        if given is None or not os.path.exists(given):
            continue
        source = Path(given).resolve()
        if place == source or (path.exists() and path.samefile(source)):
            raise ValueError(f"{path} is an input of this command; choose another place for the output")
        if place in source.parents:
            raise ValueError(f"the input {given} lies in {path}, which would be replaced; choose another output")
        if given in outside and source in place.parents:
            raise ValueError(f"{path} lies in the input {given}; choose a place outside of it")


def mounted(path: Path) -> bool:
    """Whether something is mounted at a path; a file can be, too, as in containers."""
    try:
        points = {line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()}
    except OSError:  # not on Linux
        return os.path.ismount(path)
    return re.sub(r"[ \t\n\\]", lambda found: f"\\{ord(found[0]):03o}", str(path.resolve())) in points


def same_as_stream(path: Path, number: int) -> bool:
    """Whether what is written to a descriptor of this process goes to the file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except OSError:
        return False
