"""Images as the world has them: grey, CMYK, palettes, alpha, 16 bits and EXIF, under the published tools' rules."""

import io
import json
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fewstep.data.pack
from fewstep.cli import main
from fewstep.data import images
from fewstep.data.check import check
from fewstep.data.color_modes import convert
from fewstep.data.files import load_image
from fewstep.data.pack import pack
from fewstep.inverse.tasks import read_mask
from fewstep.metrics.sources import open_set
from tests.data.test_pack import dest, folder, pixels, refused, tar

__all__ = ["dest"]

EXIF = Image.Exif()
EXIF[0x0112] = 6  # upright after a quarter of a turn


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo(seed, size=(40, 30), mode="RGB"):
    """Smooth enough for JPEG."""
    small = Image.fromarray(pixels(seed, 4, 5))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def deep_png(width, height):
    """A PNG of 16-bit RGB, which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = np.random.default_rng(7).integers(0, 2**16, (height, width, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def clear(image):
    """With a hole in it."""
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.arange(image.width, dtype=np.uint8), (image.height, 1))))
    return image


IMAGENET = {
    "n01/a.JPEG": saved(photo(0), "JPEG"),
    "n01/b.JPEG": saved(photo(1, mode="L"), "JPEG"),
    "n01/c.JPEG": saved(photo(2, mode="CMYK"), "JPEG"),
    "n01/d.JPEG": saved(photo(3), "JPEG", exif=EXIF),
    "n01/e.JPEG": saved(photo(4), "PNG"),  # as one in ImageNet is
    "n02/f.png": saved(photo(5).quantize(16), "PNG"),
    "n02/g.png": saved(photo(6).quantize(16), "PNG", transparency=b"\x00\x80\xff"),
    "n02/h.png": saved(clear(photo(7)), "PNG"),
    "n02/i.png": saved(photo(8).convert("RGBA"), "PNG"),
    "n02/j.png": saved(photo(9, mode="LA"), "PNG"),
    "n02/k.png": saved(photo(10, mode="1"), "PNG"),
    "n02/l.png": deep_png(33, 47),
    "n02/m x.PNG": saved(photo(12, (17, 90)), "PNG", transparency=(1, 2, 3)),
    "n02/ü.webp": saved(photo(13), "WEBP"),
    "n02/z.TIF": saved(photo(14), "TIFF"),
    "n02/zz.bmp": saved(photo(15), "BMP"),
}
BAD = {"n01/broken.JPEG": IMAGENET["n01/a.JPEG"][:400], "n02/deep.png": saved(Image.new("I;16", (40, 30)), "PNG")}


def rgb(data):
    """What EDM2's dataset tool makes of any file: RGB by Pillow, as stored."""
    image = Image.open(io.BytesIO(data))
    image.info.pop("transparency", None)  # Pillow warns of dropping it
    return np.asarray(image.convert("RGB"))


