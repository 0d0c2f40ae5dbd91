"""Law: a command under torchrun writes what it writes alone, whatever the number of ranks."""

from __future__ import annotations

import json
import os
import socket
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli import main
from fewstep.data import digits
from fewstep.data.codec import StabilityVAE
from fewstep.data.pack import pack
from fewstep.io import model_folder
from fewstep.io.card import Card


def moments(self, image):
    """Stands for the encoder: means of 8x8 blocks, four times, and a deviation of 0.1. Notes how many it had."""
    with open(f"../encoded-{os.environ.get('RANK', 'alone')}", "a") as file:
        file.write(f"{len(image)} ")
    mean = torch.nn.functional.avg_pool2d(image.double() / 255, 8).mean(1, keepdim=True).expand(-1, 4, -1, -1)
    return torch.cat([mean, torch.full_like(mean, 0.1)], dim=1)


def one_of_two(rank, commands, ports, folder, codes):
    os.chdir(folder)
    torch.set_num_threads(1)
    for command, port in zip(commands, ports, strict=True):
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        codes.put((command[0], main(command)))


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def on_two_ranks(commands, folder):
    """Run the commands, one after the other, in two processes of one group, within `folder`."""
    context = torch.multiprocessing.get_context("fork")
    codes, ports = context.Queue(), free_ports(len(commands))
    jobs = [context.Process(target=one_of_two, args=(r, commands, ports, folder, codes)) for r in range(2)]
    for job in jobs:
        job.start()
    found = [codes.get(timeout=300) for _ in range(2 * len(commands))]
    for job in jobs:
        job.join()
    assert [code for _, code in found] == [0] * len(found), found


def alone(commands, folder):
    os.chdir(folder)
    for command in commands:
        assert main(command) == 0


def photographs(folder, n=11, side=16):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for i in range(n):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture
def world(denoiser, tmp_path, monkeypatch):
    """A model and photographs, and a folder for one rank and one for two."""
    model_folder.save(denoiser, tmp_path / "model", Card(name="tiny"))
    photographs(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(StabilityVAE, "prepare", lambda self, device: None)
    monkeypatch.setattr(StabilityVAE, "moments", moments)
    monkeypatch.setattr("fewstep.data.pack.CHUNK_IMAGES", 2)
    monkeypatch.setattr("fewstep.compare.TEACHER_STEPS", (2,))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    return tmp_path


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_two_ranks_write_what_one_writes(world):
    sample = "sample ../model --seeds 0-8 --batch 2 --steps 2 --out out --grid grid.png --npz x.npz"
    restore = (
        "restore ../model digits --task box_inpainting --first 3 --samples 2 --nfe 3 --preset balanced --class data "
        "--out restored --prior-steps 1"
    )
    commands = [
        sample,
        "data pack ../a a.zip",
        "data latents a.zip latents.zip --batch 2",
        restore,
    ]
    lines = [command.split() for command in commands]
    alone(lines, world / "one")
    on_two_ranks(lines, world / "two")
    one, two = files(world / "one"), files(world / "two")
    figures = [json.loads(found.pop("restored/metrics.json"))["metrics"] for found in (one, two)]
    assert figures[0]["psnr"]["sample"] == pytest.approx(figures[1]["psnr"]["sample"], rel=1e-9)
    assert {"grid.png", "x.npz", "out/000008.png", "restored/sheet.png"} <= set(one)
    assert one == two
    with zipfile.ZipFile(world / "two" / "latents.zip") as archive:
        assert len(archive.namelist()) == 12
    assert [(world / f"encoded-{r}").read_text() for r in range(2)] == ["2 2 2 ", "2 2 1 "]


def test_two_ranks_measure_what_one_measures(world, capfd):
    commands = [
        "eval ../model --reference digits --metrics fd_pixels --seeds 0-20 --steps 2 --json eval.json",
        "eval pairs ../a ../b --metrics psnr,ssim --json pairs.json --batch 3",
        "eval reference ../a reference.npz --metrics fd_pixels",
        "data stats ../a",
        "data check ../a",
    ]
    lines = [command.split() for command in commands]
    capfd.readouterr()
    alone(lines, world / "one")
    said = capfd.readouterr().out
    on_two_ranks(lines, world / "two")
    assert len(capfd.readouterr().out.splitlines()) == len(said.splitlines())  # each is said once
    assert '"n": 11' in said
    for name in ("eval.json", "pairs.json"):
        one, two = (json.loads((world / folder / name).read_text()) for folder in ("one", "two"))
        assert [r["value"] for r in two] == pytest.approx([r["value"] for r in one], rel=1e-9)
        assert [r["protocol"] for r in two] == [r["protocol"] for r in one]
    with np.load(world / "one" / "reference.npz") as a, np.load(world / "two" / "reference.npz") as b:
        cov, other = (rows.T @ rows for rows in (npz["moments/pixels/features/rows"] for npz in (a, b)))
        assert cov.any() and np.allclose(cov, other, rtol=1e-9)


def test_two_ranks_compare_as_one(world):
    recipe = world / "tiny.py"
    recipe.write_text(
        "import fewstep as fs\n\n\ndef sid(*, teacher: str, data: str = 'digits', until: int = 16, seed: int = 0):\n"
        '    """SiD of a tiny teacher."""\n'
        "    adam = fs.Adam(1e-3)\n"
        "    method = fs.distill.SiD(fs.load(teacher))\n"
        "    stream = fs.ImageStream(fs.images(data), seed=seed)\n"
        "    return fs.Run(method, stream, {'fake_score': adam, 'generator': adam}, 8, until, micro_batch=4, seed=seed)\n"
    )
    command = [
        "compare",
        "../model",
        "../tiny.py:sid",
        "--data",
        "few.zip",
        "--until",
        "16",
        "--evaluations",
        "1",
        "--out",
        "out",
    ]
    for folder in ("one", "two"):
        pack(few(world / "digits.npz"), world / folder / "few.zip")
    alone([command], world / "one")
    on_two_ranks([command], world / "two")
    one, two = (json.loads((world / folder / "out" / "results.json").read_text()) for folder in ("one", "two"))
    assert [r["model"] for r in two] == [r["model"] for r in one]
    assert [r["fd_pixels"] for r in two] == pytest.approx([r["fd_pixels"] for r in one], rel=1e-4)
    for row in two:
        with Image.open(world / "one" / "out" / row["grid"]) as a, Image.open(world / "two" / "out" / row["grid"]) as b:
            assert a.size == b.size
    assert (world / "two" / "out" / "report.html").exists()


def few(path):
    """Twenty digits as an array."""
    data = digits()
    assert data.labels is not None
    np.savez(path, images=data.gather(np.arange(20)).transpose(0, 2, 3, 1), labels=data.labels[:20])
    return path


def test_what_ranks_do_not_share_is_the_first_rank_s(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["recipes", "--method", "sid"]) == 0
    assert "digits:sid" in capsys.readouterr().out
