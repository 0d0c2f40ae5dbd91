"""The command line as a stranger uses it: what works, and what a mistake says."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fewstep.cli import main
from fewstep.cli.arguments import parse_seeds
from fewstep.cli.dispatch import COMMANDS
from fewstep.core.denoiser import Denoiser
from fewstep.data import images
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.metrics.protocol import show_seeds
from fewstep.train.trainer import Trainer
from tests import GOLDEN
from tests.conftest import tiny_net


@pytest.fixture
def model(denoiser, tmp_path):
    return str(model_folder.save(denoiser, tmp_path / "model", Card(name="tiny")))


def fails(capsys, *argv: str) -> str:
    """Run a command that must fail with exit code 2; returns its one line."""
    capsys.readouterr()
    try:
        code = main(list(argv))
    except SystemExit as stop:  # the parser's own errors
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_seeds():
    assert parse_seeds("1,2,5-10") == [1, 2, 5, 6, 7, 8, 9, 10]
    assert show_seeds(parse_seeds("1,2,5-10")) == "1-2,5-10"
    assert show_seeds([3]) == "3"
    for bad in ("5-2", "a", "1-", "-3", "", "1,,2"):
        with pytest.raises(ValueError, match="seeds"):
            parse_seeds(bad)
    for many in ("0-9999999999", "0-5000000,1-5000000"):
        with pytest.raises(ValueError, match="at most 10,000,000 seeds"):
            parse_seeds(many)


def test_train_distill_sample_eval_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits:teacher", "--until", "256", "--out", "runs/teacher"]) == 0
    assert "digits: 1,797 images of shape (1, 8, 8), 10 classes: 0, 1, 2, 3, 4, ...\n" in capsys.readouterr().out
    config = tmp_path / "sid.yaml"
    config.write_text("until: 512\nalpha: 1.0\n")
    distill = ["distill", "digits:sid", "--config", "sid.yaml", "--teacher", "runs/teacher", "--until", "128"]
    assert main([*distill, "--out", "runs/sid"]) == 0
    record = json.loads((tmp_path / "runs/sid/run.json").read_text())
    assert record["command"].startswith("fewstep distill digits:sid --config sid.yaml")
    assert record["identity"]["method"]["alpha"] == 1.0
    assert model_folder.card("runs/sid").nimg == 128  # the flag overrides the file
    assert model_folder.card("runs/sid").lineage == ["teacher"]
    assert model_folder.load("runs/sid").class_names == tuple("0123456789")  # as of the data

    assert (
        main(["sample", "runs/sid", "--seeds", "0-3,9", "--out", "images", "--grid", "grid.png", "--class", "3"]) == 0
    )
    names = sorted(os.listdir("images"))
    assert names == ["000000.png", "000001.png", "000002.png", "000003.png", "000009.png"]
    assert pixels("images/000009.png").shape == (8, 8)
    assert main(["sample", "runs/sid", "--seeds", "9", "--out", "again", "--class", "3"]) == 0
    assert np.array_equal(pixels("images/000009.png"), pixels("again/000009.png"))

    measure = ["eval", "runs/sid", "--reference", "digits", "--metrics", "fd_pixels", "--seeds", "0-19"]
    assert main([*measure, "--json", "result.json"]) == 0
    assert main(["eval", "images", "--reference", "digits", "--metrics", "fd_pixels"]) == 0
    [result] = json.loads((tmp_path / "result.json").read_text())
    assert (result["metric"], result["n"], result["protocol"]["nfe"]) == ("fd_pixels", 20, 1)
    assert main(["report", "runs"]) == 0
    assert "</html>" in (tmp_path / "runs/report.html").read_text()

    assert main(["train", "digits:teacher", "--until", "256", "--out", "runs/teacher"]) == 0  # finished: nothing to do
    error = fails(capsys, "train", "digits:teacher", "--until", "256", "--lr", "1e-4", "--out", "runs/teacher")
    assert "another configuration" in error
    assert "optimizers.denoiser.lr was 0.003, is 0.0001" in error
    assert "--fresh" in error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "a step in micro-batches of 128 images does not fit into the memory of cpu",
        ),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_a_lack_of_memory_is_told_in_a_line(error, told, tmp_path, monkeypatch, capsys):
    def step(trainer):
        raise error

    monkeypatch.setattr(Trainer, "step", step)
    assert main(["train", "digits:teacher", "--until", "128", "--out", str(tmp_path / "run")]) == 2
    assert f"fewstep: error: {told}" in capsys.readouterr().err


def test_own_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import fewstep as fs\n\n\n"
        'def mine(*, width: int = 3):\n    """My run.\n\n    Args:\n        width: of it.\n    """\n'
        "    return fs.recipes.get('digits:teacher', until=128 * width).run()\n"
    )
    assert main(["train", "mine.py:mine", "--width", "1", "--out", "run"]) == 0
    assert model_folder.card("run").nimg == 128
    assert "has no function 'other'; it has mine" in fails(capsys, "train", "mine.py:other", "--out", "x")
    assert "missing" in fails(capsys, "train", "nowhere.py:f", "--out", "x")


def test_data_commands(tmp_path, capsys):
    folder = tmp_path / "photos"
    for i in range(4):
        (folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 16, 3), 60 * i, np.uint8)).save(folder / f"class{i % 2}" / f"{i}.png")
    assert "mixed" not in fails(capsys, "data", "pack", str(folder), str(tmp_path / "x.zip"))  # not square: a transform
    packed = str(tmp_path / "photos.zip")
    assert main(["data", "pack", str(folder), packed, "--resolution", "8x8", "--transform", "center-crop"]) == 0
    assert "4 images, 3x8x8" in capsys.readouterr().out
    assert main(["data", "stats", packed]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4
    assert main(["data", "check", packed]) == 0
    (folder / "class0" / "bad.png").write_bytes(b"no image")
    assert "bad.png: expected one intact image of 8 bits per channel; the content is not an image" in fails(
        capsys, "data", "check", str(folder)
    )


def test_recipes_are_listed_with_help(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    assert "digits:teacher" in text
    assert "digits:sid" in text
    with pytest.raises(SystemExit) as stop:
        main(["recipes", "digits:sid"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--alpha" in text
    assert "Model or run folder of the teacher" in text
    assert "repeat the command to resume it" in text


@pytest.mark.parametrize("command", [*(c for c in COMMANDS if c not in ("train", "distill")), "train digits:teacher"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--help" in text
    assert "unset)" not in text
    assert "(default: False)" not in text


def test_mistakes_are_one_line_and_exit_code_2(model, tmp_path, capsys):
    assert "is empty; did you mean 2-5?" in fails(capsys, "sample", model, "--seeds", "5-2", "--grid", "g.png")
    assert "no output: give --out" in fails(capsys, "sample", model)
    assert "the classes of this model are 0 to 9; got 12" in fails(
        capsys, "sample", model, "--class", "12", "--grid", f"{tmp_path}/g.png"
    )
    assert not (tmp_path / "g.png").exists()
    assert "is missing" in fails(capsys, "sample", f"{tmp_path}/none", "--grid", "g.png")
    assert "no recipe 'digits:gan'; did you mean digits:gdd, digits:sida or digits:gddi?" in fails(
        capsys, "train", "digits:gan", "--out", "x"
    )
    assert "no recipe 'gddi'; did you mean digits:gddi, " in fails(capsys, "distill", "gddi", "--out", "x")
    assert "fewstep recipes lists them" in fails(capsys, "train")
    assert "there is no command 'trian'" in fails(capsys, "trian")
    assert "--until" in fails(capsys, "train", "digits:teacher", "--untill", "3", "--out", "x")
    assert "--lrr" in fails(capsys, "train", "digits:teacher", "--lrr", "3", "--out", "x")
    bad = tmp_path / "bad.yaml"
    bad.write_text("lrr: 3\n")
    assert "lrr" in fails(capsys, "train", "digits:teacher", "--config", str(bad), "--out", "x")
    bad.write_text("- 3\n")
    assert "must map options to values" in fails(capsys, "train", "digits:teacher", "--config", str(bad), "--out", "x")
    assert "None.yaml" in fails(capsys, "train", "digits:teacher", "--config", "None.yaml", "--out", "x")
    error = fails(capsys, "train", "digits:teacher", "--data", f"{tmp_path}/none.zip", "--out", f"{tmp_path}/x")
    assert "none.zip" in error
    assert not (tmp_path / "x").exists()
    broken = tmp_path / "photos"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert "a.png" in fails(capsys, "eval", model, "--reference", str(broken))


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("data pack", "[OPTIONS] SOURCE DEST"),
        ("convert", "[-h] [OPTIONS] SOURCE OUT"),
        ("compare", "TEACHER METHODS ..."),
        ("recipes", "[-h] [NAME]"),
    ],
)
def test_help_names_what_has_no_flag(command, names, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert names in capsys.readouterr().out.splitlines()[0]


def test_explanations_are_paragraphs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    words = {
        "eval": "kd_, pr_, dc_ with",
        "sample": "without a class (classifier-free guidance)",
        "train digits:teacher": "a number N recomputes all blocks",
    }
    for command, explanation in words.items():
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        assert explanation in capsys.readouterr().out


def test_groups_are_listed_in_columns(capsys):
    assert main(["data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines}) == 1


def test_settings_that_make_no_run_leave_no_folder(model, tmp_path, capsys):
    wrong = {"--until=0": "until must be at least 1; got 0", "--batch-size=0": "batch_size must be at least 1; got 0"}
    wrong |= {"--batch-size=-4": "got -4", "--keep=0": "keep must be at least 1", "--recompute=0": "recompute must be"}
    wrong |= {
        "--lr=nan": "the learning rate must be a finite number of at least 0; got nan",
        "--lr=-1": "got -1.0",
        "--lr=inf": "got inf",
    }
    wrong |= {"--track=foo": "unknown tracker foo; expected tensorboard", "--seed=-1": "must not be negative; got -1"}
    for option, message in wrong.items():
        assert message in fails(capsys, "train", "digits:teacher", "--out", str(tmp_path / "run"), option), option
        assert not (tmp_path / "run").exists(), option
    out = ["--out", str(tmp_path / "run")]
    assert "--minutes must be positive; got nan" in fails(capsys, "demo", "--minutes", "nan", *out)
    compare = ["compare", model, "digits:sid", "--data", "digits"]
    assert "until must be at least 1; got 0" in fails(capsys, *compare, "--until", "0", *out)
    restore = ["restore", model, "digits", "--task", "box_inpainting"]
    assert "seed must not be negative; got -1" in fails(capsys, *restore, "--seed=-1", *out)
    assert not (tmp_path / "run").exists()
    assert "expected a recipe first; got --teacher" in fails(capsys, "distill", "--teacher", "x", "digits:sid")


def test_the_images_that_a_run_has_seen_are_told(tmp_path, capsys):
    assert main(["train", "digits:teacher", "--until", "10", "--batch-size", "8", "--out", str(tmp_path / "run")]) == 0
    assert "trained to 16 images" in capsys.readouterr().out  # whole batches of 8


def test_where_nothing_can_be_written_is_told_before_the_work(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.sample.generate", None)  # nothing is made
    folder = tmp_path / "folder.png"
    folder.mkdir()

    def refused(*options: str) -> str:
        return fails(capsys, "sample", model, *options)

    assert "--grid needs a file name that ends in .png, such as images.png" in refused("--grid", f"{tmp_path}/g.jpg")
    assert "--npz needs a file name that ends in .npz" in refused("--npz", f"{tmp_path}/images")
    assert "folder.png: expected the name of a file to write; it is a folder" in refused("--grid", str(folder))

    def denied(path, mode=0o777):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", denied)
    assert f"{tmp_path}/g.png: permission denied" in refused("--grid", f"{tmp_path}/g.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.png", "model"]


def test_a_full_disk_is_told_with_the_file(model, tmp_path, capsys, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    out = tmp_path / "images.npz"
    error = fails(capsys, "sample", model, "--seeds", "0", "--steps", "1", "--npz", str(out))
    assert error.splitlines()[-1] == f"fewstep: error: {out}: no space left on device"
    assert os.listdir(tmp_path) == ["model"]


def test_a_reader_that_stops_is_no_mistake():
    command = [sys.executable, "-c", "from fewstep.cli import main; raise SystemExit(main(['recipes']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141  # as the shell has it: 128 + SIGPIPE


def test_options_of_sampling_that_are_no_numbers(model, tmp_path, capsys):
    def refused(*options: str) -> str:
        return fails(capsys, "sample", model, "--grid", str(tmp_path / "g.png"), *options)

    for option in ("--S-churn", "--guidance", "--kappa", "--rho", "--guidance-max"):
        assert f"{option} must be a number; got nan" in refused(option, "nan")
    assert "no effect without --guidance" in refused("--guidance-min", "3")
    window = ("--guidance", "2", "--guidance-min", "3", "--guidance-max", "1")
    assert "0 <= --guidance-min < --guidance-max; got 3.0 and 1.0" in refused(*window)
    assert "kappa has no effect with the sampler heun" in refused("--kappa", "1")


def sampled(model: str, tmp_path, *options: str) -> np.ndarray:
    path = tmp_path / "images.npz"
    assert main(["sample", model, "--seeds", "0-1", "--npz", str(path), "--overwrite", "--class", "1", *options]) == 0
    with np.load(path) as file:
        assert file["arr_0"].shape == (2, 8, 8, 1)
        return file["arr_0"]


def test_precisions_of_sampling(model, tmp_path):
    exact, low = (sampled(model, tmp_path, *options).astype(int) for options in ((), ("--dtype", "bfloat16")))
    assert 0 < np.abs(exact - low).mean() < 3


def test_ways_to_sample(denoiser, tmp_path, capsys):
    denoiser.net.config = dataclasses.replace(denoiser.net.config, label_dropout=0.1)  # it may guide itself
    model = str(model_folder.save(denoiser, tmp_path / "model"))
    own = "def mine(denoise, x, sigmas):\n    yield from heun(denoise, x, sigmas)\n"
    (tmp_path / "mine.py").write_text(f"from fewstep.samplers import heun\n\n\n{own}")
    plain = sampled(model, tmp_path, "--steps", "4")
    same = ["--sampler heun", f"--sampler {tmp_path}/mine.py:mine", "--solver heun", "--guidance 1.0", "--S_noise 1.0"]
    for options in same:
        assert np.array_equal(sampled(model, tmp_path, "--steps", "4", *options.split()), plain), options
    other = [
        "--sampler euler",
        "--S_churn 4 --S_max 50",
        "--sampler dpmpp_2m",
        "--solver heun --schedule vp --scaling vp",
    ]
    other += [
        "--guidance 3",
        f"--guidance 2 --guide {model} --guidance-max 2 --sampler euler",
        "--rho 5 --sigma_min 0.01",
    ]
    other += ["--sampler ito_taylor --randn_like db", "--sampler ito_taylor --kappa 0.5", "--disc vp --S_churn 2"]
    for options in other:
        assert not np.array_equal(sampled(model, tmp_path, "--steps", "4", *options.split()), plain), options
    assert sampled(model, tmp_path, "--levels", "2.5,0.8").shape == (2, 8, 8, 1)
    assert main(["sample", model, "--seeds", "7,1003", "--out", str(tmp_path / "o"), "--subdirs", "--steps", "1"]) == 0
    assert sorted(p.name for p in (tmp_path / "o").rglob("*.png")) == ["000007.png", "001003.png"]
    assert (tmp_path / "o" / "001000" / "001003.png").exists()

    def refused(*options: str) -> str:
        return fails(capsys, "sample", model, "--seeds", "0", "--npz", str(tmp_path / "x.npz"), *options)

    assert "no sampler 'hein'; there are" in refused("--sampler", "hein")
    assert "S_churn has no effect with the sampler euler" in refused("--sampler", "euler", "--S_churn", "3")
    assert "at least 1 step" in refused("--steps", "0")
    assert "0 < sigma_min < sigma_max" in refused("--sigma_min", "90")
    assert "without --guidance" in refused("--guide", model)
    assert "largest first" in refused("--levels", "a")
    assert "general sampler" in refused("--solver", "heun", "--sampler", "heun")
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_images_of_any_number_of_channels_are_written_and_read(tmp_path, channels):
    """What `sample` writes, `data` packs and measures, `train` opens, and `eval` compares."""
    net = tiny_net(in_channels=channels, out_channels=channels)
    model, out = str(tmp_path / "model"), tmp_path / "out"
    model_folder.save(Denoiser(net), model, Card(name="tiny"))
    files = ["--out", str(out), "--grid", str(tmp_path / "grid.png"), "--npz", str(tmp_path / "x.npz")]
    assert main(["sample", model, "--seeds", "0-3", "--steps", "1", *files]) == 0
    ending = ".png" if channels == 3 else ".npy"
    assert sorted(p.name for p in out.iterdir()) == [f"{i:06d}{ending}" for i in range(4)]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] == 5 * (9 * 2 * (1 if channels == 3 else channels) - 1)
    for source in (str(out), str(tmp_path / "x.npz")):
        assert main(["data", "pack", source, str(tmp_path / "p.zip"), "--overwrite"]) == 0
        packed, data = images(tmp_path / "p.zip"), images(source)
        assert data.shape == (channels, 8, 8) and np.array_equal(packed.decoded(), data.decoded())
        assert main(["data", "check", source]) == 0 and main(["data", "stats", source]) == 0
        assert main(["eval", source, "--reference", str(tmp_path / "p.zip"), "--metrics", "fd_pixels"]) == 0
        assert main(["eval", "pairs", source, str(tmp_path / "x.npz"), "--metrics", "psnr,ssim_7"]) == 0
    restored = [
        "restore",
        model,
        str(out),
        "--task",
        "box_inpainting",
        "--class",
        "3",
        "--samples",
        "1",
        "--nfe",
        "4",
    ]
    assert main([*restored, "--out", str(tmp_path / "restored")]) == 0
    assert {p.suffix for p in (tmp_path / "restored" / "samples").rglob("*.*")} == {ending}


def test_version_and_help_need_no_torch():
    code = "import sys; from fewstep.cli import main; main(['--version']); main([]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage: fewstep COMMAND" in done.stdout


def test_convert_sample_export(tmp_path, capsys):
    source = GOLDEN / "edm-ddpmpp-cond.pkl"
    out = tmp_path / "teacher"
    assert "say which it is: --kind teacher or --kind student" in fails(capsys, "convert", str(source), str(out))
    assert main(["convert", str(source), str(out), "--kind", "teacher", "--offline"]) == 0
    shown = capsys.readouterr()
    assert "sha256 " in shown.out
    assert "EDMPrecond around SongUNet" in shown.out
    assert "License of the weights: not stated" in shown.out
    assert "no commercial use" not in model_folder.card(out).method
    assert "sha256" in model_folder.card(out).lineage[0]
    assert main(["sample", str(out), "--seeds", "0-1", "--steps", "2", "--grid", str(tmp_path / "grid.png")]) == 0
    assert f"{tmp_path / 'grid.png'}: 2 images\n" in capsys.readouterr().out
    assert main(["export", str(out), str(tmp_path / "weights.safetensors")]) == 0
    tensors = load_file(tmp_path / "weights.safetensors")
    ours = model_folder.load(out).state_dict()
    assert tensors.keys() == {k.replace("net.", "model.", 1) for k in ours}
    assert all(torch.equal(tensors[k.replace("net.", "model.", 1)], v) for k, v in ours.items())
    assert "name the file weights.safetensors" in fails(capsys, "export", str(out), "weights.bin")
    assert "not in the cache" in fails(
        capsys, "convert", "https://localhost/none.pkl", str(tmp_path / "x"), "--offline"
    )
    assert "scheme" in fails(capsys, "convert", "ftp://localhost/none.pkl", str(tmp_path / "x"))
    assert "localhost:1/none.pkl cannot be fetched: " in fails(
        capsys, "convert", "http://localhost:1/none.pkl", str(tmp_path / "x")
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"")
    assert "photos holds holiday.jpg, which would be lost" in fails(
        capsys, "convert", str(source), str(photos), "--kind", "teacher"
    )
    assert os.listdir(photos) == ["holiday.jpg"]
    assert "it is a file" in fails(capsys, "convert", str(source), str(photos / "holiday.jpg"), "--kind", "teacher")
    again = ["convert", str(source), str(out), "--kind", "teacher"]
    assert "or add --overwrite to replace them" in fails(capsys, *again)
    assert main([*again, "--overwrite"]) == 0
    score = tmp_path / "score"
    capsys.readouterr()
    assert main(["convert", str(source.with_name("ncvsd-score.pkl")), str(score)]) == 0
    assert f"{score}: a fake score, for training alone\n" in capsys.readouterr().out
    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "canary").encode() + b"'\ntR.")
    assert "instruction STRING" in fails(capsys, "convert", str(hostile), str(tmp_path / "x"))
    hostile.write_bytes(b"cos\nsystem\n(Vtouch " + str(tmp_path / "canary").encode() + b"\ntR.")
    assert "hostile.pkl holds a os.system; " in fails(capsys, "convert", str(hostile), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "canary").exists()


def test_train_and_distill_are_not_the_same(denoiser, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = fails(capsys, "distill", "digits:teacher", "--out", "run")
    assert "digits:teacher has no teacher; use: fewstep train digits:teacher" in said
    said = fails(capsys, "train", "digits:sid", "--teacher", "t", "--out", "run")
    assert "digits:sid needs a teacher; use: fewstep distill digits:sid" in said
    Path("mine.py").write_text("def nothing():\n    pass\n")
    assert "a recipe returns a Run; nothing returned NoneType" in fails(
        capsys, "train", "mine.py:nothing", "--out", "run"
    )
    assert not Path("run").exists()
