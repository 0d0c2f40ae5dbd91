"""`fewstep demo`: the whole path, a hundredth of its length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fewstep as fs
from fewstep import demo
from fewstep.cli import main
from fewstep.runtime.precision import fast_dtype


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images to measure and restore, since the test is about what happens."""
    monkeypatch.setattr("fewstep.compare.MOST", 64)
    monkeypatch.setattr(demo, "TEACHER_STEPS", (2,))
    monkeypatch.setattr(demo, "TASKS", demo.TASKS[:1])


def test_the_whole_path(brief, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "demo"
    command = ["demo", "--out", str(out), "--minutes", "0.0125"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.index("First picture") < printed.index("Restored digits") < printed.index("Done in")
    assert "not by this demo" in printed
    with Image.open(out / "first.png") as picture:
        assert np.asarray(picture).std() > 50
    rows = json.loads((out / "results.json").read_text())
    assert [(row["model"], row["nfe"]) for row in rows] == [("teacher", 3), ("ncvsd", 1), ("ncvsd", 4)]
    assert [row["training_images"] for row in rows] == [512, 256, 256]  # a two-hundredth, in whole batches
    assert {row["protocol"]["precision"] for row in rows} == {str(fast_dtype()).removeprefix("torch.")}
    assert fs.load(out / "teacher").net.config.model_channels == demo.TEACHER["cbase"]
    assert (out / "restored/box_inpainting/sheet.png").exists() and (out / "report.html").exists()
    assert main(command) == 0  # nothing is trained or measured again
    assert json.loads((out / "results.json").read_text()) == rows


@pytest.mark.parametrize("method", demo.METHODS)
def test_every_method_has_settings_that_its_recipe_takes(method: demo.Method) -> None:
    settings = demo.scaled(demo.STUDENTS[method], 0.5)
    recipe = fs.recipes.get(f"digits:{method}", **settings)
    assert recipe.until == demo.STUDENTS[method]["until"] // 2


def test_sid2a_follows_sid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its generator starts as SiD's student."""
    asked: list[list[str]] = []

    def stop(teacher: Path, names: list[str], *_: object, **__: object) -> None:
        asked.append(names)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "fit", lambda *_, **__: None)
    monkeypatch.setattr(demo, "compare", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.demo(tmp_path, method="sid2a", minutes=1, fresh=False, seed=0)
    assert asked == [["digits:sid", "digits:sid2a"]]
