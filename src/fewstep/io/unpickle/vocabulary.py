"""The names that a pickle may use: those with which PyTorch and NumPy write data. All others stay names, as records."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from fewstep.io.unpickle.machine import Global, Machine, Record, expect, hashable
from fewstep.io.unpickle.stream import Blob, Budget, Stream, UnsafePickle
from fewstep.io.unpickle.tensors import (
    STORAGES,
    Storage,
    check_size,
    checked_shape,
    empty_array,
    fill_array,
    make_dtype,
    make_scalar,
    rebuild_parameter,
    rebuild_tensor,
)

MAGIC = 0x1950A86A20F9469CFC6C
"""First number of a file of torch.save in its format before the zip, and of each storage inside a pickled tensor."""

PERSISTENCE = "torch_utils.persistence"
"""The module by which NVIDIA's programs pickle objects together with the source code of their classes."""

Arguments = tuple[object, ...]


class DataVocabulary:
    """The vocabulary of a bare pickle. It refuses references to data outside of the pickle."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.constructors: dict[tuple[str, str], Callable[[Arguments], object]] = {
            (PERSISTENCE, "_reconstruct_persistent_obj"): self.make_persistent_object,
            ("collections", "OrderedDict"): self.make_dict,
            ("dnnlib.util", "EasyDict"): self.make_dict,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
            ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): self.load_storage,
            ("torch", "Size"): lambda arguments: expect(tuple, single(arguments)),
            ("torch", "device"): lambda arguments: str(arguments[0]) if arguments else "",
            ("numpy", "dtype"): make_dtype,
            ("_codecs", "encode"): self.encode,
            ("builtins", "set"): self.make_set,
            ("__builtin__", "set"): self.make_set,
        }
        for package in ("numpy.core", "numpy._core"):
            self.constructors[f"{package}.multiarray", "scalar"] = make_scalar
            self.constructors[f"{package}.multiarray", "_reconstruct"] = empty_array
            self.constructors[f"{package}.numeric", "_frombuffer"] = self.make_array

    def resolve(self, module: str, name: str) -> object:
        """The constructor of a known name; for any other name a constructor of records."""
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        make = self.constructors.get((module, name), partial(make_record, module, name))
        return Global(f"{module[:80]}.{name[:80]}", make)

    def set_state(self, value: object, state: object) -> None:
        """Set attributes of a record, or fill an empty array."""
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
                fill_array(value, state, self.budget)
            case _:
                raise UnsafePickle(f"the pickle sets the state of a {type(value).__name__}")

    def load_persistent(self, key: object) -> object:
        raise UnsafePickle("the pickle refers to data outside of itself")

    def attributes(self, state: object, before: dict[object, object] | None = None) -> dict[object, object]:
        """The attributes in the state of an object: a dict, or a pair with the dict of its slots.

        States of any other type are dropped, since only the class of the object knows how to read them.
        """
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        found = [part for part in (before, *parts) if isinstance(part, dict) and part]
        if len(found) > 1:
            self.budget.step(sum(map(len, found)))
            return {key: value for part in found for key, value in part.items()}
        return found[0] if found else {}

    def make_persistent_object(self, arguments: Arguments) -> Record:
        """An object of NVIDIA's persistence mechanism. The source code of its class is dropped unread."""
        meta = expect(dict, single(arguments))
        if expect(str, meta.get("type")) != "class" or expect(int, meta.get("version")) != 6:
            raise UnsafePickle("a persistent object that is not a class of version 6")
        return Record(PERSISTENCE, expect(str, meta.get("class_name")), self.attributes(meta.get("state")))

    def make_dict(self, arguments: Arguments) -> dict[object, object]:
        items = expect(list, single(arguments)) if arguments else []
        self.budget.step(len(items))
        return {hashable(key): value for key, value in (pair(item) for item in items)}

    def make_set(self, arguments: Arguments) -> set[object]:
        items = expect(list, single(arguments)) if arguments else []
        self.budget.step(len(items))
        return {hashable(item) for item in items}

    def encode(self, arguments: Arguments) -> Blob:
        """A byte string as protocols before 3 write it: a text of the first 256 code points."""
        text, encoding = (expect(str, argument) for argument in pair(arguments))
        if encoding != "latin1":
            raise UnsafePickle("_codecs.encode is read for the encoding latin1 alone")
        self.budget.allocate(len(text))
        try:
            return Blob.of(text.encode("latin1"))
        except UnicodeEncodeError as error:
            raise UnsafePickle("a byte string holds characters beyond latin1") from error

    def make_array(self, arguments: Arguments) -> np.ndarray | Record:
        """A contiguous array of protocol 5, from (bytes, dtype, shape, order)."""
        match arguments:
            case (_, Record(), *_):
                return Record("numpy", "ndarray", arguments=arguments)
            case (Blob() as blob, np.dtype() as dtype, size, str(order)) if order in ("C", "F"):
                check_size(blob, dtype, size)
                self.budget.allocate(blob.size)
                return np.frombuffer(blob.read(), dtype).reshape(
                    checked_shape(size), order="F" if order == "F" else "C"
                )
        raise UnsafePickle("a NumPy array that is not made as NumPy makes it")

    def load_storage(self, arguments: Arguments) -> Storage:
        """The storage of a pickled tensor: a stream of torch.save inside the pickle. All of its bytes are charged."""
        blob, left = expect(Blob, single(arguments)), self.budget.data
        stream, vocabulary = blob.stream(), StorageVocabulary(self.budget, refuse_name)
        if Machine(stream, vocabulary, self.budget).run() != MAGIC:
            raise UnsafePickle("a tensor's data does not begin as torch.save's does")
        storage = expect(Storage, read_legacy(stream, vocabulary))
        self.budget.allocate(max(0, blob.size - (left - self.budget.data)))
        return storage


