"""`fewstep eval` and `fewstep assets` as a stranger uses them: figures, protocols, repetitions, ranks, mistakes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewstep import generate, generated
from fewstep.cli import main
from fewstep.data import digits
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.metrics.distribution import Moments, frechet_distance
from fewstep.metrics.extractors import NETWORKS, FeatureNetwork, PixelFeatures
from fewstep.metrics.networks.lpips import WIDTHS
from fewstep.metrics.references import load_reference
from fewstep.runtime.files import sha256
from tests.cli.test_cli import fails

MINE = """
import torch


def mine(images):
    x = images.double().flatten(1) / 255
    return {"features": x[:, :40], "logits": 3 * x[:, 20:30]}
"""
METRICS = "fd_mine,kd_mine,is_mine/logits,pr_mine,dc_mine"
FEW = ["--steps", "2", "--batch", "7"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    Path("mine.py").write_text(MINE)


@pytest.fixture
def model(denoiser):
    return str(model_folder.save(denoiser, "model", Card(name="tiny")))


def results(path: str = "out.json"):
    return {f"{r['metric']}@{r['n']}": r for r in json.loads(Path(path).read_text())}


def expected(denoiser, seeds) -> float:
    """The Frechet distance of pixels, without the evaluation."""

    made = np.stack(list(generate(denoiser, seeds, plan=denoiser.plan(2)))).transpose(0, 3, 1, 2)
    both = [Moments.of(PixelFeatures()(torch.from_numpy(x))).compute() for x in (made, digits().decoded().copy())]
    return frechet_distance(*both[0], *both[1])


def test_a_model_is_measured(model, denoiser, capsys):
    command = [
        "eval",
        model,
        "--reference",
        "digits",
        "--metrics",
        f"fd_pixels,{METRICS}",
        "--extractor",
        "mine.py:mine",
    ]
    options = ["--seeds", "5-34", *FEW, "--json", "out.json", "--markdown", "out.md"]
    assert main([*command, *options]) == 0
    found = results()
    assert found["fd_pixels@30"]["value"] == pytest.approx(expected(denoiser, range(5, 35)), rel=1e-6)
    assert {f"{name}_mine@30" for name in ("fd", "kd", "precision", "recall", "density", "coverage")} < set(found)
    protocol = found["fd_mine@30"]["protocol"]
    assert protocol["model"] == "tiny" and protocol["weights"] == sha256(Path(model, "model.safetensors"))
    assert (protocol["seeds"], protocol["nfe"], protocol["sampler"]) == ("5-34", 3, "heun")
    assert protocol["rounding"] == "trunc(clip(127.5 x + 128, 0, 255))"
    assert protocol["extractor"]["sha256"] == sha256(Path("mine.py"))
    assert protocol["reference"] == {"name": "digits", "n": 1797, "sha256": digits().fingerprint}
    assert protocol["labels"] == "drawn from the seeds" and "biased upwards" in protocol["note"] and protocol["fewstep"]
    text = Path("out.md").read_text()
    assert capsys.readouterr().out == text
    assert "| fd_mine@30 " in text and "- seeds: 5-34\n" in text and "- settings (kd_mine@30, kd_mine_std@30): " in text


def test_repeats_are_labelled(model, denoiser, capsys):
    command = ["eval", model, "--reference", "digits", "--metrics", "fd_pixels", "--num", "12", *FEW]
    assert main([*command, "--repeats", "3", "--json", "out.json"]) == 0
    measured = [r["value"] for r in json.loads(Path("out.json").read_text())]
    parts = [expected(denoiser, range(i, i + 12)) for i in (0, 12, 24)]
    assert measured == pytest.approx(parts, rel=1e-6)
    heads, _, row, *rest = capsys.readouterr().out.splitlines()
    assert heads.split()[1::2] == ["metric", "mean", "spread", "minimum", "repeats"]
    figures = [float(word) for word in row.split()[3::2]]
    assert figures == pytest.approx([np.mean(parts), np.std(parts, ddof=1), min(parts), 3], rel=0.05)
    assert "- seeds: 12-23" in rest


def test_how_many_images(model, capsys):
    """By --num, --seeds, the metric's name, or the reference."""
    command = ["eval", model, "--reference", "digits", "--steps", "1", "--overwrite", "--json", "out.json", "--metrics"]
    assert main([*command, "fd_pixels", "--seeds", "3-20", "--num", "10"]) == 0
    assert results()["fd_pixels@10"]["protocol"]["seeds"] == "3-12"
    assert main([*command, "fd_pixels@20,fd_pixels@10"]) == 0
    assert set(results()) == {"fd_pixels@20", "fd_pixels@10"}
    assert main([*command, "fd_pixels"]) == 0
    assert set(results()) == {"fd_pixels@1797"}
    assert "--num 9 are more than the 3 seeds" in fails(capsys, *command, "fd_pixels", "--seeds", "0-2", "--num", "9")


