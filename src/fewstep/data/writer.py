"""Where `sample --out` writes images: a folder, a tar or a zip, complete or not at all."""

from __future__ import annotations

import ctypes
import os
import tarfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.data.grid import encode_image
from fewstep.data.pack import zip_entry
from fewstep.data.ranks import from_first, gather, ranks
from fewstep.runtime.files import errors_naming, folder_place, new_file, partial_of, sync, writable

ARCHIVES = (".tar", ".zip")
THREADS = 4
"""That encode and write images; Pillow and files leave Python's lock meanwhile."""
WAITING = 64
"""Images that may wait for them."""


def is_archive(out: Path) -> bool:
    return out.suffix.lower() in ARCHIVES


@contextmanager
def image_files(out: Path) -> Iterator[Callable[[str, NDArray[np.uint8]], None]]:
    """A function `(name, image)` that stores images (H, W, C); all appear at `out` when the block succeeds on every rank.

    They lie in a temporary folder until then, and are brought to the disk together. A new folder or an archive appears as a
    whole; to an existing folder, complete images are added one by one.

    Args:
        out: a folder, or the name of a tar or zip file; members are in the order of their names.

    Example:
        >>> with image_files(Path("images.tar")) as add:
        ...     add("000007", image)
    """
    with ExitStack() as stack:
        folder = from_first(stack.enter_context(partial_of(place(out))) if ranks()[0] == 0 else Path())
        pending: deque[Future[None]] = deque()

        def add(name: str, image: NDArray[np.uint8]) -> None:
            pending.append(pool.submit(write, image, folder / name))
            if len(pending) > WAITING:
                pending.popleft().result()

        with errors_naming(out), ThreadPoolExecutor(THREADS) as pool:
            yield add
            for job in pending:
                job.result()
        with errors_naming(out):
            if not is_archive(out):
                sync_files(folder)
            gather(None)  # every rank has written
            if ranks()[0] == 0:
                (archive if is_archive(out) else publish)(folder, out)


def place(out: Path) -> Path:
    """The path beside which images are kept until they are published: on the disk of `out`."""
    if is_archive(out):
        return writable(out)
    out = folder_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return out / "images" if out.exists() else out


def write(image: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    extension, content = encode_image(image)
    path.with_name(path.name + extension).write_bytes(content)


def sync_files(folder: Path) -> None:
    """Bring everything in a folder to the disk at once: its file system on Linux, else all of them."""
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except AttributeError:
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def publish(folder: Path, out: Path) -> None:
    """Rename the folder to `out`, or its files into `out` if that exists."""
    out = folder_place(out)
    if not out.exists():
        os.rename(folder, out)
        sync(out.parent)
        return
    places = {path: out / path.relative_to(folder) for path in files_in(folder)}
    for path, target in places.items():
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    for changed in sorted({out, *(target.parent for target in places.values())}):
        sync(changed)


def archive(folder: Path, out: Path) -> None:
    """Pack the files of the folder; the same images make the same bytes."""
    with new_file(out) as partial:
        if out.suffix.lower() == ".zip":
            with zipfile.ZipFile(partial, "w") as zipped:
                for path in files_in(folder):
                    zipped.writestr(zip_entry(path.relative_to(folder).as_posix()), path.read_bytes())
            return
        with tarfile.open(partial, "w") as tar:
            for path in files_in(folder):
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                member.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(member, file)
