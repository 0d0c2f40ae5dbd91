"""Small files that ask for much: each is made in a moment. `python -m tests.bombs FOLDER` reads them all, under watch."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

MIB = 2**20
HEADER = b"\x93NUMPY\x01\x00"


def array_file(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return HEADER + struct.pack("<H", len(header)) + header


def png(size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    Image.new(mode, size).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@cache
def deflated(n: int) -> bytes:
    """`n` MiB of zeros as a raw stream: a piece that stands alone, again and again."""
    one = zlib.compressobj(9, wbits=-15)
    piece = one.compress(bytes(MIB)) + one.flush(zlib.Z_FULL_FLUSH)
    return piece * n + zlib.compressobj(wbits=-15).flush()


def huge_member(method: int) -> bytes:
    """A zip of one image that says to have 100 bytes, and unfolds to 1500 MiB (deflated) or 32 MiB."""
    if method == zipfile.ZIP_DEFLATED:
        stream = deflated(1500)
    elif method == zipfile.ZIP_BZIP2:
        stream = bz2.compress(bytes(32 * MIB))
    else:
        options = struct.pack("<BI", 93, 2**16)
        one = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": 2**16}])
        stream = struct.pack("<BBH", 9, 4, len(options)) + options + one.compress(bytes(32 * MIB)) + one.flush()
    name = b"a.png"
    fields = (20, 0, method, 0, 33, zlib.crc32(b""), len(stream), 100, len(name), 0)
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", *fields) + name + stream
    central = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, *fields, 0, 0, 0, 0, 0) + name
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def tarred(members: dict[str, bytes], write: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=write) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def long_file(n: int) -> bytes:
    """The beginning of a tar, `n` bytes, of one file of 4,000 MiB."""
    info = tarfile.TarInfo("a.png")
    info.size = 4000 * MIB
    return info.tobuf() + bytes(n - 512)


def folders(n: int) -> bytes:
    """A tar with one folder `n` times."""
    info = tarfile.TarInfo("a")
    info.type = tarfile.DIRTYPE
    return gzip.compress(info.tobuf() * 10_000) * (n // 10_000) + gzip.compress(bytes(1024))


def long_headers(n: int) -> bytes:
    """A tar with `n` folders that have extended headers of half a MiB, of 100,000 records each."""
    records = b"5 a=\n" * 100_000
    head = tarfile.TarInfo("a")
    head.type, head.size = tarfile.XHDTYPE, len(records)
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    block = head.tobuf() + records + bytes(-len(records) % 512) + folder.tobuf()
    return gzip.compress(block) * n + gzip.compress(bytes(1024))


def large_dictionary() -> bytes:
    """An xz file that asks for 3 GiB of memory."""
    small = lzma.compress(tarred({"a.png": png()}, "w"), filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}])
    data = bytearray(small)
    # The block header: size, flags, filter 0x21 with one byte for its dictionary, padding, check sum
    assert data[14:16] == b"\x21\x01"
    data[16] = 39  # 3 GiB
    length = (data[12] + 1) * 4
    data[12 + length - 4 : 12 + length] = struct.pack("<I", zlib.crc32(data[12 : 12 + length - 4]))
    return bytes(data)


def cifar10(**files: bytes) -> bytes:
    batch = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, 2)
    named = {f"data_batch_{i}": batch for i in range(1, 6)}
    named["batches.meta"] = pickle.dumps({b"label_names": [b"a", b"b"]}, 2)
    return tarred({f"cifar-10-batches-py/{name}": data for name, data in (named | files).items()})


def encoded_often(size: int, n: int) -> bytes:
    """A pickle that turns one text into bytes again and again."""
    text = b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", size) + b"a" * size + b"X\x06\0\0\0latin1\x86q\x01R"
    return text + b"h\x00h\x01R" * n + b"."


def quadratic_labels(n: int) -> bytes:
    """Names of classes, of which every image has the last."""
    names = [f"{i:x}" for i in range(n)]
    labels = [[f"{i}.png", names[-1]] for i in range(n // 2)]
    return json.dumps({"labels": labels, "class_names": names}).encode()


def back_and_forth(n: int) -> bytes:
    """A log of `n` lines that then goes one back and one forth as often."""
    numbers = [*range(n), *[n - 2, n - 1] * (n // 2)]
    return "".join(f'{{"nimg": {i}, "loss": 1}}\n' for i in numbers).encode()


def wide_rows(n: int) -> bytes:
    """Results of as many models as metrics."""
    return json.dumps([{"model": "m", "nfe": i, f"metric {i}": 1.0} for i in range(n)]).encode()


def own_protocols(n: int) -> bytes:
    """Evaluations of one model, each with a protocol of its own."""
    result = {"metric": "fid", "value": 1.0, "n": 9}
    return json.dumps([result | {"protocol": {"model": "m", "settings": {"k": i}}} for i in range(n)]).encode()


def many_keys(n: int) -> bytes:
    return "".join(f'{{"nimg": {i}, "key {i}": 1}}\n' for i in range(n)).encode()


def script_of_modules(depth: int) -> bytes:
    """A TorchScript archive of a module that holds another twice, which holds another twice, and so on."""
    twice = b"(X\x01\0\0\0ah\x00X\x01\0\0\0bh\x00ub"
    module = b"c__torch__.M\nM\n)\x81}"
    data = b"\x80\x02" + module + b"(ubq\x00" + (module + twice + b"q\x00") * depth + b"."
    return zipped({"x/data.pkl": data, "x/constants.pkl": b"\x80\x02)."}, zipfile.ZIP_STORED)


def views(n: int) -> bytes:
    """The weights of a network, each a view of one storage of 4 MB."""
    import torch

    whole = torch.zeros(1000, 1000)
    torch.save({str(i): whole.t() for i in range(n)}, file := io.BytesIO())
    return file.getvalue()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "deflated member": ("x.zip", lambda: huge_member(zipfile.ZIP_DEFLATED)),
    "bzip2 member": ("x.zip", lambda: huge_member(zipfile.ZIP_BZIP2)),
    "LZMA member": ("x.zip", lambda: huge_member(zipfile.ZIP_LZMA)),
    "many members": ("x.zip", lambda: zipped({f"{i}.png": bytes(32 * MIB) for i in range(9)})),
    "labels of lists": (
        "x.zip",
        lambda: zipped({"a.png": png(), "dataset.json": b'{"labels": [' + b"[]," * (8 * MIB) + b"[]]}"}),
    ),
    "labels by name": ("x.zip", lambda: zipped({"0.png": png(), "dataset.json": quadratic_labels(200_000)})),
    "labels of lists in a tar": (
        "x.tar.gz",
        lambda: tarred({"a.png": png(), "dataset.json": b'{"labels": [' + b"[]," * (8 * MIB) + b"[]]}"}),
    ),
    "folders": ("x.tar.gz", lambda: folders(1_000_000)),
    "long headers": ("x.tar.gz", lambda: long_headers(400)),
    "long content, gzip": ("x.tar.gz", lambda: gzip.compress(long_file(8 * MIB)) + gzip.compress(bytes(8 * MIB)) * 500),
    "long content, bzip2": ("x.tar.bz2", lambda: bz2.compress(long_file(8 * MIB)) + bz2.compress(bytes(8 * MIB)) * 500),
    "long content, xz": ("x.tar.xz", lambda: lzma.compress(long_file(8 * MIB)) + lzma.compress(bytes(8 * MIB)) * 500),
    "large dictionary": ("x.tar.xz", large_dictionary),
    "lists in CIFAR-10": (
        "cifar-10-python.tar.gz",
        lambda: cifar10(data_batch_1=b"\x80\x02" + b"]" * (16 * MIB) + b"."),
    ),
    "texts in CIFAR-10": ("cifar-10-python.tar.gz", lambda: cifar10(data_batch_1=encoded_often(16 * MIB, 200))),
    "long file in CIFAR-10": (
        "cifar-10-python.tar.gz",
        lambda: cifar10(data_batch_1=pickle.dumps({b"data": bytes(60 * MIB)}, 4)),
    ),
    "log": ("log.jsonl", lambda: back_and_forth(100_000)),
    "keys of a log": ("log.jsonl", lambda: many_keys(50_000)),
    "metrics of results": ("results.json", lambda: wide_rows(50_000)),
    "protocols of results": ("a.json", lambda: own_protocols(10_000)),
    "modules in modules": ("x.ts", lambda: script_of_modules(30)),
    "views of one storage": ("x.pt", lambda: views(600)),
    "array": ("x.npz", lambda: zipped({"images.npy": array_file((300, 1024, 1024)) + bytes(300 * MIB)})),
}


def read_all() -> Mapping[str, Callable[[Path], object]]:
    """What reads the files of each name."""
    from fewstep.io.convert.feature_weights import published_tensors
    from fewstep.report.page import templates, write_report
    from fewstep.report.records import read_log
    from tests.fuzz.readers import all_images, entries

    def copied(path: Path) -> None:
        for tensor in [tensor.contiguous() for tensor in published_tensors(path).values()]:
            tensor.sum()

    def reported(path: Path) -> None:
        write_report(path.parent)

    for name in templates().list_templates():  # compiled here, as the watch takes any new code for that of a file
        templates().get_template(name)
    others = {".jsonl": read_log, ".json": reported, ".ts": copied, ".pt": copied}
    return others | {".zip": all_images, ".npz": all_images, ".gz": entries, ".bz2": entries, ".xz": entries}


def main(folder: Path) -> dict[str, tuple[str | None, str, float]]:
    """Every bomb, to its reader: how that failed, what it said, MiB that it took."""
    from tests.fuzz.watch import Watch

    watch, readers, result = Watch(), read_all(), {}
    for name, (file, make) in BOMBS.items():
        place = folder / name.replace(" ", "-")
        place.mkdir(parents=True)
        (place / file).write_bytes(make())
        said: list[str] = []

        def call(place: Path, file: str = file, said: list[str] = said) -> None:
            try:
                readers[Path(file).suffix](place / file)
            except ValueError as error:
                said.append(str(error))
                raise

        failure, _ = watch.failure(call, place)
        result[name] = (failure, "".join(said).replace(str(folder), ""), watch.taken)
        print(name, result[name], file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