def test_mistakes_are_told_before_anything_is_measured(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["fewstep.metrics.evaluation"], "evaluate", None)
    command = ["eval", model, "--reference", "digits", "--metrics", "fd_pixels"]
    for option, value in (("--num", "0"), ("--num", "-5"), ("--batch", "0"), ("--repeats", "0")):
        assert f"{option} must be at least 1; got {value}" in fails(capsys, *command, f"{option}={value}")
    for option in ("--json", "--markdown"):
        assert "it is a folder" in fails(capsys, *command, option, str(tmp_path))
    assert "--batch must be at least 1; got 0" in fails(capsys, "eval", "pairs", "a", "b", "--batch", "0")
    reference = ["eval", "reference", "digits", "x.npz", "--metrics", "fd_pixels", "--batch", "0"]
    assert "--batch must be at least 1; got 0" in fails(capsys, *reference)


def test_upstream_names(model, capsys, monkeypatch):
    """They ask for Inception's weights, which this machine lacks."""
    monkeypatch.setenv("FEWSTEP_ASSETS", "nowhere")
    error = fails(capsys, "eval", model, "--reference", "digits", "--metrics", "fid50k_full,is50k,pr50k3_full")
    assert "nowhere/inception-2015-12-05.safetensors, which are missing" in error
    assert "fewstep assets fetch inception-2015-12-05" in error and "6726825d" in error
    error = fails(capsys, "eval", model, "--reference", "digits", "--metrics", "fd_dinov2")
    assert "dinov2_vitl14_pretrain.pth" in error
    assert "no metric is called 'fidd'; choose from fid," in fails(
        capsys, "eval", model, "--reference", "x", "--metrics", "fidd"
    )


def test_images_and_references(capsys):
    data = digits()
    Path("images").mkdir()
    for i in range(40):
        Image.fromarray(data[i][0]).save(f"images/{i:02d}.png")
    np.savez("images.npz", arr_0=data.decoded()[:40].transpose(0, 2, 3, 1))
    mine = ["--extractor", "mine.py:mine", "--metrics"]
    assert main(["eval", "reference", "digits", "ref.npz", *mine, "fd_mine,pr_mine,fd_pixels"]) == 0
    assert "moments of mine/features" in capsys.readouterr().out
    found = load_reference(Path("ref.npz"))
    assert (found.name, found.n, len(found.samples["mine", "features"])) == ("digits", 1797, 1797)
    for source in ("images", "images.npz"):
        assert (
            main(["eval", source, "--reference", "ref.npz", *mine, "pr_mine,fd_pixels", "--json", f"{source}.json"])
            == 0
        )
    folder, array = results("images.json"), results("images.npz.json")
    assert {k: r["value"] for k, r in folder.items()} == {k: r["value"] for k, r in array.items()}
    assert folder["precision_mine@40"]["value"] == 1
    assert (
        main(["eval", "images", "--reference", "digits", "--num", "20", *mine, "fd_pixels", "--json", "few.json"]) == 0
    )
    assert (
        main(["eval", "images", "--reference", "digits", *mine, "fd_pixels", "--extrapolate", "--json", "x.json"]) == 2
    )
    assert "at least 150 images; got 40" in capsys.readouterr().err
    assert main(["eval", "compare", "images.json", "images.npz.json"]) == 0
    with pytest.warns(UserWarning, match="these values of fd_pixels cannot be compared; they differ in n: 40 and 20"):
        assert main(["eval", "compare", "images.json", "few.json"]) == 0
    shown = capsys.readouterr()
    assert "| fd_pixels@40 " in shown.out and "| fd_pixels@20 " in shown.out


