"""Reads the pickles of CIFAR-10, which are dictionaries of lists and uint8 arrays, without executing anything."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

READS = 1_000_000
"""Limit for the reads of a pickle, one or more for each instruction; the largest of CIFAR-10 need 100,000."""
KEYS = {pickle.SETITEM[0]: slice(-2, -1), pickle.SETITEMS[0]: slice(0, None, 2), pickle.DICT[0]: slice(0, None, 2)}
"""Where on the stack an instruction finds the keys of a dictionary."""


def with_texts_as_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """An instruction of the reader that hashes texts alone: the hash of a nested tuple can take exponential time."""

    def checked(reader: Any) -> None:
        for key in reader.stack[keys]:
            if type(key) not in (bytes, str):
                raise ValueError(f"a dictionary has a key of type {type(key).__name__}; texts are read")
        load(reader)

    return checked


class Counted(io.BytesIO):
    """The bytes of a pickle, which end in an error if it is a program of millions of instructions."""

    left = READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"it has more than {READS} instructions")
        return super().read(size)


def read_pickle(data: bytes, where: str) -> Any:
    """The content of a pickle of plain data and uint8 arrays. Nothing is imported or called except what is listed here."""

    class Array:  # stands for numpy.ndarray: its state is (version, shape, dtype, fortran, bytes)
        def __init__(self, *_: object) -> None: ...

        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, fortran, content = state
            assert (dtype.args[0], fortran) in (("u1", False), (b"u1", False))
            self.array = np.frombuffer(content, dtype=np.uint8).reshape(shape)

    class DType:
        def __init__(self, *args: object) -> None:
            self.args = args

        def __setstate__(self, state: object) -> None: ...

    left = len(data)

    def encode(text: str, encoding: str) -> bytes:
        nonlocal left
        left -= len(text)
        assert encoding == "latin1" and left >= 0
        return text.encode("latin1")

    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): DType,
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy._core.multiarray", "_reconstruct"): Array,
        ("_codecs", "encode"): encode,
    }

    # The reader that is written in Python, without protocol 5: the others let a file choose what they allocate.
    class Reader(pickle._Unpickler):
        dispatch: ClassVar = {
            code: with_texts_as_keys(load, KEYS[code]) if code in KEYS else load
            for code, load in pickle._Unpickler.dispatch.items()
            if code not in (pickle.BYTEARRAY8[0], pickle.ADDITEMS[0], pickle.FROZENSET[0])
        }

        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise ValueError(f"it asks for {module}.{name}, which image data do not need; do not use this file")
            return allowed[module, name]

    try:
        content = Reader(Counted(data), encoding="bytes").load()
        assert isinstance(content, dict)
        return {k: v.array if isinstance(v, Array) else v for k, v in content.items()}
    except Exception as error:  # a hostile pickle can raise anything
        raise ValueError(f"{where}: expected a dictionary of uint8 arrays and lists; {error}") from error
