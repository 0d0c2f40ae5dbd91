"""Latents in a zip, and the endless stream of draws of them."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch

from fewstep.cli import main
from fewstep.data import ImageData
from fewstep.data.check import check
from fewstep.data.codec import StabilityVAE
from fewstep.data.latents import LatentData, LatentStream, encode_images
from fewstep.data.pack import pack


def pack_latents(path, shape, n=6, classes=3, **changed):
    """A zip as EDM2 stores latents; `changed` replaces arrays, by index."""
    rng = np.random.default_rng(0)
    names = [f"00000/img-mean-std-{i:08d}.npy" for i in range(n)]
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            array = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            np.save(buffer := io.BytesIO(), changed.get(f"i{i}", array))
            archive.writestr(name, buffer.getvalue())
        labels = [[name, i % classes] for i, name in enumerate(names)] if classes else None
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


@pytest.fixture
def data(tmp_path):
    return LatentData(pack_latents(tmp_path / "latents.zip", (8, 4, 4)))


def test_the_zip_is_read(data, tmp_path):
    assert (len(data), data.shape, data.num_classes, data.name) == (6, (4, 4, 4), 3, "latents")
    assert data.gather(np.array([1, 0])).shape == (2, 8, 4, 4)
    plain = LatentData(pack_latents(tmp_path / "plain.zip", (8, 4, 4), classes=0))
    assert plain.labels is None
    assert plain.fingerprint != data.fingerprint


def test_a_latent_is_a_function_of_its_position(data):
    stream = LatentStream(data, StabilityVAE(), seed=1)
    whole = stream.batch(3, 7)
    torch.randn(3)
    parts = [stream.batch(3, 2), stream.batch(5, 5)]
    assert torch.equal(whole.image, torch.cat([p.image for p in parts]))
    assert whole.image.shape == (7, 4, 4, 4)
    assert whole.label is not None and whole.label.shape == (7,)
    other = LatentStream(data, StabilityVAE(), seed=2).batch(3, 7)
    assert not torch.equal(whole.image, other.image)


def test_draws_have_the_stored_moments(data):
    torch.manual_seed(0)
    codec = StabilityVAE()
    stream = LatentStream(data, codec)
    position = next(p for p in range(6) if stream.batch(p, 1).label == 0)
    epochs = [stream.batch(position + 6 * e, 6) for e in range(400)]
    images = torch.cat([b.image for b in epochs])
    labels = torch.cat([b.label for b in epochs if b.label is not None])
    # two latents of class 0: the mean of their means, whitened
    moments = torch.from_numpy(data.gather(np.flatnonzero(data.labels == 0)))
    expected = codec.whiten(moments, torch.zeros_like).mean(0)
    assert torch.allclose(images[labels == 0].mean(0), expected, atol=0.03)
    drawn = stream.sample(2000, torch.device("cpu"))
    assert drawn.label is not None
    assert torch.allclose(drawn.image[drawn.label == 0].mean(0), expected, atol=0.05)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 4, 4)), r"expected float32 \(8, 4, 4\); got float64"),
        (np.zeros((8, 4, 5), np.float32), r"expected float32 \(8, 4, 4\); got float32 \(8, 4, 5\)"),
    ],
)
def test_what_is_no_latent_is_named(tmp_path, array, message):
    data = LatentData(pack_latents(tmp_path / "latents.zip", (8, 4, 4), i3=array))
    with pytest.raises(ValueError, match=f"img-mean-std-00000003.npy: {message}"):
        data.gather(np.array([3]))


def test_other_files_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match="there is no such zip"):
        LatentData(tmp_path / "nothing.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(ValueError, match="found none"):
        LatentData(tmp_path / "empty.zip")
    with pytest.raises(ValueError, match=r"means and deviations \(2 C, H, W\)"):
        LatentData(pack_latents(tmp_path / "odd.zip", (7, 4, 4)))
    with pytest.raises(ValueError, match="expected latents of 4 channels"):
        LatentStream(LatentData(pack_latents(tmp_path / "two.zip", (4, 4, 4))), StabilityVAE())


# --- from images


class Stand:
    """An encoder of 8x8 blocks: their mean, four times, and a deviation of 0.1."""

    def __init__(self):
        self.batches = []

    def moments(self, image):
        self.batches.append(len(image))
        mean = torch.nn.functional.avg_pool2d(image.double() / 255, 8).mean(1, keepdim=True).expand(-1, 4, -1, -1)
        return torch.cat([mean, torch.full_like(mean, 0.1)], dim=1)


def coloured(n=5, side=16, **options):
    array = np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    return ImageData(array, np.arange(n) % 3, name="colours", class_names=("a", "b", "c", "d"), **options)


def test_images_become_latents(tmp_path):
    images, stand = coloured(), Stand()
    assert encode_images(images, tmp_path / "a.zip", stand, batch_size=2) == 5
    assert stand.batches == [2, 2, 1]
    data = LatentData(tmp_path / "a.zip")
    assert (len(data), data.shape, data.num_classes) == (5, (4, 2, 2), 4)
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 0, 1]
    expected = images.decoded().reshape(5, 3, 2, 8, 2, 8).mean((1, 3, 5)) / 255
    moments = data.gather(np.arange(5))
    assert np.allclose(moments[:, :4], expected[:, None], atol=1e-6) and np.allclose(moments[:, 4:], 0.1)
    encode_images(images, tmp_path / "b.zip", Stand(), batch_size=3)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist()[0] == "00000/img-mean-std-00000000.npy"
    plain = ImageData(images.decoded(), name="plain")
    encode_images(plain, tmp_path / "c.zip", Stand())
    assert LatentData(tmp_path / "c.zip").labels is None


def test_a_failure_leaves_no_latents(tmp_path):
    class Broken(Stand):
        def moments(self, image):
            if len(self.batches) == 2:
                raise OSError(28, "No space left on device")
            return super().moments(image)

    with pytest.raises(OSError, match="No space left"):
        encode_images(coloured(), tmp_path / "a.zip", Broken(), batch_size=2)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_encoded_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiples of 8; got 3 x 12 x 12"):
        encode_images(coloured(side=12), tmp_path / "a.zip", Stand())
    with pytest.raises(ValueError, match="must be a .zip"):
        encode_images(coloured(), tmp_path / "a.tar", Stand())
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        encode_images(coloured(), tmp_path / "a.zip", Stand(), batch_size=0)


def test_command(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", coloured().decoded().transpose(0, 2, 3, 1))
    pack(tmp_path / "a.npy", tmp_path / "a.zip")
    stand = Stand()
    monkeypatch.setattr(StabilityVAE, "prepare", lambda self, device: None)
    monkeypatch.setattr(StabilityVAE, "moments", lambda self, image: stand.moments(image))
    out = tmp_path / "latents.zip"
    assert main(["data", "latents", str(tmp_path / "a.zip"), str(out), "--encoder", "folder", "--batch", "4"]) == 0
    assert "latents of 5 images" in capsys.readouterr().out
    assert (len(LatentData(out)), stand.batches) == (5, [4, 1])


def test_check_finds_latents_that_cannot_be_used(tmp_path, capsys):
    good = np.ones((8, 4, 4), np.float32)
    assert check(pack_latents(tmp_path / "good.zip", good.shape)) == []
    assert main(["data", "check", str(tmp_path / "good.zip")]) == 0
    nan, negative = good.copy(), good.copy()
    nan[0, 0, 0], negative[5, 0, 0] = np.nan, -1
    bad = pack_latents(tmp_path / "bad.zip", good.shape, i1=nan, i2=negative, i3=good[:6], i4=good.astype(np.float64))
    found = check(bad)
    assert [name[-5] for name, _ in found] == ["1", "2", "3", "4"]
    says = ("expected finite means", "deviations >= 0", "got float32 (6, 4, 4)", "got float64")
    assert all(text in why for text, (_, why) in zip(says, found, strict=True))
    assert main(["data", "stats", str(bad)]) == 2
    assert "these seem to be latents, not images" in capsys.readouterr().err
