"""The documents are true: every name in them exists, every command in them is one, and their Python runs."""

from __future__ import annotations

import re
import shlex
from importlib import import_module

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli.dispatch import COMMANDS
from fewstep.io import hub
from fewstep.recipes import names
from tests import GOLDEN, ROOT
from tests.nets.test_registry import ConvConfig, ConvNet

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def resolve(name: str) -> object:
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value: object = import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_names_exist(page):
    for name in re.findall(r"`(fewstep(?:\.\w+)+)`", page.read_text()):
        assert resolve(name) is not None, name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page):
    known = names()
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"^(?:\$ )?fewstep (.+)$", "\n".join(blocks).replace("\\\n", " "), flags=re.MULTILINE):
        words = shlex.split(line, comments=True)
        if words[0] == "--install-completion":
            continue
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
        assert name is not None, line
        if name in ("train", "distill") and not words[1].startswith("-") and ".py" not in words[1]:
            assert words[1] in known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


SMALLER = {
    "batch_size=128, until=51_200": "batch_size=16, until=16",
    "range(2000)": "range(20)",
    'Options(("fid@2k",))': 'Options(("fd_pixels@10",))',
    'Options(("fid",))': 'Options(("fd_pixels",))',
    "lr=1e-4)": "lr=1e-4, until=16, batch_size=16)",
    "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-cond-vp.pkl": str(
        GOLDEN / "edm-ddpmpp-cond.pkl"
    ),
}
"""What the documents say, and what is run in its place: less work, and nothing to download."""

BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def world(tmp_path, monkeypatch, denoiser):
    """The folders, files and variables that documents refer to."""
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "ncvsd"):
        fs.save(denoiser, tmp_path / "runs" / name)
    monkeypatch.setattr(hub, "fetch", lambda address: tmp_path / "runs/teacher")
    registered: dict[str, object] = {}
    for place in ("nets.registry", "io.model_folder"):
        monkeypatch.setattr(f"fewstep.{place}.REGISTERED", registered)
    np.savez("cifar10.npz", arr_0=np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8))
    return {
        "model": denoiser,
        "MyNet": ConvNet,
        "MyConfig": ConvConfig,
        "x": torch.rand(2, 1, 8, 8) * 2 - 1,
        "my_images": lambda seeds: np.zeros((len(seeds), 1, 8, 8), np.uint8),
    }


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.name)
def test_python_runs(page, world):
    """The blocks of a page one after another, as a reader runs them."""
    for block in BLOCK.findall(page.read_text()):
        for said, run in SMALLER.items():
            block = block.replace(said, run)
        exec(compile(block, page.name, "exec"), world)
