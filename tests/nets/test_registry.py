"""Networks of a user's own: saved, loaded, sampled and distilled once they are registered, and never by a file's word alone."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewstep as fs
from fewstep.core.network import Features
from fewstep.nets.registry import REGISTERED


@dataclass(frozen=True)
class ConvConfig:
    width: int = 8
    resolution: int = 8
    label_dim: int = 0
    dilations: tuple[int, ...] = (1, 2)


class ConvNet(nn.Module):
    """Dilated convolutions at one resolution."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.config, self.in_channels, self.resolution = config, 1, config.resolution
        self.num_classes = config.label_dim
        self.noise = nn.Linear(2, config.width)
        self.enter = nn.Conv2d(1, config.width, 3, padding=1)
        self.middle = nn.ModuleList(
            nn.Conv2d(config.width, config.width, 3, padding=d, dilation=d) for d in config.dilations
        )
        self.leave = nn.Conv2d(config.width, 1, 3, padding=1)

    def encode(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Features:
        embedding = self.noise(torch.stack([c_noise.cos(), c_noise.sin()], 1))
        h = F.silu(self.enter(x) + embedding[:, :, None, None])
        for layer in self.middle:
            h = h + layer(F.silu(h))
        return Features(h, (), embedding)

    def decode(self, features: Features) -> Tensor:
        return self.leave(F.silu(features.bottleneck))


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr("fewstep.nets.registry.REGISTERED", registered := {})
    monkeypatch.setattr("fewstep.io.model_folder.REGISTERED", registered)


@pytest.fixture
def model() -> fs.Denoiser:
    torch.manual_seed(0)
    fs.nets.register(ConvNet, ConvConfig)
    return fs.Denoiser(ConvNet(ConvConfig())).eval()


def test_a_registered_network_is_saved_loaded_and_sampled(model, tmp_path):
    again = fs.load(fs.save(model, tmp_path / "model"))
    assert type(again.net) is ConvNet and again.net.config == ConvConfig()
    plan = model.plan(3)
    first, second = (np.concatenate(list(fs.generate(m, [0, 1], plan=plan))) for m in (model, again))
    assert np.array_equal(first, second)


def test_a_registered_network_is_distilled(model, stream, tmp_path):
    method = fs.distill.SiD(model)
    adam = {"fake_score": fs.Adam(1e-3), "generator": fs.Adam(1e-3)}
    fs.fit(fs.Run(method, stream, adam, batch_size=4, until=8, snapshots=1), tmp_path / "run")
    student = fs.load(tmp_path / "run")
    assert type(student.net) is ConvNet and student.levels == (2.5,)


def test_saving_an_unregistered_network_names_the_call(model, stream, tmp_path):
    from fewstep.io import model_folder

    model_folder.REGISTERED.clear()
    with pytest.raises(ValueError, match=r"fs\.nets\.register\(ConvNet, ConvConfig\)"):
        fs.save(model, tmp_path / "model")
    run = fs.Run(
        fs.Pretraining(model, fs.DenoisingLoss()),
        stream,
        {"denoiser": fs.Adam(1e-3)},
        batch_size=4,
        until=8,
    )
    with pytest.raises(ValueError, match="register"):
        fs.fit(run, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_loading_an_unregistered_network_imports_nothing(model, tmp_path):
    from fewstep.io import model_folder

    folder = fs.save(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["network"]["class"] == f"{__name__}.ConvNet"
    config["network"]["class"] = "this.ConvNet"
    (folder / "config.json").write_text(json.dumps(config))
    model_folder.REGISTERED.clear()
    with pytest.raises(ValueError, match=r"'this\.ConvNet'.*fs\.nets\.register\(Network, Config\) before fs\.load"):
        fs.load(folder)
    assert "this" not in sys.modules


def test_what_cannot_be_registered():
    @dataclass
    class Mutable:
        width: int = 8

    with pytest.raises(ValueError, match="frozen dataclass"):
        fs.nets.register(ConvNet, Mutable)
    with pytest.raises(ValueError, match="encode and decode"):
        fs.nets.register(nn.Linear, ConvConfig)
    for name, match in (("SongConfig", "of its own"), ("ConvConfig", "already registered")):
        fs.nets.register(ConvNet, ConvConfig)
        other = dataclass(frozen=True)(type(name, (), {"__module__": "elsewhere"}))
        with pytest.raises(ValueError, match=match):
            fs.nets.register(ConvNet, other)
    assert REGISTERED == {}
