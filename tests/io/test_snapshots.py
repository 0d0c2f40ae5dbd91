"""Snapshots and training states as the authors' training loops write them: which network is read, and that it computes the
same.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.core.codec import Pixels
from fewstep.core.conditional import GenerativeDenoiser
from fewstep.data.codec import StabilityVAE
from fewstep.distill.adversarial import encoder_logits
from fewstep.io import model_folder
from fewstep.io.convert import convert, load_snapshot, to_denoiser
from fewstep.io.convert.snapshot import Kind, UpstreamSnapshot, parse_snapshot
from fewstep.io.export import upstream_state_dict
from fewstep.io.unpickle import Record, read
from tests import GOLDEN

BARE: dict[str, Kind] = {"snap-sid.pkl": "student", "snap-sid-adm.pkl": "student"}
"""Whose kind the file does not tell."""
WITHOUT_ARCHITECTURE = {
    *("snap-edm2-latent-state.pt", "snap-ncvsd-img64-state.pt", "snap-sida-state.pt", "snap-sida-edm2-state.pt"),
}
FILES = sorted(p.name for p in GOLDEN.glob("snap-*") if p.suffix != ".npz")
READABLE = [name for name in FILES if name not in WITHOUT_ARCHITECTURE]


@cache
def content(name: str) -> object:
    """The content of a file, read once for all tests, which do not change it."""
    return read(GOLDEN / name)


def loaded(name: str, network: str | None = None) -> UpstreamSnapshot:
    return parse_snapshot(content(name), network=network, where=name)


def arrays(name: str) -> dict[str, Tensor]:
    with np.load((GOLDEN / name).with_suffix(".npz")) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def outputs(name: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What our networks answer, by the names of the reference's answers."""
    first = to_denoiser(loaded(name), kind=BARE.get(name))
    x, sigma, label = given["x"], given["sigma"], given["labels"].long() if first.num_classes else None
    level = given.get("level", torch.zeros(()))
    found: dict[str, Tensor] = {}
    if isinstance(first, GenerativeDenoiser):
        assert first.levels == (level.item(),)
        z = given["student_z"]
        found["student_out"] = first.draw(x, sigma, z, label)
        found["one_step"] = first.draw(level * given["z"], level, z, label)
        found["logvar"] = first.log_variance(sigma)
        return found
    found["denoised"] = first(x, sigma, label)
    found["logits"] = encoder_logits(first.encode(x, sigma, label))
    if first.uncertainty is not None:
        found["logvar"] = first.log_variance(sigma)
    if level:
        assert first.levels == (level.item(),)
        found["one_step"] = first(level * given["z"], level, label)
    others = {"net_denoised": "net", "fake_denoised": "fake_score", "g_one_step": "G", "g_ema_one_step": "G_ema"}
    for key, entry in others.items():
        if key in given:
            other = to_denoiser(loaded(name, entry), kind=BARE.get(name))
            generates = key.endswith("one_step")
            assert (other.levels is not None) == generates
            found[key] = other(level * given["z"], level, label) if generates else other(x, sigma, label)
    return found


# the reference values of one-step students are at all noise levels, too
@pytest.mark.filterwarnings("ignore:.*up to which this model was trained")
@pytest.mark.parametrize("name", READABLE)
@torch.no_grad()
def test_a_file_computes_what_the_original_computes(name):
    """To 5e-6 of the largest value; the original's hooks are a part of it.

    Files in float16 are computed in float32, gains included, as the original does after a cast ("as_loaded": without it).
    """
    given = arrays(name)
    found = outputs(name, given)
    inputs = {"x", "sigma", "labels", "z", "level", "student_z", "in_std", "out_std", "nimg", "coefs"}
    expected = {key for key in given if key not in inputs and not key.endswith(("without_hooks", "as_loaded"))}
    assert expected and expected <= set(found)
    for key in expected:
        error = (found[key].flatten() - given[key].flatten()).abs().max() / given[key].abs().max()
        assert error < 5e-6, f"{key}: {error:.2g}"


