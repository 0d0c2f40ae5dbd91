"""Sets of images and their streams: formats, labels, hostile files, and the law of the order."""

import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

import fewstep.data.files
import fewstep.runtime.archives
from fewstep.core.codec import Pixels
from fewstep.data import ImageData, ImageStream, digits, images
from fewstep.data.files import Zip


def pixels(i, size=4, channels=3):
    return np.random.default_rng(i).integers(0, 256, (channels, size, size), dtype=np.uint8)


def encoded(array, format="PNG", **options):
    array = array.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(array if array.shape[2] > 1 else array[..., 0]).save(file, format, **options)
    return file.getvalue()


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_folder(path, entries):
    for name, data in entries.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path, entries, **options):
    with zipfile.ZipFile(path.with_name(path.name + ".zip"), "w", **options) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path.with_name(path.name + ".zip")


@pytest.fixture(params=[write_folder, write_zip], ids=["folder", "zip"])
def write(request, tmp_path):
    return lambda entries: request.param(tmp_path / "set", entries)


def labels(*entries, **more):
    return json.dumps({"labels": list(entries), **more}).encode()


def classes(data):
    assert data.labels is not None
    return data.labels.tolist()


def known(batch):
    assert batch.label is not None
    return batch.label


def array(n, size=4):
    return ImageData(np.stack([pixels(i, size) for i in range(n)]), np.arange(n) % 3, name="array")


# Formats


def test_files_are_sorted_as_strings_and_decoded(write):
    data = images(write({f"{i}.png": encoded(pixels(i)) for i in (10, 9, 1)} | {"notes.txt": b"", ".hidden.png": b""}))
    assert (len(data), data.shape, data.num_classes, data.labels, data.name) == (3, (3, 4, 4), 0, None, "set")
    for i, expected in enumerate([1, 10, 9]):
        assert np.array_equal(data[i], pixels(expected))
    assert np.array_equal(data[-1], data[2])
    assert np.array_equal(data.decoded(), np.stack([data[i] for i in range(3)]))
    with pytest.raises(IndexError, match="no image 3"):
        data[3]
    with pytest.raises(ValueError, match="read-only"):
        data.decoded()[0] = 0


def test_grey_images_have_one_channel(write):
    data = images(write({"a.png": encoded(pixels(0, channels=1))}))
    assert data.shape == (1, 4, 4)
    assert np.array_equal(data[0], pixels(0, channels=1))


def test_exif_orientation_is_applied(write):
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    data = images(write({"a.png": encoded(pixels(0), exif=exif)}))
    assert np.array_equal(data[0], pixels(0)[:, ::-1, ::-1])


def test_labels_come_from_json(write):
    entries = {f"x/{i}.png": encoded(pixels(i)) for i in range(2)}
    data = images(write(entries | {"dataset.json": labels(["x/1.png", 0], ["x/0.png", 2], ["gone.png", 4])}))
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert (classes(data), data.num_classes, data.class_names) == ([2, 0], 5, None)


def test_class_names_count_classes(write):
    data = images(
        write({"a.png": encoded(pixels(0)), "dataset.json": labels(["a.png", 0], class_names=["cat", "dog"])})
    )
    assert (data.num_classes, data.class_names) == (2, ("cat", "dog"))


def test_folders_are_classes_unless_json_says_otherwise(write):
    entries = {f"{name}/deep/0.png": encoded(pixels(0)) for name in ("dog", "cat", "emu")}
    data = images(write(entries))
    assert (classes(data), data.class_names, data.num_classes) == ([0, 1, 2], ("cat", "dog", "emu"), 3)
    assert (
        images(write({"one/a.png": encoded(pixels(0))} | entries | {"dataset.json": b'{"labels": null}'})).labels
        is None
    )


def test_one_folder_is_no_class(write):
    assert images(write({"cat/0.png": encoded(pixels(0))})).labels is None


def test_digits():
    data = images("digits")
    assert (len(data), data.shape, data.num_classes) == (1797, (1, 8, 8), 10)
    assert data.class_names == tuple("0123456789")
    assert np.bincount(classes(data)).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.decoded().max() == 255
    assert np.array_equal(data[0][0, 0], [0, 0, 80, 207, 143, 16, 0, 0])
    assert data.fingerprint == digits().fingerprint


def test_fingerprint_sees_names_contents_and_labels(tmp_path):
    def fingerprint(name, entries):
        return images(write_zip(tmp_path / name, entries)).fingerprint

    entries = {"a.png": encoded(pixels(0)), "b.png": encoded(pixels(1))}
    first = fingerprint("1", entries)
    assert first == fingerprint("2", entries)
    others = [
        fingerprint("3", {"a.png": entries["a.png"], "c.png": entries["b.png"]}),
        fingerprint("4", {"a.png": entries["b.png"], "b.png": entries["a.png"]}),
        fingerprint("5", entries | {"dataset.json": labels(["a.png", 0], ["b.png", 1])}),
        fingerprint("6", entries | {"dataset.json": labels(["a.png", 1], ["b.png", 0])}),
    ]
    assert len({first, *others}) == 5


