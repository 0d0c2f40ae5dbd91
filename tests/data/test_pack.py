"""The dataset tool: the same bytes on every run, every source, and nothing left behind when something is wrong."""

import errno
import gzip
import hashlib
import importlib
import io
import json
import os
import pickle
import re
import struct
import sys
import tarfile
import types
import zipfile
from multiprocessing import active_children
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import fewstep.data.pack
from fewstep.data import ImageData, images
from fewstep.data.check import check
from fewstep.data.convert import convert
from fewstep.data.files import Loaded
from fewstep.data.pack import pack
from fewstep.data.sources import open_source
from fewstep.data.stats import stats
from fewstep.data.transform import Transform, chunk, png
from fewstep.metrics.sources import open_set


def pixels(seed, height=4, width=4, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, format="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


ENTRIES = {f"{kind}/{i}.png": encoded(pixels(10 * k + i)) for k, kind in enumerate(("cat", "dog")) for i in range(3)}


def folder(path, entries):
    for name, data in entries.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def tar(path, entries, mode: Any = "w"):
    with tarfile.open(path, mode) as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def refused(source, dest, *messages, **options):
    """`pack` raises a ValueError that says all of `messages`, and leaves nothing."""
    with pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, messages))):
        pack(source, dest, **options)
    assert not dest.exists()
    assert not list(dest.parent.glob(".*"))


def classes(path):
    labels = images(path).labels
    assert labels is not None
    return labels.tolist()


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "out" / "set.zip"


# Format


def test_round_trip(tmp_path, dest):
    source = images(folder(tmp_path / "in", ENTRIES))
    packed = pack(tmp_path / "in", dest)
    data = images(dest)
    assert (packed.images, packed.shape, packed.skipped) == (6, (3, 4, 4), ())
    assert np.array_equal(data.decoded(), source.decoded())
    assert classes(dest) == classes(tmp_path / "in") == [0, 0, 0, 1, 1, 1]
    assert (data.class_names, data.num_classes) == (("cat", "dog"), 2)
    assert check(dest) == []


def test_format_of_the_zip(tmp_path, dest):
    np.save(tmp_path / "a.npy", np.zeros((1001, 2, 2), np.uint8))
    pack(tmp_path / "a.npy", dest)
    with zipfile.ZipFile(dest) as archive:
        names = archive.namelist()
        assert (names[0], names[999], names[1000]) == (
            "00000/img00000000.png",
            "00000/img00000999.png",
            "00001/img00001000.png",
        )
        assert names[1001:] == ["dataset.json"]
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_bytes_are_the_same_on_every_run_and_from_every_container(tmp_path, dest, monkeypatch):
    monkeypatch.setattr(fewstep.data.pack, "CHUNK_IMAGES", 2)
    sources = [folder(tmp_path / "in", ENTRIES), tar(tmp_path / "in.tar.gz", ENTRIES, "w:gz"), tmp_path / "in.zip"]
    with zipfile.ZipFile(sources[2], "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in reversed(ENTRIES.items()):
            archive.writestr(name, data)
    digests = set()
    for source, workers in [*((s, 1) for s in sources), (sources[0], 2)]:
        pack(source, dest, workers=workers)
        digests.add(hashlib.sha256(dest.read_bytes()).hexdigest())
    assert digests == {"67fefd07f0ae76583aeced6db9ed86c641ac4e745d7cd466c54a35f9e104fb70"}


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (5, 3, 3), (150, 150, 3), (256, 255)])
def test_png_is_read_by_pillow(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(png(array)))
    image.verify()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(array)))), array)


def test_max_images_keeps_the_classes(tmp_path, dest):
    assert pack(folder(tmp_path / "in", ENTRIES), dest, max_images=2).images == 2
    assert (classes(dest), images(dest).num_classes) == ([0, 0], 2)


# Images


