"""Law: what lies on this machine needs no network, and `--offline` keeps everything else from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fewstep.cli import main
from fewstep.cli.dispatch import NO_NETWORK
from fewstep.data.pack import pack
from fewstep.io import model_folder
from fewstep.io.card import Card
from tests.train.test_ranks import few

RECIPE = """
import fewstep as fs
from fewstep.nets.song import SongConfig, SongUNet

def teacher(*, until: int = 8):
    net = SongUNet(SongConfig(8, 1, 1, 10, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=()))
    method, data = fs.Pretraining(fs.Denoiser(net), fs.DenoisingLoss()), fs.ImageStream(fs.images("few.zip"))
    return fs.Run(method, data, {"denoiser": fs.Adam(1e-3)}, 8, until, snapshots=1)
"""

WATCHED = """
import json, sys

seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith("socket.") else None)
from fewstep.cli import main

codes = [main(command) for command in json.loads(sys.argv[1])]
if "connect" in sys.argv:
    import socket
    socket.socket().close()
print(json.dumps([codes, seen]))
"""

COMMANDS = """
recipes
data stats few.zip
data check few.zip
train mine.py:teacher --until 8 --out run
train mine.py:teacher --until 16 --out other
sample model --seeds 0-3 --steps 2 --grid grid.png --npz x.npz --overwrite
eval model --reference few.zip --metrics fd_pixels --seeds 0-9 --steps 2
eval x.npz --reference few.zip --metrics fd_pixels
restore model few.zip --task box_inpainting --first 1 --samples 1 --nfe 1 --prior-steps 1 --preset balanced --class none --out r
report .
export model weights.safetensors
"""


def watched(folder, commands, *more):
    """Exit codes of the commands in a new process, and what of sockets it did."""
    command = [sys.executable, "-c", WATCHED, json.dumps(commands), *more]
    environment = {**os.environ, "FEWSTEP_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done


@pytest.fixture
def world(denoiser, tmp_path):
    model_folder.save(denoiser, tmp_path / "model", Card(name="tiny"))
    (tmp_path / "mine.py").write_text(RECIPE)
    pack(few(tmp_path / "digits.npz"), tmp_path / "few.zip")
    return tmp_path


def test_local_files_need_no_socket(world):
    lines = [line.split() for line in COMMANDS.strip().splitlines()]
    offline = [[*line, "--offline"] for line in lines[4:6]]
    (codes, seen), done = watched(world, lines + offline)
    assert codes == [0] * len(codes), done.stderr
    assert seen == []
    assert watched(world, [["recipes"]], "connect")[0][1] == ["socket.__new__"]  # it would have been seen


def test_offline_refuses_what_is_not_here(world):
    commands = [
        ["--offline", "convert", "https://localhost/none.pkl", "x"],
        ["assets", "fetch", "dinov2-vitl14", "--offline"],
    ]
    (codes, seen), done = watched(world, commands)
    assert (codes, seen) == ([2, 2], [])
    assert done.stderr.count("is not in the cache") == 2


def test_offline_is_said_to_other_packages_and_ends(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    seen = {}
    monkeypatch.setattr("fewstep.cli.dispatch.overview", lambda: seen.update(os.environ))
    assert main(["--offline"]) == 0
    assert NO_NETWORK.items() <= seen.items()
    assert os.environ["WANDB_MODE"] == "online" and "HF_HUB_OFFLINE" not in os.environ
