"""Each extra with its real package, without a network: random weights, local folders, a hub on the loopback.

Deselected unless asked for: `make extras` installs the packages and runs these.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data import images
from fewstep.data.codec import StabilityVAE
from fewstep.data.lmdb import items
from fewstep.data.pack import pack
from fewstep.data.sources import open_source
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.runtime.files import sha256
from fewstep.train.trackers import open_trackers
from tests.fakehub import serving

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]  # what other packages warn of is theirs


@pytest.fixture
def online(tmp_path, denoiser):
    """A hub with the model me/tiny."""
    model_folder.save(denoiser, tmp_path / "hub" / "me" / "tiny", Card("tiny", "EDM", license="Apache-2.0"))
    with serving(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def fewstep(online, tmp_path):
    """`fewstep`, as its users run it: the hub's client reads where the hub is when it is imported. Returns the exit code and
    the last line of its standard error."""

    def run(*command: str) -> tuple[int, str]:
        environment = {
            "HF_ENDPOINT": online.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "no_proxy": "127.0.0.1,localhost",
        }
        done = subprocess.run(
            [sys.executable, "-m", "fewstep", *command],
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]

    return run


def test_a_model_of_the_hub(online, fewstep, tmp_path):
    """Hostile names in the listing are left alone; a second use needs no network; other commands take the address."""
    online.listed = ["../evil.safetensors", "a/../../model.safetensors", "/etc/model.safetensors", "code.py"]
    assert fewstep("pull", "me/tiny", "copy") == (0, "")
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sha256(tmp_path / "copy" / "model.safetensors") == sha256(online.root / "me" / "tiny" / "model.safetensors")
    asked = len(online.requests)
    assert fewstep("pull", "me/tiny", "again", "--offline") == (0, "")
    assert fewstep("sample", "hf://me/tiny", "--seeds", "0-1", "--steps", "2", "--grid", "g.png", "--offline")[0] == 0
    assert len(online.requests) == asked and (tmp_path / "g.png").is_file()


@pytest.mark.parametrize(
    ("where", "fault", "words"),
    [
        ("api/models", 401, "the hub answers HTTP 401; log in with: hf auth login"),
        ("api/models", 403, "the hub answers HTTP 403; your account, or its token, has no access"),
        (
            "api/models",
            500,
            "the hub answers HTTP 500; try again later; what was fetched before is there with --offline",
        ),
        ("store/", 401, "the hub answers HTTP 401; log in with: hf auth login"),
        ("store/", 403, "the hub answers HTTP 403; your account, or its token, has no access"),
        ("store/", 404, "the hub answers HTTP 404; check the address"),
        ("store/", 500, "the hub answers HTTP 500; try again later"),
        ("store/", "half", "breaks off (RemoteProtocolError: peer closed connection"),
        ("store/", "more", "breaks off (RemoteProtocolError: peer closed connection"),
        ("store/", "flip", "model.safetensors came damaged: its hash is not the one that the hub states"),
        ("config.json", "flip", "config.json came damaged: its hash is not the one that the hub states"),
        ("model.safetensors", "loop", "breaks off (TooManyRedirects"),
        ("model.safetensors", "away", "breaks off (UnsupportedProtocol"),
    ],
)
def test_a_hub_that_fails_is_one_line(online, fewstep, tmp_path, where, fault, words):
    online.faults[where] = fault
    code, line = fewstep("pull", "me/tiny", "copy")
    assert code == 2 and "hf://me/tiny: " in line and words in line
    assert not (tmp_path / "copy").exists()
    online.faults.clear()
    assert fewstep("pull", "me/tiny", "copy") == (0, "")  # nothing damaged was kept


def test_what_is_not_on_the_hub_and_what_it_does_not_take(online, fewstep):
    assert "there is no such model, or it is private; log in with: hf auth login" in fewstep("pull", "me/none", "x")[1]
    assert "cannot be while offline; fetch it with: fewstep pull" in fewstep("pull", "me/tiny", "x", "--offline")[1]
    code, line = fewstep("push", str(online.root / "me" / "tiny"), "me/tiny")
    assert code == 2 and "HTTP 403; your account, or its token, has no access" in line
    online.shutdown()
    online.server_close()
    assert "cannot be reached, or breaks off (ConnectionRefusedError" in fewstep("pull", "me/tiny", "x")[1]


def test_a_model_is_pushed(online, fewstep):
    """In one commit, by which the repository has the files of the model and no others."""
    online.writable = True
    assert fewstep("push", str(online.root / "me" / "tiny"), "me/new")[0] == 0
    sent = online.root / "me" / "new"
    assert sorted(p.name for p in sent.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sha256(sent / "model.safetensors") == sha256(online.root / "me" / "tiny" / "model.safetensors")


def test_datasets(tmp_path, monkeypatch):
    """A data set in a folder, which `load_dataset` takes as it takes a name on the hub: splits and configurations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for split, n in (("train", 3), ("test", 2)):
        for kind in ("cat", "dog"):
            folder = tmp_path / "set" / "full" / split / kind
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (i, 0, 9)).save(folder / f"{i}.png")
    about = "configs:\n- config_name: full\n  data_dir: full\n- config_name: other\n  data_dir: full/test\n"
    (tmp_path / "set" / "README.md").write_text(f"---\n{about}---\n")
    for address, n in (("set:full", 6), ("set:full@test", 4), ("set:full@train[:50%]", 3)):
        source = open_source(f"hf:{address}")
        assert (source.total, len(list(source.entries())), source.class_names) == (n, n, ["cat", "dog"])
    pack("hf:set:full@test", tmp_path / "out.zip")
    found = images(tmp_path / "out.zip")
    assert (len(found), found.shape, found.class_names) == (4, (3, 8, 8), ("cat", "dog"))
    for address, words in (
        ("set:full@none", "Unknown split"),
        ("set", "Config name is missing"),
        ("set:none", "BuilderConfig 'none' not found"),
        ("nobody/nothing", "it cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=rf"^hf:{address}: .*{words}") as error:
            open_source(f"hf:{address}")
        assert "\n" not in str(error.value)


def test_diffusers(tmp_path):
    """A VAE of the shape of Stable Diffusion's, small and untrained, as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers")
    blocks = ["DownEncoderBlock2D"] * 4
    vae = diffusers.AutoencoderKL(
        down_block_types=blocks,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32] * 4,
        latent_channels=4,
    )
    vae.save_pretrained(tmp_path / "vae")
    codec = StabilityVAE(str(tmp_path / "vae"), batch_size=2)
    decoded = codec.decode(torch.zeros(3, 4, 2, 2))
    assert (decoded.shape, decoded.dtype) == ((3, 3, 16, 16), torch.uint8)


def test_lmdb(tmp_path):
    """Databases of many sizes, with entries that were taken away: the same entries, in the same order, as LMDB finds."""
    lmdb = pytest.importorskip("lmdb")
    draw = np.random.RandomState(0)
    for number, (n, most) in enumerate([(0, 1), (1, 10), (300, 9000), (5000, 20), (40, 100_000)]):
        folder = tmp_path / str(number)
        with lmdb.open(str(folder), map_size=1 << 28) as database:
            with database.begin(write=True) as transaction:
                for _ in range(n):
                    key, value = (draw.bytes(draw.randint(1, m)) for m in (500, most + 1))
                    transaction.put(key, value)
            with database.begin(write=True) as transaction:
                for key, _ in list(transaction.cursor())[::7]:
                    transaction.delete(key)
            with database.begin() as transaction:
                expected = list(transaction.cursor())
        assert list(items(folder / "data.mdb")) == expected


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_trackers(tmp_path, monkeypatch, name):
    """Twice, as a run that is resumed does it, with keys as they are; every file stays here."""
    monkeypatch.chdir(tmp_path)
    for variable in ("HOME", "TRACKIO_DIR", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "there"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    for nimg in (0, 16):
        (tracker,) = open_trackers([name], folder, "teacher", {"lr": 1e-3, "betas": [0.9, 0.99]}, nimg)
        tracker.log(nimg + 8, {"loss": 1.0, "loss/error@0.1": 2.0})
        tracker.image(nimg + 8, "samples", Image.new("L", (4, 3), 77))
        tracker.close()
    written = [p for place in (folder, tmp_path / "there") for p in place.rglob("*") if p.is_file()]
    assert len(written) > 1
