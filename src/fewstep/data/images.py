"""Data sets of images: a folder, a zip in the format of StyleGAN or an array, all with the same interface.

`images(path)` opens one. Images are uint8 (C, H, W), classes int64. Images are decoded when they are used.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.data.arrays import ArrayFile
from fewstep.data.classes import read_labels
from fewstep.data.color_modes import PACK, check_fits, decode, read_pixels
from fewstep.data.files import Files, changed, open_files, size_and_time
from fewstep.data.sources import Source, open_source
from fewstep.runtime.files import sha256

DECODED, SPARE = 2**30, 6
"""Limit in bytes for the decoded images of a source that is decoded at once, and images kept free for the decoder."""


class ImageData:
    """A data set of images of one shape, uint8 (C, H, W), with or without classes.

    Args:
        images: an array uint8 (N, C, H, W), or files.
        labels: class indices (N,), None if there are no classes.
        name: name of the set, for messages.
        num_classes: 0 without labels; by default the number of `class_names`, else the largest label + 1.
        class_names: names of all classes, in their order.
        memory: bytes; if all decoded images fit, each is decoded once and kept.
        file: the file of an array; its hash is the fingerprint.

    Raises:
        ValueError: the images or labels have another type, shape or range.

    Example:
        >>> data = fs.ImageData(np.zeros((100, 3, 32, 32), np.uint8), labels=np.arange(100) % 10, name="black")
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | Files,
        labels: Sequence[int] | NDArray[np.integer] | None = None,
        *,
        name: str,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        memory: int = 2**30,
        file: Path | None = None,
    ) -> None:
        self.name, self._file = name, file
        # An array that is mapped from its file crashes the process if the file is cut off.
        self._stat = None if file is None or not isinstance(images, np.memmap) else size_and_time(file)
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
                raise ValueError(f"{name}: expected images uint8 (N, C, H, W); got {images.dtype} {images.shape}")
            self._files, self._n = None, len(images)
            self.shape: tuple[int, int, int] = images.shape[1:]
            self._cache: NDArray[np.uint8] | None = images
            self._known = np.ones(self._n, dtype=bool)
        else:
            self._files, self._n = images, len(images.names)
            self.shape = self._pixels(0).shape
            self._allocate(memory)
        self.memory = memory
        self.labels = self._check_labels(labels)
        self.class_names = None if class_names is None or self.labels is None else tuple(class_names)
        present = 0 if self.labels is None else int(self.labels.max()) + 1
        self.num_classes = present if num_classes is None else num_classes
        if self.class_names is not None:
            self.num_classes = len(self.class_names)
        if self.num_classes < present:
            raise ValueError(f"{name}: label {present - 1} is out of range for {self.num_classes} classes")

    def _check_labels(self, labels: Sequence[int] | NDArray[np.integer] | None) -> NDArray[np.int64] | None:
        if labels is None:
            return None
        array = np.asarray(labels)
        if array.shape != (self._n,) or not np.issubdtype(array.dtype, np.integer) or array.min() < 0:
            raise ValueError(
                f"{self.name}: expected {self._n} integer class labels >= 0; got {array.dtype} {array.shape}"
                + (f" from {array.min()}" if array.size else "")
            )
        return array.astype(np.int64)

    def _allocate(self, memory: int) -> None:
        fits = self._n * int(np.prod(self.shape)) <= memory
        self._cache = np.empty((self._n, *self.shape), dtype=np.uint8) if fits else None
        self._known = np.zeros(self._n, dtype=bool)

    def __getstate__(self) -> dict[str, Any]:
        # Decoded images are not pickled: the other process decodes those that it needs.
        dropped = {} if self._files is None else {"_cache": None, "_known": None}
        return {**self.__dict__, **dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._files is not None:
            self._allocate(self.memory)

    def __len__(self) -> int:
        return self._n

    @property
    def names(self) -> list[str] | None:
        """The paths of the images within a folder or zip; None for arrays and other sources."""
        return None if self._files is None else self._files.names

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """The image at `index`, uint8 (C, H, W)."""
        i = operator.index(index)
        if not -self._n <= i < self._n:
            raise IndexError(f"{self.name} has {self._n} images; there is no image {i}")
        return self.gather(np.array([i % self._n]))[0]

    def gather(self, index: NDArray[np.integer]) -> NDArray[np.uint8]:
        """The images at `index` (n,), uint8 (n, C, H, W). Raises ValueError, too, if a file has changed."""
        self._check_unchanged()
        if self._cache is None:
            return np.stack([self._pixels(int(i)) for i in index])
        return self._keep(self._cache, index)[index]

    def decoded(self) -> NDArray[np.uint8]:
        """All images, uint8 (N, C, H, W), as a read-only view. Raises ValueError if they do not fit into `memory`."""
        self._check_unchanged()
        if self._cache is None:
            size = self._n * int(np.prod(self.shape))
            raise ValueError(f"{self.name}: {size} bytes of images do not fit into memory={self.memory}; raise it")
        view = self._keep(self._cache, np.arange(self._n)).view()
        view.flags.writeable = False
        return view

    def _check_unchanged(self) -> None:
        if self._file is not None and self._stat is not None and size_and_time(self._file) != self._stat:
            raise changed(self._file)

    def _keep(self, cache: NDArray[np.uint8], index: NDArray[np.integer]) -> NDArray[np.uint8]:
        for i in index[~self._known[index]]:
            cache[i] = self._pixels(int(i))
            self._known[i] = True
        return cache

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images and labels, without decoding images.

        For an array it covers all pixels or the file, for a zip the names, sizes and checksums of its files, and for a folder
        the names and sizes alone.
        """
        if self._file is not None:
            return sha256(self._file)
        digest = hashlib.sha256()
        if self._files is None:
            digest.update(f"{self.shape}".encode() + np.ascontiguousarray(self._cache).tobytes())
        else:
            entries = ((name, *self._files.signature(name)) for name in self._files.names)
            digest.update("\n".join(map(repr, entries)).encode())
        if self.labels is not None:
            digest.update(f"{self.num_classes}".encode() + self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def _pixels(self, i: int) -> NDArray[np.uint8]:
        assert self._files is not None
        first, name = self._files.names[0], self._files.names[i]
        pixels = read_pixels(self._files, name)
        if i == 0:
            return pixels
        check_fits(f"{self._files.path}/{name}", pixels.shape, first, self.shape)
        return np.broadcast_to(pixels, self.shape)


def images(path: str | os.PathLike[str], *, memory: int = 2**30) -> ImageData:
    """Open a data set of images.

    Images of a folder (searched recursively) or a `.zip` are sorted by relative path. The first one fixes the shape; grey
    images among RGB ones become RGB; images that cannot be converted without loss raise ValueError. Classes come from
    `dataset.json` at the root, {"labels": null | [[path, class], ...]}, else from the sorted names of the top-level folders if
    there is more than one. Arrays are mapped from their file (see `ArrayFile`). Other sources are decoded at once, up to a GiB.

    Args:
        path: any source that `fewstep data pack` reads, or the built-in "digits" ("./digits" is a folder).
        memory: bytes of decoded images to keep; see `ImageData`.

    Returns:
        The data set.

    Raises:
        ValueError: the source is missing, damaged, or holds images of several shapes; the message names the file.

    Example:
        >>> data = images("digits")
        >>> len(data), data.shape, data.num_classes
        (1797, (1, 8, 8), 10)
    """
    given = os.fspath(path)
    if given == "digits":
        from fewstep.data.builtin import digits  # it is made of ImageData

        return digits()
    path = Path(given)
    if path.suffix.lower() in (".npy", ".npz") and path.is_file():
        array = ArrayFile(path)
        return ImageData(array.images, array.labels, name=path.stem, file=path)
    if not is_files(path):
        return decode_source(open_source(given), given)
    files = open_files(path)
    labels = read_labels(files)
    index, num_classes, class_names = labels or (None, None, None)
    name = files.path.resolve().name.removesuffix(".zip")
    return ImageData(files, index, name=name, num_classes=num_classes, class_names=class_names, memory=memory)


def is_files(path: Path) -> bool:
    """Whether a path is a folder or a zip of images."""
    return path.suffix.lower() == ".zip" or (path.is_dir() and not (path / "data.mdb").is_file())


def decode_source(source: Source, name: str) -> ImageData:
    """All images of a source that can only be read from its beginning to its end."""
    pixels, first = np.empty((0, 0, 0, 0), np.uint8), ""
    labels: list[int | None] = []
    for i, entry in enumerate(source.entries()):
        image = decode(entry)
        if i == 0:
            if (source.total + SPARE) * image.size > DECODED:
                raise ValueError(
                    f"{name}: {source.total} images of {image.shape} do not fit into {DECODED} bytes; pack them first: {PACK}"
                )
            pixels, first = np.empty((source.total, *image.shape), np.uint8), entry.where
        shape = pixels.shape[1:]
        check_fits(entry.where, image.shape, first, shape)
        pixels[i] = image
        labels.append(entry.label)
    if not labels:
        raise ValueError(f"{name}: expected images; found none")
    known = [label for label in labels if label is not None]
    index = known if len(known) == len(pixels) else None
    return ImageData(pixels, index, name=Path(name).name, class_names=source.class_names)
