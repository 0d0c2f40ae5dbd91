"""Where the images to be measured come from: a path, a function of seeds; and batches of them."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.data.color_modes import check_fits, header_shape
from fewstep.data.files import Files, open_files
from fewstep.data.images import images as open_images
from fewstep.data.images import is_files
from fewstep.runtime.distributed import device, rank, world_size
from fewstep.runtime.files import listed

T = TypeVar("T")


class ImageSet(Protocol):
    """The contract of a finite set of images uint8 (C, H, W), such as `fs.images` opens.

    Attributes:
        name: its name in protocols and messages.
        fingerprint: hash of the images.
        shape: shape of an image (C, H, W).
        names: names of the images; None if they have none.

    Example:
        >>> images: fs.metrics.ImageSet = fs.images("digits")
        >>> len(images), images[0].shape
        (1797, (1, 8, 8))
    """

    name: str

    @cached_property
    def fingerprint(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def names(self) -> list[str] | None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class ImageSource:
    """Images to be measured, uint8 (C, H, W).

    Attributes:
        n: number of images over all ranks, None if it is not known.
        make: returns this rank's images, every world-th.
        name: the name of an image by its index over all ranks, for messages.
        protocol: how the images were made.
        overlap: make images in a thread while features are computed; not if both compute on the same processors.

    Example:
        >>> source = fs.metrics.ImageSource(64, lambda: iter(fs.images("digits").decoded()[:64]))
    """

    n: int | None
    make: Callable[[], Iterable[NDArray[np.uint8]]]
    name: Callable[[int], str] = "image {}".format
    protocol: dict[str, Any] = field(default_factory=dict)
    overlap: bool = False


def open_set(path: Path) -> ImageSet:
    """Open images of any source that `fewstep data pack` reads; files of a folder or zip are checked before anything expensive.

    Raises:
        ValueError: there are files that are not images, or an image of another size or kind; the message names them.
    """
    if not is_files(path):
        return open_images(path, memory=0)
    files = open_files(path)
    if files.others:
        raise ValueError(
            f"{path} has files that are no images: {listed(files.others)}; move them elsewhere, so that it is "
            "certain what is measured"
        )
    digest = check_headers(files)
    images = open_images(path, memory=0)  # each is read once
    if path.is_dir():
        images.fingerprint = digest  # of a folder the data's own has names and sizes only; a zip has check sums
    return images


def check_headers(files: Files) -> str:
    """Raise ValueError for images of several sizes or kinds, from their headers alone; return a hash of names and contents."""
    first, digest = None, hashlib.sha256()
    for name in files.names:
        where, content = f"{files.path}/{name}", files.read(name)
        digest.update(f"{name} {len(content)}\n".encode() + content)
        shape = header_shape(content, where)
        first = first or (name, shape)
        check_fits(where, shape, *first)
    return digest.hexdigest()


def from_images(images: ImageSet, name: Callable[[int], str] = "image {}".format) -> ImageSource:
    """Return all images of a set as a source, split over the ranks.

    Args:
        images: the set of images.
        name: the name of an image by its index, for messages.

    Returns:
        The source.

    Example:
        >>> source = fs.metrics.from_images(fs.images("digits"))
    """

    def make() -> Iterator[NDArray[np.uint8]]:
        return (images[i] for i in range(rank(), len(images), world_size()))

    protocol = {"images": images.name, "sha256": images.fingerprint, "rounding": "as stored"}
    return ImageSource(len(images), make, name, protocol, overlap=True)


def from_path(path: Path) -> ImageSource:
    """Return the images of a path as a source.

    Args:
        path: any source that `fs.images` opens.

    Returns:
        The source, split over the ranks.

    Raises:
        ValueError: the images cannot be read, or have several sizes.

    Example:
        >>> source = fs.metrics.from_path(Path("images.npy"))
    """
    images = open_set(path)
    names = images.names
    return from_images(images, f"{path}, image {{}}".format if names is None else lambda i: f"{path}/{names[i]}")


def open_pairs(a: Path, b: Path) -> tuple[ImageSet, ImageSet]:
    """Open two sets of images that belong together one by one: as many, of one size and, as files, of the same names."""
    one, other = open_set(a), open_set(b)
    if one.names is not None and other.names is not None:
        stems = [stems_of(images.names or [], path) for images, path in ((one, a), (other, b))]
        if alone := sorted(set(stems[0]) ^ set(stems[1])):
            raise ValueError(f"{a} and {b} must hold images of the same names; only one has {listed(alone)}")
        if stems[0] != stems[1]:  # a.png, a-b.png and a-b.jpg, a.jpg: extensions change the order
            other = Reordered(other, [stems[1].index(stem) for stem in stems[0]])
    if len(one) != len(other) or one.shape != other.shape:
        raise ValueError(
            f"pairs need two sets of as many images of one size; {a} has {len(one)} of {one.shape}, {b} {len(other)} of "
            f"{other.shape} (C, H, W)"
        )
    return one, other


def stems_of(names: Sequence[str], path: Path) -> list[str]:
    """The names without their extensions; ValueError if two become one."""
    stems = [str(PurePath(name).with_suffix("")) for name in names]
    if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise ValueError(
            f"{path}: {twice[0]} is the name of two images, which cannot be told apart as a pair; rename one"
        )
    return stems


class Reordered:
    """A set of images in another order."""

    def __init__(self, images: ImageSet, order: Sequence[int]) -> None:
        self.images, self.order = images, order
        self.name, self.shape, self.names = images.name, images.shape, None

    @cached_property
    def fingerprint(self) -> str:
        return self.images.fingerprint

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.images[self.order[index]]


def first(source: ImageSource, n: int) -> ImageSource:
    """The first `n` images of a source."""
    if source.n is None or source.n < n:
        raise ValueError(
            f"{n:,} images are asked for; there are {'an unknown number' if source.n is None else source.n}"
        )

    def make() -> Iterator[NDArray[np.uint8]]:
        return islice(source.make(), len(range(rank(), n, world_size())))

    return replace(source, n=n, make=make)


def from_function(
    make_images: Callable[[Sequence[int]], Tensor | NDArray[np.uint8]], seeds: Sequence[int], *, batch_size: int = 64
) -> ImageSource:
    """Return the images of any function of seeds as a source, such as a generator of another program.

    Args:
        make_images: seeds to images uint8 (B, C, H, W), one for each seed.
        seeds: one for each image.
        batch_size: number of seeds of a call.

    Returns:
        The source, split over the ranks.

    Raises:
        ValueError: when it is used: the function did not return one image uint8 for each seed.

    Example:
        >>> source = fs.metrics.from_function(lambda seeds: torch.zeros(len(seeds), 1, 8, 8, dtype=torch.uint8), range(64))
    """

    def make() -> Iterator[NDArray[np.uint8]]:
        mine = list(seeds)[rank() :: world_size()]
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
    return ImageSource(len(seeds), make, lambda i: f"the image of seed {seeds[i]}", {}, overlap=on_side)


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
