"""The stack machine of the pickle format, protocols 0 to 5, with nothing behind it.

A pickle is a program. This machine lets it build numbers, texts, byte strings, lists, tuples, dicts and sets; whatever
else it names, calls or sets up is put to a `Vocabulary`, which answers with inert values (`Record`) or refuses. Nothing is
imported, looked up or called on behalf of the file. Every size is compared with what is left of the file before
anything is allocated, and every instruction and copy is charged to a `Budget`, so that a file of n bytes costs O(n).
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, TypeVar

T = TypeVar("T")


class UnsafePickle(ValueError):  # noqa: N818  # it says what was found, as tarfile.ReadError does
    """The file asks for something that the reader does not do, or does not hold what it declares."""


class Budget:
    """What reading one file of `size` bytes may cost.

    steps: instructions, and items copied. data: bytes of storages, arrays and re-encoded texts; each byte of an honest
    file is decoded at most twice. The largest published networks need about 60,000 steps.
    """

    def __init__(self, size: int, steps: int = 1_000_000) -> None:
        self.steps, self.data = steps, 2 * size

    def step(self, n: int = 1) -> None:
        self.steps -= n
        if self.steps < 0:
            raise UnsafePickle("the pickle has more than a million instructions; no network needs so many")

    def allocate(self, n: int) -> None:
        self.data -= n
        if self.data < 0:
            raise UnsafePickle("the pickle asks for more data than the file holds")


class Stream:
    """A window of a binary file, read forwards; streams on one file do not disturb each other."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self.file, self.position, self.end = file, start, end

    def claim(self, size: int) -> int:
        """Move past `size` bytes, if they are there, and return where they start."""
        left = self.end - self.position
        if not 0 <= size <= left:
            raise UnsafePickle(f"truncated at byte {self.position}: {size} bytes are declared and {left} are left")
        start = self.position
        self.position += size
        return start

    def read(self, size: int) -> bytes:
        self.file.seek(self.claim(size))
        data = self.file.read(size)
        if len(data) < size:
            raise UnsafePickle(f"the file ends at byte {self.position - size + len(data)}; it changed while being read")
        return data

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.read(size), "little", signed=signed)

    def line(self, limit: int) -> bytes:
        """The text up to the next newline, at most `limit` bytes of it."""
        self.file.seek(self.position)
        line = self.file.readline(min(limit + 1, self.end - self.position))
        if not line.endswith(b"\n"):
            raise UnsafePickle(f"the text at byte {self.position} does not end within {limit} bytes")
        self.position += len(line)
        return line[:-1]

    def fill(self, buffer: memoryview) -> None:
        """Read exactly as many bytes as the buffer holds, without a copy in between."""
        self.file.seek(self.claim(len(buffer)))
        filled = 0
        while filled < len(buffer):
            # piece by piece, because a member of a zip file goes through a copy
            n = self.file.readinto(buffer[filled : filled + 2**17])  # type: ignore[attr-defined]  # IO does not declare it
            if not n:
                raise UnsafePickle(f"the file ends within {len(buffer)} declared bytes; it changed while being read")
            filled += n


@dataclass(frozen=True, eq=False)
class Blob:
    """A byte string that stays in the file until somebody wants it."""

    file: IO[bytes]
    start: int
    size: int

    @classmethod
    def of(cls, data: bytes) -> Blob:
        return cls(io.BytesIO(data), 0, len(data))

    def stream(self) -> Stream:
        return Stream(self.file, self.start, self.start + self.size)

    def read(self) -> bytes:
        return self.stream().read(self.size)


@dataclass(frozen=True, eq=False)
class Global:
    """A name that a pickle may call: `make` turns the tuple of arguments into an inert value, or refuses."""

    name: str
    make: Callable[[tuple[object, ...]], object]


@dataclass(eq=False, slots=True)
class Record:
    """An object as it lies in the file: the names of its class or function, which was not looked up, and its attributes.

    arguments: what the file would have called the class or function with.
    """

    module: str
    class_name: str
    state: dict[Any, object] = field(default_factory=dict, repr=False)
    arguments: tuple[object, ...] = field(default=(), repr=False)


