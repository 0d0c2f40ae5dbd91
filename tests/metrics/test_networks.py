"""The feature networks, against numbers that the published implementations give for the same random weights."""

from __future__ import annotations

from copy import deepcopy
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fewstep.metrics import weights
from fewstep.metrics.extractors import NETWORKS, FeatureNetwork, extractor, fast
from fewstep.metrics.networks.clip import CLIP, cubic_pixels
from fewstep.metrics.networks.dinov2 import DINOv2, cubic
from fewstep.metrics.networks.inception import Inception, tf1_resize
from fewstep.metrics.networks.lpips import LPIPS


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights from a stream that NumPy keeps for ever, in the order of names: near 1 for scales, small elsewhere."""
    draw = np.random.RandomState(seed)
    state = network.state_dict()
    for name in sorted(state):
        if not state[name].is_floating_point():
            continue
        fan = max(1, state[name][0].numel()) if state[name].ndim > 1 else 100
        values = draw.standard_normal(tuple(state[name].shape)) * np.sqrt(2 / fan)
        if name.endswith("running_var") or (state[name].ndim == 1 and name.endswith(("weight", "gamma"))):
            values = 1 + 0.3 * values
        if name.startswith("lin"):
            values = np.abs(values)
        state[name] = torch.from_numpy(values).float()
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images, uint8."""
    coarse = torch.from_numpy(np.random.RandomState(seed).uniform(0, 255, (*shape[:2], 6, 6)))
    return F.interpolate(coarse, shape[2:], mode="bilinear").to(torch.uint8)


@cache
def random_inception() -> Inception:
    network = randomise(Inception())
    assert isinstance(network, Inception)
    return network


@pytest.fixture(scope="module")
def inception():
    return random_inception()


# Features 0, 500, 1000, 2047 and logits 0, 1007 of two images: torch-fidelity 0.4.0 with these weights and pictures.
TORCH_FIDELITY = {
    (40, 32): (
        [0.0, 0.2305921, 0.01062073, 0.06247015, 0.0, 0.1876691, 0.008676256, 0.04165062],
        [0.1985729, 0.118843, 0.1291313, 0.1003652],
    ),
    (320, 300): (
        [0.0, 0.2312777, 0.01054579, 0.06252197, 0.0, 0.1917285, 0.008370561, 0.03567266],
        [0.1969166, 0.1180266, 0.1244018, 0.1053828],
    ),
}


@pytest.mark.parametrize("size", TORCH_FIDELITY)
def test_inception_is_the_published_network(inception, size):
    features, logits = (torch.tensor(v) for v in TORCH_FIDELITY[size])
    found = inception(picture(2, 3, *size).float())
    assert torch.allclose(found["features"][:, [0, 500, 1000, 2047]].flatten(), features, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found["logits"][:, [0, 1007]].flatten(), logits, rtol=1e-5, atol=1e-6)
    assert (found["features"].shape, found["spatial"].shape) == ((2, 2048), (2, 17 * 17 * 7))


def test_inception_with_folded_norms_is_the_same_function(inception):
    images = picture(2, 1, 32, 32)
    plain = inception(images.float().expand(-1, 3, -1, -1))
    twin = deepcopy(inception)
    extractor = FeatureNetwork("inception", fast(twin), torch.Tensor.float, resize="", sha256=None)
    folded = extractor(images)
    assert len(list(twin.parameters())) == 2 * 94 + 2
    for part, values in plain.items():
        assert torch.allclose(folded[part], values, rtol=1e-5, atol=1e-5), part
    with pytest.raises(ValueError, match="grey or RGB; got torch.uint8"):
        extractor(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (512, 400)])
def test_tf1_resize_is_the_grid_formula(size):
    """Pixel i is read at i * in / out, no half pixels: NVIDIA's detectors say it as a sampling grid."""
    x = picture(1, 2, *size).double()
    h, w = size
    theta = torch.eye(2, 3, dtype=torch.float64)
    theta[0, 2], theta[1, 2] = 1 / w - 1 / 299, 1 / h - 1 / 299
    grid = F.affine_grid(theta[None], [1, 2, 299, 299], align_corners=False)
    expected = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    assert torch.allclose(tf1_resize(x), expected, atol=1e-6)
    half_pixels = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    assert size == (299, 299) or (tf1_resize(x) - half_pixels).abs().mean() > 0.1


def test_clip_is_the_published_network():
    network = randomise(CLIP(size=64, patch=16, width=128, heads=2, depth=3, out=20))
    expected = [2.046087, 5.98094, 0.3052487, 2.535772, -3.116882, 5.035938, 1.318787, 0.8559469]
    found = network(picture(2, 3, 64, 64).float())["features"]
    assert torch.allclose(found[:, :4].flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (300, 260), (100, 333)])
def test_clip_resizes_as_pillow_does(size):
    image = picture(1, 3, *size)
    shorter = min(size)
    height, width = (int(224 * n / shorter) for n in size)
    whole = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)
    found = cubic_pixels(image)[0].numpy()
    assert found.shape == (3, 224, 224)
    assert np.abs(found - expected).max() <= 1  # Pillow has fixed-point weights
    assert (found != expected).mean() < 0.02