def test_every_kind_of_images_is_a_source(capsys):
    """The built-in digits, arrays in either layout under either name, and tars, on both sides and for references."""
    data = digits().decoded()[:40]
    np.savez("last.npz", arr_0=data.transpose(0, 2, 3, 1))
    np.savez_compressed("first.npz", images=data)
    np.save("plain.npy", data[:, 0])
    Path("images").mkdir()
    for i in range(40):
        Image.fromarray(data[i, 0]).save(f"images/{i:02d}.png")
    with tarfile.open("images.tar", "w") as archive:
        archive.add("images", ".")
    assert main(["eval", "digits", "--reference", "digits", "--metrics", "fd_pixels", "--json", "same.json"]) == 0
    assert results("same.json")["fd_pixels@1797"]["value"] == pytest.approx(0, abs=1e-3)
    figures = []
    for source in ("last.npz", "first.npz", "plain.npy", "images", "images.tar"):
        assert (
            main(["eval", source, "--reference", "digits", "--metrics", "fd_pixels", "--json", "x.json", "--overwrite"])
            == 0
        )
        figures.append(results("x.json")["fd_pixels@40"]["value"])
        assert (
            main(["eval", "digits", "--reference", source, "--metrics", "fd_pixels", "--json", "y.json", "--overwrite"])
            == 0
        )
        assert main(["eval", "pairs", source, "plain.npy", "--metrics", "psnr"]) == 0
    assert figures == 5 * figures[:1] and figures[0] > 0.01
    assert main(["eval", "reference", "images.tar", "ref.npz", "--metrics", "fd_pixels"]) == 0
    assert "of 40 images" in capsys.readouterr().out.splitlines()[-1]


def test_the_precision_of_features(capsys, monkeypatch):
    class Small(nn.Module):
        def forward(self, images):
            return {"features": images[:, 0].flatten(1)[:, :9]}

    def small(dtype):
        return FeatureNetwork("inception", Small(), torch.Tensor.float, resize="", sha256="00ff", dtype=dtype)

    monkeypatch.setitem(NETWORKS, "inception", small)
    monkeypatch.setattr("fewstep.runtime.precision.fast_dtype", lambda: torch.float16)
    np.savez("images.npz", arr_0=digits().decoded()[:40].transpose(0, 2, 3, 1))
    command = ["eval", "images.npz", "--metrics", "fid", "--overwrite", "--json", "out.json", "--reference"]
    for word, dtype in (("float32", None), ("bfloat16", "bfloat16"), ("auto", "float16")):
        option = ["--feature-dtype", word]
        assert main(["eval", "reference", "digits", f"{word}.npz", "--metrics", "fid", *option]) == 0
        for reference in ("digits", f"{word}.npz"):
            assert main([*command, reference, *option]) == 0
            assert results()["fid@40"]["protocol"]["extractor"].get("dtype") == dtype
    assert "00ff... in bfloat16, and this one is 00ff...;" in fails(capsys, *command, "bfloat16.npz")
    pixels = ["eval", "images.npz", "--reference", "digits", "--metrics", "fd_pixels", "--feature-dtype", "bfloat16"]
    assert "need pixels, with no choice of precision: leave it out" in fails(capsys, *pixels)


def test_pairs(capsys, monkeypatch):
    draw = np.random.RandomState(0)
    for name in ("a", "b"):
        Path(name).mkdir()
        for i in range(3):
            Image.fromarray(draw.randint(0, 256, (16, 16, 3), np.uint8)).save(f"{name}/{i}.png")
    assert main(["eval", "pairs", "a", "b", "--metrics", "psnr,ssim", "--batch", "2", "--json", "out.json"]) == 0
    first, second = (np.stack([np.asarray(Image.open(f"{d}/{i}.png")) / 255 for i in range(3)]) for d in "ab")
    psnr = -10 * np.log10(((first - second) ** 2).mean((1, 2, 3)) + 1e-8)
    assert results()["psnr@3"]["value"] == pytest.approx(psnr.mean(), rel=1e-5)
    assert "piq" in results()["ssim@3"]["protocol"]["settings"]["convention"]
    monkeypatch.setenv("FEWSTEP_ASSETS", "nowhere")
    assert "vgg16.safetensors, which are missing" in fails(capsys, "eval", "pairs", "a", "b")
    Path("b/2.png").unlink()
    assert "only one has 2" in fails(capsys, "eval", "pairs", "a", "b", "--metrics", "psnr")


