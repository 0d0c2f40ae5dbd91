"""Methods side by side: one command trains, measures and shows them, and a second call does nothing twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import main
from fewstep.compare import planned
from fewstep.core.denoiser import Denoiser
from fewstep.data import ImageData
from fewstep.io.card import Card
from fewstep.io.model_folder import card, save


@pytest.fixture
def photos(data: ImageData, tmp_path: Path) -> Path:
    """64 digits as files, in their order, which is that of no class."""
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"{i:03d}.png" for i in range(64)]
    for i, name in enumerate(names):
        Image.fromarray(np.asarray(data[i])[0]).save(folder / name)
    labels = [[name, int(label)] for name, label in zip(names, np.asarray(data.labels)[:64], strict=True)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def test_methods_side_by_side(
    denoiser: Denoiser, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    save(denoiser, tmp_path / "teacher", Card())
    out = tmp_path / "compare"
    command = ["compare", str(tmp_path / "teacher"), "digits:sid", "digits:sid2a", "digits:ncvsd"]
    command += [
        "--data",
        str(photos),
        "--out",
        str(out),
        "--until",
        "256",
        "--evaluations",
        "2",
        "--metrics",
        "fd_pixels,pr_pixels",
    ]
    assert main(command) == 0
    assert "fd_pixels" in capsys.readouterr().out
    rows = json.loads((out / "results.json").read_text())
    models = [(row["model"], row["nfe"]) for row in rows]
    assert models == [
        ("teacher", 9),
        ("teacher", 17),
        ("teacher", 35),
        ("sid", 1),
        ("sid2a", 1),
        ("ncvsd", 1),
        ("ncvsd", 4),
    ]
    assert {row["training_images"] for row in rows[3:]} == {256}
    assert {row["n"] for row in rows} == {64}
    assert {row["protocol"]["labels"] for row in rows} == {"of the reference"}
    assert len({row["protocol"]["weights"] for row in rows}) == 3  # SiD2A's generator still waits for its discriminator
    assert "SiD2A" in card(out / "sid2a").method
    assert len((out / "sid/metrics.jsonl").read_text().splitlines()) == 2
    page = (out / "report.html").read_text()
    for title in ("over NFE", "over training", "over time", "over noise"):
        assert title in page

    record = (out / "sid/run.json").read_text()
    assert main(command) == 0
    assert (
        json.loads((out / "results.json").read_text()) == rows
    )  # nothing was measured anew, images per second included
    assert (out / "sid/run.json").read_text() == record


def test_mistakes(denoiser: Denoiser, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save(denoiser, tmp_path / "teacher", Card())
    common = ["--data", str(photos), "--out", str(tmp_path / "out")]

    def fails(*methods: str) -> str:
        assert main(["compare", str(tmp_path / "teacher"), *methods, *common]) == 2
        return capsys.readouterr().err

    assert "put digits:sid before it" in fails("digits:sid2a", "digits:sid")
    assert "distils no teacher" in fails("digits:teacher")
    assert "two are alike" in fails("digits:sid", "cifar10:sid")
    assert "there is no recipe 'digits:sit'; did you mean digits:sid, digits:sida or digits:sid2a?" in fails(
        "digits:sit"
    )
    assert "there is no recipe '?'; fewstep recipes lists all" in fails("?")
    assert "name the recipes" in fails()
    assert not (tmp_path / "out").exists()


def test_the_length_of_a_recipe() -> None:
    """Its own, a share of it, or the given one; cifar10:sid leaves it to the teacher."""

    def until(name: str, given: int | None, share: float) -> int | None:
        return planned(name, Path("teacher"), "data", given, share, 0, {}).until

    assert [until("digits:sid", *given) for given in ((None, 1.0), (None, 0.5), (0, 0.5))] == [57_600, 28_800, 0]
    assert until("cifar10:sid", None, 1.0) is None
    with pytest.raises(ValueError, match="no share of it; give --until"):
        until("cifar10:sid", None, 0.5)


def test_recipes_of_one_method(capsys: pytest.CaptureFixture) -> None:
    assert main(["recipes", "--method", "sida"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"digits:sida", "cifar10:sida", "imagenet512:sida"} <= set(names)
    assert all(name.endswith(":sida") for name in names)
    assert main(["recipes", "--method", "sit"]) == 2
    assert "the methods are teacher, sid" in capsys.readouterr().err