def test_dinov2_is_the_published_network():
    network = randomise(DINOv2(trained_size=70, width=64, heads=4, depth=3))
    expected = [-1.132877, 1.009798, -1.205402, 0.2923253, -0.4144835, 0.7218007, -0.3714032, -1.171992]
    found = network(picture(2, 3, 70, 70).float())["features"]
    assert torch.allclose(found[:, :4].flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_dinov2_interpolates_positions_with_the_offset():
    """Bicubic (a = -0.75) at (i + 1/2) / s - 1/2 with s = (16 + 0.1) / 37, edges repeated, written out."""
    network = randomise(DINOv2(width=4, heads=1, depth=0))
    assert isinstance(network, DINOv2)
    plane = network.pos_embed[0, 1:].view(37, 37, 4).double().numpy()
    scale, a = 16.1 / 37, -0.75

    def weight(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    matrix = np.zeros((16, 37))
    for i in range(16):
        source = (i + 0.5) / scale - 0.5
        for j in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            matrix[i, min(max(j, 0), 36)] += weight(source - j)
    expected = np.einsum("ih,jw,hwc->ijc", matrix, matrix, plane).reshape(256, 4)
    found = network.positions(16, 16)
    assert np.allclose(found[0, 1:].numpy(), expected, atol=1e-5)
    assert torch.equal(found[0, :1], network.pos_embed[0, :1])
    assert torch.equal(network.positions(37, 37), network.pos_embed)


# lpips 0.1.4 with these weights and pictures.
@pytest.mark.parametrize(
    ("backbone", "expected"), [("vgg", [0.21492592, 0.19350016]), ("alex", [0.34786803, 0.30821401])]
)
def test_lpips_is_the_published_network(backbone, expected):
    network = randomise(LPIPS(backbone))
    a, b = picture(2, 3, 64, 72) / 127.5 - 1, picture(2, 3, 64, 72, seed=1) / 127.5 - 1
    assert torch.allclose(network(a, b), torch.tensor(expected), rtol=1e-5)
    assert torch.equal(network(a, a), torch.zeros(2))


SMALL = {
    "inception": (lambda: fast(deepcopy(random_inception())), torch.Tensor.float),
    "clip": (
        lambda: randomise(CLIP(size=64, patch=16, width=128, heads=2, depth=3, out=20)),
        partial(cubic_pixels, size=64),
    ),
    "dinov2": (lambda: randomise(DINOv2(trained_size=70, width=64, heads=4, depth=3)), partial(cubic, size=56)),
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_below_float32(name, monkeypatch):
    """Convolutions and products alone: what goes into the network, norms, sums and what comes out are float32."""
    monkeypatch.setattr("fewstep.metrics.networks.inception.tf1_resize", partial(tf1_resize, size=107))  # less to do
    build, prepare = SMALL[name]
    full, low = (
        FeatureNetwork(name, build(), prepare, resize="", sha256=None, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    inputs = []
    low.network.register_forward_pre_hook(lambda module, given: inputs.append(given[0].dtype))
    images = picture(4, 3, 32, 32)
    expected, found = full(images), low(images)
    assert inputs == [torch.float32]
    for part, values in expected.items():
        error = (found[part] - values).norm() / values.norm()
        assert found[part].dtype == torch.float32 and 1e-4 < error < 0.02, (part, error)
    features = found["features"]
    assert not torch.equal(features, features.bfloat16().float())
    if name == "inception":
        assert torch.equal(found["logits"], features @ full.network.fc["weight"].T)  # pyright: ignore
    assert not any(isinstance(m, nn.LayerNorm) and m.weight.dtype != torch.float32 for m in low.network.modules())


@pytest.mark.parametrize("name", SMALL)
def test_built_in_networks_take_a_precision(name, monkeypatch):
    monkeypatch.setattr(weights, "read_weights", lambda asset, folder: ({}, {"sha256": "00"}))
    monkeypatch.setattr(weights, "fill", lambda build, state, where: SMALL[name][0]())
    assert list(SMALL) == list(NETWORKS)
    for dtype in (torch.float32, torch.bfloat16):
        found = extractor(name, dtype)
        assert isinstance(found, FeatureNetwork) and found.dtype == dtype
        assert any(p.dtype == torch.bfloat16 for p in found.network.parameters()) == (dtype == torch.bfloat16)


def test_the_networks_have_their_published_sizes():
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in network.parameters()) for network in (Inception(), CLIP(), DINOv2())]
    assert sizes == [23_850_960, 87_849_216, 304_367_616]


def test_weights_files(tmp_path, monkeypatch):
    state = {"lin0": torch.arange(3.0), "lin1": torch.ones(2, dtype=torch.float16)}
    asset = weights.LPIPS_VGG
    with pytest.raises(ValueError, match=r"lpips-vgg\.safetensors, which are missing; run: .* fewstep assets fetch"):
        weights.read_weights(asset, tmp_path)
    with pytest.raises(ValueError, match=r"inception.*sha256 6726825d.*fewstep assets fetch inception-2015-12-05"):
        weights.read_weights(weights.INCEPTION, tmp_path)
    path = weights.save_weights(asset, state, "ab" * 32, tmp_path)
    found, about = weights.read_weights(asset, tmp_path)
    assert torch.equal(found["lin0"], state["lin0"])
    assert about["source_sha256"] == "ab" * 32
    # The hash is of numbers under names: neither order nor precision of the file counts.
    assert about["sha256"] == weights.content_hash(dict(reversed(state.items())))
    assert about["sha256"] != weights.content_hash({**state, "lin0": torch.zeros(3)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="is damaged"):
        weights.read_weights(asset, tmp_path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is damaged"):
        weights.read_weights(asset, tmp_path)
    weights.save_weights(weights.LPIPS_ALEX, state, "", tmp_path).rename(path)
    with pytest.raises(ValueError, match="holds 'lpips-alex', not lpips-vgg"):
        weights.read_weights(asset, tmp_path)
    monkeypatch.setenv("FEWSTEP_ASSETS", str(tmp_path / "here"))
    assert weights.assets_folder() == tmp_path / "here"
    monkeypatch.delenv("FEWSTEP_ASSETS")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    assert weights.assets_folder() == tmp_path / "assets"