def test_assets(capsys, monkeypatch):
    monkeypatch.setenv("FEWSTEP_ASSETS", "assets")
    assert main(["assets", "check"]) == 0
    assert "there are no weights in assets" in capsys.readouterr().out
    lines = OrderedDict((f"lin{i}.model.1.weight", torch.full((1, n, 1, 1), 0.5)) for i, n in enumerate(WIDTHS["alex"]))
    torch.save(lines, "copy.pth")
    assert main(["assets", "fetch", "lpips-alex", "--source", "copy.pth"]) == 0
    assert f"from a file {sha256(Path('copy.pth'))}" in capsys.readouterr().out
    Path("copy.pth").rename("alex.pth")  # the name of a file whose hash is known
    assert "expected df73285e" in fails(capsys, "assets", "fetch", "lpips-alex", "--source", "alex.pth")
    assert "expected beef" in fails(capsys, "assets", "fetch", "lpips-alex", "--source", "alex.pth", "--sha256", "beef")
    assert "is not in the cache" in fails(capsys, "assets", "fetch", "dinov2-vitl14", "--offline")
    assert main(["assets", "list"]) == 0
    shown = capsys.readouterr().out
    assert "lpips-alex.safetensors" in shown and shown.count("missing") == 9
    assert "missing; https://huggingface.co/timm/vgg16_bn.tv_in1k/resolve/main/model.safetensors\n" in shown
    assert main(["assets", "check"]) == 0
    path = Path("assets/lpips-alex.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x40")
    assert "is damaged" in fails(capsys, "assets", "check")
    assert "which are missing" in fails(capsys, "assets", "check", "vgg16")
    assert "no asset is called 'vgg'" in fails(capsys, "assets", "check", "vgg")


def test_mistakes_show_before_images_are_made(model, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["fewstep.sample"], "generate", None)  # whoever makes an image fails
    np.savez("edm.npz", mu=np.zeros(5), sigma=np.eye(5))
    np.savez("images.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8))

    def refused(*options: str) -> str:
        return fails(capsys, "eval", model, *options)

    assert "fd_pixels needs at least 2 generated images; got 1" in refused(
        "--reference", "digits", "--num", "1", "--metrics", "fd_pixels"
    )
    assert "lacks the statistics for fd_pixels: it has moments of inception" in fails(
        capsys, "eval", "images.npz", "--reference", "edm.npz", "--metrics", "fd_pixels"
    )
    assert "no such path" in refused("--reference", "none.zip")
    assert "holds images, not a model" in fails(capsys, "eval", "images.npz", "--reference", "digits", "--repeats", "2")
    assert "5 images are asked for; there are 4" in fails(
        capsys, "eval", "images.npz", "--reference", "digits", "--metrics", "fd_pixels", "--num", "5"
    )
    assert "name it so: r.npz" in fails(capsys, "eval", "reference", "digits", "r.zip")
    assert "has no images" in fails(capsys, "eval", "reference", "edm.npz", "r.npz")
    Path("set").mkdir()
    Path("set/a.txt").write_text("x")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("set/b.png")
    assert "no images: a.txt" in refused("--reference", "set", "--metrics", "fd_pixels")
    assert "at least two files" in fails(capsys, "eval", "compare", "a.json")


def test_images_that_are_not_finite_are_named(denoiser):
    with torch.no_grad():
        next(iter(denoiser.parameters())).fill_(torch.nan)
    with pytest.raises(ValueError, match="the images of the seeds 3-4 are not finite"):
        list(generated(denoiser, [3, 4]).make())


def test_a_source_of_seeds(denoiser):
    label = torch.arange(9) % 10
    source = generated(denoiser, range(9), label=label, batch_size=4)
    made = np.stack(list(generate(denoiser, range(9), label=label))).transpose(0, 3, 1, 2)
    assert np.array_equal(np.stack(list(source.make())), made)
    assert source.protocol["labels"] == "given for each seed" and source.name(2) == "the image of seed 2"


def one_of_two(rank, port, command):
    """What torchrun starts."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    sys.exit(main(command))


def test_two_ranks_give_one_result(model):
    command = [
        "eval",
        model,
        "--reference",
        "digits",
        "--metrics",
        f"fd_pixels,{METRICS}",
        "--extractor",
        "mine.py:mine",
    ]
    command += ["--seeds", "0-40", "--steps", "1", "--batch", "8", "--json"]
    assert main([*command, "one.json"]) == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    jobs = [context.Process(target=one_of_two, args=(rank, port, [*command, "two.json"])) for rank in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0]
    one, two = results("one.json"), results("two.json")
    assert {k: r["value"] for k, r in two.items()} == pytest.approx({k: r["value"] for k, r in one.items()}, rel=1e-9)
    assert [r["protocol"] for r in two.values()] == [r["protocol"] for r in one.values()]


@pytest.mark.parametrize("command", ["eval", "eval reference", "eval pairs", "assets fetch"])
def test_help_needs_no_torch(command):
    code = (
        "import sys\nfrom fewstep.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True)
    assert "--help" in done.stdout and done.stdout.endswith("False False\n")
