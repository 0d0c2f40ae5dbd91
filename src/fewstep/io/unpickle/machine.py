"""The stack machine of the pickle format, protocols 0 to 5. It can build data and do nothing else.

The machine itself builds numbers, texts, byte strings, lists, tuples, dicts and sets. It asks a `Vocabulary` about the four
instructions that could do more: to look up a name, to call it, to set the state of an object, and to load data from outside
of the pickle. The vocabulary answers with inert values or refuses. Every instruction is charged to a `Budget`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fewstep.io.unpickle.stream import Blob, Budget, Stream, UnsafePickle

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Global:
    """A name that a pickle may call. `make` turns the tuple of arguments into an inert value, or refuses it."""

    name: str
    make: Callable[[tuple[object, ...]], object]


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class, or the result of a function, that was not looked up: only what the file says about it.

    Attributes:
        module: where the class or function would have been imported from.
        class_name: its name in that module.
        state: attributes of the object.
        arguments: what the class or function would have been called with.
    """

    module: str
    class_name: str
    state: dict[Any, object] = field(default_factory=dict, repr=False)
    arguments: tuple[object, ...] = field(default=(), repr=False)


class Vocabulary(Protocol):
    """Answers the instructions that the machine does not execute itself. Each method may raise UnsafePickle."""

    def resolve(self, module: str, name: str) -> object:
        """What the name of a class or function stands for: a `Global`, or a constant such as a dtype."""
        ...

    def set_state(self, value: object, state: object) -> None:
        """Set up an object in place, as `__setstate__` would."""
        ...

    def load_persistent(self, key: object) -> object:
        """Data from outside of the pickle, such as a storage in another member of a zip file."""
        ...


