"""Pictures of any size become one set by themselves, once."""

from __future__ import annotations

import json
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import main
from fewstep.data import images, prepare
from fewstep.data.prepare import Layout, prepared, survey, temporary_packs

RGB = ("center-crop", "rgb")


def photos(folder: Path, sizes, mode="RGB") -> str:
    """Pictures of random pixels, (width, height) each."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, len(mode)), dtype=np.uint8).squeeze()
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return str(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(90, 70), (64, 200), (80, 80)], 64),
        ([(200, 200)] * 2, 64),  # equal squares, but too large to train on
        ([(40, 64), (64, 33)], 32),
        ([(64, 64)] * 19 + [(20, 30)], 64),  # one in twenty is enlarged
        ([(64, 64)] * 8 + [(20, 30)] * 2, 16),
        ([(5, 9), (9, 5)], 16),
        ([(48, 48)] * 3, None),
        ([(128, 128)], None),
    ],
)
def test_the_proposed_side(tmp_path, sizes, side):
    found = survey(photos(tmp_path / "set", sizes))
    assert (found and found["layout"]) == (side and Layout(side, *RGB))
    if found:
        short = sorted(map(min, sizes))
        assert (found["n"], found["sides"]) == (len(sizes), [short[0], short[len(short) // 2], short[-1]])


def test_a_side_that_is_asked_for(tmp_path):
    squares = photos(tmp_path / "set", [(48, 48)] * 2)
    assert survey(squares, side=48) is None
    assert (survey(squares, side=32) or {})["layout"] == Layout(32, *RGB)


def test_grey_stays_grey_and_mixed_sets_become_rgb(tmp_path):
    grey = photos(tmp_path / "grey", [(40, 32), (32, 40)], mode="L")
    assert images(prepared(grey)).shape == (1, 32, 32)
    assert images(prepared(grey, channels=3)).shape == (3, 32, 32)
    Image.new("RGB", (40, 40)).save(tmp_path / "grey" / "colour.png")
    assert images(prepared(grey)).shape == (3, 32, 32)


def test_a_zip_is_judged_by_its_first_image(tmp_path):
    for name, sizes in {"odd": [(40, 32), (32, 32)], "even": [(32, 32), (40, 32)]}.items():
        folder = Path(photos(tmp_path / name, sizes))
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.name)
    assert (survey(str(tmp_path / "odd.zip")) or {})["layout"] == Layout(32, *RGB)
    assert survey(str(tmp_path / "even.zip")) is None


@pytest.mark.parametrize("source", ["digits", "set.npy", "hf:uoft-cs/cifar10"])
def test_other_sources_stay_as_they_are(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("set.npy", np.zeros((2, 8, 9, 3), np.uint8))
    assert prepared(source) == source


def test_a_folder_is_packed_once(tmp_path, monkeypatch, capsys, cache):
    source = photos(tmp_path / "photos", [(40, 32), (32, 60), (50, 50)])
    place = Path(prepared(source))
    assert place.is_relative_to(cache / "packs") and place.name == "photos.zip"
    assert "images of 32 to 50 pixels, packed at 32x32 (center-crop, rgb)" in capsys.readouterr().err
    before = place.read_bytes()
    monkeypatch.setattr(prepare, "survey", lambda *args, **options: pytest.fail("it was known"))
    assert Path(prepared(source)) == place
    assert capsys.readouterr().err == f"{source}: packed before, as {place}\n"
    monkeypatch.undo()
    monkeypatch.setenv("FEWSTEP_CACHE", str(cache))
    place.unlink()
    assert Path(prepared(source)).read_bytes() == before
    Image.new("RGB", (50, 50)).save(tmp_path / "photos" / "002.png")
    other = Path(prepared(source))
    assert other != place and other.read_bytes() != before and place.exists()


def test_the_command_that_is_printed_makes_the_same_pack(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = photos(tmp_path / "my photos", [(40, 32), (32, 60)])
    place = Path(prepared("my photos"))
    assert main(["data", "stats", source]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["proposal"]["side"] == 32 and found["proposal"]["recipe"] == "small:teacher"
    layout = Layout(32, *RGB)
    assert layout.command("my photos") == (
        "fewstep data pack 'my photos' 'my photos.zip' --resolution 32x32 --transform center-crop --convert rgb"
    )
    layout.pack("my photos", Path("mine.zip"))
    assert Path("mine.zip").read_bytes() == place.read_bytes()


def test_two_at_once_pack_once(tmp_path, monkeypatch):
    source = photos(tmp_path / "photos", [(40, 32), (32, 60)])
    pack, calls, found = prepare.pack, [], []

    def slow(*args, **options):
        calls.append(args)
        time.sleep(0.3)
        return pack(*args, **options)

    monkeypatch.setattr(prepare, "pack", slow)
    both = [threading.Thread(target=lambda: found.append(prepared(source))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(calls) == 1 and found[0] == found[1] and len(images(found[0])) == 2


def test_a_temporary_pack_leaves_nothing(tmp_path, cache):
    source = photos(tmp_path / "photos", [(40, 32), (32, 60)])
    with temporary_packs():
        place = Path(prepared(source))
        assert len(images(place)) == 2
    assert not place.exists() and not cache.exists()
    kept = prepared(source)
    with temporary_packs():
        assert prepared(source) == kept  # what the cache has is used


def test_a_damaged_image_is_named(tmp_path, cache):
    source = photos(tmp_path / "photos", [(40, 32), (32, 60)])
    whole = (tmp_path / "photos" / "001.png").read_bytes()
    (tmp_path / "photos" / "001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"photos/001\.png: .*; data pack --skip-bad skips such files"):
        prepared(source)
    assert not list(cache.rglob("*.zip"))
