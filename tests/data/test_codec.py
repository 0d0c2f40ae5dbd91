"""Between images and a denoiser's units, with a stand-in for the VAE: its mathematics, its batches, its errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.cli import main
from fewstep.core.codec import Pixels
from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.data import codec
from fewstep.data.codec import StabilityVAE, with_vae
from fewstep.data.latents import LatentData, LatentStream
from fewstep.io import model_folder
from fewstep.io.convert import snapshot as upstream
from fewstep.io.unpickle import Record
from fewstep.sample import generate
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.settings import Run
from tests.conftest import tiny_net
from tests.data.test_latents import pack_latents


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
    config: dict[str, Any]

    @classmethod
    def from_pretrained(cls, name: str, *, use_safetensors: bool, output_loading_info: bool, **options) -> Any:
        assert use_safetensors and output_loading_info
        if "missing" in name:
            raise OSError("no such folder\nsecond line")
        vae = cls()
        vae.batches, vae.config = [], {"block_out_channels": [1, 1, 1, 1]}
        return vae, {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}

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
    model_folder.save(original, tmp_path / "m")
    loaded = model_folder.load(tmp_path / "m")
    assert loaded.codec == original.codec
    images = list(generate(loaded, range(3), plan=loaded.plan(2)))
    assert [image.shape for image in images] == [(64, 64, 3)] * 3
    assert images[0].dtype == np.uint8
    assert codec.autoencoder("my/vae", torch.device("cpu")).batches == [2, 1]


def test_the_vae_is_asked_for_clearly(monkeypatch, diffusers):
    with pytest.raises(ValueError, match="'missing' is neither a folder nor to be had from the hub"):
        StabilityVAE("missing").decode(torch.zeros(1, 4, 2, 2))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r'pip install "fewstep\[vae\]"'):
        StabilityVAE().decode(torch.zeros(1, 4, 2, 2))


def write_vae(folder: Path, **config: Any) -> Path:
    """What a VAE's folder shows before its weights are read."""
    folder.mkdir(exist_ok=True)
    usual = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [4] * 4}
    (folder / "config.json").write_text(json.dumps(usual | config))
    (folder / codec.WEIGHTS).touch()
    return folder


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"latent_channels": 16}, "latent_channels 4; this one has 16"),
        ({"scaling_factor": 0.13025}, r"scaling_factor 0.18215; this one has 0.13025"),
        ({"block_out_channels": [4, 4, 4]}, "levels 4; this one has 3"),
        ({"block_out_channels": None}, "levels 4; this one has None"),
        ({"in_channels": 1}, "in_channels 3; this one has 1"),
        ({"_class_name": "UNet2DModel"}, "expected an AutoencoderKL; its config.json is that of 'UNet2DModel'"),
    ],
)
def test_a_vae_of_other_latents_is_refused_before_its_weights_are_read(config, complaint, tmp_path):
    folder = write_vae(tmp_path / "vae", **config)
    with pytest.raises(ValueError, match=complaint):
        with_vae(StabilityVAE(), folder)
    with pytest.raises(ValueError, match=complaint):
        StabilityVAE(str(folder)).prepare(torch.device("cpu"))


