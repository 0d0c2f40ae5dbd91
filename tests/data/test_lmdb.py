"""LMDB files, written by LMDB 0.9.36 (py-lmdb 3.0.0), whole and damaged."""

from __future__ import annotations

import hashlib
import io
import random
import struct
from pathlib import Path

import pytest
from PIL import Image

from fewstep.data.lmdb import count, items
from fewstep.data.sources import open_source
from tests import GOLDEN

LSUN = GOLDEN / "lsun.mdb"
"""39 WebP images of two transactions, four of which lie on pages of their own; pages of 4,096 bytes, a tree of two levels."""
SHA256 = "3932003d83f3e9f14f353467cec0d8dcef859dc4a6b072a3cdb70a2ab441a0a1"
"""Of keys and values in LMDB's order, as LMDB reads them."""
NEWEST = 4096 * (struct.unpack_from("<Q", LSUN.read_bytes(), 4240) > struct.unpack_from("<Q", LSUN.read_bytes(), 144))
"""Where the page of the newest transaction begins."""


def test_entries_are_lmdbs(tmp_path):
    found = list(items(LSUN))
    assert hashlib.sha256(b"".join(key + value for key, value in found)).hexdigest() == SHA256
    assert count(LSUN) == len(found) == 39
    folder = tmp_path / "church_lmdb"
    folder.mkdir()
    (folder / "data.mdb").symlink_to(LSUN)
    source = open_source(folder)
    entries = list(source.entries())
    assert (source.total, source.class_names) == (39, None)
    assert entries[0].where == f"{folder}/{found[0][0].decode()}"
    sizes = [Image.open(io.BytesIO(entry.content)).size for entry in entries if isinstance(entry.content, bytes)]
    assert sorted(sizes) == [(4, 4)] * 35 + [(48, 48)] * 4


def changed(path: Path, *changes: tuple[int, bytes]) -> Path:
    data = bytearray(LSUN.read_bytes())
    for offset, new in changes:
        data[offset : offset + len(new)] = new
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("offset", "new", "words"),
    [
        (16, b"\0\0\0\0", "expected an LMDB; it does not begin as one"),
        (20, struct.pack("<I", 999), "expected an LMDB of the data format 1 .* got the format 999"),
        (40, struct.pack("<I", 5000), "with pages of 512 to 65,536 bytes; got the format 1 with 5000"),
        (NEWEST + 92, struct.pack("<H", 4), "expected an LMDB with one value for each key"),
        (NEWEST + 94, struct.pack("<H", 1), "its pages refer to each other in a circle"),
        (NEWEST + 120, struct.pack("<Q", 40), "it has 39 of 40 entries"),
        (NEWEST + 128, struct.pack("<Q", 2**60), f"page {2**60} is missing"),
        (NEWEST + 128, struct.pack("<Q", 0), "page 0 is neither a branch nor a leaf"),
    ],
)
def test_a_damaged_account_is_one_line(tmp_path, offset, new, words):
    path = changed(tmp_path / "data.mdb", (offset, new))
    with pytest.raises(ValueError, match=f"^{path}: .*{words}"):
        count(path)


def test_files_that_are_cut_off_are_refused_at_once(tmp_path):
    """Wherever they end, if anything is lost; LMDB's own reader dies of it."""
    data, path = LSUN.read_bytes(), tmp_path / "data.mdb"
    for size in (0, 10, 4096, 8192, 12288, 20480, 30000, len(data) // 2):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=rf"^{path}: (damaged or cut off, |expected an LMDB)"):
            count(path)


def test_damage_anywhere_is_one_line_or_without_effect(tmp_path):
    """Hundreds of damaged files: an error names the file, and nothing else is raised."""
    draw, path = random.Random(0), tmp_path / "data.mdb"
    outcomes = []
    for _ in range(300):
        page = draw.randrange(8)  # what is in use
        changed(path, *[(page * 4096 + draw.randrange(160), bytes([draw.randrange(256)])) for _ in range(3)])
        try:
            outcomes.append(len(list(items(path))))
        except ValueError as error:
            outcomes.append(str(error).startswith(f"{path}: "))
    # 40 where the account of the newest transaction is unreadable, which took one entry away
    assert set(outcomes) == {39, 40, True}


def own_page() -> int:
    """The first page that holds nothing but a value."""
    data = LSUN.read_bytes()
    pages = range(2, len(data) // 4096)
    return next(n for n in pages if struct.unpack_from("<Q2xH", data, n * 4096) == (n, 4))


def test_a_value_beyond_the_end_is_found_before_any_is_read(tmp_path):
    own = struct.pack("<Q", own_page())
    data = LSUN.read_bytes()
    spots = [n for n in range(len(data)) if data.startswith(own, n) and n % 4096]  # not the page's own header
    path = changed(tmp_path / "data.mdb", *[(n, struct.pack("<Q", len(data) // 4096 - 1)) for n in spots])
    with pytest.raises(
        ValueError,
        match=rf"^{path}: damaged or cut off, .* \(page {len(data) // 4096 - 1} is missing\)",
    ):
        count(path)


def test_a_value_of_other_pages_is_refused(tmp_path):
    """The header of a value's own pages is looked at where the value is read."""
    own = own_page()
    path = changed(tmp_path / "data.mdb", (own * 4096 + 10, b"\2"))
    assert count(path) == 39
    with pytest.raises(ValueError, match=rf"^{path}: damaged or cut off, .* \(page {own} holds no value\)"):
        list(items(path))
