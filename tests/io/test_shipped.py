"""The models that come with the package: they load and sample offline, and are as good as their page says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep as fs
from fewstep.cli import main
from fewstep.io.model_folder import shipped_models

DISTANCE = 0.157
"""Frechet distance of `digits` in pixel space, labels of the digits, as docs/results.md has it."""


def test_they_load_by_name_and_have_cards():
    assert shipped_models() == ["digits", "digits-student", "digits-teacher"]
    for name in shipped_models():
        card = fs.card(name)
        assert card.license == "Apache-2.0" and card.data["name"] == "digits"
        assert fs.load(name).shape == (1, 8, 8)


def test_the_distance_of_one_step_is_that_of_the_page():
    digits = fs.images("digits")
    (result,) = fs.evaluate(fs.generated(fs.load("digits"), range(1797), label=torch.from_numpy(digits.labels)), digits)
    assert result.value == pytest.approx(DISTANCE, abs=0.005)


def test_a_folder_of_that_name_goes_before_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fs.save(fs.load("digits-teacher"), "digits", fs.Card(name="mine"))
    assert fs.card("digits").name == "mine"


def test_commands_take_their_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "digits", "--seeds", "0-3", "--grid", "grid.png"]) == 0
    assert np.asarray(Image.open("grid.png")).std() > 50
    assert main(["eval", "digits-student", "--reference", "digits", "--metrics", "fd_pixels", "--num", "8"]) == 0
    task = ["--task", "box_inpainting", "--class", "data", "--first", "1", "--nfe", "3"]
    task += ["--preset", "balanced", "--prior-steps", "1"]
    assert main(["restore", "digits", "digits", *task, "--out", "restored"]) == 0
    assert main(["sample", "digit", "--grid", "x.png"]) == 2
    assert "one of digits, digits-student, digits-teacher" in capsys.readouterr().err
