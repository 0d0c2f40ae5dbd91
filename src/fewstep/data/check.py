"""What `fewstep data check` reports: every file of a data set that cannot be used, and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from fewstep.data.classes import LabelError
from fewstep.data.convert import decode, fits
from fewstep.data.files import Zip, read_header
from fewstep.data.ranks import gather, ranks
from fewstep.data.sources import open_source
from fewstep.runtime.progress import track


def is_latents(path: Path) -> bool:
    """Whether a path is a zip of latents rather than of images: its first array is of floats."""
    if path.suffix.lower() != ".zip" or not path.is_file():
        return False
    files = Zip(path)
    if not files.names or not files.names[0].endswith(".npy"):
        return False
    with files.zip.open(files.names[0]) as file:
        return read_header(file, f"{path}/{files.names[0]}").dtype == np.float32


def check(path: str | os.PathLike[str], *, report: Callable[[str], object] | None = None) -> list[tuple[str, str]]:
    """Every image of a source, or latents of a zip, that cannot be trained on, with the reason.

    Empty if there is none, and on ranks other than the first, which share the work. report: is called before the work with
    a line about what was found.

    Raises ValueError if it is no such thing. The first intact image decides on the shape.
    """
    if is_latents(Path(path)):
        from fewstep.data.latents import check_latents  # it needs torch

        return check_latents(Path(path)) if ranks()[0] == 0 else []
    wrong = None
    try:
        source = open_source(path)
    except LabelError as error:
        source, wrong = open_source(path, labels=False), str(error)
    if report is not None:
        report(f"{path}: {source.total:,} images, {source.classes if wrong is None else 'classes that cannot be used'}")
    me, world = ranks()
    mine = islice(source.entries(), me, None, world)
    found: list[tuple[str, tuple[int, ...] | str]] = []  # its name, and its shape or what is wrong with it
    total = len(range(me, source.total, world))
    for entry in track(mine, total=total, description=f"checking {Path(path).name}"):
        try:
            found.append((entry.where, decode(entry).shape))
        except ValueError as error:
            found.append((entry.where, str(error)))
    parts = gather(found)
    if me != 0:
        return []
    problems: list[tuple[str, str]] = []
    first: tuple[str, tuple[int, ...]] | None = None
    for i in range(source.total):
        name, shape = parts[i % world][i // world]
        if isinstance(shape, str):
            problems.append((name, shape))
            continue
        first = first or (name, shape)
        if not fits(shape, first[1]):
            problems.append((name, f"expected (channels, height, width) {first[1]} as in {first[0]}; got {shape}"))
    if wrong is not None:
        problems.append(("dataset.json", wrong))
    return [(name.removeprefix(f"{path}/"), why) for name, why in problems]
