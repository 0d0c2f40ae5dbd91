"""What happens to files: random injuries, crafted files of every format, and what hypothesis makes of their grammars."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import pickletools
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.bombs import cifar10, folders, long_headers

STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 1e308, "", "../../x", "\x00", [], {}, [[[]]], {"kind": "os"}),
    # Legal, but absurd
    *(1, 2, 4096, 65_536, 10**6, 10**9, 10**400, 1e-300, float("nan"), float("inf"), [1], [1.0] * 2000, [1] * 99),
)
DTYPES = {"F32": ("I32", "U32", "C64", "F8_E4M3"), "F64": ("I64", "C64"), "U8": ("I8", "BOOL", "F8_E5M2")}
NAMES = (
    "../../escaped",
    "/tmp/escaped",
    "a/../../escaped",
    "..\\escaped",
    "C:\\escaped",
    "\x00",
    "n" * 300,
    "",
    ".",
    "a\nb",
)
BOMB = 300 * 2**20
"""Bytes that a thousandth of them unfolds to: more than a reader may take at once."""
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(id) show\n%%EOF\n"
LISTS = b"\x80\x02" + b"]" * 2**22 + b"."
PROGRAMS = (
    LISTS,
    b"cos\nsystem\n(S'true'\ntR.",
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    b"csubprocess\nPopen\n((S'true'\nltR.",
    b"(S'true'\nios\nsystem\n.",
    b"\x80\x02]" + b"2" * 400 + b"a" * 400 + b".",  # lists in lists in lists
    b"\x80\x02)" + b"2\x86" * 400 + b".",  # tuples that double
    b"\x80\x02" + b"(" * 100_000 + b".",
    b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b".",
    b"\x80\x02r" + struct.pack("<I", 2**32 - 1) + b".",
)


def damaged(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to four random injuries; parts of an `other` file may get in."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        n = len(result)
        at = rng.randrange(n + 1)
        match rng.randrange(10):
            case 0 if n:
                result[at % n] ^= 1 << rng.randrange(8)
            case 1 if n:
                result[at % n] = rng.choice((0, 1, 127, 128, 255))
            case 2:
                del result[at:]
            case 3:
                del result[at : at + rng.randint(1, 64)]
            case 4:
                result[at:at] = rng.randbytes(rng.randint(1, 64))
            case 5 if n:
                start = rng.randrange(n)
                result[at:at] = result[start : start + rng.randint(1, 256)]
            case 6:  # where a length may be
                size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
                huge = rng.choice((2**64 - 1, 2**63, 2**32 - 1, 2**31, 10**9, 2**20)) % 256**size
                result[at : at + size] = huge.to_bytes(size, order)
            case 7:
                result[at : at + 4] = bytes(4)
            case 8 if other:
                start = rng.randrange(len(other))
                result[at:] = other[start:]
            case 9 if other:
                start = rng.randrange(len(other))
                result[at:at] = other[start : start + rng.randint(1, 512)]
    return bytes(result)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    found: list[tuple[Any, Any]] = []
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        found += [(node, key), *places(child)]
    return found


def restructured(data: bytes, rng: random.Random) -> bytes:
    """Valid JSON with something strange in it: in a place drawn at random, or instead of all."""
    value = json.loads(data)
    if not (found := places(value)):
        return json.dumps(rng.choice(STRANGE)).encode()
    node, key = rng.choice(found)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(STRANGE)
    return json.dumps(value).encode()


def as_lines(data: bytes, change: Callable[[bytes], bytes], at: int) -> bytes:
    """A file of one JSON value a line, one of them changed."""
    lines = data.splitlines()
    lines[at % len(lines)] = change(lines[at % len(lines)])
    return b"\n".join(lines) + b"\n"


# Crafted files


def entry(name: str, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    """An entry of a zip under any name at all but none; the module's own way there tidies it up."""
    info = zipfile.ZipInfo()
    info.filename, info.compress_type = name or " ", compression
    return info


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(entry(name, compression), data)
    return buffer.getvalue()


