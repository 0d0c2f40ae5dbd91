"""Reads pickles of PyTorch and NumPy data without executing anything: tensors, arrays, and inert records of objects.

Networks published as Python objects (EDM, EDM2 and their descendants embed the source code of every class) are programs
that the standard reader runs. Here the instructions run on a machine that can only build data (`opcodes`). The few names
of `Words` make data; every other class or function that a file names becomes a `Record`: its name, what it would have been
called with, and its attributes. A file may therefore hold whatever its authors' programs kept beside a network.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch

from fewstep.io.convert.opcodes import Blob, Budget, Global, Machine, Record, Stream, UnsafePickle, expect, hashable
from fewstep.io.convert.rebuild import (
    STORAGES,
    Storage,
    check_size,
    empty_array,
    make_dtype,
    make_scalar,
    rebuild_parameter,
    rebuild_tensor,
    set_array,
    shape,
)
from fewstep.runtime.files import regular

__all__ = ["PERSISTENCE", "Record", "UnsafePickle", "read"]

MAGIC = 0x1950A86A20F9469CFC6C
"""Opens the files of torch.save before its zip format, and each storage inside a pickled tensor."""

PERSISTENCE = "torch_utils.persistence"


def read(source: str | os.PathLike[str] | bytes) -> object:
    """The content of a pickle, or of a file of torch.save in any of its formats, from a path or from bytes.

    Tensors are torch tensors on the CPU, arrays are NumPy's, dict-like classes are dicts, other objects and the results of
    calls are `Record`s; byte strings that make up none of these stay in the file, as `Blob`s. Needs memory for the tensors
    alone (before protocol 3, where their bytes are texts, three times that). Raises UnsafePickle if the file is damaged or
    not whole.
    """
    if isinstance(source, bytes):
        return read_stream(Stream(BytesIO(source), 0, len(source)))
    path = regular(Path(source))
    with path.open("rb") as file:
        try:
            return read_stream(Stream(file, 0, os.fstat(file.fileno()).st_size))
        except UnsafePickle as error:
            raise UnsafePickle(f"{path}: {error}") from error


def read_stream(stream: Stream) -> object:
    budget = Budget(stream.end - stream.position)
    stream.file.seek(stream.position)
    if stream.file.read(4) == b"PK\x03\x04":
        return read_zip(stream.file, budget)
    words = Words(budget)
    value = Machine(stream, words, budget).run()
    return read_legacy(stream, Located(budget, words.find)) if type(value) is int and value == MAGIC else value


class Words:
    """The names that make data, and what they make; all others make records. Data outside of the pickle are refused."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.names: dict[tuple[str, str], Callable[[tuple[object, ...]], object]] = {
            (PERSISTENCE, "_reconstruct_persistent_obj"): self.persistent_object,
            ("collections", "OrderedDict"): self.ordered_dict,
            ("dnnlib.util", "EasyDict"): self.ordered_dict,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
            ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): self.load_storage,
            ("torch", "Size"): lambda arguments: expect(tuple, only(arguments)),
            ("torch", "device"): lambda arguments: str(arguments[0]) if arguments else "",
            ("numpy", "dtype"): make_dtype,
            ("_codecs", "encode"): self.encode,
            ("builtins", "set"): self.make_set,
            ("__builtin__", "set"): self.make_set,
        }
        for package in ("numpy.core", "numpy._core"):
            self.names[f"{package}.multiarray", "scalar"] = make_scalar
            self.names[f"{package}.multiarray", "_reconstruct"] = empty_array
            self.names[f"{package}.numeric", "_frombuffer"] = self.make_array

    def find(self, module: str, name: str) -> object:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        make = self.names.get((module, name), partial(record, module, name))
        return Global(f"{module[:80]}.{name[:80]}", make)

    def build(self, value: object, state: object) -> None:
        match value:
            case Record():
                value.state = self.attributes(state, value.state)
            case dict():
                # The attributes of a dict, such as the version notes of a state dict, are dropped.
                expect(dict, state)
            case np.dtype():
                order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
                if not isinstance(order, str) or order not in ("<", "|", "="):
                    raise UnsafePickle("a NumPy dtype that is not little-endian and plain")
            case np.ndarray():
                set_array(value, state, self.budget)
            case _:
                raise UnsafePickle(f"the pickle sets the state of a {type(value).__name__}")

    def persistent(self, key: object) -> object:
        raise UnsafePickle("the pickle refers to data outside of itself")

    def attributes(self, state: object, before: dict[object, object] | None = None) -> dict[object, object]:
        """What sets up an object: a dict, or a pair with that of its slots; anything else, which only its class knows how to
        read, is dropped.
        """
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        found = [part for part in (before, *parts) if isinstance(part, dict) and part]
        if len(found) > 1:
            self.budget.step(sum(map(len, found)))
            return {key: value for part in found for key, value in part.items()}
        return found[0] if found else {}

    def persistent_object(self, arguments: tuple[object, ...]) -> Record:
        """An object of the upstream persistence mechanism. The source code of its class is dropped unread."""
        meta = expect(dict, only(arguments))
        if expect(str, meta.get("type")) != "class" or expect(int, meta.get("version")) != 6:
            raise UnsafePickle("a persistent object that is not a class of version 6")
        return Record(PERSISTENCE, expect(str, meta.get("class_name")), self.attributes(meta.get("state")))

    def ordered_dict(self, arguments: tuple[object, ...]) -> dict[object, object]:
        items = expect(list, only(arguments)) if arguments else []
        self.budget.step(len(items))
        return {hashable(key): value for key, value in (pair(item) for item in items)}

    def make_set(self, arguments: tuple[object, ...]) -> set[object]:
        items = expect(list, only(arguments)) if arguments else []
        self.budget.step(len(items))
        return {hashable(item) for item in items}

    def encode(self, arguments: tuple[object, ...]) -> Blob:
        """Byte strings before protocol 3: a text of the first 256 code points."""
        text, encoding = (expect(str, argument) for argument in pair(arguments))
        if encoding != "latin1":
            raise UnsafePickle("_codecs.encode is read for the encoding latin1 alone")
        self.budget.allocate(len(text))
        try:
            return Blob.of(text.encode("latin1"))
        except UnicodeEncodeError as error:
            raise UnsafePickle("a byte string holds characters beyond latin1") from error

    def make_array(self, arguments: tuple[object, ...]) -> np.ndarray | Record:
        """Contiguous arrays from protocol 5 on: (bytes, dtype, shape, order)."""
        match arguments:
            case (_, Record(), *_):
                return Record("numpy", "ndarray", arguments=arguments)
            case (Blob() as blob, np.dtype() as dtype, size, str(order)) if order in ("C", "F"):
                check_size(blob, dtype, size)
                self.budget.allocate(blob.size)
                return np.frombuffer(blob.read(), dtype).reshape(shape(size), order="F" if order == "F" else "C")
        raise UnsafePickle("a NumPy array that is not made as NumPy makes it")

    def load_storage(self, arguments: tuple[object, ...]) -> Storage:
        """The storage of one tensor: a stream of torch.save within the pickle. All of it counts, as all of it is read."""
        blob, left = expect(Blob, only(arguments)), self.budget.data
        stream, located = blob.stream(), Located(self.budget, no_names)
        if Machine(stream, located, self.budget).run() != MAGIC:
            raise UnsafePickle("a tensor's data does not begin as torch.save's does")
        storage = expect(Storage, read_legacy(stream, located))
        self.budget.allocate(max(0, blob.size - (left - self.budget.data)))
        return storage


