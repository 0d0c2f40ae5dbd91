"""Opens the containers of pickles: bare files, and both formats of torch.save."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from fewstep.io.unpickle.machine import Machine
from fewstep.io.unpickle.stream import Budget, Stream, UnsafePickle
from fewstep.io.unpickle.tensors import Storage
from fewstep.io.unpickle.vocabulary import MAGIC, DataVocabulary, StorageVocabulary, read_legacy
from fewstep.runtime.files import regular


def read(source: str | os.PathLike[str] | bytes) -> object:
    """The content of a pickle, or of a file of torch.save in any of its formats. Nothing in it is executed.

    Args:
        source: path of the file, or its bytes.

    Returns:
        Plain data as it is, tensors as torch tensors on the CPU, arrays as NumPy's, dict-like classes as dicts, byte strings
        as `Blob`s that stay in the file, and any other object or result of a call as a `Record`. The memory needed is that
        of the tensors (before protocol 3, where their bytes are texts, three times that).

    Raises:
        UnsafePickle: the file is damaged or not whole, or asks for something that the reader does not do.

    Example:
        >>> state = read("training-state-000512.pt")
        >>> state["net"].state["img_resolution"]
        64
    """
    if isinstance(source, bytes):
        return read_stream(Stream.of(source))
    with named(path := regular(Path(source))), path.open("rb") as file:
        return read_stream(Stream(file, 0, os.fstat(file.fileno()).st_size))


def read_stream(stream: Stream) -> object:
    """The content of a pickle or of a file of torch.save, whose format its first bytes tell."""
    budget = Budget(stream.end - stream.position)
    stream.file.seek(stream.position)
    if stream.file.read(4) == b"PK\x03\x04":
        return read_zip(stream.file, budget)
    vocabulary = DataVocabulary(budget)
    value = Machine(stream, vocabulary, budget).run()
    if type(value) is int and value == MAGIC:
        return read_legacy(stream, StorageVocabulary(budget, vocabulary.resolve))
    return value


class ZipVocabulary(StorageVocabulary):
    """The vocabulary of torch.save's zip format, where each storage is a member of the archive."""

    def __init__(self, budget: Budget, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(budget, DataVocabulary(budget).resolve)
        self.archive, self.root = archive, root

    def make_storage(self, name: str, n: int, dtype: torch.dtype) -> Storage:
        """The storage `name`, filled with the bytes of its member."""
        try:
            info = self.archive.getinfo(f"{self.root}data/{name}")
        except KeyError as error:
            raise UnsafePickle(f"storage {name[:20]!r} is missing from the archive") from error
        if info.file_size != n * dtype.itemsize:
            raise UnsafePickle(f"storage {name[:20]!r} declares {n} numbers of {dtype} and has {info.file_size} bytes")
        storage = super().make_storage(name, n, dtype)
        with self.archive.open(info) as member:
            Stream(member, 0, info.file_size).read_into(storage.buffer())
        return storage


def read_zip(file: IO[bytes], budget: Budget) -> object:
    """The zip format of torch.save: `<root>/data.pkl` and `<root>/data/<key>`, uncompressed."""
    with opened_zip(file, budget) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
            raise UnsafePickle("an archive with compressed or encrypted members; torch.save writes plain ones")
        budget.allocate(sum(m.file_size for m in members))
        root = folder_of_pickle([m.filename for m in members if m.filename.count("/") <= 1])
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise UnsafePickle("the archive was written on a big-endian machine")
        stream = Stream.of(archive.read(f"{root}data.pkl"))
        return Machine(stream, ZipVocabulary(budget, archive, root), budget).run()


@contextmanager
def opened_zip(file: IO[bytes] | Path, budget: Budget) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose members have different names; whatever zipfile raises about damage is an UnsafePickle."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            budget.step(len(names))
            if len(set(names)) < len(names):
                raise UnsafePickle("the archive has two members of one name")
            yield archive
    except UnsafePickle:
        raise
    # RuntimeError: an archive that is encrypted, or of a later version
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OverflowError, ValueError) as error:
        raise UnsafePickle(f"the archive is damaged: {error}") from error


def folder_of_pickle(names: list[str]) -> str:
    """The folder, with its slash, of the only `data.pkl` among the names of members."""
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UnsafePickle(f"expected one data.pkl, as torch writes it; the archive has {len(pickles)}")
    return pickles[0].removesuffix("data.pkl")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the path in front of the message of an UnsafePickle."""
    try:
        yield
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}") from error
