"""float32 is float32 on GPUs too, wherever this library computes, unless TF32 is asked for; then it is, and only there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fewstep import generate, inverse
from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.data import digits
from fewstep.inverse import sample_posterior
from fewstep.metrics.evaluation import evaluate
from fewstep.metrics.extractors import FeatureNetwork
from fewstep.metrics.sources import ImageSource
from fewstep.runtime import precision
from fewstep.runtime.precision import tf32
from fewstep.sample import generated
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer
from tests.conftest import tiny_net


def setting() -> set[bool]:
    """Whether TF32 is allowed, of each operation that has a setting."""
    return {getattr(place, name) in ("tf32", True) for place, name in precision.switches()}


class Watched(Denoiser):
    """Notes the setting at every call, forward and backward."""

    def decode(self, encoded):
        self.seen = [*getattr(self, "seen", []), setting()]
        out = super().decode(encoded)
        if out.requires_grad:
            out.register_hook(lambda g: self.seen.append(setting()))
        return out


@pytest.fixture
def watched() -> Watched:
    torch.manual_seed(0)
    return Watched(tiny_net())


@pytest.mark.parametrize("asked", [False, True])
def test_training_and_sampling(asked, watched, stream):
    before = setting()
    Trainer(Pretraining(watched, DenoisingLoss()), stream, {"denoiser": Adam(1e-3)}, batch_size=2, tf32=asked).step()
    assert len(watched.seen) == 2
    images = generate(watched, [0, 1], tf32=asked)
    next(images)
    assert setting() == before  # between two images, too
    assert all(found == {asked} for found in watched.seen) and len(watched.seen) > 2
    protocol = generated(watched, [0], tf32=asked).protocol
    assert protocol["precision"] == ("float32, TF32" if asked else "float32")


def test_metrics_and_restorations_never(watched):
    seen = []
    network = nn.Module()
    network.forward = lambda x: seen.append(setting()) or {"features": x.flatten(1)}
    with tf32(True):
        FeatureNetwork("x", network, torch.Tensor.float, resize="", sha256=None)(
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
        )
        y = torch.zeros(1, 1, 8, 8)
        sample_posterior(watched, inverse.Inpainting(torch.ones(8, 8), (1, 8, 8)), y, 0.1, [0], label=torch.tensor([1]))
    assert all(found == {False} for found in [*seen, *watched.seen]) and seen and watched.seen


def test_the_commands_pass_it_on(denoiser, tmp_path, monkeypatch):
    from fewstep.io import model_folder

    asked = []
    monkeypatch.setattr("fewstep.runtime.precision.tf32", lambda allowed: asked.append(allowed) or tf32(allowed))
    monkeypatch.chdir(tmp_path)
    model_folder.save(denoiser, "model")
    for extra in ([], ["--tf32"]):
        assert main(["sample", "model", "--seeds", "0", "--steps", "2", "--npz", "x.npz", "--overwrite", *extra]) == 0
        assert asked == [bool(extra)]
        asked.clear()
    for i, extra in enumerate(([], ["--tf32"])):
        assert main(["train", "digits:teacher", "--until", "128", "--out", f"run{i}", *extra]) == 0
        assert asked[0] == bool(extra)
        asked.clear()
    assert main(["train", "digits:teacher", "--until", "128", "--out", "run1"]) == 2  # it decides the weights


def test_sampling_below_float32_is_in_the_protocol(denoiser, tmp_path, monkeypatch):
    from fewstep.io import model_folder
    from fewstep.metrics.protocol import read_results

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    model_folder.save(denoiser, "model")
    command = ["eval", "model", "--reference", "digits", "--metrics", "fd_pixels", "--seeds", "0-3", "--steps", "2"]
    for dtype in ("float32", "bfloat16"):
        assert main([*command, "--dtype", dtype, "--json", "x.json", "--overwrite"]) == 0
        [result] = read_results(tmp_path / "x.json")
        assert result.protocol["precision"] == dtype


def test_an_evaluation_is_outside_of_it_as_a_whole():
    """Images that are made on the side find the setting that they leave behind."""
    seen = []
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)

    def make():
        for image in images:
            seen.append(setting())
            yield image

    with tf32(True):
        evaluate(ImageSource(8, make, overlap=True), digits())
        assert setting() == {True}
    assert seen == 8 * [{False}]