def test_memory_decides_whether_images_are_kept(write):
    entries = {f"{i}.png": encoded(pixels(i)) for i in range(3)}
    path = write(entries)
    kept, fresh = images(path, memory=3 * 48), images(path, memory=3 * 48 - 1)
    index = np.array([2, 0, 2])
    assert np.array_equal(kept.gather(index), fresh.gather(index))
    assert np.array_equal(kept[1], fresh[1])
    assert len(kept.decoded()) == 3
    with pytest.raises(ValueError, match=r"144 bytes .* memory=143; raise it"):
        fresh.decoded()


def test_returned_images_are_copies(write):
    data = images(write({"0.png": encoded(pixels(0))}))
    data[0][:] = 0
    data.gather(np.array([0]))[:] = 0
    assert np.array_equal(data[0], pixels(0))


def test_opening_decodes_only_the_first_image(write):
    data = images(write({"0.png": encoded(pixels(0)), "1.png": b"no image"}))
    with pytest.raises(ValueError, match=r"1\.png: expected one intact image"):
        data[1]


def test_data_travels_by_pickle(write):
    data = images(write({f"{i}.png": encoded(pixels(i)) for i in range(3)}))
    data.decoded()
    content = pickle.dumps(data)
    assert np.array_equal(pickle.loads(content).decoded(), data.decoded())
    assert pixels(0).tobytes() not in content


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_reader_has_its_own_handle(tmp_path):
    files = Zip(write_zip(tmp_path / "set", {"0.png": encoded(pixels(0))}))
    handle = files.zip
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, b"own" if files.zip is not handle else b"shared")
        os._exit(0)
    os.wait()
    assert os.read(read, 10) == b"own"


# Errors


def refused(path, *messages):
    """Opening or decoding fails with a ValueError that says all of `messages`."""
    with pytest.raises(ValueError, match=".*".join(map(re.escape, messages))):
        images(path).decoded()


def test_what_is_no_set(tmp_path):
    refused(tmp_path / "missing", "missing: expected a folder, .zip, .tar", "there is no such path")
    (tmp_path / "a.zip").write_bytes(b"no zip at all")
    refused(tmp_path / "a.zip", "a.zip: expected a zip")
    (tmp_path / "a.tar").write_bytes(b"")
    refused(tmp_path / "a.tar", "a.tar: damaged")
    (tmp_path / "a.rar").write_bytes(b"")
    refused(tmp_path / "a.rar", "a.rar: expected a folder, .zip, .tar")


def test_empty_set(write):
    refused(write({"a.txt": b""}), "set", "expected images (.png", "found none")


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (encoded(pixels(1, size=5)), "expected (channels, height, width) (3, 4, 4) as in a.png; got (3, 5, 5)"),
        (saved(Image.new("RGBA", (4, 4))), "it has transparent pixels (mode RGBA); put it on a background first"),
        (saved(Image.new("RGB", (4, 4)), transparency=(0, 0, 0)), "it has transparent pixels (mode RGB)"),
        (saved(Image.new("I;16", (4, 4))), "its mode is I;16"),
        (saved(Image.new("CMYK", (4, 4)), "JPEG"), "its mode is CMYK"),
    ],
    ids=["size", "rgba", "transparent", "16 bit", "cmyk"],
)
def test_mixed_images(write, second, says):
    refused(write({"a.png": encoded(pixels(0)), "b.png": second}), f"b.png: {says}")


def test_what_loses_nothing_is_read(write):
    """Grey among RGB, a palette and opaque alpha: what `data pack` stores of them is what is read of them."""
    colours = Image.fromarray(pixels(1).transpose(1, 2, 0))
    entries = {
        "a.png": encoded(pixels(0)),
        "b.png": encoded(pixels(1, channels=1)),
        "c.png": saved(colours.quantize(4)),
        "d.png": saved(colours.convert("RGBA")),
        "e.png": saved(Image.fromarray(pixels(1)[0]).convert("LA")),
        "f.png": saved(Image.fromarray(pixels(1)[0]).convert("1")),
    }
    data = images(write(entries))
    expected = [Image.open(io.BytesIO(content)).convert("RGB") for content in entries.values()]
    assert np.array_equal(data.decoded(), np.stack([np.asarray(image).transpose(2, 0, 1) for image in expected]))
    refused(write({"a.png": entries["b.png"], "b.png": entries["a.png"]}), "b.png: expected", "got (3, 4, 4)")


