"""Sources of images: every format is read as the same entries, one at a time.

Sources are untrusted: no file is extracted, no pickle is executed, and declared sizes are checked.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import re
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from fewstep.data import lmdb
from fewstep.data.arrays import ArrayFile
from fewstep.data.classes import class_list, describe_classes, folder_labels, parse_labels, read_labels
from fewstep.data.color_modes import Entry
from fewstep.data.files import (
    Files,
    Readable,
    check_name,
    is_image,
    open_files,
    other_names,
    read_exactly,
    report_damage,
    top_folders,
)
from fewstep.data.pickles import read_pickle
from fewstep.runtime.archives import DAMAGE, PIECE, Xz, check_bytes, check_json, check_unfolded, read_all
from fewstep.runtime.display import public
from fewstep.runtime.environment import offline, optional
from fewstep.runtime.files import regular

KINDS = (
    "a folder, .zip, .tar, .tar.gz, .tar.bz2, .tar.xz, cifar-10-python.tar.gz, MNIST's *-images-idx3-ubyte.gz, .npz, "
    ".npy, an LMDB of LSUN, hf:NAME[:CONFIGURATION][@SPLIT], or the built-in digits"
)


@dataclass(frozen=True)
class Source:
    """Images in a fixed order.

    Attributes:
        total: number of images.
        entries: returns an iterator over them; an image that cannot be read is an entry with its error.
        class_names: of all classes, None if they have no names.
        ignored: files beside the images that are not images.
        classes: a description of the classes, for people.
    """

    total: int
    entries: Callable[[], Iterator[Entry]]
    class_names: list[str] | None = None
    ignored: list[str] = field(default_factory=list)
    classes: str = "no classes"


def open_source(source: str | os.PathLike[str], *, labels: bool = True) -> Source:
    """Open a source, whose kind is recognised by its name.

    Args:
        source: a path, "digits", or hf:NAME[:CONFIGURATION][@SPLIT].
        labels: whether to read the classes of image files.

    Raises:
        ValueError: it is missing, of no known kind, or damaged as a whole.
    """
    name = os.fspath(source)
    if name.startswith("hf:"):
        return from_hub(name.removeprefix("hf:"))
    path, lower = Path(name), name.lower()
    if name == "digits" and not path.exists():
        return from_digits()
    if not path.exists():
        raise ValueError(f"{path}: expected {KINDS}; there is no such path")
    if path.is_dir():
        return from_lsun(path) if (path / "data.mdb").is_file() else from_files(open_files(path), with_labels=labels)
    regular(path)
    if lower.endswith(".zip"):
        return from_files(open_files(path), with_labels=labels)
    if path.name.lower().startswith("cifar-10-python.tar"):
        return from_cifar10(path)
    if lower.endswith(tuple(TARS)):
        return from_tar(path, with_labels=labels)
    if lower.endswith(("-images-idx3-ubyte.gz", "-images-idx3-ubyte")):
        return from_mnist(path)
    if lower.endswith((".npz", ".npy")):
        return from_array(path)
    raise ValueError(f"{path}: expected {KINDS}")


def from_files(files: Files, *, with_labels: bool = True) -> Source:
    """A folder or a zip, sorted by path."""
    labels = read_labels(files) if with_labels else None

    def entries() -> Iterator[Entry]:
        for i, name in enumerate(files.names):
            try:
                content = files.read(name)
            except ValueError as error:
                content = error
            yield Entry(f"{files.path}/{name}", labels.indices[i] if labels else None, content)

    class_names = labels.class_names if labels else None
    return Source(len(files.names), entries, class_names, files.others, describe_classes(labels, files.names))


class Bounded(io.BufferedIOBase):
    """The file of a tar, which raises ValueError if it unfolds to too much for its size or its headers are too long."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path, self.stored = file, path, path.stat().st_size
        self.tell = file.tell
        self.left = 2**25 + 8.0 * self.stored

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        check_unfolded(offset, self.stored, str(self.path))
        return self.file.seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        self.left -= size
        if size > PIECE or self.left < 0:
            raise ValueError(f"{self.path}: its headers are longer than those of any tar; do not use this file")
        data = self.file.read(size)
        check_unfolded(self.file.tell(), self.stored, str(self.path))
        return data


ENTRIES = 20_000
"""Entries that any tar may have; a larger one may have one for each 128 bytes, as an image with its header takes more."""
TARS: dict[str, Callable[[Path], Any]] = {
    ".tar": lambda path: path.open("rb"),
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": Xz,
}


