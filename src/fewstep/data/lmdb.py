"""Reads an LMDB database (data format 1), as LSUN is published, page by page, with a check of each offset.

LMDB itself maps the file into memory and trusts it: a file that was cut off kills the process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from fewstep.data.files import report_damage
from fewstep.runtime.archives import check_bytes
from fewstep.runtime.files import regular

MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, OVERFLOW = 1, 2, 4
BIG, SUB = 1, 2
"""Flags of pages, and of nodes: a value on pages of its own, a database within the database."""
DUPLICATES = 4
"""Flag of a database with several values for a key."""
HEADER, NODE, META = 16, 8, 136
"""Bytes of the headers of pages and of nodes, and of what a page at the start of the file says about it."""
EMPTY = 2**64 - 1


class Item(NamedTuple):
    """Where the value of a key is. page: the first of its own, if it has pages of its own."""

    key: bytes
    offset: int
    size: int
    page: int | None


class DamagedError(ValueError):
    """What is wrong with the file, without its name."""


class Tree(NamedTuple):
    """The newest transaction. pages: of the file. nodes: how many of them are branches and leaves."""

    page_size: int
    pages: int
    entries: int
    depth: int
    nodes: int
    root: int


def count(path: Path) -> int:
    """The number of entries of a file `data.mdb`; ValueError if it is another's, or damaged so that a value is lost."""
    with path.open("rb") as file:
        return sum(1 for _ in walk(file, path))


def items(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values in the order of the tree."""
    with path.open("rb") as file:
        for key, offset, size, page in walk(file, path):
            check_bytes(size, f"{path}/{key.decode('ascii', 'backslashreplace')}")
            if page is not None:
                file.seek(offset - HEADER)
                with report_damage(path, struct.error, DamagedError):
                    if header(file.read(HEADER), page) != OVERFLOW:
                        raise DamagedError(f"page {page} holds no value")
            file.seek(offset)
            yield key, file.read(size)


def walk(file: IO[bytes], path: Path) -> Iterator[Item]:
    """Every entry, found without its value. Raises ValueError where the file is damaged, also if it is too short."""
    tree = open_tree(file, path)
    found = visited = size = 0
    stack = [(tree.root, 1)] if tree.root != EMPTY else []
    with report_damage(path, struct.error, DamagedError):
        while stack:
            number, level = stack.pop()
            visited += 1
            if visited > tree.nodes or level > tree.depth:
                raise DamagedError("its pages refer to each other in a circle")
            if number >= tree.pages:
                raise DamagedError(f"page {number} is missing")
            file.seek(number * tree.page_size)
            page = file.read(tree.page_size)
            kind, nodes = header(page, number), node_offsets(page)
            if kind == BRANCH:
                stack += [(child(page, node), level + 1) for node in reversed(nodes)]
                continue
            if kind != LEAF:
                raise DamagedError(f"page {number} is neither a branch nor a leaf")
            for node in nodes:
                found += 1
                size += (item := entry(tree, page, number, node)).size
                if size > tree.pages * tree.page_size:
                    raise DamagedError("its values overlap")
                yield item
        if found != tree.entries:
            raise DamagedError(f"it has {found} of {tree.entries} entries")


def open_tree(file: IO[bytes], path: Path) -> Tree:
    """The newer of the two meta pages at the start of the file."""
    file.seek(HEADER)
    data = file.read(META)
    magic, version, page_size = struct.unpack_from("<II16xI", data.ljust(META, b"\0"))
    if magic != MAGIC:
        raise ValueError(f"{path}: expected an LMDB; it does not begin as one")
    if version != VERSION or page_size not in [2**n for n in range(9, 17)]:
        raise ValueError(
            f"{path}: expected an LMDB of the data format {VERSION} with pages of 512 to 65,536 bytes; got the format "
            f"{version} with {page_size}"
        )
    file.seek(page_size + HEADER)
    other = file.read(META)
    if len(other) == META and other[:8] == data[:8] and transaction(other) > transaction(data):
        data = other
    flags, depth, branches, leaves, _, entries, root = struct.unpack_from("<HHQQQQQ", data, 76)
    if flags & DUPLICATES:
        raise ValueError(f"{path}: expected an LMDB with one value for each key; it can have several")
    pages = regular(path).stat().st_size // page_size
    return Tree(page_size, pages, entries, depth, min(branches + leaves, pages), root)


def transaction(meta: bytes) -> int:
    return struct.unpack_from("<Q", meta, 128)[0]


def header(page: bytes, number: int) -> int:
    """The kind of a page, which must know its number."""
    own, flags = struct.unpack_from("<Q2xH", page)
    if own != number:
        raise DamagedError(f"page {number} is another")
    return flags & (BRANCH | LEAF | OVERFLOW)


def node_offsets(page: bytes) -> list[int]:
    (end,) = struct.unpack_from("<H", page, 12)
    nodes = [start for (start,) in struct.iter_unpack("<H", page[HEADER:end])]
    if len(set(nodes)) < len(nodes):
        raise DamagedError("a page has a node twice")
    if any(start < end for start in nodes):
        raise DamagedError("the nodes of a page lie outside of it")
    return nodes


def child(page: bytes, node: int) -> int:
    low, high, top = struct.unpack_from("<HHH", page, node)
    return low | high << 16 | top << 32


def entry(tree: Tree, page: bytes, number: int, node: int) -> Item:
    low, high, flags, n = struct.unpack_from("<HHHH", page, node)
    size, start = low | high << 16, node + NODE + n
    key = page[node + NODE : start]
    if flags & ~BIG:
        raise DamagedError("it has databases within the database" if flags & SUB else f"a node has the flags {flags}")
    if not flags & BIG:
        if start + size > tree.page_size:
            raise DamagedError("a value ends outside of its page")
        return Item(key, number * tree.page_size + start, size, None)
    (own,) = struct.unpack_from("<Q", page, start)
    offset = own * tree.page_size + HEADER
    if offset + size > tree.pages * tree.page_size:
        raise DamagedError(f"page {own} is missing")
    return Item(key, offset, size, own)
