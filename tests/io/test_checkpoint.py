import json
import math
import os
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.core.denoiser import Denoiser
from fewstep.core.precondition import EDM, IDDPM, VE, VP
from fewstep.io import hub, model_folder
from fewstep.io.card import Card
from fewstep.nets.extent import MEMORY_RATIO, OPERATIONS_RATIO, extent
from fewstep.nets.sizes import EDM2_SIZES, EDM_SIZES
from fewstep.nets.song import SongUNet, ncsnpp
from fewstep.runtime.files import write_tensors

NAMES = ("cat", "dog", "a\nb", *map(str, range(7)))


@pytest.mark.parametrize("precondition", [EDM(), EDM(0.3, 0.01, 90.0), VP(), VE(sigma_max=50.0), IDDPM(steps=20)])
def test_save_and_load_is_the_identity(denoiser, tmp_path, precondition):
    config = ncsnpp(
        16, label_dim=3, augment_dim=9, model_channels=16, channel_mult=(1, 2), num_blocks=1, out_channels=6
    )
    config = denoiser.net.config if precondition.sigma_data == 0.3 else config
    original = Denoiser(
        SongUNet(config), precondition=precondition, levels=(2.5, 0.7), class_names=NAMES[: config.label_dim]
    )
    card = Card(name="it", method="by hand", nimg=3, lineage=["a", "b"], license="CC BY-NC-SA 4.0", data={"name": "d"})
    model_folder.save(original, tmp_path / "model", card)
    loaded = model_folder.load(tmp_path / "model")
    assert loaded.net.config == config
    assert loaded.precondition == precondition
    assert loaded.levels == (2.5, 0.7)
    assert loaded.class_names == original.class_names == NAMES[: config.label_dim]
    assert not loaded.training
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), original.state_dict().values(), strict=True)
    )
    assert model_folder.card(tmp_path / "model") == card
    text = (tmp_path / "model" / "README.md").read_text()
    assert "CC BY-NC-SA 4.0" in text
    assert "a <- b" in text
    assert card.student("SiD").license == card.license
    assert card.student("SiD").lineage == ["it", "a", "b"]


def test_a_run_folder_means_its_newest_snapshot(denoiser, tmp_path):
    for nimg in (8, 16):
        model_folder.save(denoiser, tmp_path / "run" / "snapshots" / f"{nimg:012d}", Card(nimg=nimg))
    (tmp_path / "run" / "snapshots" / "000000000024").mkdir()  # being written elsewhere
    assert model_folder.card(tmp_path / "run").nimg == 16


def broken(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        part = config
        *keys, last = path.split("__")
        for key in keys:
            part = part[key]
        part[last] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not the configuration of a model"),
        ({"version": 99}, "version 99"),
        ({"network__kind": "os.system"}, "expected one of .*SongUNet|expected one of .*SongConfig"),
        ({"network__nonsense": 1}, "no option nonsense"),
        ({"network__model_channels": "many"}, "expected int; got 'many'"),
        ({"network__img_resolution": 7}, "not divisible"),
        ({"network__label_dim": 11}, r"net.map_label.weight has shape \(8, 10\), not \(8, 11\)"),
        ({"network__num_blocks": 2}, "missing net.enc.8x8_block1"),
        ({"class_names": ["a"] * 9}, "expected the names of 10 classes; got"),
        ({"class_names": [1] * 10}, "expected the names of 10 classes; got"),
        ({"precondition__kind": "X"}, "expected one of EDM, Boundary, VP, VE, IDDPM"),
    ],
)
def test_a_wrong_configuration_is_named(denoiser, tmp_path, change, message):
    model_folder.save(denoiser, tmp_path / "m")
    broken(tmp_path / "m", **change)
    with pytest.raises(ValueError, match=message):
        model_folder.load(tmp_path / "m")