def tar(members: dict[str, bytes], mode: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@cache
def zipped_bomb(name: str, head: bytes = b"") -> bytes:
    return archive({name: head + bytes(BOMB)}, zipfile.ZIP_DEFLATED)


@cache
def gzipped_bomb(head: bytes = b"") -> bytes:
    return gzip.compress(head + bytes(BOMB))


def understated(content: bytes, size: int) -> bytes:
    """A zip of one member that declares another size, at both places."""
    data = bytearray(content)
    for place, at in ((0, 22), (data.rindex(b"PK\x01\x02"), 24)):
        data[place + at : place + at + 4] = struct.pack("<I", size)
    return bytes(data)


def npy(shape: object, descr: object = "<f4", content: bytes = b"") -> bytes:
    """An array file with any header at all."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) % 2**16) + header + content


def safetensors(header: object, content: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + content


def repacked(data: bytes, rng: random.Random) -> bytes:
    """A zip with the same members and something that no honest one has."""
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}
    name = rng.choice([*members])
    content = members[name]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for other, inside in members.items():
            if other != name or rng.random() < 0.5:
                file.writestr(other, inside)
        match rng.randrange(9):
            case 7:
                file.writestr(entry(name + "x"), bytes(2**20), zipfile.ZIP_BZIP2)
                file.writestr(entry("dataset.json"), b'{"labels": [' + b"[]," * 2**23 + b"[]]}", zipfile.ZIP_DEFLATED)
            case 8:
                return understated(zipped_bomb(name, content[:128]), rng.choice((0, 100, len(content))))
            case 0:
                file.writestr(entry(rng.choice(NAMES) + Path(name).suffix), content)
            case 1:
                link = entry(name)
                link.create_system, link.external_attr = 3, 0o120777 << 16
                file.writestr(link, "/etc/passwd")
            case 2:
                file.writestr(f"{name}/", b"")
            case 3:
                file.writestr(entry(name + " "), content, zipfile.ZIP_LZMA)
            case 4:
                file.writestr(name.upper(), EPS)
            case 5:
                head = content[:128] if name.endswith(".npy") else b""
                return zipped_bomb(name, head)
            case 6:
                file.writestr(
                    name, npy((2**40,), "<f4", bytes(8)) if name.endswith(".npy") else content[: len(content) // 2]
                )
    return buffer.getvalue()


def retarred(data: bytes, rng: random.Random) -> bytes:
    """A tar with links, devices and strange names beside its members."""
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as whole,
        tarfile.open(
            fileobj=buffer, mode="w:gz" if data[:2] == b"\x1f\x8b" else "w", format=rng.choice((0, 1, 2))
        ) as file,
    ):
        for member in whole:
            kind = rng.choice(
                (
                    None,
                    None,
                    tarfile.SYMTYPE,
                    tarfile.LNKTYPE,
                    tarfile.CHRTYPE,
                    tarfile.FIFOTYPE,
                    tarfile.GNUTYPE_SPARSE,
                )
            )
            content = whole.extractfile(member) if kind is None else None
            if rng.random() < 0.2:
                member.name = rng.choice(NAMES[:5]) + Path(member.name).suffix
            if kind is not None:
                member.type, member.linkname = kind, rng.choice(("/etc/passwd", "../../x", member.name))
                member.size = 0
            file.addfile(member, content)
    return buffer.getvalue()


def crafted(name: str, data: bytes, rng: random.Random) -> bytes:
    """A file of this name's format that an attacker might write."""
    if data[:2] == b"PK":
        return repacked(data, rng)
    if name.endswith((".tar", ".tar.gz")):
        bombs = (gzipped_bomb(), folders(100_000), long_headers(50), cifar10(data_batch_1=LISTS))
        return rng.choice((retarred(data, rng), rng.choice(bombs) if name.endswith("gz") else bytes(2**20)))
    if name.endswith(".gz"):
        head = gzip.decompress(data)[:16]
        many = head[:4] + struct.pack(">I", rng.choice((2**28 - 1, 2**27, 2**31))) + head[8:]
        return rng.choice((gzipped_bomb(head), gzipped_bomb(many)))
    if name.endswith(".safetensors"):
        size = struct.unpack("<Q", data[:8])[0]
        header, content = json.loads(data[8 : 8 + size]), data[8 + size :]
        plain = list(json.loads(data[8 : 8 + size]).items())
        node, key = rng.choice(places(header))
        node[key] = rng.choice((*STRANGE, [2**40, 2**40], [0, 2**60], "F64", "BOOL", "F8_E4M3", [len(content)] * 2))
        deep = b"[" * 100_000
        others = {
            k: v | {"dtype": rng.choice(DTYPES.get(v.get("dtype"), ("F32",)))} if k[0] != "_" else v for k, v in plain
        }
        empty = {k: v | {"shape": [0, *v["shape"]], "data_offsets": [0, 0]} for k, v in plain if k[0] != "_"}
        return rng.choice(
            (
                safetensors(header, content),
                safetensors(others, content),
                safetensors(empty),
                safetensors(deep),
                safetensors({}, content, rng.choice((2**63, 10**8))),
            )
        )
    if name.endswith((".json", ".jsonl")):
        choices = (
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"9" * 10_000,
            b"\xff\xfe" + "{}".encode("utf-16-le"),
            b'{"nimg": NaN, "a": 1e999}',
            data.replace(b"1", b"1" * 5000),
            data.replace(b"1", b"1e400"),
            data.replace(b'": ', b'": [[[', 1),
            data.replace(b'": ', b'": ' + b'{"a":' * 950 + b"1" + b"}" * 950 + b', "b": ', 1),
            data + data[: -len(data) // 2] + data * 200,
            data.replace(b"{", b'{"nimg": 1, "nimg": "x", ', 1),
        )
        return rng.choice(choices)
    if name.endswith(".yaml"):
        laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]\n" for i in range(30))
        return rng.choice(
            (
                laughs.encode(),
                b"a: !!python/object/apply:os.system ['true']\n",
                b"[" * 20_000,
                b"a: 2001-99-99",
                b"&a [*a]",
                b"a0: &a0 {x: 1}\n"
                + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (i, i, b"*a%d," % (i - 1) * 9) for i in range(1, 9)),
                b"a: " + b"9" * 10_000,
            )
        )
    if name.endswith((".pkl", ".pt")):
        return rng.choice(PROGRAMS) if rng.random() < 0.5 else data[: rng.randrange(len(data))] + rng.choice(PROGRAMS)
    if name.endswith(".npy"):
        shapes = ((2**40,), (-1, 8), (2**31, 2**31, 2**31), (), [8], "x", (8.5,), (True, 2))
        return npy(rng.choice(shapes), rng.choice(("<f4", "|O", "<U9", "|u1", "<f16", [("a", "<f4")], "x")), data[128:])
    return rng.choice(
        (
            EPS,
            data[:24] + b"\xff\xff\xff\xff\x7f\xff\xff\xff" + data[32:],
            data[:16] + b"\0\0\x7f\xff\0\0\x7f\xff" + data[24:],
        )
    )


