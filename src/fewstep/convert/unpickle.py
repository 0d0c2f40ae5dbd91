"""Reads pickles of PyTorch and NumPy data without executing anything: tensors, arrays, and inert records of objects.

Networks published as Python objects (EDM, EDM2 and their descendants embed the source code of every class) are programs
that the standard reader runs. Here the instructions run on a machine that can only build data (`opcodes`), and the few
names below are all that a file may call. Classes become `Record`s: a name and the attributes.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fewstep.convert.opcodes import Blob, Budget, Global, Machine, Stream, UnsafePickle, expect, hashable
from fewstep.files import regular

MAGIC = 0x1950A86A20F9469CFC6C
"""Opens the files of torch.save before its zip format, and each storage inside a pickled tensor."""

MAX_DIMS = 16

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
}
DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}
CONTAINERS = "torch.nn.modules.container"
PERSISTENCE = "torch_utils.persistence"


@dataclass(eq=False)
class Record:
    """An object as it lies in the file: the names of its class, which was not looked up, and its attributes."""

    module: str
    class_name: str
    state: dict[str, object] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Storage:
    """The flat data of tensors, (n,)."""

    data: Tensor = field(repr=False)

    @classmethod
    def empty(cls, n: int, dtype: torch.dtype, budget: Budget) -> Storage:
        """Uninitialised; the caller has compared its size with the file's."""
        budget.allocate(n * dtype.itemsize)
        return cls(torch.empty(n, dtype=dtype))

    def buffer(self) -> memoryview:
        """Its bytes, to be filled."""
        return self.data.view(torch.uint8).numpy().data


def read(source: str | os.PathLike[str] | bytes) -> object:
    """The content of a pickle, or of a file of torch.save in any of its formats, from a path or from bytes.

    Tensors are torch tensors on the CPU, arrays are NumPy's, dict-like classes are dicts, other objects are `Record`s;
    byte strings that make up none of these stay in the file, as `Blob`s. Needs memory for the tensors alone (before
    protocol 3, where their bytes are texts, three times that). Raises UnsafePickle where the file names anything else
    than data (the message says what), or is not whole.
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
    """The names that a pickle may use, and what they make. References to data outside of the pickle are refused."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.names: dict[tuple[str, str], Callable[[tuple[object, ...]], object]] = {
            (PERSISTENCE, "_reconstruct_persistent_obj"): persistent_object,
            ("collections", "OrderedDict"): self.ordered_dict,
            ("dnnlib.util", "EasyDict"): self.ordered_dict,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): self.load_storage,
            ("torch", "Size"): lambda arguments: expect(tuple, only(arguments)),
            ("torch", "device"): lambda arguments: str(arguments[0]) if arguments else "",
            ("numpy", "dtype"): make_dtype,
            ("numpy", "ndarray"): refuse_call,
            ("_codecs", "encode"): self.encode,
            ("builtins", "set"): self.make_set,
            ("__builtin__", "set"): self.make_set,
        }
        for package in ("numpy.core", "numpy._core"):
            self.names[f"{package}.multiarray", "scalar"] = make_scalar
            self.names[f"{package}.multiarray", "_reconstruct"] = empty_array
            self.names[f"{package}.numeric", "_frombuffer"] = self.make_array
        for name in ("ModuleDict", "ModuleList", "Sequential"):
            self.names[CONTAINERS, name] = empty_record(CONTAINERS, name)
        # NCVSD's students are pickled by reference; a record lets the converter say what they are.
        self.names["training.networks_edm2", "GenerativeDenoiser"] = empty_record(
            "training.networks_edm2", "GenerativeDenoiser"
        )

    def find(self, module: str, name: str) -> object:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in self.names:
            raise UnsafePickle(
                f"the pickle names {module[:80]}.{name[:80]}, which is not data; it was neither imported nor run"
            )
        return Global(f"{module}.{name}", self.names[module, name])

    def build(self, value: object, state: object) -> None:
        match value:
            case Record(state=known) if not known:
                value.state = expect(dict, state)
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

    def make_array(self, arguments: tuple[object, ...]) -> np.ndarray:
        """Contiguous arrays from protocol 5 on: (bytes, dtype, shape, order)."""
        match arguments:
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
        return STORAGES[name] if module == "torch" and name in STORAGES else self.other_names(module, name)

    def persistent(self, key: object) -> Storage:
        match key:
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