@pytest.mark.parametrize("name", READABLE)
def test_every_bit_and_name_survives_a_model_folder(name, tmp_path):
    original = loaded(name).state
    model_folder.save(to_denoiser(loaded(name), kind=BARE.get(name)), tmp_path / "m")
    back = upstream_state_dict(model_folder.load(tmp_path / "m"))
    assert list(back) == list(original)
    assert all(back[key].dtype == value.dtype and torch.equal(back[key], value) for key, value in original.items())


@pytest.mark.filterwarnings("ignore:.*up to which this model was trained")
@torch.no_grad()
def test_weights_are_normalised_twice_where_a_hook_does_it(tmp_path):
    """SiDA pickles a hook with a layer in training mode; without it the eps of the normalisation counts once."""
    name = "snap-sid2a-edm2.pkl"
    given = arrays(name)
    found = loaded(name)
    assert found.normalizations == 2
    assert loaded("snap-sida-edm2-teacher.pkl").normalizations == 1  # its hooks are in evaluation mode
    x, sigma, label = given["x"], given["sigma"], given["labels"].long()

    def distance(answer: Tensor, key: str) -> float:
        return float((answer - given[key]).abs().max() / given[key].abs().max())

    once = to_denoiser(dataclasses.replace(found, normalizations=1))(x, sigma, label)
    assert distance(once, "denoised_without_hooks") < 5e-6
    assert distance(once, "denoised") > 1e-5
    model_folder.save(to_denoiser(found), tmp_path / "m")
    assert distance(model_folder.load(tmp_path / "m")(x, sigma, label), "denoised") < 5e-6
    head = dataclasses.replace(loaded("snap-sida-edm2-teacher.pkl"), normalizations=2)
    model_folder.save(to_denoiser(head), tmp_path / "n")
    assert model_folder.load(tmp_path / "n").uncertainty.linear.normalizations == 2  # type: ignore[union-attr]  # it has one


@pytest.mark.parametrize("name", sorted(WITHOUT_ARCHITECTURE))
def test_a_state_without_architecture_names_the_snapshot_beside_it(name, tmp_path):
    state = tmp_path / "training-state-000512.pt"
    shutil.copy(GOLDEN / name, state)
    with pytest.raises(
        ValueError, match=r"tensors without an architecture .*with it: network-snapshot-\*000512\*\.pkl"
    ):
        convert(state)
    for other in ("network-snapshot-1.000000-000512.pkl", "network-snapshot-1.000000-000256.pkl"):
        (tmp_path / other).touch()
    with pytest.raises(ValueError, match=r"it: \S*network-snapshot-1\.000000-000512\.pkl$"):
        convert(state)


def test_the_network_can_be_chosen(capsys):
    path = GOLDEN / "snap-sid-state.pt"
    averaged = loaded("snap-sid-state.pt")
    assert averaged.entry == "G_ema"
    assert loaded("snap-gdd.pkl").entry == "ema"
    raw = loaded(path.name, "G")
    assert not torch.equal(raw.state["model.map_layer0.weight"], averaged.state["model.map_layer0.weight"])
    assert raw.notes == ("the network G, which is not averaged over training",)
    assert averaged.notes == ()
    with pytest.raises(ValueError, match="has no network 'D'; its networks are G_ema, G, fake_score$"):
        load_snapshot(path, "D")
    assert convert(GOLDEN / "snap-edm-state.pt")[1].entry == "net"


# Teacher or student