def occupied(place: Path, rng: random.Random) -> None:
    """Something else than a regular file, or nothing, where one will be written."""
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    match rng.randrange(5):
        case 0:
            place.symlink_to("/dev/null")
        case 1:
            place.symlink_to("../outside")
        case 2:
            os.mkfifo(place)
        case 3:
            (place / "x").mkdir(parents=True)
        case 4:
            place.symlink_to(place.name)


def disturbed(place: Path, rng: random.Random) -> None:
    """Something else than a regular file where one is expected."""
    content = place.read_bytes()
    place.unlink()
    match rng.randrange(7):
        case 0:
            pass
        case 1:
            place.mkdir()
        case 2:
            place.symlink_to(place.name)
        case 3:
            place.symlink_to("/nowhere/at/all")
        case 4:
            place.symlink_to("/dev/zero")
        case 5:
            os.mkfifo(place)
        case 6:
            outside = place.parents[len(place.parts) - 1 - place.parts.index("case")] / "outside"
            outside.write_bytes(content)
            place.symlink_to(outside)


def mutated(files: dict[str, bytes], target: str, rng: random.Random, other: bytes) -> dict[str, bytes]:
    """The files with one of them damaged."""
    data = files[target]
    if rng.random() < 0.3:
        data = crafted(target, data, rng)
        if rng.random() < 0.7:
            return {**files, target: data}
    elif target.endswith(".json") and rng.random() < 0.6:
        return {**files, target: restructured(data, rng)}
    elif target.endswith(".jsonl") and rng.random() < 0.6:
        return {**files, target: as_lines(data, lambda line: restructured(line, rng), rng.randrange(99))}
    return {**files, target: damaged(data, rng, other)}


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    """The folder with these files in it, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# Grammars, for hypothesis: what fails is made as small as it goes

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner), max_leaves=9)
OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]


@st.composite
def edited(draw: Any, data: bytes) -> bytes:
    """A few cuts and insertions."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=16)) + data[at + draw(st.integers(0, 16)) :]
    return data