def shape(value: object) -> tuple[int, ...]:
    if (
        not isinstance(value, tuple)
        or len(value) > MAX_DIMS
        or not all(type(n) is int and 0 <= n < 2**63 for n in value)
    ):
        raise UnsafePickle(f"a shape, stride or offset is not a tuple of at most {MAX_DIMS} integers from 0 on")
    return value


def refuse_call(arguments: tuple[object, ...]) -> object:
    raise UnsafePickle("numpy.ndarray is called directly; arrays are read as NumPy writes them")


def empty_record(module: str, name: str) -> Callable[[tuple[object, ...]], Record]:
    def make(arguments: tuple[object, ...]) -> Record:
        if arguments:
            raise UnsafePickle(f"{module}.{name} is made with arguments")
        return Record(module, name)

    return make


def persistent_object(arguments: tuple[object, ...]) -> Record:
    """An object of the upstream persistence mechanism. The source code of its class is dropped unread."""
    meta = expect(dict, only(arguments))
    if expect(str, meta.get("type")) != "class" or expect(int, meta.get("version")) != 6:
        raise UnsafePickle("a persistent object that is not a class of version 6")
    return Record(PERSISTENCE, expect(str, meta.get("class_name")), expect(dict, meta.get("state")))


def rebuild_parameter(arguments: tuple[object, ...]) -> Tensor:
    return expect(Tensor, arguments[0] if arguments else None)


def rebuild_tensor(arguments: tuple[object, ...]) -> Tensor:
    """A view of a storage: (storage, offset, size, stride, requires_grad, hooks[, metadata])."""
    if len(arguments) not in (6, 7):
        raise UnsafePickle(f"a tensor is made with {len(arguments)} arguments; 6 or 7 are known")
    data = expect(Storage, arguments[0]).data
    (offset,), size, stride = shape((arguments[1],)), shape(arguments[2]), shape(arguments[3])
    if len(size) != len(stride):
        raise UnsafePickle(f"a tensor has {len(size)} dimensions and {len(stride)} strides")
    n = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if n else offset - 1
    if n > len(data) or last >= len(data):
        raise UnsafePickle(f"a tensor of {n} numbers up to index {last} does not fit its storage of {len(data)}")
    if n:
        return data.as_strided(size, stride, offset)
    # The strides of an empty tensor mean nothing, but its shape must fit a machine word.
    if math.prod(max(length, 1) for length in size) >= 2**40:
        raise UnsafePickle(f"an empty tensor of shape {size} does not fit")
    return data.new_empty(size)


def make_dtype(arguments: tuple[object, ...]) -> np.dtype:
    name = expect(str, arguments[0] if arguments else None)
    if name not in DTYPES:
        raise UnsafePickle(f"a NumPy dtype {name[:20]!r}; plain numbers are read")
    return np.dtype(f"<{name}")


def make_scalar(arguments: tuple[object, ...]) -> int | float:
    match arguments:
        case (np.dtype() as dtype, Blob() as blob) if blob.size == dtype.itemsize:
            return np.frombuffer(blob.read(), dtype)[0].item()
    raise UnsafePickle("a NumPy number whose bytes do not match its dtype")


def empty_array(arguments: tuple[object, ...]) -> np.ndarray:
    match arguments:
        case (Global(name="numpy.ndarray"), size, Blob()) if shape(size) == (0,):
            return np.empty(0)
    raise UnsafePickle("a NumPy array that is not made as NumPy makes it")


def check_size(blob: Blob, dtype: np.dtype, size: object) -> None:
    if math.prod(shape(size)) * dtype.itemsize != blob.size or not blob.size:
        raise UnsafePickle(f"a NumPy array of {dtype} has {blob.size} bytes, which do not match its shape")


def set_array(array: np.ndarray, state: object, budget: Budget) -> None:
    """Fill an empty array in place: NumPy's own state setter, on arguments that were checked."""
    match state:
        case (int(version), size, np.dtype() as dtype, int(fortran), Blob() as blob) if version == 1 and not array.size:
            check_size(blob, dtype, size)
            budget.allocate(blob.size)
            setstate: Any = array.__setstate__  # NumPy's stubs want a NumPy bool, which its code refuses
            setstate((1, size, dtype, bool(fortran), blob.read()))
        case _:
            raise UnsafePickle("a NumPy array that is not set up as NumPy does it, or twice")