def no_names(module: str, name: str) -> object:
    raise UnsafePickle(f"a tensor's data names {module[:80]}.{name[:80]}; only storages belong there")


class Located(Words):
    """Within a stream of torch.save: storages are referred to by key, and their data follow or lie beside."""

    def __init__(self, budget: Budget, find: Callable[[str, str], object]) -> None:
        super().__init__(budget)
        self.other_names = find
        self.storages: dict[str, Storage] = {}

    def find(self, module: str, name: str) -> object:
        known = module in ("torch", "torch.storage") and name in STORAGES
        return STORAGES[name] if known else self.other_names(module, name)

    def persistent(self, key: object) -> object:
        match key:
            case ("module", Global() as kind, *_):  # the older format says where the class of a module is written, too
                return kind
            case ("storage", Global(), *_):
                return Record("torch", "storage", arguments=(key,))
            case (str(kind), torch.dtype() as dtype, str(name), str(), int(n), *view) if kind == "storage" and n >= 0:
                if any(part is not None for part in view):
                    raise UnsafePickle(f"storage {name[:20]!r} is a view of another")
                if name not in self.storages:
                    self.storages[name] = self.place(name, n, dtype)
                storage = self.storages[name]
                if storage.data.dtype != dtype or len(storage.data) != n:
                    raise UnsafePickle(f"storage {name[:20]!r} is declared twice, differently")
                return storage
        raise UnsafePickle("a reference to outside data that is not a whole storage of a known type")

    def place(self, name: str, n: int, dtype: torch.dtype) -> Storage:
        return Storage.empty(n, dtype, self.budget)