@st.composite
def reworded(draw: Any, data: bytes) -> bytes:
    """JSON with another value in one place."""
    value = json.loads(data)
    if not (found := places(value)):
        return json.dumps(draw(VALUES)).encode()
    node, key = draw(st.sampled_from(found))
    node[key] = draw(VALUES)
    return json.dumps(value).encode()


@st.composite
def relined(draw: Any, data: bytes) -> bytes:
    return as_lines(data, lambda line: draw(reworded(line)), draw(st.integers(0, 9)))


@st.composite
def refilled(draw: Any, data: bytes) -> bytes:
    """A zip whose members have other names or other contents."""
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}
    name = draw(st.sampled_from([*members]))
    content = members.pop(name)
    if draw(st.booleans()):
        name = (
            draw(st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
            + Path(name).suffix
        )
    else:
        content = draw(content_like(name, content))
    return archive({**members, name: content}, draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))))


@st.composite
def headed(draw: Any, data: bytes) -> bytes:
    """An array file with another header."""
    shape = draw(st.lists(st.integers(-2, 2**66), max_size=5).map(tuple) | VALUES)
    kind = draw(
        st.sampled_from(("<f4", "<f8", "|u1", "<i8", "|O", "|b1", "<U3", "|V8", "<M8[s]")) | st.text(max_size=5)
    )
    return npy(shape, kind, data[128:])


@st.composite
def reheaded(draw: Any, data: bytes) -> bytes:
    """A safetensors file with another header."""
    size = struct.unpack("<Q", data[:8])[0]
    return safetensors(draw(reworded(data[8 : 8 + size])), data[8 + size :])


programs = st.lists(st.sampled_from(OPCODES) | st.binary(min_size=1, max_size=6), max_size=30).map(
    lambda ops: b"".join(ops) + pickle.STOP
)


def content_like(name: str, data: bytes) -> st.SearchStrategy[bytes]:
    """Contents for a file of this name, near to `data` or far from it."""
    edits = edited(data) | st.binary(max_size=64)
    if data[:2] == b"PK":
        return refilled(data) | edits
    if name.endswith(".json"):
        return reworded(data) | edits
    if name.endswith(".jsonl"):
        return relined(data) | edits
    if name.endswith(".npy"):
        return headed(data) | edits
    if name.endswith(".safetensors"):
        return reheaded(data) | edits
    if name.endswith((".pkl", ".pt")):
        return programs | edits
    return edits
