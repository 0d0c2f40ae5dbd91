"""The dataset tool: the same bytes on every run, every source, and nothing left behind when something is wrong."""

import errno
import hashlib
import io
import json
import os
import re
import struct
import tarfile
import zipfile
from multiprocessing import active_children
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fewstep.data.pack
from fewstep.data import ImageData, images
from fewstep.data.check import check
from fewstep.data.color_modes import convert
from fewstep.data.files import Loaded
from fewstep.data.pack import pack
from fewstep.data.stats import stats
from fewstep.data.transform import Transform, chunk, parse_resolution, png


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
    for resolution in ("64.5", "0x4", "4x", "64X64", "4x4x4", ""):
        refused(source, dest, "such as 64x64, or one number for both; got", resolution=resolution)
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


def test_one_number_is_a_square_resolution():
    assert parse_resolution("32") == parse_resolution("32x32") == (32, 32)
