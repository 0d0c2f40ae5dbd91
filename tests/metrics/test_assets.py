# pyright: reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# Stand-ins for extractors and modules, wrong inputs on purpose: these tests are not typed more closely.
"""Published weights and references, in all their containers, read without running anything in them."""

from __future__ import annotations

import hashlib
import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.io.convert import feature_weights
from fewstep.io.convert.download import cache_name
from fewstep.io.convert.feature_weights import read_published
from fewstep.io.feature_networks import fetch_asset, known_hash
from fewstep.io.reference_files import open_reference
from fewstep.io.unpickle import UnsafePickle, read
from fewstep.io.unpickle.torchscript import is_torchscript, read_torchscript
from fewstep.metrics.networks.inception import Conv
from fewstep.metrics.networks.lpips import LPIPS
from fewstep.metrics.weights import ALEX, ASSETS, CLIP, INCEPTION, LPIPS_ALEX, VGG, content_hash, read_weights
from tests.metrics.test_networks import randomise

LAYERS = {"first": "conv", "second": "conv_1"}
"""Two convolutions of the small network, by our names and by NVIDIA's."""


class Small(nn.Module):
    """Stands for the Inception network: two of its convolutions and the last layer."""

    def __init__(self):
        super().__init__()
        self.first = Conv(3, 4, 3)
        self.second = Conv(4, 6, (1, 7))
        self.fc = nn.Linear(6, 5)


class Layer(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.weight = nn.Parameter(conv.conv.weight)
        self.beta = nn.Parameter(conv.bn.bias)
        self.register_buffer("mean", conv.bn.running_mean)
        self.register_buffer("var", conv.bn.running_var)

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight) * self.var.rsqrt()[:, None, None] + self.beta[:, None, None]


class Detector(nn.Module):
    """The small network under NVIDIA's names."""

    def __init__(self, small):
        super().__init__()
        self.sizes = [299, 299]
        self.layers = nn.Sequential(
            OrderedDict((theirs, Layer(getattr(small, ours))) for ours, theirs in LAYERS.items())
        )
        self.output = nn.Linear(6, 5)
        self.output.load_state_dict(small.fc.state_dict())

    def forward(self, x):
        return self.output(self.layers(x).mean((2, 3)))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(feature_weights, "Inception", Small)
    monkeypatch.setitem(feature_weights.NETWORKS, INCEPTION.name, Small)
    network = randomise(Small())
    with torch.no_grad():
        for layer in (network.first, network.second):
            layer.bn.weight.fill_(1)  # the network has no scales
    return network


class Persistent:
    """Pickles as an object whose class is stored as source code; unpickled in the ordinary way it runs that code."""

    def __init__(self, module):
        self.module = module

    def __reduce__(self):
        children = OrderedDict((name, Persistent(child)) for name, child in self.module.named_children())
        kept = ("_parameters", "_buffers", "_non_persistent_buffers_set")
        state = {**{k: self.module.__dict__[k] for k in kept}, "_modules": children, "training": False}
        meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": "D", "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def write(kind, network, path, monkeypatch):
    """The small network as the four containers have it."""
    if kind == "ports":
        torch.save(network.state_dict(), path)
    elif kind == "names":
        torch.save(Detector(network).state_dict(), path)
    elif kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(Detector(network)).save(str(path))
    else:
        package = types.ModuleType("torch_utils")
        module = types.ModuleType("torch_utils.persistence")

        def _reconstruct_persistent_obj(meta):
            raise AssertionError("the file was run")

        _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
        _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
        module._reconstruct_persistent_obj = _reconstruct_persistent_obj
        monkeypatch.setitem(sys.modules, "torch_utils", package)
        monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
        path.write_bytes(pickle.dumps(Persistent(Detector(network))))