@pytest.mark.parametrize(
    "name",
    [
        *("network-snapshot-1.200000-403968.pkl", "network-snapshot-1.200000-403968.pkl?download=true"),
        *("network-snapshot--1.200000-1000448.pkl", "network-snapshot-1.200000-001024 (1).pkl", "net.pkl"),
        *("edm-cifar10-32x32-uncond-vp.pkl", "edm-cifar10-32x32-uncond-vp.pkl?download=true"),
    ],
)
def test_a_bare_network_is_asked_about_whatever_its_name(name, tmp_path):
    """SiD saves a student as EDM's bare network: neither the file nor its name can tell."""
    path = tmp_path / name
    shutil.copy(GOLDEN / "snap-sid.pkl", path)
    with pytest.raises(ValueError, match="holds a bare EDMPrecond, .* --kind teacher or --kind student") as refusal:
        convert(path)
    assert ("its name looks like that of a SiD student" in str(refusal.value)) == ("snapshot" in name)
    student, origin = convert(path, kind="student")
    assert student.levels == (2.5,)
    assert "inherit" in origin.license


def test_a_bare_network_is_what_the_caller_says():
    bare = loaded("snap-sid.pkl")
    assert to_denoiser(bare, levels=(2.5, 0.5)).levels == (2.5, 0.5)
    assert to_denoiser(bare, kind="teacher").levels is None


@pytest.mark.parametrize(
    "source",
    [
        "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-cond-vp.pkl",
        "https://elsewhere.org/edm-ffhq-16x16-cond-vp.pkl?download=true",
        "edm-ffhq-16x16-cond-vp (1).pkl",
    ],
)
def test_teachers_from_nvidia_are_known(source):
    """By the address, or by a published name whose resolution, classes and architecture are those of the network."""
    path = GOLDEN / "edm-ddpmpp-cond.pkl"
    teacher, origin = convert(path, source=source)
    assert teacher.levels is None
    assert origin.license.startswith("CC BY-NC-SA 4.0 (NVIDIA)")
    assert "?" not in origin.source


@pytest.mark.parametrize("name", ["edm-ffhq-16x16-uncond-vp", "edm-ffhq-16x16-cond-ve", "edm-ffhq-32x32-cond-vp"])
def test_a_published_name_on_another_network_proves_nothing(name):
    with pytest.raises(ValueError, match="say which it is"):
        convert(GOLDEN / "edm-ddpmpp-cond.pkl", source=f"{name}.pkl")
    with pytest.raises(ValueError, match="say which it is"):
        convert(GOLDEN / "edm-ddpmpp-cond.pkl", source="https://nvlabs-fi-cdn.nvidia.com.evil.org/x.pkl")


def test_secrets_of_an_address_stay_out_of_the_provenance():
    source = "https://me:secret@example.org/a/snap.pkl?token=secret#secret"
    _, origin = convert(GOLDEN / "snap-sida.pkl", source=source)
    assert origin.source == "https://example.org/a/snap.pkl"


def test_what_the_file_says_of_its_kind():
    kinds = {name: loaded(name).kind for name in READABLE}
    students = {name for name, kind in kinds.items() if kind == "student"}
    of_methods = {name for name in READABLE if name.startswith(("snap-si", "snap-gdd", "snap-ncvsd"))}
    assert students == of_methods - {*BARE, "snap-sida-edm2-teacher.pkl"}
    assert {name for name, kind in kinds.items() if kind is None} == set(BARE)
    content = read(GOLDEN / "snap-edm-ddpmpp.pkl")
    assert isinstance(content, dict)
    content["loss_fn"].class_name = "SID_EDMLoss"
    assert parse_snapshot(content).kind is None


def test_a_kind_that_contradicts_the_file_is_refused():
    with pytest.raises(ValueError, match="holds a GDDPrecond, which is a student's class; leave the kind out"):
        convert(GOLDEN / "snap-gdd.pkl", kind="teacher")
    with pytest.raises(ValueError, match="only students have noise levels"):
        convert(GOLDEN / "snap-sid.pkl", kind="teacher", levels=(2.5,))
    with pytest.raises(ValueError, match=r"for which no students are known; give the noise levels .*: --levels"):
        convert(GOLDEN / "snap-edm2-rgb.pkl", kind="student")
    assert (
        convert(GOLDEN / "snap-sida.pkl", kind="teacher")[0].levels is None
    )  # SiDA's teachers have the student's class


# What lies beside the network


