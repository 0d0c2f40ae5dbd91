"""Where the images to be measured come from: a path, an array file, a function of seeds; and batches of them."""

from __future__ import annotations

import hashlib
import io
import lzma
import math
import queue
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewstep.data.files import FORMATS, MAX_BYTES, Files, is_image, open_files, parse_array, read_header, unread
from fewstep.data.images import images as open_images
from fewstep.distributed import device, rank, world_size
from fewstep.files import regular, sha256

T = TypeVar("T")
LISTED = 5
RATIO = 100
"""The most that a compressed array may unfold to, in its own size, beyond what any file may have."""


class Images(Protocol):
    """A finite set of images uint8 (C, H, W), as `fewstep.data.images` opens it."""

    name: str

    @cached_property
    def fingerprint(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Source:
    """Images to be measured, uint8 (C, H, W).

    n: over all ranks, None if nobody knows. make(start): this rank's images (every world-th), from its start-th on, so
    that an interrupted evaluation can continue. name: an image, by its index over all ranks, for messages. overlap:
    whether images are made on the side while features are computed; not if both would fight for the same processors.
    """

    n: int | None
    make: Callable[[int], Iterable[NDArray[np.uint8]]]
    name: Callable[[int], str] = "image {}".format
    protocol: dict[str, Any] = field(default_factory=dict)
    overlap: bool = False


class ArrayImages:
    """The images of an npz file, `arr_0` uint8 (N, H, W, C), as generators of images write them: read where it lies."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.stem, path
        array = member(path, "arr_0")
        if array.ndim != 4 or array.dtype != np.uint8 or array.shape[3] not in (1, 3) or 0 in array.shape:
            raise ValueError(f"{path}: expected arr_0 uint8 (N, H, W, C), grey or RGB; got {array.dtype} {array.shape}")
        self.array = array.transpose(0, 3, 1, 2)
        self.shape: tuple[int, int, int] = self.array.shape[1:]

    @cached_property
    def fingerprint(self) -> str:
        return sha256(self.path)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        # a copy, as PyTorch warns of views of a file that it may not write
        return np.array(self.array[index], order="C")


def member(path: Path, name: str) -> NDArray[Any]:
    """An array of an npz file: a view of the file where the archive is not compressed, as NumPy's own are."""
    regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                if info.file_size > max(MAX_BYTES, RATIO * info.compress_size):
                    raise ValueError(f"{info.file_size} bytes out of {info.compress_size}: no images are so regular")
                return parse_array(archive.read(info), name)
            with archive.open(info) as file:
                shape, dtype, order = read_header(file, name)
                offset = file.tell()
            if math.prod(shape) * dtype.itemsize + offset != info.file_size or 0 in shape:
                raise ValueError("its header does not match its size")
            return np.memmap(path, dtype, mode="r", offset=data_offset(path, info) + offset, shape=shape, order=order)
    except KeyError as error:
        raise ValueError(f"{path}: expected an array {name}; {error}") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: expected an npz file with an array {name}; {error}") from error


def data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed member begin: its local header has lengths of its own."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2")
    return info.header_offset + 30 + int(name) + int(extra)


def open_set(path: Path) -> Images:
    """A folder, a zip or an npz of images, looked through before anything expensive begins.

    Raises ValueError listing files that are no images, and naming the first image of another size or kind.
    """
    if path.suffix.lower() == ".npz":
        return ArrayImages(path)
    files = open_files(path)
    check_strangers(path)
    digest = check_headers(files)
    images = open_images(path, memory=0)  # each is read once
    if path.is_dir():
        images.fingerprint = digest  # of a folder the data's own has names and sizes only; a zip has check sums
    return images


def check_strangers(path: Path) -> None:
    """Refuse a folder or zip with files that are no images; hidden files and `dataset.json` may be there."""
    if path.is_dir():
        found = (str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    else:
        with zipfile.ZipFile(path) as archive:
            found = (name for name in archive.namelist() if not name.endswith("/"))
    shown = (name for name in found if not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts))
    strangers = sorted(name for name in shown if not is_image(name) and Path(name).name != "dataset.json")
    if strangers:
        more = f" and {len(strangers) - LISTED} more" if len(strangers) > LISTED else ""
        raise ValueError(
            f"{path} has files that are no images: {', '.join(strangers[:LISTED])}{more}; move them elsewhere, so that "
            "it is certain what is measured"
        )