class Zipped(Located):
    """Within the zip of torch.save, where each storage is a member."""

    def __init__(self, budget: Budget, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(budget, Words(budget).find)
        self.archive, self.root = archive, root

    def place(self, name: str, n: int, dtype: torch.dtype) -> Storage:
        try:
            info = self.archive.getinfo(f"{self.root}data/{name}")
        except KeyError as error:
            raise UnsafePickle(f"storage {name[:20]!r} is missing from the archive") from error
        if info.file_size != n * dtype.itemsize:
            raise UnsafePickle(f"storage {name[:20]!r} declares {n} numbers of {dtype} and has {info.file_size} bytes")
        storage = super().place(name, n, dtype)
        with self.archive.open(info) as member:
            Stream(member, 0, info.file_size).fill(storage.buffer())
        return storage


def read_zip(file: IO[bytes], budget: Budget) -> object:
    """The zip format of torch.save: `<root>/data.pkl` and `<root>/data/<key>`, uncompressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
                raise UnsafePickle("an archive with compressed or encrypted members; torch.save writes plain ones")
            budget.allocate(sum(m.file_size for m in members))
            budget.step(len(members))
            names = [m.filename for m in members]
            pickles = [name for name in names if name.endswith("data.pkl") and name.count("/") <= 1]
            if len(pickles) != 1 or len(set(names)) < len(names):
                raise UnsafePickle(f"expected an archive of torch.save with one data.pkl; this one has {len(pickles)}")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise UnsafePickle("the archive was written on a big-endian machine")
            data = archive.read(pickles[0])
            return Machine(Stream(BytesIO(data), 0, len(data)), Zipped(budget, archive, root), budget).run()
    except UnsafePickle:
        raise
    # RuntimeError: an archive that is encrypted, or of a later version
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OverflowError, ValueError) as error:
        raise UnsafePickle(f"the archive is damaged: {error}") from error


def read_legacy(stream: Stream, words: Located) -> object:
    """The older format of torch.save after its magic number: version, platform, object, keys, data of the storages."""
    budget = words.budget

    def run() -> object:
        return Machine(stream, words, budget).run()

    if (version := expect(int, run())) != 1001:
        raise UnsafePickle(f"torch.save's stream has version {version}; 1001 is read")
    if expect(dict, run()).get("little_endian") is not True:
        raise UnsafePickle("the tensors were written on a big-endian machine")
    value, keys = run(), expect(list, run())
    if sorted(expect(str, key) for key in keys) != sorted(words.storages):
        raise UnsafePickle("the storages that are listed are not those that are used")
    for key in keys:
        storage = words.storages[key]
        if (n := stream.number(8)) != len(storage.data):
            raise UnsafePickle(f"a storage declares {len(storage.data)} numbers and has {n}")
        stream.fill(storage.buffer())
    return value


def only(arguments: tuple[object, ...]) -> object:
    if len(arguments) != 1:
        raise UnsafePickle(f"a call with {len(arguments)} arguments where one belongs")
    return arguments[0]


def pair(item: object) -> tuple[object, object]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UnsafePickle("a dict is built from something else than pairs")
    return item[0], item[1]


def record(module: str, name: str, arguments: tuple[object, ...]) -> Record:
    return Record(module, name, arguments=arguments)
