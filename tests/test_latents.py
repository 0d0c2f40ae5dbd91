"""Latents in a zip, and the endless stream of draws of them."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch

from fewstep.data.codec import StabilityVAE
from fewstep.data.latents import LatentData, LatentStream


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
        (np.zeros((8, 4, 4)), r"expected float32 \(8, 4, 4\), whole; got float64"),
        (np.zeros((8, 4, 5), np.float32), r"expected float32 \(8, 4, 4\), whole; got float32 \(8, 4, 5\)"),
    ],
)
def test_what_is_no_latent_is_named(tmp_path, array, message):
    data = LatentData(pack_latents(tmp_path / "latents.zip", (8, 4, 4), i3=array))
    with pytest.raises(ValueError, match=f"img-mean-std-00000003.npy: {message}"):
        data.gather(np.array([3]))


def test_other_files_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match="missing or something else"):
        LatentData(tmp_path / "nothing.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(ValueError, match="found none"):
        LatentData(tmp_path / "empty.zip")
    with pytest.raises(ValueError, match=r"means and deviations \(2 C, H, W\)"):
        LatentData(pack_latents(tmp_path / "odd.zip", (7, 4, 4)))
    with pytest.raises(ValueError, match="expected latents of 4 channels"):
        LatentStream(LatentData(pack_latents(tmp_path / "two.zip", (4, 4, 4))), StabilityVAE())