def check_headers(files: Files) -> str:
    """Refuse a set of images of several sizes or kinds, from their headers alone; returns a hash of names and contents."""
    first, digest = None, hashlib.sha256()
    for name in files.names:
        where, content = f"{files.path}/{name}", files.read(name)
        digest.update(f"{name} {len(content)}\n".encode() + content)
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                kind = (image.width, image.height, image.mode)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{where}: expected an image; {unread(error)}; fetch or remove it") from error
        first = first or (name, kind)
        if kind != first[1]:
            (w0, h0, m0), (w, h, m) = first[1], kind
            raise ValueError(
                f"{where} is {w}x{h} {m}, and {first[0]} {w0}x{h0} {m0}; images of one set have one size and one kind: "
                "fewstep data pack makes them so"
            )
    return digest.hexdigest()


def from_images(images: Images, name: Callable[[int], str] = "image {}".format) -> Source:
    """All images of a set, split over the ranks."""

    def make(start: int) -> Iterator[NDArray[np.uint8]]:
        return (images[i] for i in range(rank() + start * world_size(), len(images), world_size()))

    protocol = {"images": images.name, "sha256": images.fingerprint, "rounding": "as stored"}
    return Source(len(images), make, name, protocol, overlap=True)


def from_path(path: Path) -> Source:
    """The images of a folder, a zip or an npz; see `open_set`."""
    images = open_set(path)
    if isinstance(images, ArrayImages):
        return from_images(images, f"{path}, image {{}}".format)
    names = open_files(path).names
    return from_images(images, lambda i: f"{path}/{names[i]}")


def open_pairs(a: Path, b: Path) -> tuple[Images, Images]:
    """Two sets of images that belong together one by one: as many, of one size and, as files, of the same names."""
    one, other = open_set(a), open_set(b)
    if not isinstance(one, ArrayImages) and not isinstance(other, ArrayImages):
        names = [[str(PurePath(name).with_suffix("")) for name in open_files(path).names] for path in (a, b)]
        if alone := sorted(set(names[0]) ^ set(names[1])):
            more = f" and {len(alone) - LISTED} more" if len(alone) > LISTED else ""
            raise ValueError(
                f"{a} and {b} must hold images of the same names; only one has {', '.join(alone[:LISTED])}{more}"
            )
    if len(one) != len(other) or one.shape != other.shape:
        raise ValueError(
            f"pairs need two sets of as many images of one size; {a} has {len(one)} of {one.shape}, {b} {len(other)} of "
            f"{other.shape} (C, H, W)"
        )
    return one, other


def first(source: Source, n: int) -> Source:
    """The first `n` images of a source."""
    if source.n is None or source.n < n:
        raise ValueError(
            f"{n:,} images are asked for; there are {'an unknown number' if source.n is None else source.n}"
        )

    def make(start: int) -> Iterator[NDArray[np.uint8]]:
        return islice(source.make(start), len(range(rank(), n, world_size())) - start)

    return replace(source, n=n, make=make)


def from_function(
    make_images: Callable[[Sequence[int]], Tensor | NDArray[np.uint8]], seeds: Sequence[int], *, batch_size: int = 64
) -> Source:
    """The images of any function (seeds) -> uint8 (B, C, H, W), one for each seed, called with `batch_size` seeds."""

    def make(start: int) -> Iterator[NDArray[np.uint8]]:
        mine = list(seeds)[rank() :: world_size()][start:]
        for i in range(0, len(mine), batch_size):
            asked = mine[i : i + batch_size]
            made = make_images(asked)
            array = made.cpu().numpy() if isinstance(made, Tensor) else np.asarray(made)
            if array.dtype != np.uint8 or array.ndim != 4 or len(array) != len(asked):
                raise ValueError(
                    f"expected {len(asked)} images uint8 (B, C, H, W) for as many seeds; got {array.dtype} {array.shape}"
                )
            yield from array

    on_side = device().type == "cuda"
    return Source(len(seeds), make, lambda i: f"the image of seed {seeds[i]}", {}, overlap=on_side)


def batches(images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[Tensor]:
    """Images (C, H, W) in batches (B, C, H, W), the last one shorter; ValueError if shapes are mixed."""
    batch: list[NDArray[np.uint8]] = []
    shape = None
    for image in images:
        shape = shape or image.shape
        if image.shape != shape:
            raise ValueError(f"images have several shapes: {shape} and {image.shape} (C, H, W)")
        batch.append(image)
        if len(batch) == size:
            yield torch.from_numpy(np.stack(batch))
            batch = []
    if batch:
        yield torch.from_numpy(np.stack(batch))


def prefetched(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, made up to `depth` ahead in a thread; an exception of theirs comes out here."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[str, Any]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(("item", item)):
                    return
            put(("end", None))
        except BaseException as error:  # it is raised again where the items are used
            put(("error", error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