def test_latents_are_known_by_their_shape():
    """SiD's students of EDM2 name no encoder: 4 or 8 channels at 64 x 64 are latents."""
    for channels, resolution, codec in (
        (4, 64, StabilityVAE()),
        (8, 64, StabilityVAE()),
        (3, 64, Pixels()),
        (4, 32, Pixels()),
    ):
        content = read(GOLDEN / "snap-sid-edm2.pkl")
        assert isinstance(content, dict)
        options = content["ema"].state["_modules"]["unet"].state["_init_kwargs"]
        options |= {"img_channels": channels, "img_resolution": resolution}
        found = parse_snapshot(content)
        assert found.codec == codec
        assert ("latents of stabilityai/sd-vae-ft-mse" in " ".join(found.notes)) == (codec == StabilityVAE())
    published = loaded("snap-edm2-latent.pkl")
    assert isinstance(published.codec, StabilityVAE)
    assert published.notes == ()


def test_anything_may_lie_beside_a_network(tmp_path, monkeypatch):
    """Only the network matters: plain classes, hooks, random states, paths, functions and calls are read and ignored."""
    import collections
    import functools
    import random
    import sys
    import types

    module = types.ModuleType("their_training")
    exec(
        "class Plain:\n def __init__(self): self.a = {1.5: (1, 2), None: 3, (4, 5): 6}\n"
        "class Listed(list): pass\nclass Mapped(dict): pass\nclass Slotted:\n __slots__ = ('a',)\n"
        "class New:\n def __new__(cls, *, n): return object.__new__(cls)\n def __getnewargs_ex__(self): return (), {'n': 1}\n",
        module.__dict__,
    )
    parts: Any = module
    for name in ("Plain", "Listed", "Mapped", "Slotted", "New"):
        getattr(parts, name).__module__ = "their_training"
    monkeypatch.setitem(sys.modules, "their_training", module)
    slotted = parts.Slotted()
    slotted.a = 1
    plain, counted = parts.Plain(), collections.defaultdict(list, a=[1])
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    beside = {
        "objects": [plain, parts.Listed([1, 2]), parts.Mapped(a=1), slotted, parts.New(n=1)],
        "python": [counted, collections.Counter("abc"), collections.deque([1], 3), functools.partial(print, 1), len, range(3)],
        "more": [Path("a/b"), frozenset({(1, 2), "a"}), complex(1, 2), slice(1), b"abc", bytearray(b"x"), random.getstate()],
        "numpy": [np.random.RandomState(0), np.random.default_rng(0), np.array(["a", None], dtype=object), np.array(["text"])],
        "scalars": [np.bool_(True), np.str_("x"), np.complex64(1j), np.datetime64("2024-01-01"), np.ma.array([1.0], mask=[True])],
        "torch": [torch.device("cuda", 1), torch.Size([1]), torch.float16, torch.tensor([True]),
                  torch.tensor([1j]), torch.zeros(2).to_sparse(), torch.zeros(2, dtype=torch.float8_e5m2)],
        "modules": [torch.nn.ParameterList([torch.ones(1)]), torch.nn.BatchNorm2d(2), optimizer, optimizer.state_dict()],
        "bound": [plain.__init__, counted.keys, net.forward],
    }  # fmt: skip
    for version in (2, 4, 5):
        marked = tmp_path / f"{version}.pkl"
        marked.write_bytes(pickle.dumps(beside, version))
        found = read(marked)
        assert isinstance(found, dict)
        assert found.keys() == beside.keys()
        first = found["objects"][0]
        assert isinstance(first, Record) and (first.module, first.class_name) == ("their_training", "Plain")
        assert found["scalars"][0] is True
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pt"
        torch.save(beside, path, _use_new_zipfile_serialization=zipped)
        assert read(path).keys() == beside.keys()  # type: ignore[union-attr]  # a dict, as it was saved


