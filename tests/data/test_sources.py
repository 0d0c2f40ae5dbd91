"""Every source of images: tars, CIFAR-10, MNIST, arrays and the hub, intact, damaged and hostile."""

import gzip
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
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from fewstep.data import images
from fewstep.data.check import check
from fewstep.data.pack import pack
from fewstep.data.sources import open_source
from fewstep.data.stats import stats
from fewstep.metrics.sources import open_set
from tests.data.test_pack import ENTRIES, classes, dest, encoded, folder, pixels, refused, tar

__all__ = ["dest"]


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