def deep_png():
    """A PNG of 4x4 RGB pixels of 16 bits, which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = zlib.compress(4 * (b"\0" + 24 * b"\1"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


FRAMES = [Image.new("L", (4, 4), i) for i in range(2)]
DAMAGED = {
    "truncated": encoded(pixels(0, 32))[:-200],
    "empty": b"",
    "noise": bytes(range(256)),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n",
    "deep": deep_png(),
    "animated": saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_images(write, damage):
    says = " is empty (0 bytes)" if damage == "empty" else ": expected one intact image of 8 bits per channel"
    refused(write({"a.png": DAMAGED[damage]}), f"a.png{says}")


def test_an_image_of_a_folder_that_is_replaced_is_noticed(tmp_path):
    """By another of the same shape, whether it is written over or renamed."""
    source = tmp_path / "set"
    source.mkdir()
    for i in range(3):
        (source / f"{i}.png").write_bytes(encoded(pixels(i)))
    data = pickle.loads(pickle.dumps(images(source, memory=0)))
    (tmp_path / "new.png").write_bytes(encoded(pixels(1)))
    os.utime(tmp_path / "new.png", ns=(1, 1))
    (tmp_path / "new.png").replace(source / "1.png")
    (source / "2.png").write_bytes(encoded(pixels(2)) + b"more")
    assert np.array_equal(data[0], pixels(0))
    for i in (1, 2):
        refused_read = f"{source}/{i}.png: the file has changed since the data set was opened; start again"
        with pytest.raises(ValueError, match=re.escape(refused_read)):
            data[i]
    assert np.array_equal(images(source)[2], pixels(2))


def test_no_other_program_is_started(write, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(True))
    refused(write({"a.png": DAMAGED["eps"] + b"%%EndComments\n"}), "a.png: expected one intact image")
    assert not started


def test_giant_images(write, monkeypatch):
    path = write({"a.png": encoded(pixels(0))})
    monkeypatch.setattr(fewstep.data.files, "MAX_PIXELS", 15)
    refused(path, "a.png: expected one intact image", "4x4 are more than 15 pixels")
    monkeypatch.setattr(fewstep.data.files, "MAX_PIXELS", 18)
    monkeypatch.setattr(fewstep.data.files, "PIXELS_PER_BYTE", 0)
    refused(path, "a.png: expected one intact image", "4x4 are more than 9 pixels")
    monkeypatch.setattr(fewstep.runtime.archives, "MAX_BYTES", 15)
    refused(path, "a.png: ", "bytes are more than the 15")


def test_zip_bomb_is_not_inflated(tmp_path):
    path = write_zip(tmp_path / "bomb", {"a.png": b"\0" * 2**20}, compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\1\2")
    content[directory + 24 : directory + 28] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    refused(path, "bytes unfold to 2147483648 or more; no images are so regular")


def test_damaged_zip_entry(tmp_path):
    path = write_zip(tmp_path / "set", {"a.png": encoded(pixels(0))})
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    refused(path, "a.png: cannot be read from the zip", "CRC")


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "C:/a.png"])
def test_hostile_names_in_zips(tmp_path, name):
    refused(write_zip(tmp_path / "set", {name: encoded(pixels(0))}), "points outside")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_ambiguous_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("a.png", encoded(pixels(0)))
        file.writestr("a.png", encoded(pixels(1)))
    refused(tmp_path / "set.zip", "'a.png' is there twice")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[]", "expected {"),
        (b'{"labels": 3}', "must be null or a list"),
        (b'{"labels": [["a.png"]]}', "expected [path, class]"),
        (labels(["a.png", -1]), "a.png: the class must be an integer in [0, 1048576); got -1"),
        (labels(["a.png", 1.0]), "got 1.0"),
        (labels(["a.png", True]), "got True"),
        (labels(["a.png", [0.5]]), "got [0.5]"),
        (labels(["a.png", 2**70]), "the class must be"),
        (labels(["a.png", 2], class_names=["x", "y"]), "in [0, 2); got 2"),
        (labels(["a.png", 0], class_names="xy"), "class_names must be a list"),
        (labels(["a.png", 0], ["a.png", 1]), "a.png has two labels"),
        (labels(["b.png", 0]), "a.png has no label"),
    ],
)
def test_bad_labels(write, content, message):
    refused(write({"a.png": encoded(pixels(0)), "dataset.json": content}), "set", message)


def test_stray_image_beside_class_folders(write):
    entries = {name: encoded(pixels(0)) for name in ("cat/0.png", "dog/0.png", "z.png")}
    refused(write(entries), "z.png: expected every image in one of the 2 class folders")


def test_arrays_are_checked():
    good: Any = np.zeros((2, 3, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="expected images uint8"):
        ImageData(good.astype(np.float32), name="x")
    wrong: Any = ([0], [0.0, 1.0], [0, -1])
    for bad in wrong:
        with pytest.raises(ValueError, match="2 integer class labels >= 0"):
            ImageData(good, bad, name="x")
    with pytest.raises(ValueError, match="label 3 is out of range for 2 classes"):
        ImageData(good, [0, 3], name="x", num_classes=2)


# Codec


def test_pixels_round_trip_and_truncate():
    every = torch.arange(256, dtype=torch.uint8)
    codec = Pixels()
    assert torch.equal(codec.decode(codec.encode(every)), every)
    assert codec.encode(every)[[0, 255]].tolist() == [-1, 1]
    x = torch.tensor([-3, -1, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0, 1, 3])
    assert codec.decode(x).tolist() == [0, 0, 0, 1, 128, 255, 255]
    with pytest.raises(ValueError, match="uint8"):
        codec.encode(torch.zeros(3))


# Streams


def test_each_epoch_is_a_permutation():
    n = 97
    stream = ImageStream(array(n))
    epochs = [stream.locate(e * n, n)[0] for e in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(n)) for order in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    assert np.abs(np.corrcoef([np.arange(n), *epochs]) - np.eye(4)).max() < 0.4
    assert not np.array_equal(epochs[0], ImageStream(array(n), seed=1).locate(0, n)[0])


def test_order_is_the_same_everywhere():
    assert ImageStream(array(10)).locate(0, 20)[0].tolist() == [
        3,
        2,
        1,
        8,
        6,
        0,
        7,
        4,
        5,
        9,
        7,
        4,
        5,
        1,
        9,
        8,
        6,
        2,
        0,
        3,
    ]


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_is_the_concatenation_of_smaller_ones(flip):
    data = array(7)
    stream = ImageStream(data, seed=3, flip=flip)
    whole = stream.batch(5, 23)
    position, parts = 5, []
    for n in (1, 9, 4, 9):
        parts.append(ImageStream(data, seed=3, flip=flip).batch(position, n))  # a new one: as after a resume
        position += n
    assert torch.equal(whole.image, torch.cat([p.image for p in parts]))
    assert known(whole).tolist() == [label for p in parts for label in known(p).tolist()]
    assert torch.equal(stream.batch(5, 23).image, whole.image)


def test_batches_carry_images_and_their_labels():
    data = array(5)
    batch = ImageStream(data).batch(3, 6)
    index = ImageStream(data).locate(3, 6)[0]
    assert (batch.image.dtype, known(batch).dtype) == (torch.float32, torch.int64)
    assert torch.equal(batch.image, Pixels().encode(torch.from_numpy(np.stack([pixels(i) for i in index]))))
    assert known(batch).tolist() == (index % 3).tolist()
    assert ImageStream(ImageData(data.decoded(), name="x")).batch(0, 2).label is None


def test_flip_mirrors_half_of_the_images_left_to_right():
    data = array(400, size=2)
    index, mirror = ImageStream(data, flip=True).locate(0, 800)
    plain, flipped = ImageStream(data).batch(0, 800).image, ImageStream(data, flip=True).batch(0, 800).image
    assert torch.equal(flipped, torch.where(torch.from_numpy(mirror)[:, None, None, None], plain.flip(3), plain))
    assert all(70 < part.sum() < 130 for part in mirror.reshape(4, 200))
    assert 150 < (mirror[np.argsort(index[:400])] != mirror[400 + np.argsort(index[400:])]).sum() < 250
    assert np.array_equal(data.decoded(), array(400, size=2).decoded())


def test_stream_arguments():
    with pytest.raises(ValueError, match="seed"):
        ImageStream(array(2), seed=-1)
    for position, n in ((-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="position >= 0 and n >= 1"):
            ImageStream(array(2)).batch(position, n)


@pytest.mark.parametrize("damage", ["truncated", "written"])
@pytest.mark.parametrize("kind", ["x.npy", "x.npz", "x.zip", "x"])
def test_data_that_change_while_they_are_used_are_named(tmp_path, kind, damage):
    """As a part of the file's map, an array that is cut off would end the process."""
    path, files = tmp_path / kind, {f"{i}.png": encoded(pixels(i, 64)) for i in range(9)}
    if kind == "x":
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
    elif kind == "x.zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        array = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
        (np.save if kind == "x.npy" else np.savez)(path, array)
    data = images(path, memory=0)
    data.gather(np.arange(9))
    file = path / "5.png" if kind == "x" else path
    if damage == "truncated":
        os.truncate(file, file.stat().st_size // 3)
    else:
        file.write_bytes(b"\x89PNG" + bytes(file.stat().st_size + 1))
    with pytest.raises(ValueError, match=re.escape(f"{path}")) as caught:
        ImageStream(data).batch(0, 9)
    assert "\n" not in str(caught.value)
