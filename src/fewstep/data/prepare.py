"""Pictures of any size as training data: how `pack` should make a set of them, and packing them once, into the cache."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from fewstep.data.color_modes import Rule, fits, header_shape
from fewstep.data.files import open_files
from fewstep.data.pack import pack
from fewstep.data.ranks import from_first, ranks
from fewstep.data.sources import TARS, open_source
from fewstep.data.transform import Crop
from fewstep.runtime.environment import cache_folder
from fewstep.runtime.launch import launched
from fewstep.runtime.locks import locked

SIDES = (64, 32, 16)
"""Sides that are proposed: the largest to which nine tenths of the images need not be enlarged."""
MOST = 128
"""Pixels a side, up to which images that are equal squares are left as they are."""
WAIT = 0.2
"""Seconds between two looks at a pack that another process is making."""


class Layout(NamedTuple):
    """How images of several sizes become one set: arguments of `pack`."""

    side: int
    transform: Crop
    convert: Rule

    @property
    def resolution(self) -> str:
        return f"{self.side}x{self.side}"

    def pack(self, source: str, place: Path) -> None:
        pack(source, place, resolution=self.resolution, transform=self.transform, convert=self.convert)

    def command(self, source: str) -> str:
        """The command that packs a source so."""
        name = f"{Path(source).resolve().stem}.zip"
        options = f"--resolution {self.resolution} --transform {self.transform} --convert {self.convert}"
        return f"fewstep data pack {quote(source)} {quote(name)} {options}"


def survey(source: str, *, side: int | None = None, channels: int | None = None) -> dict[str, Any] | None:
    """How to pack the images of a folder, zip or tar for training; None if they can be trained on as they are.

    The crop is the largest centred square. Grey sets stay grey (`center-crop-dhariwal`, `plain`); others become RGB as a
    viewer shows them (`center-crop`, `rgb`).

    Args:
        source: what `pack` reads. A zip is judged by its first image, anything else by all.
        side: pixels a side of the result; by default 64, or 32 or 16 for smaller images. Equal squares up to 128 pixels a
            side stay as they are.
        channels: 1 or 3; by default 1 if all images are grey.

    Returns:
        n, sides (smallest, median and largest short side), and layout.

    Raises:
        ValueError: the source or the header of an image cannot be read.
    """
    path = Path(source)
    if source == "digits" or not (path.is_dir() or path.name.lower().endswith((".zip", *TARS))):
        return None
    if path.name.lower().startswith("cifar-10-python.tar") or (path / "data.mdb").is_file():
        return None
    shapes: list[tuple[int, ...]] = []
    if path.suffix.lower() == ".zip":
        files = open_files(path)
        first = header_shape(files.read(files.names[0]), f"{path}/{files.names[0]}")
        if ready([first], side):
            return None
    for entry in open_source(source).entries():
        if isinstance(entry.content, ValueError):
            raise entry.content
        if isinstance(entry.content, np.ndarray):
            return None
        shapes.append(header_shape(entry.content, entry.where))
    if not shapes or ready(shapes, side) or any(shape[0] not in (1, 3) for shape in shapes):
        return None
    short = np.sort([min(shape[1:]) for shape in shapes])
    enough = short[len(short) // 10]
    chosen = side or next((each for each in SIDES if each <= enough), SIDES[-1])
    grey = channels == 1 if channels else all(shape[0] == 1 for shape in shapes)
    layout = Layout(chosen, "center-crop-dhariwal", "plain") if grey else Layout(chosen, "center-crop", "rgb")
    sides = [int(short[0]), int(short[len(short) // 2]), int(short[-1])]
    return {"n": len(shapes), "sides": sides, "layout": layout}


def ready(shapes: list[tuple[int, ...]], side: int | None) -> bool:
    """Whether images (C, H, W) are equal squares of a side that can be trained on."""
    _, height, width = shapes[0]
    right = width == side if side else width <= MOST
    return height == width and right and all(fits(shape, shapes[0]) for shape in shapes)


PACKS: ContextVar[Path | None] = ContextVar("packs", default=None)


@contextmanager
def temporary_packs() -> Iterator[None]:
    """Within the block, new packs are written to a temporary folder instead of the cache."""
    with TemporaryDirectory() as folder:
        token = PACKS.set(Path(folder))
        try:
            yield
        finally:
            PACKS.reset(token)


def prepared(source: str, *, side: int | None = None, channels: int | None = None) -> str:
    """Images of any size as a source of equal squares: the same one, or a zip in the cache that is packed once.

    The zip is found again by the names, sizes and times of the files of the source, so that a run that is resumed, or that
    distils its teacher, has the same data. It has the same bytes if it must be packed again. On each machine one process
    packs and the others wait for it.

    Args:
        source, side, channels: see `survey`.

    Returns:
        The source, or the path of the zip.

    Raises:
        ValueError: an image cannot be used; `data pack --skip-bad` leaves it out.

    Example:
        >>> data = fs.images(prepared("photos"))
    """
    if not os.path.exists(source):  # "digits", or of the hub
        return source
    name, key = f"{Path(source).resolve().stem}.zip", key_of(Path(source), side, channels)
    known, place = (folder / key / name for folder in (packs(), PACKS.get() or packs()))
    if known.exists():
        tell(f"{source}: packed before, as {known}")
        return str(known)
    if (found := survey(source, side=side, channels=channels)) is None:
        return source
    layout: Layout = found["layout"]
    place.parent.mkdir(parents=True, exist_ok=True)
    if ranks()[1] > 1:  # they share the work
        if not from_first(place.exists()):
            layout.pack(source, place)
    else:
        pack_alone(source, place, layout)
    tell(
        f"{source}: images of {found['sides'][0]} to {found['sides'][2]} pixels, packed at {layout.resolution} "
        f"({layout.transform}, {layout.convert}) as {place}; for other choices: {layout.command(source)}"
    )
    return str(place)


def pack_alone(source: str, place: Path, layout: Layout) -> None:
    """Pack, unless another process of this machine has done so or is doing it."""
    while not place.exists():
        with locked(place.parent) as mine:
            if mine is not False and not place.exists():
                layout.pack(source, place)
        if mine is False:
            time.sleep(WAIT)


def key_of(path: Path, side: int | None, channels: int | None) -> str:
    """The name of a pack: a hash of the names, sizes and times of the files, and of what is asked for."""
    return hashlib.sha256(repr((files_of(path), side, channels)).encode()).hexdigest()[:16]


def files_of(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a file, or of all files in a folder."""
    inside = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(p.relative_to(path).as_posix(), p.stat()) for p in inside]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def packs() -> Path:
    return cache_folder() / "packs"


def tell(text: str) -> None:
    if launched().rank == 0:
        print(text, file=sys.stderr, flush=True)