class Vocabulary(Protocol):
    """What a pickle may name (`find`), set up in place (`build`) and refer to outside of itself (`persistent`)."""

    def find(self, module: str, name: str) -> object: ...
    def build(self, value: object, state: object) -> None: ...
    def persistent(self, key: object) -> object: ...


def hashable(key: object) -> object:
    """Texts and moderate integers as they are; any other key as a record of its own, equal to nothing else.

    The hash of a nested tuple can take exponential time, and tuples can be made to collide.
    """
    if type(key) is str or (type(key) is int and abs(key) < 2**32):
        return key
    return Record("", "key", arguments=(key,))


def expect(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise UnsafePickle(f"expected a {kind.__name__}, and the pickle has a {type(value).__name__}")
    return value


class Machine:
    """Runs one pickle of a stream up to its STOP; `run` returns what it built."""

    def __init__(self, stream: Stream, vocabulary: Vocabulary, budget: Budget) -> None:
        self.stream, self.vocabulary, self.budget = stream, vocabulary, budget
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        while True:
            start = self.stream.position
            code = self.stream.read(1)
            self.budget.step()
            try:
                if code == pickle.STOP:
                    return self.stack.pop()
                self.execute(code)
            except UnsafePickle:
                raise
            except (IndexError, KeyError) as error:
                raise UnsafePickle(f"malformed at byte {start}: an empty stack or an unknown memo entry") from error
            except (ValueError, TypeError, OverflowError) as error:
                raise UnsafePickle(f"malformed at byte {start}: {error}") from error

    def execute(self, code: bytes) -> None:
        push, pop, stream = self.stack.append, self.stack.pop, self.stream
        match code:
            # Numbers and constants
            case pickle.NONE:
                push(None)
            case pickle.NEWTRUE | pickle.NEWFALSE:
                push(code == pickle.NEWTRUE)
            case pickle.BININT:
                push(stream.number(4, signed=True))
            case pickle.BININT1 | pickle.BININT2:
                push(stream.number(1 if code == pickle.BININT1 else 2))
            case pickle.LONG1 | pickle.LONG4:
                push(self.long(stream.number(1 if code == pickle.LONG1 else 4)))
            case pickle.INT | pickle.LONG:
                line = stream.line(100)
                push(
                    {b"00": False, b"01": True}[line] if line in (b"00", b"01") else self.parse(int, line.rstrip(b"L"))
                )
            case pickle.FLOAT:
                push(self.parse(float, stream.line(100)))
            case pickle.BINFLOAT:
                push(struct.unpack(">d", stream.read(8))[0])
            # Texts and byte strings
            case pickle.SHORT_BINUNICODE | pickle.BINUNICODE | pickle.BINUNICODE8:
                size = {pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8}[code]
                push(stream.read(stream.number(size)).decode("utf-8", "surrogatepass"))
            case pickle.SHORT_BINSTRING | pickle.BINSTRING:  # of Python 2, in which LPIPS' weights were written
                push(stream.read(stream.number(1 if code == pickle.SHORT_BINSTRING else 4)).decode("ascii"))
            case pickle.UNICODE:
                push(stream.line(stream.end - stream.position).decode("raw-unicode-escape"))
            case pickle.SHORT_BINBYTES | pickle.BINBYTES | pickle.BINBYTES8 | pickle.BYTEARRAY8:
                size = stream.number({pickle.SHORT_BINBYTES: 1, pickle.BINBYTES: 4}.get(code, 8))
                push(Blob(stream.file, stream.claim(size), size))
            # Containers
            case pickle.EMPTY_TUPLE:
                push(())
            case pickle.EMPTY_LIST:
                push([])
            case pickle.EMPTY_DICT:
                push({})
            case pickle.EMPTY_SET:
                push(set())
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                size = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}[code]
                items = [pop() for _ in range(size)]
                push(tuple(reversed(items)))
            case pickle.TUPLE:
                self.collect(tuple)
            case pickle.LIST:
                self.collect(list)
            case pickle.DICT:
                self.collect(lambda items: self.update({}, items))
            case pickle.FROZENSET:
                self.collect(lambda items: frozenset(hashable(item) for item in items))
            case pickle.APPEND | pickle.APPENDS:
                items = [pop()] if code == pickle.APPEND else self.unmark()
                self.filled(list).extend(items)
            case pickle.ADDITEMS:
                items = self.unmark()
                self.filled(set).update(hashable(item) for item in items)
            case pickle.SETITEM | pickle.SETITEMS:
                items = [pop(), pop()][::-1] if code == pickle.SETITEM else self.unmark()
                self.update(self.filled(dict), items)
            # Stack and memo
            case pickle.MARK:
                self.marks.append(self.stack)
                self.stack = []
            case pickle.POP if not self.stack:
                self.unmark()
            case pickle.POP:
                pop()
            case pickle.POP_MARK:
                self.unmark()
            case pickle.DUP:
                push(self.stack[-1])
            case pickle.MEMOIZE:
                self.memo[len(self.memo)] = self.stack[-1]
            case pickle.PUT:
                self.memo[self.parse(int, stream.line(20))] = self.stack[-1]
            case pickle.BINPUT | pickle.LONG_BINPUT:
                self.memo[stream.number(1 if code == pickle.BINPUT else 4)] = self.stack[-1]
            case pickle.GET:
                push(self.memo[self.parse(int, stream.line(20))])
            case pickle.BINGET | pickle.LONG_BINGET:
                push(self.memo[stream.number(1 if code == pickle.BINGET else 4)])
            # Protocol
            case pickle.PROTO:
                if (protocol := stream.number(1)) > 5:
                    raise UnsafePickle(f"the pickle has protocol {protocol}; 0 to 5 are read")
            case pickle.FRAME:
                size, left = stream.number(8), stream.end - stream.position
                if size > left:
                    raise UnsafePickle(f"truncated at byte {stream.position}: a frame of {size} bytes, {left} are left")
            # What only the vocabulary may answer
            case pickle.GLOBAL:
                module, name = stream.line(200).decode(), stream.line(200).decode()
                push(self.vocabulary.find(module, name))
            case pickle.STACK_GLOBAL:
                name, module = expect(str, pop()), expect(str, pop())
                push(self.vocabulary.find(module, name))
            case pickle.REDUCE | pickle.NEWOBJ:
                arguments = expect(tuple, pop())
                push(self.call(pop(), arguments))
            case pickle.NEWOBJ_EX:
                expect(dict, pop())  # arguments by name, which nothing that is made here has
                arguments = expect(tuple, pop())
                push(self.call(pop(), arguments))
            case pickle.BUILD:
                state = pop()
                self.vocabulary.build(self.stack[-1], state)
            case pickle.BINPERSID:
                push(self.vocabulary.persistent(pop()))
            case _:
                # INST, OBJ, EXT1..4, PERSID, out-of-band buffers, texts of Python 2 in protocol 0, or no opcode at all
                raise UnsafePickle(f"instruction {NAMES.get(code, code)} at byte {stream.position - 1} is not executed")

    def long(self, size: int) -> int:
        if size > 255:
            raise UnsafePickle(f"an integer of {size} bytes at byte {self.stream.position}; at most 255 are read")
        return self.stream.number(size, signed=True)

    def parse(self, kind: Callable[[bytes], T], text: bytes) -> T:
        try:
            return kind(text)
        except ValueError as error:
            raise UnsafePickle(f"malformed number before byte {self.stream.position}") from error

    def call(self, function: object, arguments: tuple[object, ...]) -> object:
        """What a name of the vocabulary makes of the arguments; calling a record makes another one."""
        if isinstance(function, Record):
            return Record(function.module, function.class_name, arguments=arguments)
        return expect(Global, function).make(arguments)

    def filled(self, kind: type[T]) -> T:
        """The container on top of the stack, to be added to. What is added to a record is dropped."""
        target = self.stack[-1]
        return kind() if isinstance(target, Record) else expect(kind, target)

    def unmark(self) -> list[object]:
        """The items since the last MARK."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def collect(self, make: Callable[[list[object]], object]) -> None:
        items = self.unmark()
        self.stack.append(make(items))

    def update(self, target: dict[object, object], items: list[object]) -> dict[object, object]:
        if len(items) % 2:
            raise UnsafePickle(f"a dict with {len(items)} keys and values before byte {self.stream.position}")
        target.update((hashable(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        return target


NAMES = {
    value: name
    for name, value in vars(pickle).items()
    if name.isupper() and isinstance(value, bytes) and len(value) == 1
}
