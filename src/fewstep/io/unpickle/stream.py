"""The bytes of a file, read forwards and never beyond its end, and the limits on what reading them may cost."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO


class UnsafePickle(ValueError):  # noqa: N818  # it says what was found, as tarfile.ReadError does
    """The file asks for something that the reader does not do, or does not hold what it declares."""


class Budget:
    """What reading one file may cost. The largest published networks need about 60,000 steps.

    Args:
        size: bytes of the file. Twice as many may be allocated, since each byte of an honest file is decoded at most twice.
        steps: instructions, and items copied, that are allowed.
    """

    def __init__(self, size: int, steps: int = 1_000_000) -> None:
        self.steps, self.data = steps, 2 * size

    def step(self, n: int = 1) -> None:
        """Charge `n` instructions or copied items."""
        self.steps -= n
        if self.steps < 0:
            raise UnsafePickle("the pickle has more than a million instructions; no network needs so many")

    def allocate(self, n: int) -> None:
        """Charge `n` bytes of storages, arrays or re-encoded texts."""
        self.data -= n
        if self.data < 0:
            raise UnsafePickle("the pickle asks for more data than the file holds")


class Stream:
    """The bytes from `start` to `end` of a binary file, read forwards; streams on one file do not disturb each other."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self.file, self.position, self.end = file, start, end

    @classmethod
    def of(cls, data: bytes) -> Stream:
        return cls(io.BytesIO(data), 0, len(data))

    def skip(self, size: int) -> int:
        """Move past `size` bytes, if that many are left, and return where they start."""
        left = self.end - self.position
        if not 0 <= size <= left:
            raise UnsafePickle(f"truncated at byte {self.position}: {size} bytes are declared and {left} are left")
        start = self.position
        self.position += size
        return start

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        self.file.seek(self.skip(size))
        data = self.file.read(size)
        if len(data) < size:
            raise UnsafePickle(f"the file ends at byte {self.position - size + len(data)}; it changed while being read")
        return data

    def integer(self, size: int, *, signed: bool = False) -> int:
        """The next `size` bytes as a little-endian integer."""
        return int.from_bytes(self.read(size), "little", signed=signed)

    def line(self, limit: int) -> bytes:
        """The text up to the next newline, which must come within `limit` bytes."""
        self.file.seek(self.position)
        line = self.file.readline(min(limit + 1, self.end - self.position))
        if not line.endswith(b"\n"):
            raise UnsafePickle(f"the text at byte {self.position} does not end within {limit} bytes")
        self.position += len(line)
        return line[:-1]

    def read_into(self, buffer: memoryview) -> None:
        """Read exactly as many bytes as the buffer holds, without a copy in between."""
        self.file.seek(self.skip(len(buffer)))
        filled = 0
        while filled < len(buffer):
            # in pieces, because a member of a zip file goes through a copy
            n = self.file.readinto(buffer[filled : filled + 2**17])  # type: ignore[attr-defined]  # IO does not declare it
            if not n:
                raise UnsafePickle(f"the file ends within {len(buffer)} declared bytes; it changed while being read")
            filled += n


@dataclass(frozen=True, eq=False)
class Blob:
    """A byte string that stays in the file until it is needed."""

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