def test_what_is_not_a_model_is_refused(denoiser, tmp_path):
    with pytest.raises(ValueError, match="missing"):
        model_folder.load(tmp_path / "nowhere")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"can run code when it is loaded; convert it first: fewstep convert"):
        model_folder.load(tmp_path / "a.pkl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a model"):
        model_folder.load(tmp_path / "empty")
    folder = model_folder.save(denoiser, tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        model_folder.load(folder)
    weights.write_bytes(whole)
    save_file({**load_file(weights), "stranger": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="unexpected stranger"):
        model_folder.load(folder)
    (folder / "config.json").write_text("{torn")
    with pytest.raises(ValueError, match="not readable as JSON"):
        model_folder.load(folder)


def test_saving_over_a_model_is_complete_or_not_at_all(denoiser, tmp_path, monkeypatch):
    folder = model_folder.save(denoiser, tmp_path / "m", Card(name="first"))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fewstep.io.model_folder.write_tensors", full)
        with pytest.raises(OSError, match="No space"):
            model_folder.save(denoiser, folder, Card(name="second"))
    assert model_folder.card(folder).name == "first"
    model_folder.load(folder)
    model_folder.save(denoiser, folder, Card(name="second"))
    assert model_folder.card(folder).name == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_is_no_model_is_not_replaced(denoiser, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run holds run\.json, which would be lost; choose another folder"):
        model_folder.save(denoiser, folder)
    assert [p.name for p in tmp_path.rglob("*")] == ["run", "run.json"]


def test_weights_can_be_read_by_whom_the_folder_can(denoiser, tmp_path):
    before = os.umask(0o027)
    try:
        folder = model_folder.save(denoiser, tmp_path / "m")
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()}
    assert modes == dict.fromkeys(hub.FILES, 0o640)


def test_infinite_range_survives_json(denoiser, tmp_path):
    folder = model_folder.save(denoiser, tmp_path / "m")
    json.loads((folder / "config.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert model_folder.load(folder).sigma_max == math.inf


def test_a_file_that_cannot_grow_is_an_error_of_the_system(tmp_path):
    """As on a full disk, here by a limit on the size of files."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"x\.safetensors: could not be written"):
            write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(4000)}, metadata={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def rewritten(folder, change):
    """A model folder whose tensors are changed."""
    weights = folder / "model.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(weights).items()}, weights)
    return folder


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int32, "int32"),
        (torch.complex64, "complex64"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
        (torch.bool, "bool"),
    ],
)
def test_weights_of_types_without_arithmetic_are_refused(denoiser, tmp_path, dtype, name):
    folder = rewritten(model_folder.save(denoiser, tmp_path / "m"), lambda tensor: tensor.to(dtype))
    with pytest.raises(ValueError, match=f"expected weights of float64, float32, float16, bfloat16; .* is {name} "):
        model_folder.load(folder)


def test_empty_weights_are_refused(denoiser, tmp_path):
    folder = rewritten(model_folder.save(denoiser, tmp_path / "m"), lambda tensor: tensor.new_empty((0, *tensor.shape)))
    with pytest.raises(ValueError, match=r"expected weights of .* is float32 \(0, "):
        model_folder.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network__img_resolution": 2**15}, "the file declares a network that takes about .* MiB and"),
        ({"network__img_resolution": 2**10, "network__attn_resolutions": [2**10]}, "takes about .* operations"),
        ({"network__in_channels": 2**17, "network__img_resolution": 64}, "takes about .* MiB"),
        ({"network__in_channels": 10**30}, "in_channels is out of any range"),
        ({"network__attn_resolutions": [1] * 100}, "attn_resolutions is out of any range"),
        ({"network__channel_mult": [1, "2"]}, "expected int; got '2'"),
        ({"network": {"kind": "EDM2Config", "img_resolution": 8, "res_balance": 1e308}}, "shares from 0 to 1"),
        ({"network": {"kind": "EDM2Config", "img_resolution": 8, "normalizations": 10**6}}, "1 to 16 normalizations"),
        ({"network": {"kind": "EDM2Config", "img_resolution": 8, "clip_act": 1e308}}, "clip_act bounds activations"),
        ({"network": {"kind": "EDM2Config", "img_resolution": 8, "clip_act": -1.0}}, "above 0 and at most 65504"),
        ({"network__resample_filter": [1]}, r"an even number of taps with a sum other than 0; got \(1.0,\)"),
        ({"network__resample_filter": [1, -1]}, r"an even number of taps with a sum other than 0; got \(1.0, -1.0\)"),
        ({"network__model_channels": 0}, "at least one pixel and channel"),
        ({"network__dropout": float("nan")}, "expected float; got nan"),
        ({"network__encoder_type": "other"}, "expected .*Literal.*; got 'other'"),
        ({"precondition": {"kind": "IDDPM", "steps": 10**9}}, "iDDPM has 2 to 100000 steps; got 1000000000"),
        ({"levels": [1.0] * 1001}, "expected at most 1000 levels > 0"),
        ({"levels": [0.0]}, "expected at most 1000 levels > 0"),
        ({"levels": [10**400]}, "there is no network of this configuration"),
        ({"network": {"kind": "SongConfig", "x": [[0] * 1000] * 100}}, r"has no option x"),
        ({"card__lineage": [1]}, r"the lineage of the card is a list of names; got \[1\]"),
        ({"card__metrics": [{"metric": "fid"}]}, "expected metrics of the card with their value and n"),
    ],
)
def test_what_loads_can_be_sampled(denoiser, tmp_path, change, message):
    """No network is larger than its file can mean, and no entry of another type is found out later."""
    model_folder.save(denoiser, tmp_path / "m")
    broken(tmp_path / "m", **change)
    read = model_folder.card if any(name.startswith("card") for name in change) else model_folder.load
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "m")


def test_configurations_have_a_length(denoiser, tmp_path):
    broken(model_folder.save(denoiser, tmp_path / "m"), card__method="x" * 2**20)
    for read in (model_folder.load, model_folder.card):
        with pytest.raises(ValueError, match="config.json: expected at most 1048576 bytes; got"):
            read(tmp_path / "m")


def test_every_published_network_is_far_from_the_bounds():
    for config in {*(EDM_SIZES | EDM2_SIZES).values()}:
        with torch.device("meta"):
            state = model_folder.NETWORKS[type(config)](config).state_dict()
        memory, operations = extent(config)
        size = sum(tensor.nbytes for tensor in state.values())
        assert memory < MEMORY_RATIO * size / 500 and operations < OPERATIONS_RATIO * size / 70


def test_a_model_outlives_its_file(denoiser, tmp_path):
    """Weights that were a part of the file's map would end the process."""
    weights = model_folder.save(denoiser, tmp_path / "m") / "model.safetensors"
    loaded = model_folder.load(tmp_path / "m")
    os.truncate(weights, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), denoiser.state_dict().values(), strict=True)
    )