class OtherKey:
    """A dict key or set item that is neither a text nor a moderate integer; it is equal to nothing else."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__}>"


def hashable(key: object) -> object:
    """Texts and moderate integers as they are; any other key as an `OtherKey`.

    The hash of a nested tuple can take exponential time, and tuples can be made to collide.
    """
    return key if type(key) is str or (type(key) is int and abs(key) < 2**32) else OtherKey(key)


def expect(kind: type[T], value: object) -> T:
    """`value`, which must be of the type `kind`."""
    if not isinstance(value, kind):
        raise UnsafePickle(f"expected a {kind.__name__}, and the pickle has a {type(value).__name__}")
    return value


class Machine:
    """Executes the pickle at the position of a stream, up to its STOP instruction."""

    def __init__(self, stream: Stream, vocabulary: Vocabulary, budget: Budget) -> None:
        self.stream, self.vocabulary, self.budget = stream, vocabulary, budget
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        """What the pickle builds."""
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
        """Execute one instruction."""
        push, pop, stream = self.stack.append, self.stack.pop, self.stream
        match code:
            # Memo, which most instructions are about
            case pickle.BINGET | pickle.LONG_BINGET:
                push(self.memo[stream.integer(1 if code == pickle.BINGET else 4)])
            case pickle.MEMOIZE:
                self.memo[len(self.memo)] = self.stack[-1]
            case pickle.PUT:
                self.memo[self.parse_number(int, stream.line(20))] = self.stack[-1]
            case pickle.BINPUT | pickle.LONG_BINPUT:
                self.memo[stream.integer(1 if code == pickle.BINPUT else 4)] = self.stack[-1]
            case pickle.GET:
                push(self.memo[self.parse_number(int, stream.line(20))])
            # Numbers and constants
            case pickle.NONE:
                push(None)
            case pickle.NEWTRUE | pickle.NEWFALSE:
                push(code == pickle.NEWTRUE)
            case pickle.BININT:
                push(stream.integer(4, signed=True))
            case pickle.BININT1 | pickle.BININT2:
                push(stream.integer(1 if code == pickle.BININT1 else 2))
            case pickle.LONG1 | pickle.LONG4:
                push(self.long_integer(stream.integer(1 if code == pickle.LONG1 else 4)))
            case pickle.INT | pickle.LONG:
                line = stream.line(100)
                push(
                    {b"00": False, b"01": True}[line]
                    if line in (b"00", b"01")
                    else self.parse_number(int, line.rstrip(b"L"))
                )
            case pickle.FLOAT:
                push(self.parse_number(float, stream.line(100)))
            case pickle.BINFLOAT:
                push(struct.unpack(">d", stream.read(8))[0])
            # Texts and byte strings
            case pickle.SHORT_BINUNICODE | pickle.BINUNICODE | pickle.BINUNICODE8:
                size = {pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8}[code]
                push(stream.read(stream.integer(size)).decode("utf-8", "surrogatepass"))
            case pickle.SHORT_BINSTRING | pickle.BINSTRING:  # of Python 2, in which LPIPS' weights were written
                push(stream.read(stream.integer(1 if code == pickle.SHORT_BINSTRING else 4)).decode("ascii"))
            case pickle.UNICODE:
                push(stream.line(stream.end - stream.position).decode("raw-unicode-escape"))
            case pickle.SHORT_BINBYTES | pickle.BINBYTES | pickle.BINBYTES8 | pickle.BYTEARRAY8:
                size = stream.integer({pickle.SHORT_BINBYTES: 1, pickle.BINBYTES: 4}.get(code, 8))
                push(Blob(stream.file, stream.skip(size), size))
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
                self.push_collected(tuple)
            case pickle.LIST:
                self.push_collected(list)
            case pickle.DICT:
                self.push_collected(lambda items: self.set_items({}, items))
            case pickle.FROZENSET:
                self.push_collected(lambda items: frozenset(hashable(item) for item in items))
            case pickle.APPEND | pickle.APPENDS:
                items = [pop()] if code == pickle.APPEND else self.pop_to_mark()
                self.container_on_top(list).extend(items)
            case pickle.ADDITEMS:
                items = self.pop_to_mark()
                self.container_on_top(set).update(hashable(item) for item in items)
            case pickle.SETITEM | pickle.SETITEMS:
                items = [pop(), pop()][::-1] if code == pickle.SETITEM else self.pop_to_mark()
                self.set_items(self.container_on_top(dict), items)
            # Stack
            case pickle.MARK:
                self.marks.append(self.stack)
                self.stack = []
            case pickle.POP if not self.stack:
                self.pop_to_mark()
            case pickle.POP:
                pop()
            case pickle.POP_MARK:
                self.pop_to_mark()
            case pickle.DUP:
                push(self.stack[-1])
            # Protocol
            case pickle.PROTO:
                if (protocol := stream.integer(1)) > 5:
                    raise UnsafePickle(f"the pickle has protocol {protocol}; 0 to 5 are read")
            case pickle.FRAME:
                size, left = stream.integer(8), stream.end - stream.position
                if size > left:
                    raise UnsafePickle(f"truncated at byte {stream.position}: a frame of {size} bytes, {left} are left")
            # What only the vocabulary may answer: names, calls, states of objects, data from outside
            case pickle.GLOBAL:
                module, name = stream.line(200).decode(), stream.line(200).decode()
                push(self.vocabulary.resolve(module, name))
            case pickle.STACK_GLOBAL:
                name, module = expect(str, pop()), expect(str, pop())
                push(self.vocabulary.resolve(module, name))
            case pickle.REDUCE | pickle.NEWOBJ:
                arguments = expect(tuple, pop())
                push(self.call(pop(), arguments))
            case pickle.NEWOBJ_EX:
                expect(dict, pop())  # keyword arguments, which no constructor of the vocabulary takes
                arguments = expect(tuple, pop())
                push(self.call(pop(), arguments))
            case pickle.BUILD:
                state = pop()
                self.vocabulary.set_state(self.stack[-1], state)
            case pickle.BINPERSID:
                push(self.vocabulary.load_persistent(pop()))
            case _:
                # INST, OBJ, EXT1..4, PERSID, out-of-band buffers, texts of Python 2 in protocol 0, or no opcode at all
                raise UnsafePickle(f"instruction {NAMES.get(code, code)} at byte {stream.position - 1} is not executed")

    def long_integer(self, size: int) -> int:
        if size > 255:
            raise UnsafePickle(f"an integer of {size} bytes at byte {self.stream.position}; at most 255 are read")
        return self.stream.integer(size, signed=True)

    def parse_number(self, kind: Callable[[bytes], T], text: bytes) -> T:
        try:
            return kind(text)
        except ValueError as error:
            raise UnsafePickle(f"malformed number before byte {self.stream.position}") from error

    def call(self, function: object, arguments: tuple[object, ...]) -> object:
        """The value that a name of the vocabulary makes from the arguments. Calling a record makes another record."""
        if isinstance(function, Record):
            return Record(function.module, function.class_name, arguments=arguments)
        return expect(Global, function).make(arguments)

    def container_on_top(self, kind: type[T]) -> T:
        """The container that items are added to. Items that are added to a record are dropped."""
        target = self.stack[-1]
        return kind() if isinstance(target, Record) else expect(kind, target)

    def pop_to_mark(self) -> list[object]:
        """The items that were pushed since the last MARK."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def push_collected(self, make: Callable[[list[object]], object]) -> None:
        items = self.pop_to_mark()
        self.stack.append(make(items))

    def set_items(self, target: dict[object, object], items: list[object]) -> dict[object, object]:
        if len(items) % 2:
            raise UnsafePickle(f"a dict with {len(items)} keys and values before byte {self.stream.position}")
        target.update((hashable(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        return target


NAMES = {
    value: name
    for name, value in vars(pickle).items()
    if name.isupper() and isinstance(value, bytes) and len(value) == 1
}
