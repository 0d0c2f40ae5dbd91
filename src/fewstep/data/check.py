"""What `fewstep data check` reports: every file of a data set that cannot be used, and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from fewstep.data.classes import LabelError
from fewstep.data.color_modes import Rule, fits
from fewstep.data.files import Zip, read_header
from fewstep.data.ranks import gather, ranks
from fewstep.data.sources import open_source
from fewstep.data.transform import Crop, Transform, encode, parse_resolution
from fewstep.runtime.progress import track

Shape = tuple[int, int, int]
"""(channels, height, width)"""


def is_latents(path: Path) -> bool:
    """Whether a path is a zip of latents rather than of images: its first array is of floats."""
    if path.suffix.lower() != ".zip" or not path.is_file():
        return False
    files = Zip(path)
    if not files.names or not files.names[0].endswith(".npy"):
        return False
    with files.zip.open(files.names[0]) as file:
        return read_header(file, f"{path}/{files.names[0]}").dtype == np.float32


def check(
    path: str | os.PathLike[str],
    *,
    resolution: str | None = None,
    transform: Crop | None = None,
    convert: Rule | None = None,
    report: Callable[[str], object] | None = None,
) -> list[tuple[str, str]]:
    """Every image of a source, or latents of a zip, that cannot be used, with the reason.

    Args:
        path: any source that `pack` reads, or a zip of latents.
        resolution: as of `pack`. With this, transform or convert, the images are checked as `pack` would store them; without,
            as they are trained on.
        transform: as of `pack`.
        convert: as of `pack`.
        report: called before the work with a line about what was found.

    Returns:
        Names and reasons. The shape that most images have is the one expected of all. Empty on ranks other than the first,
        which share the work.

    Raises:
        ValueError: the source is missing, damaged as a whole, or of no known kind.
    """
    work = Transform(parse_resolution(resolution), transform, rule=convert)
    as_packed = (resolution, transform, convert) != (None, None, None)
    if is_latents(Path(path)):
        from fewstep.data.latents import check_latents  # it needs torch

        if as_packed:
            raise ValueError(f"{path} holds latents; resolution, transform and convert are for images")
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
    found: list[tuple[str, Shape | str]] = []  # its name, and its shape or what is wrong with it
    total = len(range(me, source.total, world))
    for entry in track(mine, total=total, description=f"checking {Path(path).name}"):
        result = encode(work, entry)
        found.append((entry.where, str(result) if isinstance(result, ValueError) else result.shape))
    parts = gather(found)
    if me != 0:
        return []
    problems = find_problems([parts[i % world][i // world] for i in range(source.total)], square=as_packed)
    if wrong is not None:
        problems.append(("dataset.json", wrong))
    return [(name.removeprefix(f"{path}/"), why) for name, why in problems]


def find_problems(images: list[tuple[str, Shape | str]], *, square: bool) -> list[tuple[str, str]]:
    """What is wrong with images of these shapes, or with these problems of their own, as members of one set."""
    shapes = [(name, shape) for name, shape in images if not isinstance(shape, str)]
    if not shapes:
        return [(name, str(reason)) for name, reason in images]
    counts = Counter(shape for _, shape in shapes)
    grey = {shape: counts[1, *shape[1:]] if shape[0] == 3 else 0 for shape in counts}
    usual = max(counts, key=lambda shape: counts[shape] + grey[shape])  # the first of several
    first = shapes[0][0]
    problems: list[tuple[str, str]] = []
    for name, shape in images:
        if isinstance(shape, str):
            problems.append((name, shape))
        elif not fits(shape, usual):
            problems.append(
                (
                    name,
                    f"expected (channels, height, width) {usual}, as {counts[usual] + grey[usual]:,} of {len(shapes):,} images "
                    f"are; got {shape}",
                )
            )
        elif square and shape[1] != shape[2]:
            problems.append((name, f"expected a square; got {shape[2]}x{shape[1]} pixels"))
        elif name == first and shape != usual:
            problems.append(
                (
                    name,
                    f"it is grey and comes first, which makes grey the kind of all, but {counts[usual]:,} others are RGB; "
                    "data pack --convert rgb makes every image RGB",
                )
            )
    return problems