def test_plain_keeps_pixels():
    colours = pixels(0)
    grey = pixels(0, channels=1)
    opaque = np.dstack([colours, np.full((4, 4), 255, np.uint8)])
    palette = Image.fromarray(colours).quantize(16)
    one = Image.fromarray(grey).convert("1")
    cases = {
        "RGB": (Image.fromarray(colours), colours),
        "L": (Image.fromarray(grey), grey),
        "RGBA": (Image.fromarray(opaque), colours),
        "LA": (Image.merge("LA", [Image.fromarray(grey), Image.new("L", (4, 4), 255)]), grey),
        "P": (palette, np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]),
        "1": (one, 255 * np.asarray(one).astype(np.uint8)),
    }
    for mode, (image, expected) in cases.items():
        assert image.mode == mode
        assert np.array_equal(np.asarray(convert(Loaded(image, deep=False), "plain")[0]), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGBA", (4, 4), (1, 2, 3, 254)), "transparent pixels (mode RGBA)"),
        (Image.new("LA", (4, 4), (1, 0)), "transparent pixels (mode LA)"),
        (Image.new("I;16", (4, 4)), "cannot be stored in 8 bits"),
        (Image.new("CMYK", (4, 4)), "its mode is CMYK"),
        (Image.new("F", (4, 4)), "its mode is F"),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_what_would_lose_something_is_refused(tmp_path, dest, image, message):
    source = folder(tmp_path / "in", {"a.tif": encoded(image, "TIFF")})
    refused(source, dest, "a.tif: it", message.removeprefix("it"))


def test_transparent_palette_is_refused():
    image = Image.new("P", (4, 4))
    image.info["transparency"] = 0
    with pytest.raises(ValueError, match=r"transparent pixels \(mode P\)"):
        convert(Loaded(image, deep=False), "plain")


def test_center_crop():
    wide = pixels(0, 5, 8)
    crop = Transform((5, 5), "center-crop")
    assert np.array_equal(np.asarray(crop(Image.fromarray(wide))), wide[:, 1:6])
    grey = pixels(0, 9, 6, 1)
    square = np.asarray(Transform((6, 6), "center-crop")(Image.fromarray(grey)))
    assert np.array_equal(square, np.dstack([grey[1:7]] * 3))


def test_center_crop_wide():
    image = pixels(0, 12, 12)
    result = np.asarray(Transform((8, 4), "center-crop-wide", "box")(Image.fromarray(image)))
    kept = 8  # 12 * 8 / 12
    expected = Image.fromarray(image[(12 - kept) // 2 :][:kept]).resize((8, 4), Image.Resampling.BOX)
    assert result.shape == (8, 8, 3)
    assert np.array_equal(result[2:6], np.asarray(expected))
    assert not result[:2].any()
    assert not result[6:].any()
    with pytest.raises(ValueError, match="too few for 8x4"):
        Transform((8, 4), "center-crop-wide")(Image.fromarray(image[:, :7]))


def test_center_crop_dhariwal():
    image = pixels(0, 16, 40, 1)
    result = np.asarray(Transform((4, 4), "center-crop-dhariwal")(Image.fromarray(image))).astype(float)
    halved = image.reshape(4, 4, 10, 4).mean(axis=(1, 3))[:, 3:7]
    assert np.abs(result - halved).max() <= 2  # four roundings
    assert Transform((4, 4), "center-crop-dhariwal")(Image.fromarray(pixels(0, 7, 13))).size == (4, 4)


@pytest.mark.parametrize(("resize", "filter"), [("lanczos", 1), ("bilinear", 2), ("bicubic", 3), ("box", 4)])
def test_resize(resize, filter):
    image = Image.fromarray(pixels(0, 8, 12))
    result = Transform((4, 4), resize=resize)(image)
    assert np.array_equal(np.asarray(result), np.asarray(image.resize((4, 4), Image.Resampling(filter))))


def test_pack_applies_the_transform(tmp_path, dest):
    source = folder(tmp_path / "in", {"a.png": encoded(pixels(0, 5, 8)), "b.png": encoded(pixels(1, 9, 7, 1))})
    pack(source, dest, resolution="4x4", transform="center-crop")
    assert images(dest).shape == (3, 4, 4)
    assert len(images(dest).decoded()) == 2


# Errors


def test_bad_files_are_errors_or_listed(tmp_path, dest):
    bad = {"cat/x.png": b"no image", "dog/y.png": encoded(pixels(0, 5, 5)), "dog/z.png": encoded(pixels(0, 4, 5))}
    source = folder(tmp_path / "in", ENTRIES | bad)
    refused(source, dest, "cat/x.png: expected one intact image")
    packed = pack(source, dest, skip_bad=True)
    assert packed.images == 6
    assert [text.partition(": ")[0].removeprefix(f"{source}/") for text in packed.skipped] == list(bad)
    for text, reason in zip(packed.skipped, ["intact", "got (3, 5, 5);", "got 5x4 pixels;"], strict=True):
        assert reason in text
    assert classes(dest) == [0, 0, 0, 1, 1, 1]
    refused(folder(tmp_path / "worse", {"x.png": b""}), tmp_path / "b" / "b.zip", "none of 1 images", skip_bad=True)


BOMB = struct.pack(">IIBBBBB", 9_000, 9_000, 8, 0, 0, 0, 0)
HOSTILE = {
    "bomb.png": (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", BOMB) + chunk(b"IEND", b""), "9000x9000 are more than"),
    "animated.gif": (
        encoded(Image.new("L", (4, 4)), "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 9)]),
        "it has several frames",
    ),
    "deep.png": (encoded(Image.new("I;16", (4, 4))), "its mode is I;16"),
    "cmyk.jpg": (encoded(Image.new("CMYK", (4, 4)), "JPEG"), "its mode is CMYK"),
    "cut.png": (encoded(pixels(0, 32, 32))[:-500], "expected one intact image"),
    "wide.png": (encoded(pixels(0, 4, 5)), "expected a square"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("pack_as", ["folder", "zip", "tar"])
def test_hostile_images_in_the_middle(tmp_path, dest, name, pack_as):
    content, message = HOSTILE[name]
    entries = dict(sorted((ENTRIES | {f"cat/1{name}": content}).items()))
    source = tar(tmp_path / "in.tar", entries) if pack_as == "tar" else folder(tmp_path / "in", entries)
    if pack_as == "zip":
        source = tmp_path / "in.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, value in entries.items():
                archive.writestr(key, value)
    refused(source, dest, f"cat/1{name}: ", message)
    packed = pack(source, dest, skip_bad=True)
    assert packed.images == 6 and len(packed.skipped) == 1
    assert f"cat/1{name}: " in packed.skipped[0] and message in packed.skipped[0]


def test_empty_classes(tmp_path, dest):
    source = folder(tmp_path / "in", ENTRIES)
    (source / "bird").mkdir()
    refused(source, dest, "in/bird: expected images, as in the 2 other folders, which are classes")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in (ENTRIES | {"bird/": b"", "bird/notes.txt": b"none yet"}).items():
            archive.writestr(name, data)
    refused(tmp_path / "in.zip", dest, "in.zip/bird: expected images")
    refused(tar(tmp_path / "in.tar", ENTRIES | {"bird/a.txt": b""}), dest, "in.tar/bird: expected images")
    (source / "dataset.json").write_text('{"labels": null}')
    pack(source, dest)
    assert images(dest).labels is None


def test_a_failure_leaves_the_destination_alone(tmp_path, dest, monkeypatch):
    source = folder(tmp_path / "in", ENTRIES)
    pack(source, dest, max_images=1)
    before = dest.read_bytes()
    written = []

    def full(self, info, data):
        written.append(info)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space left"):
        pack(source, dest)
    assert dest.read_bytes() == before
    assert os.listdir(dest.parent) == ["set.zip"]


def test_arguments(tmp_path, dest):
    source = folder(tmp_path / "in", ENTRIES)
    refused(source, dest.with_suffix(".tar"), "must be a .zip")
    for resolution in ("64", "0x4", "4x", "64X64", "4x4x4", ""):
        refused(source, dest, "such as 64x64; got", resolution=resolution)
    refused(source, dest, "transform must be one of", resolution="4x4", transform="crop")
    refused(source, dest, "resize must be one of", resize="nearest")
    refused(source, dest, "needs a resolution", transform="center-crop")
    refused(source, dest, "needs a square", resolution="4x2", transform="center-crop-dhariwal")
    refused(source, dest, "needs width >= height", resolution="2x4", transform="center-crop-wide")
    refused(source, dest, "max_images must be at least 1", max_images=0)
    refused(source, dest, "workers must be at least 1", workers=0)
    refused(source, dest, "expected a square; got 4x2", resolution="4x2")
    refused(tmp_path / "none", dest, "there is no such path")
    refused(folder(tmp_path, {"a.rar": b""}) / "a.rar", dest, "a.rar: expected a folder, .zip, .tar")
    pack(source, dest)
    with pytest.raises(ValueError, match="is an input of this command"):
        pack(dest, dest)


def test_a_failure_ends_the_worker_processes(tmp_path, dest):
    source = folder(tmp_path / "in", ENTRIES | {"cat/0.png": b"no image"})
    with pytest.raises(ValueError, match="0.png") as caught:
        pack(source, dest, workers=2)
    assert caught.tb is not None and active_children() == []  # also while the traceback keeps the frames


# Tars


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_tars(tmp_path, dest, ending):
    names = {f"./{i}.png": encoded(pixels(i)) for i in (2, 1)}
    names["dataset.json"] = json.dumps({"labels": [["1.png", 1], ["2.png", 5]]}).encode()
    mode = {"tar": "w", "tgz": "w:gz"}.get(ending, "w:" + ending[4:])
    pack(tar(tmp_path / f"in.{ending}", names, mode), dest)
    assert np.array_equal(images(dest)[0], pixels(2).transpose(2, 0, 1))  # in the order of the tar
    assert classes(dest) == [5, 1]


def test_damaged_tars(tmp_path, dest):
    path = tar(tmp_path / "in.tar", ENTRIES)
    content = path.read_bytes()
    path.write_bytes(content[:3000])
    refused(path, dest, "in.tar: damaged")
    path.write_bytes(content[: 512 * 4])
    refused(path, dest, "in.tar: damaged or cut off after 2 entries")
    path.write_bytes(content[:2048] + b"x" * 512 + content[2560:])
    refused(path, dest, "in.tar: damaged or cut off after 2 entries")
    path.write_bytes(b"")
    refused(path, dest, "in.tar: damaged")
    path = tmp_path / "in.tar.gz"
    path.write_bytes(gzip.compress(content)[:-100])
    refused(path, dest, "in.tar.gz: damaged")
    path.write_bytes(content)
    refused(path, dest, "in.tar.gz: damaged")
    refused(tar(tmp_path / "none.tar", {"a.txt": b""}), dest, "none.tar: expected images")


def test_hostile_tars(tmp_path, dest):
    refused(tar(tmp_path / "a.tar", {"../a.png": b""}), dest, "'../a.png' points outside")
    path = tmp_path / "twice.tar"
    tar(path, {"a.png": encoded(pixels(0))})
    tar(path, {"a.png": encoded(pixels(1))}, "a")
    refused(path, dest, "'a.png' is there twice")
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        archive.addfile(link)
    refused(tmp_path / "link.tar", dest, "a.png: expected a regular file; it is a link")
    giant = tarfile.TarInfo("././@LongLink")
    giant.type, giant.size = tarfile.GNUTYPE_LONGNAME, 2**33
    (tmp_path / "giant.tar").write_bytes(giant.tobuf(tarfile.GNU_FORMAT))
    refused(tmp_path / "giant.tar", dest, "its headers are longer than those of any tar")


# CIFAR-10

NAMES = [f"class {i}".encode() for i in range(10)]


def cifar(path, *, protocol=2, **replace):
    def dump(content):
        return content if isinstance(content, bytes) else pickle.dumps(content, protocol)

    content = {
        f"data_batch_{i}": {b"data": cifar_data(i), b"labels": [i, 9 - i], b"filenames": [b"x", b"y"]}
        for i in range(5, 0, -1)
    }
    content |= {"batches.meta": {b"label_names": NAMES}, "test_batch": b"", **replace}
    return tar(path, {f"cifar-10-batches-py/{k}": dump(v) for k, v in content.items()}, "w:gz")


def cifar_data(i):
    return np.random.default_rng(i).integers(0, 256, (2, 3072), dtype=np.uint8)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar10(tmp_path, dest, protocol):
    pack(cifar(tmp_path / "cifar-10-python.tar.gz", protocol=protocol), dest)
    data = images(dest)
    assert np.array_equal(data.decoded(), np.concatenate([cifar_data(i) for i in range(1, 6)]).reshape(10, 3, 32, 32))
    assert classes(dest) == [k for i in range(1, 6) for k in (i, 9 - i)]
    assert data.class_names == tuple(name.decode() for name in NAMES)


def test_cifar10_of_python_2(tmp_path, dest):
    """The form of the published file: cPickle of Python 2, and the old module of NumPy."""
    data = cifar_data(3)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I2\nI3072\ntcnumpy\ndtype\n"
        b"(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\n"
        + b"T"
        + struct.pack("<i", 6144)
        + data.tobytes()
        + b"tb"
    )
    batch = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x03K\x06eu."
    pack(cifar(tmp_path / "cifar-10-python.tar.gz", data_batch_3=batch), dest)
    assert np.array_equal(images(dest).decoded()[4:6], data.reshape(2, 3, 32, 32))


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


NESTED = b")" + 16 * b"2\x86"
"""A tuple of twice the same tuple, and so on: its hash takes 2^16 steps, and 2^n for n more bytes."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Hostile(os.mkdir, "executed"), "posix.mkdir"),
        (Hostile(np.zeros, 3), "zeros, which image data do not need"),
        (Hostile(getattr, {}, "items"), "getattr"),
        (Hostile(importlib.import_module, "os"), "import_module"),
        ([], "expected a dictionary"),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 0]}, "expected a dictionary of uint8 arrays"),
        ({b"data": np.zeros((2, 3000), np.uint8), b"labels": [0, 0]}, "expected the batches"),
        ({b"data": cifar_data(0), b"labels": [0]}, "9 labels"),
        ({b"data": cifar_data(0), b"labels": [0, 10]}, "expected the batches"),
        ({b"data": [1], b"labels": [0]}, "expected the batches"),
        ({b"data": cifar_data(0)}, "KeyError(b'labels')"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".", "and lists; 150"),
        (b"\x80\x02}" + NESTED + b"Ns.", "a key of type tuple"),
        (b"\x80\x02}(" + NESTED + b"Nu.", "a key of type tuple"),
        (b"(" + NESTED + b"Nd.", "a key of type tuple"),
        (b"\x80\x04\x8f(" + NESTED + b"\x90.", "and lists; 144"),
        (b"\x80\x04(" + NESTED + b"\x91.", "and lists; 145"),
        (b"\x80\x02}r\xff\xff\xff\xff0N.", "expected a dictionary"),
        (b"\x80\x02}", "expected a dictionary"),
        (b"", "expected a dictionary"),
    ],
)
def test_hostile_cifar10(tmp_path, dest, content, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(cifar(tmp_path / "cifar-10-python.tar.gz", data_batch_4=content), dest, "cifar-10-batches-py", message)
    assert not (tmp_path / "executed").exists()


def test_incomplete_cifar10(tmp_path, dest):
    path = tar(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": b""}, "w:gz")
    refused(path, dest, "data_batch_1: expected a dictionary")
    refused(tar(path, {"a": b""}, "w:gz"), dest, "it has no cifar-10-batches-py/data_batch_1")


# MNIST


def mnist(path, *, magic=0x803, shape=(3, 28, 28), labels=(7, 0, 9), cut=0):
    array = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    data = struct.pack(">4I", magic, *shape) + array.tobytes()
    (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(data[: len(data) - cut]))
    (path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 0x801, 3) + bytes(labels)))
    return path / "train-images-idx3-ubyte.gz", array


def test_mnist(tmp_path, dest):
    source, array = mnist(tmp_path)
    pack(source, dest)
    assert np.array_equal(images(dest).decoded()[:, 0], np.pad(array, ((0, 0), (2, 2), (2, 2))))
    assert classes(dest) == [7, 0, 9]
    for file in (source, tmp_path / "train-labels-idx1-ubyte.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    before = dest.read_bytes()
    pack(source.with_suffix(""), dest)
    assert dest.read_bytes() == before


def test_damaged_mnist(tmp_path, dest):
    refused(mnist(tmp_path, magic=0x801)[0], dest, "images-idx3-ubyte.gz: expected an idx3-ubyte file")
    refused(mnist(tmp_path, shape=(3, 28, 29))[0], dest, "expected 3 images of 28x28 pixels", "(3, 28, 29)")
    refused(mnist(tmp_path, shape=(2**31, 28, 28))[0], dest, "expected 3 images of 28x28 pixels")
    refused(mnist(tmp_path, labels=(1, 2))[0], dest, "labels-idx1-ubyte.gz: cut off; expected 3 bytes; got 2")
    refused(mnist(tmp_path, cut=1)[0], dest, "images-idx3-ubyte.gz: cut off")
    source, _ = mnist(tmp_path)
    source.write_bytes(source.read_bytes()[:-20])
    refused(source, dest, "images-idx3-ubyte.gz: damaged")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    refused(source, dest, "expected its labels in", "train-labels-idx1-ubyte.gz; there is no such file")


# Arrays


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2, 5, 5), (0, 1, 2)), ((2, 5, 5, 1), (0, 3, 1, 2)), ((2, 5, 5, 3), (0, 3, 1, 2)), ((2, 3, 5, 5), (0, 1, 2, 3))],
)
def test_arrays(tmp_path, dest, shape, axes):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = array.transpose(axes).reshape(2, -1, 5, 5)
    np.save(tmp_path / "a.npy", array)
    pack(tmp_path / "a.npy", dest)
    assert np.array_equal(images(dest).decoded(), expected)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", images=array, labels=np.array([1, 0], dtype=np.uint16))
        pack(tmp_path / "a.npz", dest)
        assert np.array_equal(images(dest).decoded(), expected)
        assert classes(dest) == [1, 0]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2, 9, 9, 2), (0, 3, 1, 2)), ((2, 4, 9, 9), (0, 1, 2, 3)), ((2, 9, 9, 6), (0, 3, 1, 2))],
)
def test_any_number_of_channels(tmp_path, dest, shape, axes):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=array, labels=np.array([1, 0]))
    packed = pack(tmp_path / "a.npz", dest)
    expected = array.transpose(axes)
    assert packed.shape == expected.shape[1:]
    data = images(dest)
    assert np.array_equal(data.decoded(), expected) and classes(dest) == [1, 0]
    with zipfile.ZipFile(dest) as archive:  # as EDM2 reads them
        assert archive.namelist() == ["00000/img00000000.npy", "00000/img00000001.npy", "dataset.json"]
        assert np.array_equal(np.load(io.BytesIO(archive.read("00000/img00000001.npy"))), expected[1])
    assert check(dest) == [] and stats(data)["n"] == 2
    pack(dest, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == dest.read_bytes()
    pack(tmp_path / "a.npz", dest, resolution="3x3", resize="box")
    means = expected.reshape(2, -1, 3, 3, 3, 3).mean((3, 5))
    assert np.abs(images(dest).decoded() - means).max() < 1  # rounded in rows, then in columns
    refused(
        tmp_path / "a.npz", tmp_path / "b" / "b.zip", "makes RGB; it has", transform="center-crop", resolution="3x3"
    )


def test_arrays_in_archives_are_checked(tmp_path, dest):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 2), np.uint8))
    pack(tmp_path / "a.npz", dest)
    with zipfile.ZipFile(dest) as archive:
        good = archive.read("00000/img00000000.npy")
    for content, message in [
        (good[:-1], "cut off or damaged; expected 32 bytes of uint8 (2, 4, 4); got 31"),
        (good.replace(b"|u1", b"|i1"), "got int8"),
        (good.replace(b"(2, 4, 4)", b"(32, )   "), "got uint8 (32,)"),
        (b"PK", "expected an array of NumPy"),
    ]:
        source = folder(tmp_path / "in", {"a.npy": content})
        with pytest.raises(ValueError, match="a.npy: .*" + re.escape(message)):
            images(source)
        refused(source, tmp_path / "b" / "b.zip", message)
    folder(tmp_path / "in", {"b.png": encoded(pixels(0))})
    assert len(images(tmp_path / "in")) == 1  # beside pictures, arrays are something else


def test_bad_arrays(tmp_path, dest):
    good = np.zeros((2, 4, 4, 3), np.uint8)

    def save(**content):
        np.savez(tmp_path / "a.npz", **content)
        return tmp_path / "a.npz"

    refused(save(x=good), dest, 'a.npz: expected an array "images"')
    refused(save(images=good[0, 0]), dest, "expected uint8", "(4, 3)")
    refused(save(images=good[:0]), dest, "expected uint8", "(0, 4, 4, 3)")
    refused(save(images=np.array([[[None]]])), dest, "got object")
    refused(save(images=good, labels=[0]), dest, "[labels]: expected integers (2,)")
    refused(save(images=good, labels=[0.0, 1.0]), dest, "[labels]: expected integers (2,); got float64")
    refused(save(images=good, labels=[0, -1]), dest, "[labels]: expected classes >= 0; got -1")
    path = tmp_path / "a.npy"
    np.save(path, good)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(path, dest, "a.npy[images]: cut off")
    path.write_bytes(content.replace(b"(2, 4, 4, 3)", b"(2, 1<<40,3)"))
    refused(path, dest, "a.npy[images]: expected an array of NumPy")
    path.write_bytes(content.replace(b"(2, 4, 4, 3), }  ", b"(2, 999999, 3), }"))
    refused(path, dest, "a.npy[images]: cut off")
    path.write_bytes(b"x")
    refused(path, dest, "a.npy[images]: expected an array of NumPy")
    (tmp_path / "a.npz").write_bytes(b"x")
    refused(tmp_path / "a.npz", dest, "a.npz: damaged")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (
            np.linspace(0, 1, 96),
            "float64 (2, 4, 4, 3) from 0 to 1; if that is all of the range, save numpy.round(255 * x)",
        ),
        (
            np.linspace(-1, 0.5, 96),
            "float64 (2, 4, 4, 3) from -1 to 0.5; if that is all of the range, save numpy.round(127.5 * x + 127.5)",
        ),
        (np.linspace(0, 255, 96, dtype=np.float32), "float32 (2, 4, 4, 3) from 0 to 255; if that is all of the range"),
        (
            np.arange(96, dtype=np.int64),
            "int64 (2, 4, 4, 3) from 0 to 95; if that is all of the range, save numpy.round(x)",
        ),
        (600 * np.arange(96, dtype=np.uint16), "uint16 (2, 4, 4, 3) from 0 to 57000; if that is all"),
        (np.where(np.arange(96) == 50, np.nan, 0.5), "float64 (2, 4, 4, 3) with NaN or infinite values"),
        (np.linspace(-3, 3, 96), "float64 (2, 4, 4, 3) from -3 to 3"),
        (np.arange(96) % 2 == 0, "bool (2, 4, 4, 3) from 0 to 1; if"),
        (np.full(96, "x"), "<U1 (2, 4, 4, 3)"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_other_types_are_named_with_their_range(tmp_path, dest, array, says, save):
    save(tmp_path / "a.npz", arr_0=array.reshape(2, 4, 4, 3))
    refused(tmp_path / "a.npz", dest, f"a.npz[arr_0]: expected uint8 from 0 to 255; got {says}")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_names_of_arrays(tmp_path, dest, save):
    """Ours and those that NumPy gives, in order C or F, are the same set for packing and for everything else."""
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    for content in ({"images": array, "labels": np.arange(5)}, {"arr_0": array, "arr_1": np.arange(5)}):
        save(tmp_path / "a.npz", **content)
        pack(tmp_path / "a.npz", dest)
        save(tmp_path / "a.npz", **{k: np.asfortranarray(v) for k, v in content.items()})
        pack(tmp_path / "a.npz", again := tmp_path / "again.zip")
        assert again.read_bytes() == dest.read_bytes()
        for data in (images(dest), images(tmp_path / "a.npz")):
            assert np.array_equal(data.decoded(), array.transpose(0, 3, 1, 2)) and data.labels is not None
            assert data.labels.tolist() == [0, 1, 2, 3, 4] and data.num_classes == 5
            assert np.array_equal(data.gather(np.array([3, 0])), array[[3, 0]].transpose(0, 3, 1, 2))
        assert check(tmp_path / "a.npz") == []
    save(tmp_path / "a.npz", arr_0=array, arr_1=np.eye(5))
    refused(tmp_path / "a.npz", tmp_path / "b" / "b.zip", "a.npz[arr_1]: expected integers (5,)", "argmax(1)")
    save(tmp_path / "a.npz", arr_0=np.zeros((64, 64, 3), np.uint8))
    refused(tmp_path / "a.npz", tmp_path / "b" / "b.zip", "(64, 64, 3) seems to be one image (H, W, C); add an axis")
    save(tmp_path / "a.npz", x=array)
    refused(tmp_path / "a.npz", tmp_path / "b" / "b.zip", "expected an array", "it has x")


def test_every_source_is_a_set_of_images(tmp_path, dest, monkeypatch):
    """What `data pack` reads is what training and metrics read, with the same pixels and classes."""
    sources = [
        folder(tmp_path / "folder", ENTRIES),
        tar(tmp_path / "in.tar", dict(sorted(ENTRIES.items()))),
        cifar(tmp_path / "cifar-10-python.tar.gz"),
        mnist(tmp_path)[0],
    ]
    np.save(tmp_path / "a.npy", np.stack([pixels(i) for i in range(3)]))
    for source in [*sources, tmp_path / "a.npy", "digits"]:
        pack(source, dest)
        packed, direct = images(dest), images(source)
        assert np.array_equal(packed.decoded(), direct.decoded())
        assert (direct.labels is None) == (packed.labels is None)
        assert direct.labels is None or direct.labels.tolist() == classes(dest)
        assert (direct.class_names, direct.num_classes) == (packed.class_names, packed.num_classes)
        assert check(source) == check(dest) == []
        assert np.array_equal(open_set(Path(source))[1], packed[1])
    monkeypatch.setattr(sys.modules["fewstep.data.images"], "DECODED", 100)
    with pytest.raises(ValueError, match=r"in\.tar: 6 images of \(3, 4, 4\) do not fit .* pack them first"):
        images(sources[1])


# Optional packages, in the parts that are used


class HubImage:
    def __init__(self, decode=True):
        self.decode = decode


class HubClasses(types.SimpleNamespace): ...


class HubTable:
    def __init__(self, rows, features):
        self.rows, self.features = rows, features

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def select_columns(self, names):
        return HubTable([{k: row[k] for k in names} for row in self.rows], {k: self.features[k] for k in names})

    def cast_column(self, name, kind):
        assert not kind.decode
        return HubTable(self.rows, self.features | {name: kind})


def test_hugging_face(tmp_path, dest, monkeypatch):
    (tmp_path / "b.png").write_bytes(encoded(pixels(1)))
    rows = [
        {"id": "x", "img": {"bytes": encoded(pixels(0)), "path": None}, "kind": 1},
        {"id": "y", "img": {"bytes": None, "path": str(tmp_path / "b.png")}, "kind": 0},
    ]
    features = {"id": None, "img": HubImage(), "kind": HubClasses(names=["no", "yes"])}
    calls = []

    def load_dataset(name, configuration, *, split):
        calls.append((name, configuration, split))
        if split == "absent":
            raise ValueError(f"Unknown split {split!r}.\nShould be one of ['train']")
        return HubTable(rows, features)

    hub = types.SimpleNamespace(Image=HubImage, ClassLabel=HubClasses, load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf:who/what", dest, "hf:who/what needs the package datasets, which", 'pip install "fewstep[datasets]"')
    monkeypatch.setitem(sys.modules, "datasets", hub)
    pack("hf:who/what", dest)
    assert calls == [("who/what", None, "train")]
    assert np.array_equal(images(dest)[1], pixels(1).transpose(2, 0, 1))
    assert (classes(dest), images(dest).class_names) == ([1, 0], ("no", "yes"))
    rows[1]["kind"] = -1
    assert pack("hf:who/what", dest, skip_bad=True).skipped == (
        "hf:who/what[1]: it has no class, while others have one",
    )
    for address, asked in (
        ("who/what@test", ("who/what", None, "test")),
        ("who/what:big", ("who/what", "big", "train")),
        ("who/what:big@train[:10%]", ("who/what", "big", "train[:10%]")),
    ):
        assert (open_source(f"hf:{address}").total, calls[-1]) == (2, asked)
    with pytest.raises(
        ValueError, match=r"hf:who/what@absent: it cannot be loaded \(ValueError: Unknown split 'absent'\. Should"
    ):
        open_source("hf:who/what@absent")
    for raised, advice in ((ConnectionError("gone"), "try again later"), (FileNotFoundError("no"), "hf auth login")):
        hub.load_dataset = Mock(side_effect=raised)
        with pytest.raises(ValueError, match=rf"it cannot be loaded \({type(raised).__name__}: .*{advice}"):
            open_source("hf:who/what")
    hub.load_dataset = load_dataset
    for wrong in ("", ":big", "who/what@", "a:b:c"):
        with pytest.raises(ValueError, match="expected hf:NAME, hf:NAME:CONFIGURATION"):
            open_source(f"hf:{wrong}")
    del features["img"]
    with pytest.raises(ValueError, match="expected a column of images; it has id, kind"):
        pack("hf:who/what", dest)


# Check and stats


def test_check_finds_every_bad_file(tmp_path):
    bad = {
        "dog/1x.png": b"",
        "dog/2x.png": encoded(pixels(0, 5, 5)),
        "dog/3x.png": encoded(Image.new("RGBA", (4, 4))),
        "dataset.json": json.dumps({"labels": [["cat/0.png", 0]]}).encode(),
    }
    problems = check(folder(tmp_path / "in", ENTRIES | bad))
    assert [name for name, _ in problems] == ["dog/1x.png", "dog/2x.png", "dog/3x.png", "dataset.json"]
    messages = ("empty (0 bytes)", "got (3, 5, 5)", "transparent pixels (mode RGBA)", "has no label")
    assert all(message in problem for (_, problem), message in zip(problems, messages, strict=True))
    with pytest.raises(ValueError, match="no such path"):
        check(tmp_path / "none")


def test_stats():
    array = np.random.default_rng(0).integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)
    result = stats(ImageData(array, np.arange(300) % 2, name="x", class_names=["a", "b", "c"]))
    unit = array / 127.5 - 1
    assert result["classes"] == {"a": 150, "b": 150, "c": 0}
    assert (result["n"], result["shape"]) == (300, [3, 8, 8])
    assert result["mean"] == pytest.approx(unit.mean())
    assert result["sigma_data"] == pytest.approx(unit.std())
    with pytest.raises(ValueError, match="nothing to learn"):
        stats(ImageData(array * 0, name="x"))


@pytest.mark.parametrize(("size", "octaves"), [(16, -1), (32, 0), (64, 0), (256, 2)])
def test_proposed_noise_shifts_with_data_and_resolution(size, octaves):
    array = np.full((2, 1, size, size), 64, np.uint8)
    array[1] = 191  # +-0.498
    proposal = stats(ImageData(array, name="x"))["proposal"]
    assert proposal["sigma_data"] == 0.498
    assert proposal["noise"]["std"] == 1.2
    assert proposal["noise"]["mean"] == pytest.approx(-1.2 + octaves * np.log(2), abs=0.01)
    array //= 2
    assert stats(ImageData(array // 2, name="x"))["proposal"]["noise"]["mean"] < proposal["noise"]["mean"] - 0.6
