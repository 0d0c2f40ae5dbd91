"""What compressed files may unfold to: their members are read piece by piece, and no size that they declare is believed.

Images, arrays and their classes hardly compress, so a file that unfolds to many times its own size is a bomb.
"""

from __future__ import annotations

import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from fewstep.runtime.files import regular

MAX_BYTES = 256 * 2**20
"""Of one file in an archive, and what any archive may unfold to."""
RATIO = 50
"""What a larger archive may unfold to, in its own size."""
JSON_BYTES = 16 * 2**20
"""Of JSON that may come out of an archive that is smaller. Python's objects take up to 28 times the size of their text."""
PIECE = 2**20
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Python's reader hands out what other methods of compression make of a piece at once, whatever its size."""
OTHERS = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma"}
XZ_MEMORY = 128 * 2**20
"""For the dictionary of an xz file; that of `xz -9` has 64 MiB."""


def check_bytes(size: int, where: str) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"{where}: {size} bytes are more than the {MAX_BYTES} that one file may have; remove it")


def check_unfolded(unfolded: int, stored: int, where: str) -> None:
    """Refuse what unfolds to more than `MAX_BYTES` and to more than `RATIO` times what is stored."""
    if unfolded > max(MAX_BYTES, RATIO * stored):
        raise ValueError(
            f"{where}: {stored} bytes unfold to {unfolded} or more; no images are so regular; do not use this file"
        )


def check_json(size: int, stored: int, where: str) -> None:
    """Refuse JSON that is larger than the archive it comes from, and than any small one has."""
    if size > max(JSON_BYTES, stored):
        raise ValueError(f"{where}: {size} bytes of JSON out of an archive of {stored}; do not use this file")


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip, if its members together do not unfold to too much. Raises what `zipfile` does if it is damaged."""
    archive = zipfile.ZipFile(regular(path))
    assert archive.fp is not None
    unfolded = sum(info.file_size for info in archive.infolist())
    check_unfolded(unfolded, os.fstat(archive.fp.fileno()).st_size, str(path))
    return archive


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> IO[bytes]:
    """The content of a member, to be read in pieces of a known size. Raises what `zipfile` does if it is damaged."""
    check_method(info, where)
    return archive.open(info)


def check_method(info: zipfile.ZipInfo, where: str) -> None:
    if info.compress_type not in METHODS:
        name = OTHERS.get(info.compress_type, f"method {info.compress_type}")
        raise ValueError(f"{where}: expected a stored or deflated entry of a zip; got {name}; pack the zip again")


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> bytes:
    """The whole content of a member; ValueError that names it if it is damaged, or not as long as it declares."""
    check_method(info, where)
    try:
        with archive.open(info) as file:
            content = read_all(file.read)
    except MemoryError:
        raise
    except Exception as error:  # a decompressor may raise anything on hostile bytes
        raise ValueError(f"{where}: cannot be read from the zip: {error}; fetch or pack it again") from error
    if len(content) != info.file_size:
        raise ValueError(f"{where}: cut off; {info.file_size} bytes were announced and {len(content)} are left")
    return content


def read_all(read: Callable[[int], bytes]) -> bytes:
    """Everything that is left, read in pieces: some readers allocate what they are asked for, or more."""
    return b"".join(iter(lambda: read(PIECE), b""))


class Xz(io.RawIOBase):
    """What an xz file unfolds to. The standard reader lets the file choose the memory for its dictionary."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.restart()

    def restart(self) -> None:
        self.file.seek(0)
        self.position, self.decoder = 0, lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET
        if offset < self.position:
            self.restart()
        while self.position < offset and self.read(min(offset - self.position, PIECE)):
            pass
        return self.position

    def readinto(self, buffer: Any) -> int:
        while True:
            rest = b""
            if self.decoder.eof:  # streams may follow each other, with zeros between them
                rest = (self.decoder.unused_data or self.file.read(PIECE)).lstrip(b"\0")
                if not rest:
                    return 0
                self.decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            elif self.decoder.needs_input and not (rest := self.file.read(PIECE)):
                raise EOFError("it ends within a stream")
            data = self.decoder.decompress(rest, len(buffer))
            if data:
                buffer[: len(data)] = data
                self.position += len(data)
                return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, OSError, EOFError)
"""What the readers of compressed files raise on damage; RuntimeError where one is encrypted, or of a later version."""
