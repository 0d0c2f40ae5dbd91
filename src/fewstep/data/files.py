"""Image files in a folder or in a zip, and the decoding of images and NumPy arrays.

All files are untrusted: none is extracted, memory is limited, only raster formats that Pillow decodes itself are opened (EPS
would start another program), and every error names the file.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fewstep.runtime.archives import check_bytes, open_zip, read_member

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF", *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()))
EXTENSIONS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".gif",
    ".avif",
)
ORIENTATION = 0x0112
MAX_PIXELS, PIXELS_PER_BYTE = 64 * 2**20, 8
"""Limits for an image: its pixels, and beyond half as many, its pixels for each byte of its file."""


class Files(Protocol):
    """The files of a folder or an archive.

    Attributes:
        path: of the folder or archive.
        names: of the images: relative paths with forward slashes, sorted as strings.
        folders: at the top level, except hidden ones.
        others: files that are neither images nor `dataset.json`.
    """

    path: Path
    names: list[str]
    folders: list[str]
    others: list[str]

    def read(self, name: str) -> bytes: ...
    def signature(self, name: str) -> tuple[int, ...]: ...
    def __contains__(self, name: str) -> bool: ...


def is_image(name: str) -> bool:
    """Whether a file is an image by its extension, and neither hidden nor one of macOS's resource forks."""
    return not hidden(name) and name.lower().endswith(EXTENSIONS)


def image_names(names: Iterable[str]) -> list[str]:
    """The images among files, sorted: those with the extension of an image, or the arrays if there are none."""
    shown = sorted(name for name in names if not hidden(name))
    return [name for name in shown if is_image(name)] or [name for name in shown if name.lower().endswith(".npy")]


def other_names(names: Iterable[str], used: Iterable[str]) -> list[str]:
    """The files that are neither hidden nor used, sorted; folders end with a slash."""
    known = {*used, "dataset.json"}
    return sorted(name for name in names if not hidden(name) and not name.endswith("/") and name not in known)


def hidden(name: str) -> bool:
    """Whether a name is that of a hidden file or of one of macOS's resource forks."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def top_folders(names: Iterable[str]) -> list[str]:
    """The top-level folders of entries, some of which may be folders themselves (with a slash at the end)."""
    return sorted({name.partition("/")[0] for name in names if "/" in name and not hidden(name.partition("/")[0])})


def check_name(name: str, where: str) -> None:
    """Raise ValueError for an entry whose name points outside of its archive, which shows that the archive is hostile."""
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":" or "\0" in name:
        raise ValueError(f"{where}: the entry {name!r} points outside of the archive; do not use this file")


def walk_files(path: Path) -> Iterator[str]:
    """The paths of all files below a folder, links followed; ValueError if a link leads back to a folder that holds it."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(path, onerror=fail, followlinks=True):
        here = Path(root).resolve()
        for folder in folders:
            link = os.path.join(root, folder)
            if os.path.islink(link) and Path(link).resolve() in (here, *here.parents):
                raise ValueError(f"{link}: a link to a folder that holds it; remove it")
        yield from (os.path.join(root, file) for file in files)


