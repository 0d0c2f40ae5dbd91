"""Images in a `.npy` or `.npz`: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), mapped from the file where possible.

The files are untrusted: pickles are refused, and declared sizes are checked.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fewstep.data.files import Header, parse_array, read_exactly, read_header, report_damage
from fewstep.runtime.archives import DAMAGE, check_bytes, open_member, open_zip, read_member
from fewstep.runtime.files import listed, regular

IMAGES, LABELS = ("images", "arr_0"), ("labels", "arr_1")
"""Names of the arrays: our own, and the default names of NumPy, which ADM's samples have."""


def array_names(path: Path) -> set[str]:
    """The arrays of an npz file."""
    with report_damage(path, *DAMAGE), open_zip(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


@contextmanager
def npz_member(path: Path, name: str) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """An npz file and its member with an array."""
    with report_damage(path, *DAMAGE), open_zip(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise ValueError(f"{path}: expected an array {name}; it has {listed(archive.namelist()) or 'none'}")
        yield archive, archive.getinfo(f"{name}.npy")


@contextmanager
def open_array(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The file of an array, at its header: a member of an npz, or the `.npy` itself."""
    if path.suffix.lower() == ".npy":
        with regular(path).open("rb") as file:
            yield file
        return
    with npz_member(path, name) as (archive, info), open_member(archive, info, f"{path}[{name}]") as file:
        yield file


def load_array(path: Path, name: str) -> NDArray[Any]:
    """An array of an npz or npy file, mapped from the file unless it is compressed."""
    where, start = f"{path}[{name}]", 0
    if path.suffix.lower() == ".npy":
        size = regular(path).stat().st_size
    else:
        with npz_member(path, name) as (archive, info):
            if info.compress_type != zipfile.ZIP_STORED:
                return parse_array(read_member(archive, info, where), where)
            size, start = info.file_size, data_offset(path, info)
    with open_array(path, name) as file:
        shape, dtype, order = read_header(file, where)
        offset = file.tell()
    announced = math.prod(shape) * dtype.itemsize
    if announced != size - offset:
        raise ValueError(f"{where}: cut off; expected {announced} bytes; got {size - offset}")
    if announced == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="r", offset=start + offset, shape=shape, order=order)


def data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed member begin: its local header has lengths of its own."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2")
    return info.header_offset + 30 + int(name) + int(extra)


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images of this shape are (N, C, H, W) rather than (N, H, W, C): channels are at the end or in front where
    there are 1 or 3, else where there are fewer.
    """
    _, first, _, last = shape
    if last in (1, 3) or first in (1, 3):
        return last not in (1, 3)
    return first < last


class ArrayFile:
    """The images of a `.npy`, or of a `.npz` under "images" or "arr_0", and their classes under "labels" or "arr_1".

    Attributes:
        labels: int64 (N,), None if there are none.

    Raises:
        ValueError: an array is missing or cut off, or has another type or shape; the message has its range of values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        names = {"images"} if path.suffix.lower() == ".npy" else array_names(path)
        found = [name for name in IMAGES if name in names]
        if not found:
            has = f"; it has {', '.join(sorted(names)[:5])}" if names else ""
            raise ValueError(
                f'{path}: expected an array "images" (or "arr_0"), and classes in "labels" (or "arr_1") if there are any{has}'
            )
        self.name = found[0]
        self.where = f"{path}[{self.name}]"
        with open_array(path, self.name) as file:
            self.header: Header = read_header(file, self.where)
        shape = self.header.shape
        if path.suffix.lower() == ".npy":
            load_array(path, self.name)  # which compares the sizes
        if len(shape) not in (3, 4) or 0 in shape:
            raise ValueError(
                f"{self.where}: expected uint8 (N, H, W), (N, H, W, C) or (N, C, H, W); got {self.header.dtype} {shape}"
            )
        if len(shape) == 3 and shape[2] <= 4 < min(shape[:2]):
            raise ValueError(f"{self.where}: {shape} seems to be one image (H, W, C); add an axis: array[None]")
        if self.header.dtype != np.uint8:
            raise ValueError(
                f"{self.where}: expected uint8 from 0 to 255; got {self.header.dtype} {shape} {self.values()}"
            )
        check_bytes(math.prod(shape[1:]), self.where)
        self.labels = self.read_labels(names)

    def values(self) -> str:
        """The range of values of another type than uint8, and how to convert them in the likely case."""
        array = load_array(self.path, self.name)
        if array.dtype.kind not in "fiub":
            return ""
        parts = np.array_split(array.reshape(-1), max(1, array.size // 2**22))
        low, high = (float(bound([bound(part) for part in parts])) for bound in (np.min, np.max))
        if not (math.isfinite(low) and math.isfinite(high)):
            return "with NaN or infinite values"
        cases = {(0, 1): "255 * x", (-1, 1): "127.5 * x + 127.5", (0, 255): "x", (0, 65535): "x / 257"}
        fits = [formula for (least, most), formula in cases.items() if least <= low and high <= most]
        advice = f"; if that is all of the range, save numpy.round({fits[0]}).astype(numpy.uint8)" if fits else ""
        return f"from {low:g} to {high:g}{advice}"

    def read_labels(self, names: set[str]) -> NDArray[np.int64] | None:
        name = LABELS[IMAGES.index(self.name)]
        if name not in names:
            return None
        labels, n = load_array(self.path, name), self.header.shape[0]
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            advice = "; of one-hot rows save their argmax(1)" if labels.shape[:1] == (n,) and labels.ndim == 2 else ""
            raise ValueError(
                f"{self.path}[{name}]: expected integers ({n},); got {labels.dtype} {labels.shape}{advice}"
            )
        if labels.min() < 0:
            raise ValueError(f"{self.path}[{name}]: expected classes >= 0; got {labels.min()}")
        return labels.astype(np.int64)

    def __len__(self) -> int:
        return self.header.shape[0]

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """All images, (N, C, H, W): a view of the file where it is not compressed."""
        return self.pixels_first(load_array(self.path, self.name))

    def pixels_first(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if array.ndim == 3:
            return array[:, None]
        return array if channels_first(array.shape) else array.transpose(0, 3, 1, 2)

    def one_by_one(self) -> Iterator[NDArray[np.uint8]]:
        """The images (H, W, C), read one at a time, from compressed files as well."""
        shape, _, order = self.header
        if order == "F":
            yield from (np.ascontiguousarray(image.transpose(1, 2, 0)) for image in self.images)
            return
        with open_array(self.path, self.name) as file:
            read_header(file, self.where)
            for _ in range(shape[0]):
                data = read_exactly(file, math.prod(shape[1:]), self.where)
                image = self.pixels_first(np.frombuffer(data, np.uint8).reshape(1, *shape[1:]))[0]
                yield np.ascontiguousarray(image.transpose(1, 2, 0))
