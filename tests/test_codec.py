"""Between images and a denoiser's units, with a stand-in for the VAE: its mathematics, its batches, its errors."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fewstep import checkpoint
from fewstep.convert import Record, upstream
from fewstep.data import codec
from fewstep.data.codec import Pixels, StabilityVAE
from fewstep.denoiser import Denoiser
from fewstep.generation import default_plan, generate
from tests.conftest import tiny_net


def test_pixels_round_trip():
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = Pixels().encode(image)
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(Pixels().decode(x), image)
    assert torch.equal(Pixels().decode(x.double() + 0.49 / 127.5), image)
    assert torch.equal(Pixels().decode(torch.tensor([-7.0, 7.0])), torch.tensor([0, 255], dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        Pixels().encode(x)


class AutoencoderKL(nn.Module):
    """Means 8x8 blocks of pixels into four equal channels, of deviation 0.1; records its batches."""

    batches: list[int]

    @classmethod
    def from_pretrained(cls, name: str, local_files_only: bool) -> AutoencoderKL:
        if "missing" in name:
            raise OSError("no such folder")
        vae = cls()
        vae.batches = []
        return vae

    def encode(self, x):
        self.batches.append(len(x))
        mean = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 8).expand(-1, 4, -1, -1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.full_like(mean, 0.1)))

    def decode(self, z):
        self.batches.append(len(z))
        return SimpleNamespace(sample=nn.functional.interpolate(z[:, :3], scale_factor=8.0))


@pytest.fixture
def diffusers(monkeypatch):
    module = ModuleType("diffusers")
    module.__dict__["AutoencoderKL"] = AutoencoderKL
    monkeypatch.setitem(sys.modules, "diffusers", module)
    codec.autoencoder.cache_clear()
    yield
    codec.autoencoder.cache_clear()


def test_latents_are_whitened_as_published(diffusers):
    vae = StabilityVAE(batch_size=2)
    image = torch.full((5, 3, 16, 16), 102, dtype=torch.uint8)  # 0.4
    moments = vae.moments(image)
    assert moments.shape == (5, 8, 2, 2)
    assert codec.autoencoder(vae.vae, image.device).batches == [2, 2, 1]
    torch.testing.assert_close(moments[0, :, 0, 0], torch.tensor([0.4] * 4 + [0.1] * 4))
    x = vae.whiten(moments, torch.zeros_like)
    expected = [(0.4 - m) * 0.5 / s for m, s in zip((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), strict=True)]
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor(expected))
    drawn = vae.whiten(moments, torch.ones_like)
    torch.testing.assert_close(drawn[0, 0, 0, 0] - x[0, 0, 0, 0], torch.tensor(0.1 * 0.5 / 4.17))
    assert set(vae.decode(x.double()).unique().tolist()) <= {101, 102}  # truncated, of 102 up to rounding
    assert vae.encode(image).shape == (5, 4, 2, 2)
    with pytest.raises(ValueError, match=r"uint8 images \(B, 3, H, W\)"):
        vae.encode(image[:, :1])


def test_a_network_on_latents_makes_images_and_is_kept_with_its_codec(diffusers, tmp_path):
    torch.manual_seed(0)
    original = Denoiser(tiny_net(in_channels=4, out_channels=4), codec=StabilityVAE("my/vae", batch_size=2))
    checkpoint.save(original, tmp_path / "m")
    loaded = checkpoint.load(tmp_path / "m")
    assert loaded.codec == original.codec
    images = list(generate(loaded, range(3), plan=default_plan(loaded, 2)))
    assert [image.shape for image in images] == [(64, 64, 3)] * 3
    assert images[0].dtype == np.uint8
    assert codec.autoencoder("my/vae", torch.device("cpu")).batches == [2, 1]


def test_the_vae_is_asked_for_clearly(monkeypatch, diffusers):
    with pytest.raises(ValueError, match="'missing' is neither a folder nor to be had from the hub"):
        StabilityVAE("missing").decode(torch.zeros(1, 4, 2, 2))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r'pip install "fewstep\[vae\]"'):
        StabilityVAE().decode(torch.zeros(1, 4, 2, 2))


def test_codec_of_an_upstream_file():
    published = StabilityVAE()
    scale = np.float32(0.5) / np.array(published.raw_std, np.float32)
    state = {"vae_name": published.vae, "scale": scale, "bias": -np.array(published.raw_mean, np.float32) * scale}
    assert upstream.codec(Record("encoders", "StabilityVAEEncoder", state), "file") == published
    assert upstream.codec(Record("encoders", "StandardRGBEncoder", {}), "file") == Pixels()
    assert upstream.codec(None, "file") == Pixels()
    with pytest.raises(ValueError, match="known are StandardRGBEncoder"):
        upstream.codec(Record("encoders", "Other", {}), "file")
    with pytest.raises(ValueError, match="not intact"):
        upstream.codec(Record("encoders", "StabilityVAEEncoder", {"scale": "a"}), "file")
