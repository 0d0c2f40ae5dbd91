"""Where models compute and in which numbers: one reading of names, one line for what is not there."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.runtime import distributed
from fewstep.runtime.distributed import as_device
from fewstep.runtime.precision import DTYPES, chosen_dtype


@pytest.fixture
def model(denoiser: Denoiser, tmp_path) -> str:
    return str(fs.save(denoiser, tmp_path / "model"))


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, of which nothing but names is used."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    yield chosen
    distributed.use(None)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "meta", "cpu:1", "CUDA", 1.5, None])
def test_what_is_no_device_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"device {name}: .*(expected cpu, cuda, cuda:N)"):
        as_device(name)


def test_hardware_that_is_not_there_is_reported_in_a_line(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(ValueError, match=r"^device cuda: this PyTorch has no CUDA \(torch 2"):
        as_device("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(ValueError, match="^device cuda:1: PyTorch finds no GPU"):
        as_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    with pytest.raises(ValueError, match="^device mps: this PyTorch has no MPS"):
        as_device("mps")


def test_gpus_by_number(two_gpus, monkeypatch):
    assert as_device("cuda:1") == as_device(torch.device("cuda:1")) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="there are 2 GPUs, cuda:0 to cuda:1"):
        as_device("cuda:2")
    distributed.use("cuda:1")
    assert distributed.device() == torch.device("cuda:1")
    assert two_gpus == [torch.device("cuda:1")]
    distributed.use("cpu")
    assert distributed.device() == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.use("cuda")
    assert distributed.device() == torch.device("cuda:1")
    with pytest.raises(ValueError, match="--device cuda:0: torchrun gives each rank a GPU of its own"):
        distributed.use("cuda:0")
    assert distributed.device() == torch.device("cuda:1")  # the usual one again


def test_mps_is_refused_where_float64_is_needed(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert as_device("mps").type == "mps"
    with pytest.raises(ValueError, match="--device mps: .* float64, which MPS lacks"):
        distributed.use("mps")


COMPUTING = [
    "demo",
    "data latents",
    "train",
    "distill",
    "compare",
    "sample",
    "restore",
    "eval",
    "eval reference",
    "eval pairs",
]


@pytest.mark.parametrize("command", COMPUTING)
def test_every_command_that_computes_takes_a_device(command, capsys):
    recipe = {"train": ["digits:teacher"], "distill": ["digits:sid"]}.get(command, [])
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), *recipe, "--help"])
    assert "--device" in capsys.readouterr().out


def test_a_device_that_is_not_there_ends_a_command_before_it_works(model, tmp_path, capsys):
    out = tmp_path / "run"
    for command in (
        ["sample", model, "--grid", str(tmp_path / "grid.png")],
        ["eval", model, "--reference", "digits"],
        ["train", "digits:teacher", "--out", str(out)],
    ):
        for name, reason in (("cuda:0", "device cuda:0: "), ("gpu", "device gpu: expected cpu, cuda")):
            assert main([*command, "--device", name]) == 2
            assert f"error: --{reason}" in capsys.readouterr().err
    assert not out.exists()
    assert (
        main(["sample", model, "--steps", "1", "--seeds", "0", "--grid", str(tmp_path / "g.png"), "--device=cpu"]) == 0
    )
    assert not distributed.CHOSEN


def test_a_model_is_loaded_where_and_as_asked(model):
    loaded = fs.load(model, device="cpu", dtype="bf16")
    assert loaded.dtype == torch.bfloat16
    assert next(loaded.parameters()).dtype == torch.float32
    x = torch.zeros(2, 1, 8, 8)
    assert loaded(x, 1.0, torch.tensor([0, 1])).dtype == torch.float32
    assert fs.load(model).dtype == torch.float32
    assert fs.load(model, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ValueError, match=r"dtype int8: networks compute in auto, float16, fp16, bfloat16"):
        fs.load(model, dtype="int8")
    with pytest.raises(ValueError, match=r"dtype torch.int64: networks compute in"):
        fs.load(model, dtype=torch.int64)
    with pytest.raises(ValueError, match="^device cuda: "):
        fs.load(model, device="cuda")
    with pytest.raises(
        ValueError, match="path: expected a model folder, a run folder or hf://owner/name; got a SongUNet"
    ):
        fs.load(loaded.net)


def test_names_of_precisions():
    assert {chosen_dtype(name) for name in DTYPES} == {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    assert chosen_dtype("auto") in (torch.float32, torch.bfloat16)
    assert chosen_dtype("fp16") == chosen_dtype("float16") == torch.float16