def size_and_time(file: Path) -> tuple[int, int]:
    """What changes when a file is written to or replaced: its size and its time of modification in nanoseconds."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def changed(file: Path) -> ValueError:
    return ValueError(
        f"{file}: the file has changed since the data set was opened; start again with the data as they are now"
    )


class Folder:
    """The files below a folder. Links are followed, except that a link to a folder that contains it raises ValueError.

    An image that is replaced or written to after the folder was opened is an error when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = [os.path.relpath(file, path) for file in walk_files(path)]
        found = [file.replace(os.sep, "/") for file in found]
        self.names = image_names(found)
        # An array, as a set may have millions of files. A broken link is an error when it is read, and has zeros here.
        self._opened = np.array([self._state(name) for name in self.names], np.int64).reshape(-1, 2)
        self.others = other_names(found, self.names)
        self.folders = top_folders(f"{entry.name}/" for entry in os.scandir(path) if entry.is_dir())

    def __contains__(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        file = self.path / name
        if not file.is_file():
            raise ValueError(f"{file}: expected a regular file; it is gone, or a device, or a broken link")
        check_bytes(file.stat().st_size, str(file))
        content = file.read_bytes()
        i = bisect_left(self.names, name)  # which are sorted
        if self.names[i : i + 1] == [name] and tuple(self._opened[i]) != self._state(name):
            raise changed(file)
        return content

    def _state(self, name: str) -> tuple[int, int]:
        try:
            return size_and_time(self.path / name)
        except OSError:
            return 0, 0

    def signature(self, name: str) -> tuple[int, ...]:
        return ((self.path / name).stat().st_size,)


class Zip:
    """The entries of a zip. Each process opens it anew, since forked processes would share the position in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._pid = 0
        self._info: dict[str, zipfile.ZipInfo] = {}
        for info in self.zip.infolist():
            check_name(info.filename, str(path))
            if info.filename in self._info:
                raise ValueError(f"{path}: the entry {info.filename!r} is there twice; pack the zip again")
            self._info[info.filename] = info
        self.names = image_names(self._info)
        self.others = other_names(self._info, self.names)
        self.folders = top_folders(self._info)

    @property
    def zip(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            try:
                self._zip = open_zip(self.path)
            except (zipfile.BadZipFile, NotImplementedError) as error:
                raise ValueError(
                    f"{self.path}: expected a zip; {error}; is it truncated, or another format?"
                ) from error
            self._pid = os.getpid()
        return self._zip

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def __contains__(self, name: str) -> bool:
        return name in self._info

    def read(self, name: str) -> bytes:
        where = f"{self.path}/{name}"
        check_bytes(self._info[name].file_size, where)
        return read_member(self.zip, self._info[name], where)

    def signature(self, name: str) -> tuple[int, ...]:
        return (self._info[name].file_size, self._info[name].CRC)


def open_files(path: Path) -> Folder | Zip:
    """The images of a folder or of a `.zip`."""
    if path.is_dir():
        files = Folder(path)
    elif not path.exists():
        raise ValueError(f"{path}: expected a folder of images or a zip; there is no such path")
    elif path.suffix.lower() == ".zip":
        files = Zip(path)
    else:
        raise ValueError(
            f"{path}: expected a folder of images or a .zip; make one with: fewstep data pack {path} out.zip"
        )
    if not files.names:
        raise ValueError(f"{path}: expected images ({', '.join(EXTENSIONS)}); found none")
    return files


class Loaded(NamedTuple):
    """A decoded image, not converted; `deep` if it had 16 bits per channel, of which Pillow keeps the upper 8."""

    image: Image.Image
    deep: bool


@contextmanager
def report_damage(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Raise what the readers of containers raise on damage, `errors`, as a ValueError that names the file."""
    try:
        yield
    except errors as error:
        raise ValueError(
            f"{path}: damaged or cut off, or not what its name says ({error}); fetch it again if it was downloaded"
        ) from error


def check_not_empty(data: bytes, where: str) -> None:
    if not data:
        raise ValueError(f"{where} is empty (0 bytes); fetch it again or remove it")


def load_image(data: bytes, where: str) -> Loaded:
    """Decode one image without converting it. `where` names it in errors."""
    check_not_empty(data, where)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        most = min(MAX_PIXELS, max(MAX_PIXELS // 2, PIXELS_PER_BYTE * len(data)))
        if image.width * image.height > most:
            raise ValueError(f"{image.width}x{image.height} are more than {most} pixels")
        if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a photograph with its depth map
            raise ValueError("it has several frames")
        # The depth is known from the decoder's arguments alone: the raw mode of a PNG, the largest value of a PPM.
        tiles = [(tile[0], tile[3]) for tile in image.tile]
        deep = ";16" in str(tiles) or any(name == "ppm" and args not in (255, (255,)) for name, args in tiles)
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise ValueError(
            f"{where}: expected one intact image of 8 bits per channel; {decoding_error(error)}"
        ) from error
    return Loaded(image, deep and image.mode in ("LA", "RGB", "RGBA"))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if it is upright or says nothing."""
    return image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1


def decoding_error(error: Exception) -> str:
    """Why Pillow could not read an image; its own message for unknown bytes is an address in memory."""
    return "the content is not an image" if isinstance(error, UnidentifiedImageError) else str(error)


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_exactly(file: Readable, size: int, where: str) -> bytes:
    check_bytes(size, where)
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{where}: cut off; expected {size} bytes; got {len(data)}")
    return data


class Header(NamedTuple):
    """Shape, type and order of the array of a `.npy`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]


def read_header(file: IO[bytes], where: str) -> Header:
    """The header of a `.npy` at the position of the file; the data follow. Raises ValueError for arrays of Python objects."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except Exception as error:  # NumPy parses the header as Python, whose parser may raise anything
        raise ValueError(f"{where}: expected an array of NumPy; {error!r}") from error
    if dtype.hasobject or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"{where}: expected an array of numbers; got {dtype} {shape}")
    return Header(shape, dtype, "F" if fortran else "C")


def parse_array(data: bytes, where: str) -> NDArray[Any]:
    """The array of a `.npy`; ValueError if its data are shorter or longer than its header says."""
    check_not_empty(data, where)
    file = io.BytesIO(data)
    shape, dtype, order = read_header(file, where)
    start = file.tell()
    if start == len(data) or len(data) - start != math.prod(shape) * dtype.itemsize:
        size = math.prod(shape) * dtype.itemsize
        raise ValueError(
            f"{where}: cut off or damaged; expected {size} bytes of {dtype} {shape}; got {len(data) - start}"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order=order)


def read_array(data: bytes, where: str) -> NDArray[np.uint8]:
    """The uint8 (C, H, W) of a `.npy`."""
    array = parse_array(data, where)
    if array.dtype != np.uint8 or array.ndim != 3:
        latents = "; these seem to be latents, not images" if array.dtype == np.float32 and array.ndim == 3 else ""
        raise ValueError(f"{where}: expected an image as uint8 (C, H, W); got {array.dtype} {array.shape}{latents}")
    return array