class StorageVocabulary(DataVocabulary):
    """The vocabulary of torch.save, where tensors refer to storages by key and the data of the storages follow.

    Args:
        budget: of the file.
        resolve_other: resolves the names that are not storages.
    """

    def __init__(self, budget: Budget, resolve_other: Callable[[str, str], object]) -> None:
        super().__init__(budget)
        self.resolve_other = resolve_other
        self.storages: dict[str, Storage] = {}

    def resolve(self, module: str, name: str) -> object:
        known = module in ("torch", "torch.storage") and name in STORAGES
        return STORAGES[name] if known else self.resolve_other(module, name)

    def load_persistent(self, key: object) -> object:
        """The storage of ("storage", type, key, device, numbers[, view]), or the class of ("module", class, ...)."""
        match key:
            case ("module", Global() as kind, *_):  # the older format also stores the source file of a module's class
                return kind
            case ("storage", Global(), *_):
                return Record("torch", "storage", arguments=(key,))
            case (str(kind), torch.dtype() as dtype, str(name), str(), int(n), *view) if kind == "storage" and n >= 0:
                if any(part is not None for part in view):
                    raise UnsafePickle(f"storage {name[:20]!r} is a view of another")
                if name not in self.storages:
                    self.storages[name] = self.make_storage(name, n, dtype)
                storage = self.storages[name]
                if storage.data.dtype != dtype or len(storage.data) != n:
                    raise UnsafePickle(f"storage {name[:20]!r} is declared twice, differently")
                return storage
        raise UnsafePickle("a reference to outside data that is not a whole storage of a known type")

    def make_storage(self, name: str, n: int, dtype: torch.dtype) -> Storage:
        """A storage that is filled later."""
        return Storage.empty(n, dtype, self.budget)


def read_legacy(stream: Stream, vocabulary: StorageVocabulary) -> object:
    """The rest of a stream of torch.save before its zip format, after MAGIC: version, platform, object, keys, storages."""
    budget = vocabulary.budget

    def load() -> object:
        return Machine(stream, vocabulary, budget).run()

    if (version := expect(int, load())) != 1001:
        raise UnsafePickle(f"torch.save's stream has version {version}; 1001 is read")
    if expect(dict, load()).get("little_endian") is not True:
        raise UnsafePickle("the tensors were written on a big-endian machine")
    value, keys = load(), expect(list, load())
    if sorted(expect(str, key) for key in keys) != sorted(vocabulary.storages):
        raise UnsafePickle("the storages that are listed are not those that are used")
    for key in keys:
        storage = vocabulary.storages[key]
        if (n := stream.integer(8)) != len(storage.data):
            raise UnsafePickle(f"a storage declares {len(storage.data)} numbers and has {n}")
        stream.read_into(storage.buffer())
    return value


def refuse_name(module: str, name: str) -> object:
    raise UnsafePickle(f"a tensor's data names {module[:80]}.{name[:80]}; only storages belong there")


def make_record(module: str, name: str, arguments: Arguments) -> Record:
    return Record(module, name, arguments=arguments)


def single(arguments: Arguments) -> object:
    """The only argument of a call."""
    if len(arguments) != 1:
        raise UnsafePickle(f"a call with {len(arguments)} arguments where one belongs")
    return arguments[0]


def pair(item: object) -> tuple[object, object]:
    """The two items of a pair."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UnsafePickle("a dict is built from something else than pairs")
    return item[0], item[1]
