"""Makes tensors and NumPy arrays from what a pickle declares, after comparing every size with the data that are there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.io.unpickle.machine import Global, Record, expect
from fewstep.io.unpickle.stream import Blob, Budget, UnsafePickle

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
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
DTYPES = {"b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8", "c16"}


@dataclass(frozen=True, eq=False)
class Storage:
    """The flat data of tensors, (n,)."""

    data: Tensor = field(repr=False)

    @classmethod
    def empty(cls, n: int, dtype: torch.dtype, budget: Budget) -> Storage:
        """A storage of `n` uninitialised numbers. The caller has compared `n` with the size of the file."""
        budget.allocate(n * dtype.itemsize)
        return cls(torch.empty(n, dtype=dtype))

    def buffer(self) -> memoryview:
        """The bytes of the storage, to read data into."""
        return self.data.view(torch.uint8).numpy().data


def checked_shape(value: object) -> tuple[int, ...]:
    """A shape or stride: a short tuple of integers that fit a machine word."""
    if (
        not isinstance(value, tuple)
        or len(value) > MAX_DIMS
        or not all(type(n) is int and 0 <= n < 2**63 for n in value)
    ):
        raise UnsafePickle(f"a shape, stride or offset is not a tuple of at most {MAX_DIMS} integers from 0 on")
    return value


def rebuild_parameter(arguments: tuple[object, ...]) -> Tensor | Record:
    """A parameter as the tensor that it wraps."""
    data = arguments[0] if arguments else None
    return data if isinstance(data, Record) else expect(Tensor, data)


def rebuild_tensor(arguments: tuple[object, ...]) -> Tensor | Record:
    """A view of a storage, from (storage, offset, size, stride[, requires_grad, hooks[, metadata]]).

    A tensor whose storage is of an unknown type becomes a record.
    """
    if len(arguments) not in (4, 6, 7):
        raise UnsafePickle(f"a tensor is made with {len(arguments)} arguments; 4, 6 or 7 are known")
    if isinstance(arguments[0], Record):
        return Record("torch", "Tensor", arguments=arguments)
    data = expect(Storage, arguments[0]).data
    (offset,), size, stride = map(checked_shape, ((arguments[1],), arguments[2], arguments[3]))
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


def make_dtype(arguments: tuple[object, ...]) -> np.dtype | Record:
    """A dtype of plain numbers. Dtypes of objects, texts and fields become records."""
    name = arguments[0] if arguments else None
    if not isinstance(name, str) or name not in DTYPES:
        return Record("numpy", "dtype", arguments=arguments)
    return np.dtype(f"<{name}")


def make_scalar(arguments: tuple[object, ...]) -> bool | int | float | complex | Record:
    """A NumPy number as Python's."""
    match arguments:
        case (Record(), *_):
            return Record("numpy", "scalar", arguments=arguments)
        case (np.dtype() as dtype, Blob() as blob) if blob.size == dtype.itemsize:
            return np.frombuffer(blob.read(), dtype)[0].item()
    raise UnsafePickle("a NumPy number whose bytes do not match its dtype")


def empty_array(arguments: tuple[object, ...]) -> np.ndarray | Record:
    """The empty array that NumPy creates first and fills by its state; other classes of arrays become records."""
    match arguments:
        case (Global(name="numpy.ndarray"), size, Blob()) if checked_shape(size) == (0,):
            return np.empty(0)
    return Record("numpy", "ndarray", arguments=arguments)


def check_size(blob: Blob, dtype: np.dtype, size: object) -> None:
    """Raise UnsafePickle unless the bytes are exactly those of an array of this shape."""
    if math.prod(checked_shape(size)) * dtype.itemsize != blob.size or not blob.size:
        raise UnsafePickle(f"a NumPy array of {dtype} has {blob.size} bytes, which do not match its shape")


def fill_array(array: np.ndarray, state: object, budget: Budget) -> None:
    """Fill an empty array in place by NumPy's own `__setstate__`, with arguments that were checked.

    An array of anything else than plain numbers stays empty.
    """
    match state:
        case (_, _, Record(), *_):
            return
        case (int(version), size, np.dtype() as dtype, int(fortran), Blob() as blob) if version == 1 and not array.size:
            check_size(blob, dtype, size)
            budget.allocate(blob.size)
            setstate: Any = array.__setstate__  # NumPy's stubs want a NumPy bool, which its code refuses
            setstate((1, size, dtype, bool(fortran), blob.read()))
        case _:
            raise UnsafePickle("a NumPy array that is not set up as NumPy does it, or twice")