def test_the_vae_of_a_model_can_be_named(tmp_path, monkeypatch):
    folder = write_vae(tmp_path / "vae")
    monkeypatch.chdir(tmp_path)
    named = with_vae(StabilityVAE(raw_mean=(0.0, 0.0, 0.0, 1.0)), "vae")
    assert named == StabilityVAE(str(folder), raw_mean=(0.0, 0.0, 0.0, 1.0))
    assert with_vae(StabilityVAE(), "someone/vae") == StabilityVAE("someone/vae")
    with pytest.raises(ValueError, match="vae vae: this model generates pixels"):
        with_vae(Pixels(), "vae")
    with pytest.raises(ValueError, match=r"vae .*/nowhere: expected a folder; it is missing; give --vae FOLDER"):
        with_vae(StabilityVAE(), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a folder; it is a file"):
        with_vae(StabilityVAE(), folder / codec.WEIGHTS)
    (folder / codec.WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")  # a pickle
    with pytest.raises(ValueError, match=f"there is no {codec.WEIGHTS} in it; give --vae FOLDER"):
        with_vae(StabilityVAE(), folder)
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    write_vae(pipeline / "vae")
    with pytest.raises(ValueError, match=r"there is no config.json in it; name .*/pipeline/vae"):
        with_vae(StabilityVAE(), pipeline)


def test_commands_name_the_vae_and_miss_it_before_they_work(diffusers, tmp_path, capsys, monkeypatch):
    latent = Denoiser(tiny_net(in_channels=4, out_channels=4), codec=StabilityVAE("missing/vae"))
    model, grid = str(model_folder.save(latent, tmp_path / "m")), str(tmp_path / "grid.png")
    vae = str(write_vae(tmp_path / "vae"))
    with monkeypatch.context() as during:
        during.setattr(Denoiser, "forward", None)  # nothing is computed
        restored = [
            "restore",
            model,
            "x.zip",
            "--task",
            "box_inpainting",
            "--out",
            str(tmp_path / "out"),
            "--class",
            "none",
        ]
        for command in (["sample", model, "--grid", grid], ["eval", model, "--reference", "digits"], restored):
            assert main(command) == 2
            error = capsys.readouterr().err
            assert "the VAE 'missing/vae' is neither a folder nor to be had from the hub (no such folder)" in error
            assert "give --vae FOLDER" in error
            assert error.count("\n") == 1
    assert main(["sample", model, "--vae", vae, "--seeds", "0-1", "--steps", "1", "--grid", grid]) == 0
    pixels = str(model_folder.save(Denoiser(tiny_net()), tmp_path / "p"))
    capsys.readouterr()
    assert main(["sample", pixels, "--vae", vae, "--grid", grid, "--overwrite"]) == 2
    assert "this model generates pixels" in capsys.readouterr().err


def test_a_run_on_latents_misses_its_vae_before_it_trains(diffusers, tmp_path):
    latent = Denoiser(tiny_net(in_channels=4, out_channels=4, label_dim=0), codec=StabilityVAE("missing/vae"))
    data = LatentData(pack_latents(tmp_path / "latents.zip", (8, 8, 8)))
    method = Pretraining(latent, DenoisingLoss())
    run = Run(method, LatentStream(data, StabilityVAE()), {"denoiser": Adam(lr=1e-3)}, batch_size=2, until=2)
    with pytest.raises(ValueError, match="the VAE 'missing/vae'"):
        fit(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_vae_with_weights_of_another_is_refused(diffusers, monkeypatch):
    real = AutoencoderKL.from_pretrained

    def broken(name: str, **options: Any) -> Any:
        vae, report = real(name, **options)
        return vae, report | {"missing_keys": ["decoder.conv_in.bias"]}

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", broken)
    with pytest.raises(ValueError, match=r"1 tensors do not fit its config.json, such as decoder.conv_in.bias"):
        StabilityVAE().prepare(torch.device("cpu"))


def test_real_vae_files(tmp_path):
    """With the package itself: a file loads, one of another network does not, and a pickle is not opened."""
    real = pytest.importorskip("diffusers").AutoencoderKL
    widths, n = (4, 4, 4, 4), 4
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * n, "up_block_types": ("UpDecoderBlock2D",) * n}
    vae = real(block_out_channels=widths, norm_num_groups=2, **kinds)
    vae.save_pretrained(tmp_path / "vae")
    vae.save_pretrained(tmp_path / "bin", safe_serialization=False)
    codec.autoencoder.cache_clear()
    named = with_vae(StabilityVAE(), tmp_path / "vae")
    named.prepare(torch.device("cpu"))
    assert named.decode(torch.zeros(1, 4, 2, 2)).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match=f"there is no {codec.WEIGHTS}"):
        StabilityVAE(str(tmp_path / "bin")).prepare(torch.device("cpu"))
    file = tmp_path / "vae" / codec.WEIGHTS
    tensors = load_file(file)
    tensors.pop("decoder.conv_in.bias")
    save_file(tensors, file, metadata={"format": "pt"})
    codec.autoencoder.cache_clear()
    with pytest.raises(ValueError, match="1 tensors do not fit its config.json, such as decoder.conv_in.bias"):
        named.prepare(torch.device("cpu"))
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="cannot be read"):
        named.prepare(torch.device("cpu"))


def test_codec_of_an_upstream_file():
    published = StabilityVAE()
    scale = np.float32(0.5) / np.array(published.raw_std, np.float32)
    state = {"vae_name": published.vae, "scale": scale, "bias": -np.array(published.raw_mean, np.float32) * scale}
    assert upstream.read_codec(Record("encoders", "StabilityVAEEncoder", state), "file") == published
    assert upstream.read_codec(Record("encoders", "StandardRGBEncoder", {}), "file") == Pixels()
    assert upstream.read_codec(None, "file") == Pixels()
    with pytest.raises(ValueError, match="known are StandardRGBEncoder"):
        upstream.read_codec(Record("encoders", "Other", {}), "file")
    with pytest.raises(ValueError, match="not intact"):
        upstream.read_codec(Record("encoders", "StabilityVAEEncoder", {"scale": "a"}), "file")