def adm_crop(array, size):
    """ADM's crop for ImageNet: halve by means of 2x2, then bicubic to the short side, then the middle."""
    image = Image.fromarray(array)
    while min(image.size) // size >= 2:
        image = image.resize([side // 2 for side in image.size], Image.Resampling.BOX)
    factor = size / min(image.size)
    array = np.asarray(image.resize([round(side * factor) for side in image.size], Image.Resampling.BICUBIC))
    y, x = [(side - size) // 2 for side in array.shape[:2]]
    return array[y : y + size, x : x + size]


def square_crop(array, size):
    height, width = array.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    middle = array[top : (height + short) // 2, left : (width + short) // 2]
    return np.asarray(Image.fromarray(middle).resize((size, size), Image.Resampling.LANCZOS))


def wide_crop(array, width, height):
    kept = int(np.round(width * array.shape[0] / array.shape[1]))
    if array.shape[1] < width or kept < height:
        return None
    band = array[(array.shape[0] - kept) // 2 : (array.shape[0] + kept) // 2]
    canvas = np.zeros((width, width, 3), np.uint8)
    middle = Image.fromarray(band).resize((width, height), Image.Resampling.LANCZOS)
    canvas[(width - height) // 2 : (width + height) // 2] = np.asarray(middle)
    return canvas


@pytest.mark.parametrize(
    ("transform", "resolution", "rule"),
    [
        ("center-crop-dhariwal", "8x8", lambda array: adm_crop(array, 8)),
        ("center-crop-dhariwal", "48x48", lambda array: adm_crop(array, 48)),
        ("center-crop", "8x8", lambda array: square_crop(array, 8)),
        ("center-crop-wide", "16x6", lambda array: wide_crop(array, 16, 6)),
        (None, "8x8", lambda array: np.asarray(Image.fromarray(array).resize((8, 8), Image.Resampling.LANCZOS))),
    ],
)
@pytest.mark.parametrize("container", ["folder", "zip", "tar"])
def test_the_pixels_are_those_of_edm2s_tool(tmp_path, dest, transform, resolution, rule, container):
    source = folder(tmp_path / "in", IMAGENET)
    if container == "tar":
        source = tar(tmp_path / "in.tar", dict(sorted(IMAGENET.items())))
    if container == "zip":
        source = tmp_path / "in.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for name, data in IMAGENET.items():
                archive.writestr(name, data)
    packed = pack(source, dest, resolution=resolution, transform=transform, convert="edm2", skip_bad=True)
    expected = [image for _, data in sorted(IMAGENET.items()) if (image := rule(rgb(data))) is not None]
    assert packed.images == len(expected) > 10
    assert np.array_equal(images(dest).decoded(), np.stack(expected).transpose(0, 3, 1, 2))


def test_the_published_crops_use_that_rule_and_count_what_they_convert(tmp_path, dest):
    source = folder(tmp_path / "in", IMAGENET | BAD | {"n02/.DS_Store": b"", "n02/notes.txt": b"", "n01/x.heic": b""})
    size: Any = {"resolution": "8x8", "transform": "center-crop-dhariwal"}
    refused(source, dest, "n01/broken.JPEG: expected one intact image", **size)
    packed = pack(source, dest, skip_bad=True, **size)
    assert (packed.images, len(packed.skipped)) == (16, 2)
    assert "n02/deep.png: its mode is I;16" in packed.skipped[1] and "clips its values" in packed.skipped[1]
    assert packed.ignored == ("n01/x.heic", "n02/notes.txt")
    assert packed.converted == {
        "grey to RGB": (3, f"{source}/n01/b.JPEG"),
        "CMYK to RGB": (1, f"{source}/n01/c.JPEG"),
        "EXIF orientation ignored": (1, f"{source}/n01/d.JPEG"),
        "palette to RGB": (2, f"{source}/n02/f.png"),
        "alpha of transparent pixels dropped": (2, f"{source}/n02/g.png"),
        "opaque alpha dropped": (3, f"{source}/n02/i.png"),
        "16 bits per channel reduced to 8": (1, f"{source}/n02/l.png"),
    }
    for name in IMAGENET.keys() - {"n01/a.JPEG", "n01/e.JPEG", "n02/ü.webp", "n02/z.TIF", "n02/zz.bmp"}:
        one = folder(tmp_path / name.replace("/", "-"), {"a" + name[-5:]: IMAGENET[name]})
        refused(one, tmp_path / "b" / "b.zip", "--strict refuses to convert it (", strict=True, **size)


def test_plain_images_are_upright_and_lose_nothing(tmp_path, dest):
    kept = {"a.png": saved(photo(0), "PNG"), "b.png": saved(photo(1, (30, 40)), "PNG", exif=EXIF)}
    kept |= {"c.png": saved(photo(2, mode="L"), "PNG"), "d.png": saved(photo(3, mode="P"), "PNG")}
    size: Any = {"resolution": "8x8", "convert": "plain"}
    packed = pack(folder(tmp_path / "in", kept), dest, **size)
    assert list(packed.converted) == ["turned upright as EXIF says", "grey to RGB", "palette to RGB"]
    upright = [photo(0), photo(1, (30, 40)).rotate(-90, expand=True), photo(2, mode="L").convert("RGB")]
    for i, image in enumerate(upright):
        expected = np.asarray(image.resize((8, 8), Image.Resampling.LANCZOS))
        assert np.array_equal(images(dest)[i], expected.transpose(2, 0, 1))
    for name, says in [
        ("n01/c.JPEG", "CMYK"),
        ("n02/g.png", "transparent pixels"),
        ("n02/l.png", "8 bits per channel"),
    ]:
        bad = folder(tmp_path / name.replace("/", "-"), {"a.png": IMAGENET[name]})
        refused(bad, tmp_path / "b" / "b.zip", f"{says}", **size)
        assert says in check(bad)[0][1]


def deep_grey(format, **options):
    values = np.random.default_rng(8).integers(0, 2**16, (30, 40)).astype(np.uint16)
    values[0] = 7
    return values, saved(Image.fromarray(values), format, **options)


def composed(image):
    """Colours and alpha on white, by its definition."""
    *colours, alpha = np.moveaxis(np.asarray(image.convert("RGBA")).astype(float), -1, 0)
    return np.stack(colours, -1) * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None]


def test_rgb_makes_every_photograph_upright_and_rgb(tmp_path, dest):
    """What a viewer shows: upright, on white, and of 16 bits the upper 8."""
    values, png = deep_grey("PNG", transparency=7)
    grey = np.dstack([values >> 8] * 3)
    hole = np.where((values == 7)[..., None], 255, grey)
    cases = {
        "a.png": (saved(photo(0), "PNG"), np.asarray(photo(0))),
        "b.jpg": (IMAGENET["n01/c.JPEG"], rgb(IMAGENET["n01/c.JPEG"])),
        "c.jpg": (saved(photo(1, (30, 40)), "PNG", exif=EXIF), np.rot90(np.asarray(photo(1, (30, 40))), -1)),
        "d.png": (IMAGENET["n02/h.png"], composed(clear(photo(7)))),
        "e.png": (IMAGENET["n02/g.png"], composed(Image.open(io.BytesIO(IMAGENET["n02/g.png"])))),
        "f.png": (saved(clear(photo(3)).convert("LA"), "PNG"), composed(clear(photo(3)).convert("LA"))),
        "g.png": (png, hole),
        "h.tif": (deep_grey("TIFF")[1], grey),
        "i.pgm": (deep_grey("PPM")[1], grey),
        "j.png": (deep_png(40, 30), rgb(deep_png(40, 30))),
        "k.png": (saved(photo(4, mode="L"), "PNG"), np.dstack([np.asarray(photo(4, mode="L"))] * 3)),
    }
    source = folder(tmp_path / "in", {name: data for name, (data, _) in cases.items()})
    packed = pack(source, dest, convert="rgb", resolution="40x40", transform="center-crop")
    assert packed.images == len(cases)
    assert {how: n for how, (n, _) in packed.converted.items()} == {
        "CMYK to RGB": 1,
        "turned upright as EXIF says": 1,
        "transparent pixels put on white": 4,
        "palette to RGB": 1,
        "grey to RGB": 5,
        "16 bits per channel reduced to 8": 4,
    }
    for name, (data, expected) in cases.items():
        found = np.asarray(convert(load_image(data, name), "rgb")[0]).astype(float)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= (1 if name in ("d.png", "e.png", "f.png") else 0)  # which are rounded
    float32 = folder(tmp_path / "float", {"a.tif": saved(Image.new("F", (4, 4)), "TIFF")})
    refused(float32, tmp_path / "b" / "b.zip", "a.tif: its mode is F", "reduce it to 8 bits first", convert="rgb")


@pytest.mark.parametrize(
    ("name", "says"), [("n01/c.JPEG", "makes it RGB"), ("n02/h.png", "on white"), ("n02/l.png", "upper 8")]
)
def test_what_plain_refuses_names_the_rule_that_accepts_it(tmp_path, dest, name, says):
    source = folder(tmp_path / "in", {"a.png": IMAGENET[name]})
    refused(source, dest, "--convert rgb ", says)


def test_check_applies_the_rule_and_the_crop_of_pack(tmp_path, capsys):
    """The one command finds what the other refuses."""
    source = folder(tmp_path / "in", IMAGENET | BAD)
    crop: Any = {"resolution": "33x16", "transform": "center-crop-wide"}
    for rule in ("rgb", "edm2"):
        packed = pack(source, tmp_path / f"{rule}.zip", convert=rule, skip_bad=True, **crop)
        refused_by_pack = [text.partition(": ")[0] for text in packed.skipped]
        assert len(refused_by_pack) > 1
        assert [f"{source}/{name}" for name, _ in check(source, convert=rule, **crop)] == refused_by_pack
    assert check(source, resolution="8x8", transform="center-crop", convert="rgb")[0][0] == "n01/broken.JPEG"
    good = folder(tmp_path / "good", {"a.png": IMAGENET["n02/h.png"], "b.png": saved(photo(1, (50, 20)), "PNG")})
    given = ["data", "check", str(good), "--resolution", "8x8", "--transform", "center-crop"]
    assert main([*given, "--convert", "rgb"]) == 0
    assert main([*given, "--convert", "plain"]) == 2
    assert "a.png: it has transparent pixels" in capsys.readouterr().err
    assert "expected a square; got 8x4" in check(good, resolution="8x4", convert="rgb")[0][1]


def test_check_expects_what_most_images_have(tmp_path):
    image, grey = saved(photo(0, (8, 8)), "PNG"), saved(photo(0, (8, 8), "L"), "PNG")
    source = folder(
        tmp_path / "in", {"a.png": saved(photo(0, (9, 8)), "PNG"), **{f"b{i}.png": image for i in range(3)}}
    )
    reason = "expected (channels, height, width) (3, 8, 8), as 3 of 4 images are; got (3, 8, 9)"
    assert check(source) == [("a.png", reason)]
    folder(source, {"a.png": grey})
    ((name, reason),) = check(source)
    assert name == "a.png" and reason.startswith("it is grey and comes first") and "3 others are RGB" in reason
    assert check(source, convert="rgb") == []
    folder(source, {"a.png": image, "b1.png": grey})
    assert check(source) == []


def test_pack_that_stops_names_what_goes_on_and_what_lists_all(tmp_path, dest):
    source = folder(tmp_path / "i n", {"a.png": saved(photo(0, (8, 8)), "PNG"), "b.png": b""})
    refused(
        source,
        dest,
        "b.png is empty (0 bytes); fetch it again or remove it; data pack --skip-bad skips such files, and they are "
        "listed by: "
        f"fewstep data check '{source}' --resolution 4x4 --convert rgb",
        resolution="4x4",
        convert="rgb",
    )


def test_leaving_out_most_files_is_a_warning(tmp_path, dest):
    source = folder(tmp_path / "in", {f"{i}.png": saved(photo(i, (8, 8 if i < 2 else 9)), "PNG") for i in range(5)})
    with pytest.warns(UserWarning, match=r"3 of 5 images were skipped; all had to be \(3, 8, 8\) .* first, .*0\.png"):
        assert pack(source, dest, skip_bad=True).images == 2
    pack(source, dest, skip_bad=True, max_images=4)  # as many as are packed


def test_sets_of_grey_images_stay_grey_and_mixed_ones_are_named(tmp_path, dest):
    grey, colour = saved(photo(0, (8, 8), "L"), "PNG"), saved(photo(1, (8, 8)), "PNG")
    assert pack(folder(tmp_path / "grey", {"a.png": grey}), dest).shape == (1, 8, 8)
    assert pack(folder(tmp_path / "grey", {"a.png": grey}), dest, convert="edm2").shape == (3, 8, 8)
    mixed = folder(tmp_path / "mixed", {"a.png": grey, "b.png": colour})
    refused(mixed, tmp_path / "b" / "b.zip", "b.png: expected", "got (3, 8, 8); --convert rgb makes every image RGB")
    assert pack(mixed, dest, convert="edm2").images == 2
    assert pack(mixed, dest, convert="rgb").images == 2
    with pytest.raises(ValueError, match="convert must be one of plain, rgb, edm2; got 'cmyk'"):
        pack(mixed, dest, convert="cmyk")  # type: ignore[arg-type]


def test_workers_convert_alike(tmp_path, dest, monkeypatch):
    monkeypatch.setattr(fewstep.data.pack, "CHUNK_IMAGES", 2)
    source = folder(tmp_path / "in", IMAGENET)
    size: Any = {"resolution": "8x8", "transform": "center-crop"}
    one = pack(source, dest, workers=1, **size), dest.read_bytes()
    assert (pack(source, dest, workers=2, **size), dest.read_bytes()) == one


def test_the_command_counts(tmp_path, capsys):
    source, out = folder(tmp_path / "in", IMAGENET | {"n02/notes.txt": b""}), str(tmp_path / "out.zip")
    command = ["data", "pack", str(source), out, "--resolution", "8x8", "--transform", "center-crop"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{source}: 16 images, 2 classes: n01, n02\n")
    assert f"converted: 3 x grey to RGB, the first: {source}/n01/b.JPEG\n" in text
    assert "ignored: 1 other file: n02/notes.txt\n" in text
    assert main([*command, "--strict", "--overwrite"]) == 2
    assert "n01/b.JPEG: --strict refuses to convert it (grey to RGB)" in capsys.readouterr().err


# Classes


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (["dog", "cat"], [1, 0], ("cat", "dog")),
        ([[0, 0, 1], [1, 0, 0]], [2, 0], None),
        ([[0.0, 1.0], [1.0, 0.0]], [1, 0], None),
    ],
)
def test_classes_by_name_and_one_hot(tmp_path, labels, classes, names):
    content = json.dumps({"labels": [["a.png", labels[0]], ["b.png", labels[1]]]}).encode()
    entries = dict.fromkeys(("a.png", "b.png"), saved(photo(0), "PNG"))
    data = images(folder(tmp_path / "in", entries | {"dataset.json": content}))
    assert data.labels is not None and data.labels.tolist() == classes
    assert (data.class_names, data.num_classes) == (names, len(names or labels[0]))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["1", "10"], 'the labels are numbers as text, such as "1"; write them without quotes'),
        (["cat", 1], "labels must be of one kind; got int, str"),
        ([[0, 1], [1, 1]], "b.png: a class as a list is all zeros but for a single one; got [1, 1]"),
        ([[0, 1], [0, 1, 0]], "got [0, 1]"),
        ([[0, 0.5], [0, 1]], "got [0, 0.5]"),
    ],
)
def test_labels_of_no_class(tmp_path, labels, says):
    content = json.dumps({"labels": [["a.png", labels[0]], ["b.png", labels[1]]]}).encode()
    entries = dict.fromkeys(("a.png", "b.png"), saved(photo(0), "PNG"))
    source = folder(tmp_path / "in", entries | {"dataset.json": content})
    problems = check(source)
    assert len(problems) == 1 and problems[0][0] == "dataset.json" and says in problems[0][1]


def test_parts_of_a_set_are_no_classes(tmp_path, dest, capsys):
    image = saved(photo(0, (8, 8)), "PNG")
    source = folder(tmp_path / "in", {f"{part}/{k}/a.png": image for part in ("train", "val") for k in ("cat", "dog")})
    refused(source, dest, "in: train, val are parts of a data set, not classes; name one of them, such as", "in/train")
    lines = []
    pack(source / "train", dest, report=lines.append)
    assert images(dest).class_names == ("cat", "dog") and lines == [
        f"{source / 'train'}: 2 images, 2 classes: cat, dog"
    ]
    (source / "val").rename(tmp_path / "val")
    pack(source, dest, report=lines.append)
    assert images(dest).labels is None and "no classes, for all lie in one folder; name train/ itself" in lines[-1]


def test_folders_that_are_linked_are_classes(tmp_path, dest):
    """As a subset of ImageNet is often made; EDM2's tool follows links as well."""
    image = saved(photo(0, (8, 8)), "PNG")
    whole = folder(tmp_path / "all", {f"{k}/a.png": image for k in ("n01", "n02", "n03")})
    subset = tmp_path / "subset"
    subset.mkdir()
    for name in ("n01", "n03"):
        (subset / name).symlink_to(whole / name, target_is_directory=True)
    pack(subset, dest)
    assert images(dest).class_names == images(subset).class_names == ("n01", "n03")
    (whole / "n02" / "loop").symlink_to(whole, target_is_directory=True)
    refused(whole, tmp_path / "b" / "b.zip", "n02/loop: a link to a folder that holds it")


def test_images_to_measure_are_compared_upright(tmp_path):
    """One stored sideways is of the size of the others, and one that is not sideways is not."""
    sideways = saved(photo(1, (30, 40)), "JPEG", exif=EXIF)
    source = folder(tmp_path / "in", {"a.jpg": saved(photo(0), "JPEG"), "b.jpg": sideways})
    data = open_set(source)
    assert data[1].shape == data.shape == (3, 30, 40)
    folder(source, {"c.jpg": saved(photo(2), "JPEG", exif=EXIF)})
    with pytest.raises(ValueError, match=r"c\.jpg: expected .* \(3, 30, 40\) as in a\.jpg; got \(3, 40, 30\)"):
        open_set(source)


def test_masks_of_every_kind_are_one(tmp_path):
    seen = np.tile([True, False, True], (4, 1))
    np.save(tmp_path / "bool.npy", seen)
    np.save(tmp_path / "byte.npy", seen.astype(np.uint8))
    for name, values in {"01": seen.astype(np.uint8), "grey": 255 * seen.astype(np.uint8)}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    Image.fromarray(seen).save(tmp_path / "bit.png")
    Image.fromarray(255 * seen.astype(np.uint8)).convert("RGBA").save(tmp_path / "opaque.png")
    for name in ("bool.npy", "byte.npy", "01.png", "grey.png", "bit.png", "opaque.png"):
        mask = read_mask(tmp_path / name)
        assert mask.dtype == np.float32 and np.array_equal(mask, seen), name
    clear(Image.fromarray(255 * seen.astype(np.uint8))).save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match=r"clear\.png: it has transparent pixels"):
        read_mask(tmp_path / "clear.png")