@pytest.mark.parametrize("kind", ["ports", "names", "script", "pickle"])
def test_the_four_containers_are_one_network(small, kind, tmp_path, monkeypatch):
    path = tmp_path / "published"
    write(kind, small, path, monkeypatch)
    found = {k: v for k, v in read_published(INCEPTION, path).items() if v.is_floating_point()}
    expected = {k: v for k, v in small.state_dict().items() if v.is_floating_point()}
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    written = fetch_asset(INCEPTION.name, source=path, folder=tmp_path / "assets")
    state, about = read_weights(INCEPTION, tmp_path / "assets")
    assert written.name == "inception-2015-12-05.safetensors"
    assert about["sha256"] == content_hash(expected) == content_hash(state)
    assert about["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_wrong_files_are_named(small, tmp_path, monkeypatch):
    path = tmp_path / "published"
    write("ports", small, path, monkeypatch)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    fetch_asset(INCEPTION.name, source=path, sha256_prefix=digest[:12].upper(), folder=tmp_path)
    with pytest.raises(ValueError, match=f"has the sha256 {digest}; expected beef"):
        fetch_asset(INCEPTION.name, source=path, sha256_prefix="beef", folder=tmp_path)
    # What is known of a file belongs to its name.
    known = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.rename(known)
    with pytest.raises(ValueError, match="expected 6726825d"):
        fetch_asset(INCEPTION.name, source=known, folder=tmp_path)
    state = small.state_dict()
    torch.save({k: v for k, v in state.items() if k != "second.bn.bias"}, path)
    with pytest.raises(ValueError, match=r"lacks 1 tensors .*second\.bn\.bias"):
        read_published(INCEPTION, path)
    torch.save({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 tensors that are not the network's: \['extra'\]"):
        read_published(INCEPTION, path)
    torch.save({k: v for k, v in Detector(small).state_dict().items() if k != "layers.conv.var"}, path)
    with pytest.raises(ValueError, match=r"layers\.conv\. has no var"):
        read_published(INCEPTION, path)
    torch.save(OrderedDict(list(Detector(small).state_dict().items())[4:]), path)
    with pytest.raises(ValueError, match="expected 2 convolutions .* has 1"):
        read_published(INCEPTION, path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no weights"):
        read_published(INCEPTION, path)
    with pytest.raises(ValueError, match="no asset is called 'x'"):
        fetch_asset("x")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="is not in the cache"):
        fetch_asset(INCEPTION.name, offline=True)


def test_a_download_of_another_hash_is_not_kept(small, tmp_path, monkeypatch):
    path = tmp_path / "published"
    write("ports", small, path, monkeypatch)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    address = INCEPTION.sources[0].address
    cached = tmp_path / "cache" / cache_name(address)
    cached.parent.mkdir()
    cached.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="expected 6726825d"):
        fetch_asset(INCEPTION.name, offline=True, folder=tmp_path)
    assert not cached.exists()
    cached.write_bytes(path.read_bytes())
    fetch_asset(INCEPTION.name, sha256_prefix=hashlib.sha256(path.read_bytes()).hexdigest(), folder=tmp_path)


def test_the_hash_of_a_mirrored_file_is_known():
    """A signed address has a query behind the name of the file."""
    first = INCEPTION.sources[0]
    for source in (
        first.address,
        f"{first.address}?token=x",
        f"https://user:word@mirror/{first.file}?X-Amz-Signature=x",
    ):
        assert known_hash(INCEPTION, source) == first.sha256


def test_every_asset_has_a_source_and_a_reader():
    assert set(feature_weights.SELECT) == set(ASSETS) == set(feature_weights.NETWORKS) | set(feature_weights.PARTS)
    for asset in ASSETS.values():
        assert all(source.address.startswith("https://") for source in asset.sources)
        for source in asset.sources:  # the hash, or its beginning, which PyTorch has its files' names end in
            known = source.sha256 or ""
            assert len(known) in (0, 64) or (len(known) == 8 and source.file.endswith(f"-{known}.pth"))


def test_lpips_is_put_together_from_two_files(tmp_path):
    network = randomise(LPIPS("alex"))
    state = network.state_dict()
    backbone = {k: v for k, v in state.items() if k.startswith("features")}
    torch.save({**backbone, "classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alexnet.pth")
    lines = {f"lin{i}.model.1.weight": state[f"lin{i}"].view(1, -1, 1, 1) for i in range(5)}
    torch.save(lines, tmp_path / "alex.pth", _use_new_zipfile_serialization=False)
    assert set(read_published(ALEX, tmp_path / "alexnet.pth")) == set(backbone)
    found = read_published(LPIPS_ALEX, tmp_path / "alex.pth")
    assert torch.equal(found["lin3"], state["lin3"])
    with pytest.raises(ValueError, match="lacks 24 tensors of vgg16"):
        read_published(VGG, tmp_path / "alexnet.pth")


def test_texts_of_python_2_are_read():
    """LPIPS' own files were written with it."""
    assert read(b"\x80\x02U\x03abcT\x02\x00\x00\x00de\x86.") == ("abc", "de")
    with pytest.raises(UnsafePickle, match="truncated"):
        read(b"\x80\x02T\xff\xff\xff\xffde.")
    with pytest.raises(UnsafePickle, match="ascii"):
        read(b"\x80\x02U\x01\xff.")


def test_of_clip_the_image_tower_is_taken(tmp_path):
    torch.save({"visual.proj": torch.zeros(768, 512), "text_projection": torch.zeros(2)}, tmp_path / "ViT-B-32.pt")
    assert set(feature_weights.clip(feature_weights.published_tensors(tmp_path / "ViT-B-32.pt"))) == {"proj"}
    with pytest.raises(ValueError, match="lacks 151 tensors"):
        read_published(CLIP, tmp_path / "ViT-B-32.pt")


def repack(source, target, change):
    """A copy of an archive with members changed: change(name, data) -> data, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return target


def test_hostile_torchscript_is_refused(small, tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    write("script", small, path, monkeypatch)
    assert is_torchscript(path) and not is_torchscript(tmp_path)

    def without(part):
        return repack(path, tmp_path / "x.pt", lambda name, data: None if part in name else data)

    def with_pickle(data):
        return repack(path, tmp_path / "x.pt", lambda name, old: data if name.endswith("/data.pkl") else old)

    assert read_torchscript(without("/code/")).class_name == "Detector"  # the programs are not looked at
    with pytest.raises(UnsafePickle, match="expected one data.pkl"):
        read_torchscript(without("/data.pkl"))
    with pytest.raises(UnsafePickle, match="missing from the archive"):
        read_torchscript(without("/data/"))
    called = read_torchscript(with_pickle(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."))
    assert (called.module, called.class_name, called.arguments, called.state) == ("os", "system", ("ls",), {})
    with pytest.raises(UnsafePickle, match="expected a Record"):
        read_torchscript(with_pickle(b"\x80\x02N."))
    (tmp_path / "torn.pt").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UnsafePickle, match="damaged"):
        read_torchscript(tmp_path / "torn.pt")


def test_references_of_every_kind(tmp_path, monkeypatch):
    law = {"mu": np.zeros(3), "sigma": np.eye(3)}
    (tmp_path / "img64.pkl").write_bytes(pickle.dumps({"num_images": 7, "fid": law, "fd_dinov2": law}))
    found = open_reference(tmp_path / "img64.pkl")
    assert set(found.moments) == {("inception", "features"), ("dinov2", "features")}
    assert (found.n, found.name) == (7, "img64")
    assert torch.equal(found.moments["dinov2", "features"][1], torch.eye(3).double())
    for content, says in (
        ({"fid": {"mu": 3}}, "mean"),
        ({}, "expected fid or fd_dinov2"),
        ([], "a dict; it is a list"),
    ):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=says):
            open_reference(tmp_path / "x.pkl")
    np.savez(tmp_path / "edm.npz", **law)
    assert open_reference(tmp_path / "edm.npz").moments["inception", "features"][0].shape == (3,)
    assert open_reference("digits").n == 1797
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    address = "https://example.org/edm/fid-refs/cifar10-32x32.npz?download=1"
    (tmp_path / "edm.npz").rename(tmp_path / cache_name(address))  # fetched before
    assert open_reference(address).name == "cifar10-32x32"
    with pytest.raises(ValueError, match="no such path"):
        open_reference(tmp_path / "nothing")