@contextmanager
def open_tar(path: Path) -> Iterator[tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]]:
    """A tar and its members by name, in their order; ValueError if it is damaged or hostile."""
    opener = next(opener for end, opener in TARS.items() if path.name.lower().endswith(end))
    with (
        report_damage(path, tarfile.TarError, *DAMAGE),
        opener(path) as file,
        tarfile.open(fileobj=(bounded := Bounded(file, path)), mode="r:") as archive,
    ):
        members: dict[str, tarfile.TarInfo] = {}
        for n, member in enumerate(archive):
            if n > max(ENTRIES, bounded.stored // 128):
                raise ValueError(f"{path}: more than {n} entries in {bounded.stored} bytes; do not use this file")
            name = member.name.removeprefix("./")
            check_name(name, str(path))
            if name in members and not member.isdir():
                raise ValueError(f"{path}: the entry {name!r} is there twice; pack the tar again")
            members[name] = member
        # The reader takes a broken header for the end; the true end is a block of zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise ValueError(f"{path}: damaged or cut off after {len(members)} entries; fetch it again")
        bounded.left = math.inf
        yield archive, members


def read_tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    if not member.isreg() or member.issparse():
        raise ValueError(
            f"{where}: expected a regular file; it is a link, a device or sparse; extract the tar and pack the folder"
        )
    check_bytes(member.size, where)
    file = archive.extractfile(member)
    assert file is not None
    return read_all(file.read)


def from_tar(path: Path, *, with_labels: bool = True) -> Source:
    """The images of a tar, in its order; labels as in a folder."""
    with open_tar(path) as (archive, members):
        names = [name for name, member in members.items() if is_image(name) and not member.isdir()]
        if not names:
            raise ValueError(f"{path}: expected images; found none")
        where = f"{path}/dataset.json"
        if not with_labels:
            labels = None
        elif "dataset.json" in members:
            check_json(members["dataset.json"].size, path.stat().st_size, where)
            labels = parse_labels(read_tar_member(archive, members["dataset.json"], where), names, where)
        else:
            folders = top_folders(f"{n}/" if member.isdir() else n for n, member in members.items())
            labels = folder_labels(names, folders, str(path))
        ignored = other_names((name for name, member in members.items() if not member.isdir()), names)

    def entries() -> Iterator[Entry]:
        with open_tar(path) as (archive, members):
            for i, name in enumerate(names):
                try:
                    content = read_tar_member(archive, members[name], f"{path}/{name}")
                except ValueError as error:
                    content = error
                yield Entry(f"{path}/{name}", labels.indices[i] if labels else None, content)

    class_names = labels.class_names if labels else None
    return Source(len(names), entries, class_names, ignored, describe_classes(labels, names))


BATCH = 48 * 2**20
"""Limit in bytes for a file of CIFAR-10; the published ones have 31 MB."""


def from_cifar10(path: Path) -> Source:
    """The 50,000 training images of CIFAR-10 (Krizhevsky, 2009), from its Python version."""
    where = f"{path}/cifar-10-batches-py"
    with open_tar(path) as (archive, members):

        def read(name: str) -> Any:
            name = f"cifar-10-batches-py/{name}"
            if name not in members:
                raise ValueError(f"{path}: expected CIFAR-10; it has no {name}")
            if members[name].size > BATCH:
                raise ValueError(f"{path}/{name}: expected at most {BATCH} bytes; got {members[name].size}")
            return read_pickle(read_tar_member(archive, members[name], f"{path}/{name}"), f"{path}/{name}")

        batches = [read(f"data_batch_{i}") for i in range(1, 6)]
        meta = read("batches.meta")
    try:
        images = np.concatenate([batch[b"data"].reshape(-1, 3, 32, 32) for batch in batches]).transpose(0, 2, 3, 1)
        labels = [label for batch in batches for label in batch[b"labels"]]
        class_names = [name.decode() for name in meta[b"label_names"]]
        if len(labels) != len(images) or not all(type(k) is int and 0 <= k < len(class_names) for k in labels):
            raise ValueError(f"{len(labels)} labels of {len(class_names)} classes do not fit {len(images)} images")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: expected the batches of CIFAR-10; {error!r}") from error

    def entries() -> Iterator[Entry]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield Entry(f"{where}[{i}]", label, np.ascontiguousarray(image))

    return Source(len(images), entries, class_names, classes=class_list(len(class_names), class_names))


def from_mnist(path: Path) -> Source:
    """MNIST (LeCun et al., 1998): 28x28 pixels, padded to 32x32, with the labels from the file beside it."""
    labels_path = path.with_name(path.name.replace("-images-idx3-", "-labels-idx1-"))
    if not labels_path.exists():
        raise ValueError(f"{path}: expected its labels in {labels_path}; there is no such file")

    def header(file: Readable, where: Path, axes: int) -> tuple[int, ...]:
        magic, *shape = struct.unpack(f">{axes + 1}I", read_exactly(file, 4 * axes + 4, str(where)))
        if magic != 0x800 + axes:
            raise ValueError(
                f"{where}: expected an idx{axes}-ubyte file, which begins with {0x800 + axes}; got {magic}"
            )
        return tuple(shape)

    unpack: Callable[[Path], Any] = gzip.open if path.suffix == ".gz" else lambda file: file.open("rb")
    with report_damage(regular(labels_path), *DAMAGE), unpack(labels_path) as file:
        (n,) = header(file, labels_path, 1)
        with report_damage(path, *DAMAGE), unpack(path) as images:
            shape = header(images, path, 3)
        if shape != (n, 28, 28):
            raise ValueError(f"{path}: expected {n} images of 28x28 pixels, as there are labels; got {shape}")
        check_unfolded(n * 28 * 28, path.stat().st_size, str(path))
        labels = np.frombuffer(read_exactly(file, n, str(labels_path)), dtype=np.uint8)

    def entries() -> Iterator[Entry]:
        with report_damage(path, *DAMAGE), unpack(path) as file:
            header(file, path, 3)
            for i, label in enumerate(labels):
                pixels = np.frombuffer(read_exactly(file, 28 * 28, str(path)), dtype=np.uint8).reshape(28, 28)
                yield Entry(f"{path}[{i}]", int(label), np.pad(pixels, 2))

    return Source(n, entries, classes=class_list(int(labels.max(initial=0)) + 1, None))


def from_array(path: Path) -> Source:
    """The images of a `.npy` or `.npz`; see `ArrayFile`."""
    file = ArrayFile(path)
    labels = file.labels

    def entries() -> Iterator[Entry]:
        for i, pixels in enumerate(file.one_by_one()):
            yield Entry(f"{file.where}[{i}]", None if labels is None else int(labels[i]), pixels)

    found = "no classes" if labels is None else class_list(int(labels.max()) + 1, None)
    return Source(len(file), entries, classes=found)


def from_digits() -> Source:
    """The digits that ship with the package."""
    from fewstep.data.builtin import digits  # it is made of ImageData, which is made of sources

    data = digits()
    names, labels = data.class_names, data.labels
    assert names is not None and labels is not None

    def entries() -> Iterator[Entry]:
        for i, label in enumerate(labels):
            yield Entry(f"digits[{i}]", int(label), data[i].transpose(1, 2, 0))

    return Source(len(data), entries, list(names), classes=class_list(len(names), names))


def from_lsun(path: Path) -> Source:
    """A category of LSUN (Yu et al., 2015): an LMDB whose values are image files."""
    file = path / "data.mdb"

    def entries() -> Iterator[Entry]:
        for key, value in lmdb.items(file):
            yield Entry(f"{path}/{key.decode('ascii', 'backslashreplace')}", None, value)

    return Source(lmdb.count(file), entries)


NAME = re.compile(r"(?P<name>[^:@]+)(?::(?P<configuration>[^:@]+))?(?:@(?P<split>.+))?")


def from_hub(address: str) -> Source:
    """A data set of the hub, NAME[:CONFIGURATION][@SPLIT]: its first column of images and its first of classes.

    Without a configuration its only one, or its default; without a split "train".
    """
    match = NAME.fullmatch(address)
    if match is None:
        raise ValueError(f"expected hf:NAME, hf:NAME:CONFIGURATION, hf:NAME@SPLIT or both; got hf:{address}")
    datasets = optional("datasets", f"hf:{address}", "datasets")
    try:
        table = datasets.load_dataset(match["name"], match["configuration"], split=match["split"] or "train")
    except Exception as error:  # of datasets, of the hub's client, of what both transport with
        raise ValueError(f"hf:{address}: {loading_error(error)}") from error
    images = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    classes = [column for column, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images:
        raise ValueError(f"hf:{address}: expected a column of images; it has {', '.join(table.features)}")
    class_names = list(table.features[classes[0]].names) if classes else None
    table = table.select_columns(images[:1] + classes[:1]).cast_column(images[0], datasets.Image(decode=False))

    def entries() -> Iterator[Entry]:
        for i, row in enumerate(table):
            where = f"hf:{address}[{i}]"
            file = row[images[0]]
            content = file["bytes"] if file["bytes"] is not None else Path(file["path"]).read_bytes()
            label = row[classes[0]] if classes else None
            if label is not None and label < 0:
                content = ValueError(f"{where}: it has no class, while others have one")
            yield Entry(where, label, content)

    found = class_list(len(class_names), class_names) if class_names else "no classes"
    return Source(len(table), entries, class_names, classes=found)


def loading_error(error: Exception) -> str:
    """Why a data set of the hub could not be loaded, and what to do."""
    words = f"{type(error).__name__}: {public(' '.join(str(error).split()))[:300]}"
    if offline():
        return f"it has not been fetched before, and offline it cannot be ({words})"
    advice = (
        "choose configuration and split by hf:NAME:CONFIGURATION@SPLIT; if it is private, log in with: hf auth login"
    )
    if isinstance(error, ConnectionError):
        advice = "try again later; what was fetched before is there with --offline"
    return f"it cannot be loaded ({words}); {advice}"
