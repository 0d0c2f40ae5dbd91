import os

import numpy as np
import pytest

import fewstep as fs
from fewstep.cli import main
from fewstep.data.writer import image_files

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def save(out, names=range(5)):
    with image_files(out) as add:
        for name, image in zip(names, IMAGES, strict=True):
            add(f"{name:06d}", image)


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_archives_are_the_same_bytes_and_are_read_back(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    first, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    save(first)
    save(again)
    assert first.read_bytes() == again.read_bytes()
    assert main(["data", "pack", str(first), "packed.zip"]) == 0
    for path in (first, "packed.zip"):
        assert np.array_equal(fs.images(path).decoded(), IMAGES.transpose(0, 3, 1, 2))
    assert sorted(os.listdir()) == sorted([first.name, again.name, "packed.zip"])


def stop(out):
    with image_files(out) as add:
        add("000009", IMAGES[0])
        raise RuntimeError("stop")


def test_a_folder_appears_as_a_whole_and_grows_by_whole_images(tmp_path):
    out = tmp_path / "deep/out"
    with pytest.raises(RuntimeError, match="stop"):
        stop(out)
    assert not out.exists() and not list(out.parent.iterdir())
    save(out)
    save(out, range(3, 8))
    assert sorted(os.listdir(out)) == [f"{i:06d}.png" for i in range(8)]
    with pytest.raises(RuntimeError, match="stop"):
        stop(out)
    assert len(os.listdir(out)) == 8