# Bounds of options


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("snap-edm-ddpmpp.pkl", {"attn_resolutions": []}),
        ("snap-edm-ddpmpp.pkl", {"resample_filter": [1.0, 3.0, 3.0, 1.0]}),
        ("snap-edm-ddpmpp.pkl", {"resample_filter": [-1, 3, 3, -1]}),
        ("snap-edm-ddpmpp.pkl", {"resample_filter": [0.5, 0.5]}),
        ("snap-edm-ddpmpp.pkl", {"dropout": 1}),
        ("snap-edm-ddpmpp.pkl", {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1]}),
        ("snap-edm-ddpmpp.pkl", {"in_channels": 1, "out_channels": 1, "label_dim": 0, "augment_dim": 0}),
        ("snap-edm-adm.pkl", {"model_channels": 96, "channel_mult": (1, 2, 3), "attn_resolutions": [16, 8, 4]}),
        ("snap-edm2-rgb.pkl", {"clip_act": None}),
        ("snap-edm2-rgb.pkl", {"resample_filter": [1, 3, 3, 1]}),
        ("snap-edm2-rgb.pkl", {"channel_mult_noise": 1, "channel_mult_emb": 3, "img_channels": 1, "model_channels": 7}),
        ("snap-edm2-rgb.pkl", {"res_balance": 0, "attn_balance": 0.5, "label_balance": 1, "concat_balance": 0.3}),
    ],
)
def test_every_legal_option_builds_a_network_that_is_kept(name, options, tmp_path):
    """The options alone: their tensors are new."""
    from fewstep.io.convert.networks import build_network

    found = loaded(name)
    net = build_network(
        dataclasses.replace(found, options={**found.options, **options}),
        dict.fromkeys(map(str, range(1000)), torch.zeros(1)),
    )
    from fewstep.core.denoiser import Denoiser

    original = Denoiser(net).eval()
    model_folder.save(original, tmp_path / "m")
    again = model_folder.load(tmp_path / "m")
    x = torch.randn(2, *original.shape)
    label = torch.tensor([0, 1]) if original.num_classes else None
    with torch.no_grad():
        assert torch.equal(again(x, 1.0, label), original(x, 1.0, label))
    assert original.train()(x, 1.0, label).isfinite().all()


@pytest.mark.parametrize("taps", [[], [1], [1, 2, 1], [1, -1], [1, "1"], [1, math.nan], 3, [True, True]])
def test_filters_that_no_network_has_are_refused(taps):
    found = loaded("snap-edm-ddpmpp.pkl")
    with pytest.raises(ValueError, match="resample_filter of the network is not an even number of taps"):
        to_denoiser(dataclasses.replace(found, options={**found.options, "resample_filter": taps}))


@torch.no_grad()
def test_edm2_resamples_with_any_filter():
    """Against the sums written out: a separable filter whose taps sum to 1 on the way down, to 2 on the way up."""
    from fewstep.nets.edm2 import resample

    x = torch.arange(8.0).expand(1, 2, 8, 8)
    down = resample(x, (1, 3, 3, 1), up=False)[0, 0, 2]
    torch.testing.assert_close(down[1:3], torch.tensor([2.5, 4.5]))
    assert down[0] == (0 * 3 + 1 * 3 + 2) / 8
    up = resample(x, (1, 3, 3, 1), up=True)[0, 0, 4]
    torch.testing.assert_close(up[1:5], torch.tensor([0.25, 0.75, 1.25, 1.75]))
    for direction in (True, False):
        torch.testing.assert_close(resample(x, (2, 2), up=direction), resample(x, (1, 1), up=direction))


def test_tensors_that_overlap_are_refused():
    """Views of one storage cost a file nothing; each would be copied."""
    content = read(GOLDEN / "snap-edm-noattention.pkl")
    assert isinstance(content, dict)
    blocks = content["ema"].state["_modules"]["model"].state["_modules"]["enc"].state["_modules"]
    base = torch.randn(256, 256)
    for block in blocks.values():
        if "conv0" in block.state["_modules"]:
            block.state["_modules"]["conv0"].state["_parameters"]["weight"] = base.t()
    with pytest.raises(ValueError, match="the tensors overlap"):
        parse_snapshot(content)
