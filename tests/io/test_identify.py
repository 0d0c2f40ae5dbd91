"""Files and folders that are no snapshots: each is called what it is, in one line that says what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fewstep.cli import main
from fewstep.io.convert import convert
from fewstep.io.convert.identify import describe_file
from tests import GOLDEN

SNAPSHOT = (GOLDEN / "snap-gdd-adm.pkl").read_bytes()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        about = tarfile.TarInfo("net.pkl")
        about.size = 3
        archive.addfile(about, io.BytesIO(b"abc"))
    return buffer.getvalue()


def written(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
FILES = {
    "nothing": (b"", "is empty; get it again"),
    "a page": (b"<!DOCTYPE html><html><title>404</title></html>", "a web page; .* take the address of the file itself"),
    "a page after blanks": (b"\xef\xbb\xbf\n  <HTML lang='en'>", "a web page"),
    "an answer of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "a web page"),
    "a pointer": (LFS + b"size 223\n", "a Git-LFS pointer .*`git lfs pull`"),
    "gzip": (gzip.compress(SNAPSHOT), "compressed by gzip; unpack it first: gunzip"),
    "bzip2": (bz2.compress(SNAPSHOT[:1000]), "compressed by bzip2"),
    "xz": (lzma.compress(SNAPSHOT[:1000]), "compressed by xz"),
    "tar": (tarred(), "a tar archive; unpack it and name the snapshot in it"),
    "zip": (zipped({"a/net.pkl": SNAPSHOT, "b.txt": b"x"}), "a zip archive of a/net.pkl, b.txt; unpack it and name"),
    "an empty zip": (zipped({}), "a zip archive of nothing"),
    "npz": (written(lambda f: np.savez(f, arr_0=np.zeros(3))), r"arrays of NumPy \(arr_0.npy\), not a network"),
    "npy": (written(lambda f: np.save(f, np.zeros(3))), "an array of NumPy, not a network"),
    "TorchScript": (
        written(lambda f: torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), f)),
        "a TorchScript program; take the author's network-snapshot",
    ),
    "an image": (written(lambda f: Image.new("RGB", (4, 4)).save(f, "PNG")), "an image, not a network"),
    "a text": (
        b"Not found: see the README\n" * 90,
        "a text that begins with 'Not found: see the README', not a network",
    ),
    "a text of many bytes": ("Größe nicht verfügbar ".encode() * 60, "a text that begins with 'Größe nicht"),
    "JSON": (b'{"error": "Access denied"}', "a JSON text, not a network"),
    "a state dict": (
        written(lambda f: torch.save(torch.nn.Linear(2, 2).state_dict(), f)),
        r"a state dict alone, tensors without an architecture \(its entries: weight, bias\); take the network-snapshot",
    ),
    "a pickle of something else": (
        pickle.dumps({"epoch": 3}),
        r"holds no network \(its entries: epoch\); a network-snap",
    ),
    "a pickled number": (pickle.dumps(3), r"holds no network \(it is a int\)"),
    "half a snapshot": (SNAPSHOT[:-1000], r"truncated at byte .* it is damaged: get it again"),
    "noise": (bytes(range(255, 0, -1)), "it is damaged: get it again"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_called_what_it_is(case, tmp_path, capsys):
    data, says = FILES[case]
    path = tmp_path / "network-snapshot-000001.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=says):
        convert(path)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1 and str(path) in shown.err
    assert not (tmp_path / "out").exists()


def test_safetensors(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "net.pkl")
    with pytest.raises(
        ValueError, match=r"a safetensors file, tensors without an architecture; take the author's network"
    ):
        convert(tmp_path / "net.pkl")
    (tmp_path / "net.pkl").rename(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"if that is a model of fewstep, use it as it is: fewstep sample {tmp_path}"):
        convert(tmp_path / "model.safetensors")


def test_folders(tmp_path, capsys):
    def says(expected: str) -> None:
        with pytest.raises(ValueError, match=expected):
            convert(tmp_path)
        assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    says("is a folder; name the file in it, as network-snapshot")
    (tmp_path / "network-snapshot-000001.pkl").touch()
    says("is a folder; name one of its files: network-snapshot-000001.pkl")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    says("a model of diffusers")
    (tmp_path / "config.json").write_text(json.dumps({"format": "fewstep-model"}))
    says(f"a model folder already; use it as it is: fewstep sample {tmp_path}")
    (tmp_path / "model_index.json").touch()
    says("a pipeline of diffusers")


def test_what_is_a_snapshot_is_none_of_these():
    assert [p.name for p in GOLDEN.iterdir() if p.suffix in (".pkl", ".pt") and describe_file(p)] == []
