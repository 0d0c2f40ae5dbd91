# pyright: reportArgumentType=false
"""GDD's feature networks: equal to timm's for the same weights; whatever is no such file of weights is refused."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep.io.feature_networks import fetch_asset, open_network
from fewstep.metrics.weights import ASSETS
from fewstep.nets.backbones import VGG16BN, DeiT, EfficientNetLite0
from fewstep.nets.features import EFFICIENTNET, PretrainedFeatures
from fewstep.runtime.environment import OFFLINE
from fewstep.runtime.files import sha256
from tests.fakehub import serving
from tests.metrics.test_networks import picture, randomise

NAME = EFFICIENTNET.name
ADDRESS = f"https://huggingface.co/timm/{NAME}.in1k/resolve/main/model.safetensors"

# For pictures of that size and weights of `randomise`, of each of four maps of timm 1.0.31: the shape; of the first image the
# first value, of the second the last, the mean and the standard deviation of all.
TIMM = {
    "vgg16_bn": (
        VGG16BN,
        (70, 66),
        [
            ((2, 128, 35, 33), (0.0, 0.0, 0.3233477, 0.4617689)),
            ((2, 256, 17, 16), (0.0, 1.396373, 0.4273761, 0.6439505)),
            ((2, 512, 8, 8), (0.4264587, 0.0, 0.4638402, 0.6980197)),
            ((2, 512, 4, 4), (0.0, 0.3595773, 0.410496, 0.6086671)),
        ],
    ),
    "tf_efficientnet_lite0": (
        EfficientNetLite0,
        (70, 66),
        [
            ((2, 24, 18, 17), (-0.4034772, -0.869523, 0.2140858, 1.208479)),
            ((2, 40, 9, 9), (-3.198487, -0.8229946, -0.2516682, 2.46432)),
            ((2, 112, 5, 5), (-1.36568, 0.7902533, 0.2678293, 4.254952)),
            ((2, 320, 3, 3), (-3.247014, 2.1999, 0.1150133, 2.926033)),
        ],
    ),
    "deit": (
        lambda: DeiT(size=32, patch=8, width=24, heads=3, depth=8),
        (32, 32),
        [
            ((2, 24, 4, 4), (1.361706, 0.7215073, 0.1265484, 2.313867)),
            ((2, 24, 4, 4), (0.686198, -2.242752, -0.3029203, 3.501504)),
            ((2, 24, 4, 4), (-0.01864052, -4.105546, 0.3700837, 4.776852)),
            ((2, 24, 4, 4), (-0.5898435, -3.544954, 0.1662803, 4.965777)),
        ],
    ),
}


@pytest.mark.parametrize("name", TIMM)
def test_maps_are_timms(name):
    build, size, expected = TIMM[name]
    maps = randomise(build())(picture(2, 3, *size).float() / 128 - 1)
    for found, (shape, values) in zip(maps, expected, strict=True):
        some = (found[0, 0, 0, 0], found[1, -1, -1, -1], found.mean(), found.std())
        assert tuple(found.shape) == shape
        assert [float(v) for v in some] == pytest.approx(values, rel=2e-5, abs=2e-5)


def test_the_published_networks_have_their_sizes():
    """The numbers of parameters of timm 1.0.31, less those behind the last map."""
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in build().parameters()) for build in (VGG16BN, EfficientNetLite0, DeiT)]
    head = 7 * 7 * 512 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert sizes == [
        138_365_992 - head,
        4_652_008 - (320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
        87_338_192 - (2 * 768 + 2 * (768 * 1000 + 1000)),
    ]


@pytest.fixture(scope="module")
def state():
    """A published file: the network and its classifier."""
    network = {k: v.contiguous() for k, v in randomise(EfficientNetLite0()).state_dict().items()}
    head = {"conv_head.weight": torch.ones(2), "bn2.running_var": torch.ones(2), "classifier.bias": torch.ones(2)}
    return network | head


@pytest.fixture
def folder(tmp_path, state, monkeypatch):
    """Of files of weights; assets and downloads lie beside it."""
    for name in ("ASSETS", "CACHE"):
        monkeypatch.setenv(f"FEWSTEP_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv(OFFLINE, raising=False)
    (tmp_path / "weights").mkdir()
    save_file(state, tmp_path / "weights" / f"{NAME}.safetensors")
    return tmp_path / "weights"


def test_weights_of_a_file_a_folder_or_an_asset(folder, state, tmp_path):
    """The same features and the hash of the published file, whichever way they came."""
    file = folder / f"{NAME}.safetensors"
    x = picture(1, 3, 32, 32).float() / 128 - 1
    expected = randomise(EfficientNetLite0())(x)
    torch.save({"model": state}, tmp_path / "published.pth")
    renamed = folder / "model.safetensors"
    renamed.write_bytes(file.read_bytes())
    fetch_asset(NAME, source=file)
    kept = tmp_path / "assets" / f"{NAME}.safetensors"
    (tmp_path / "half").mkdir()
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(halves, tmp_path / "half" / file.name)
    for weights, digest in (
        (folder, sha256(file)),
        (file, sha256(file)),
        (renamed, sha256(file)),
        ("hub", sha256(file)),
        (kept, sha256(file)),
        (kept.parent, sha256(file)),
        (tmp_path / "published.pth", sha256(tmp_path / "published.pth")),
        (tmp_path / "half", sha256(tmp_path / "half" / file.name)),
    ):
        network, found = open_network(NAME, weights)
        assert found == digest
        assert not network.training and not any(p.requires_grad for p in network.parameters())
        assert all(p.dtype == torch.float32 for p in network.parameters())
        for a, b in zip(network(x), expected, strict=True):
            assert (
                torch.equal(a, b) if weights != tmp_path / "half" else torch.allclose(a, b, atol=0.1 * float(b.std()))
            )
    network = PretrainedFeatures(EFFICIENTNET, *open_network(NAME, folder), size=32)
    assert (network.name, network.channels) == (f"{NAME} (sha256 {sha256(file)})", (24, 40, 112, 320))


def without(state, *names):
    return {k: v for k, v in state.items() if k not in names}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "bn1.running_var"), r"lacks 1 tensors of the network, or .*: \['bn1.running_var'\]"),
        (lambda s: s | {"bn1.bias": torch.zeros(31)}, r"lacks 1 tensors .*another shape: \['bn1.bias'\]"),
        (lambda s: s | {"bn9.bias": torch.zeros(31)}, r"has 1 tensors that are not the network's: \['bn9.bias'\]"),
        (lambda s: s | {"bn1.bias": torch.full((32,), torch.nan)}, r"NaN or infinity in 1 tensors .*: \['bn1.bias'\]"),
        (lambda s: s | {"bn1.bias": torch.full((32,), torch.inf)}, r"NaN or infinity in 1 tensors .*: \['bn1.bias'\]"),
        (lambda s: {"x": torch.zeros(1, dtype=torch.long)}, "holds no weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, state, change, words):
    file = folder / f"{NAME}.safetensors"
    save_file(change(state), file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} .*{words}"):
        open_network(NAME, folder)


def test_the_weights_of_another_network_are_refused(folder):
    file = folder / f"{NAME}.safetensors"
    for name in ("vgg16_bn", "deit_base_distilled_patch16_224"):
        file = file.rename(folder / f"{name}.safetensors")
        with pytest.raises(ValueError, match=rf"{name}\.safetensors lacks \d+ tensors of the network"):
            open_network(name, folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"a": 1}), "but a pickle"),
        (b"<!doctype html><html>", "but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "but a pointer of Git LFS"),
        (b"", "but empty"),
        (b"abc" * 100, "but of an unknown kind"),
        ("zip", "but a zip archive, such as torch.save writes"),
        ("half", "truncated or corrupt"),
    ],
)
def test_other_files_under_the_name_are_named(folder, content, words):
    file = folder / f"{NAME}.safetensors"
    if content == "half":
        content = file.read_bytes()[: file.stat().st_size // 2]
    if content == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.pkl", b"x" * 100)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} is .*{words}") as error:
        open_network(NAME, folder)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named_with_its_address(folder):
    with pytest.raises(
        ValueError, match=rf"no file {folder}/vgg16_bn\.safetensors; download https://huggingface\.co/timm/"
    ):
        open_network("vgg16_bn", folder)
    for name, tag in (("vgg16_bn", "tv_in1k"), (NAME, "in1k"), ("deit_base_distilled_patch16_224", "fb_in1k")):
        assert (
            ASSETS[name].sources[0].address
            == f"https://huggingface.co/timm/{name}.{tag}/resolve/main/model.safetensors"
        )


@pytest.fixture
def hub(tmp_path, folder, monkeypatch):
    repository = tmp_path / "hub" / "timm" / f"{NAME}.in1k"
    repository.mkdir(parents=True)
    (folder / f"{NAME}.safetensors").rename(repository / "model.safetensors")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with serving(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def test_weights_of_the_hub_are_fetched_once(hub, tmp_path, monkeypatch):
    published = tmp_path / "hub" / "timm" / f"{NAME}.in1k" / "model.safetensors"
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    for _ in range(2):
        assert open_network(NAME, "hub")[1] == digest
        monkeypatch.setenv(OFFLINE, "1")
    assert [path.split("/")[1] for path in hub.requests] == ["timm", "store"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("flip", "came with the sha256 [0-9a-f]{64}; its server announces [0-9a-f]{64}; try again"),
        ("half", r"broke off after \d+ of \d+ bytes; try again"),
        ("more", r"broke off after \d+ of \d+ bytes; try again"),
        (401, "HTTP 401 Unauthorized; it needs a login or consent"),
        (403, "HTTP 403 Forbidden; it needs a login or consent"),
        (404, "HTTP 404 Not Found; check the address"),
        (500, "HTTP 500 Internal Server Error; try again later"),
        ("loop", "HTTP 302 .*loop"),
        ("away", "which is not an http or https address"),
    ],
)
def test_a_hub_that_fails_is_one_line_and_leaves_nothing(hub, tmp_path, fault, words):
    hub.faults["timm" if fault in ("loop", "away") else "store"] = fault
    asked = rf"the weights of {NAME} are not in {tmp_path}/assets, and could not be fetched"
    with pytest.raises(
        ValueError, match=rf"^{asked}: .*{words}.*; run: fewstep assets fetch {NAME}; .*--source FILE$"
    ) as e:
        open_network(NAME, "hub")
    assert "\n" not in str(e.value)
    assert not [p for folder in ("assets", "cache") for p in (tmp_path / folder).glob("**/*") if p.is_file()]


def test_without_a_network_the_file_and_the_folder_are_named(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")
    (Path(tmp_path) / "cache").mkdir()
    with pytest.raises(
        ValueError, match=rf"not in {tmp_path}/assets, .*Connection refused.*copy model\.safetensors .* from"
    ):
        open_network(NAME, "hub")
    monkeypatch.setenv(OFFLINE, "1")
    with pytest.raises(ValueError, match=rf"not in {tmp_path}/assets, .*not in the cache .*{re.escape(ADDRESS)}"):
        open_network(NAME, "hub")
