"""Recipes for your own images: settings that follow from data and teacher, from pictures of any size to a student."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fewstep.cli import main, training
from fewstep.core.denoiser import Denoiser
from fewstep.io import model_folder
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.recipes import get, small
from fewstep.recipes.digits import DigitsDMD2, DigitsGDD, DigitsNCVSD, DigitsSiD, DigitsSiDA
from fewstep.recipes.small import PARAMETERS, between
from fewstep.train import estimate
from fewstep.train.loop import fit
from tests.conftest import tiny_net
from tests.data.test_prepare import photos

FAMILIES = {"sid": DigitsSiD, "sida": DigitsSiDA, "dmd2": DigitsDMD2, "ncvsd": DigitsNCVSD, "gdd": DigitsGDD}


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def grey(tmp_path):
    """A teacher of grey images without classes, 16 pixels a side, and pictures of other sizes."""
    return teacher(tmp_path / "teacher"), photos(tmp_path / "photos", [(20, 17), (22, 30), (16, 18)], mode="L")


def teacher(folder, channels=1, side=16, **options):
    torch.manual_seed(0)
    config = SongConfig(
        side,
        in_channels=channels,
        out_channels=channels,
        **{"label_dim": 0, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "dropout": 0.25, **options},
    )
    return model_folder.save(Denoiser(SongUNet(config)), folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_of_pictures_of_any_size_trains(name, grey, tmp_path):
    recipe = get(f"small:{name}", teacher=grey[0], data=grey[1], until=8, batch_size=4)
    run = recipe.run()
    assert run.data.data.shape == (1, 16, 16) and len(run.data.data) == 3
    student = fit(run, tmp_path / "run")
    assert student.levels is not None and student.shape == (1, 16, 16)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["until"], record["recipe"]["settings"]["data"]) == (8, grey[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_lie_between_the_digits_and_the_published_ones(name, grey, monkeypatch):
    recipe, family = get(f"small:{name}"), FAMILIES[name]
    denoiser = model_folder.load(grey[0])
    monkeypatch.setattr(small, "count", lambda net: PARAMETERS[0])
    assert recipe.defaults(denoiser) == {key: getattr(family, key) for key in recipe.published}
    monkeypatch.setattr(small, "count", lambda net: PARAMETERS[1])
    assert recipe.defaults(denoiser) == {k: pytest.approx(v, rel=0.05) for k, v in recipe.published.items()}
    assert all(getattr(recipe, key) is None for key in recipe.published)  # so that they follow


def test_between():
    low, high = PARAMETERS
    assert (between(low, 3.0, 0.5), between(high, 3.0, 0.5)) == (3.0, 0.5)
    assert (between(low // 9, 3.0, 0.5), between(9 * high, 3.0, 0.5)) == (3.0, 0.5)
    assert between(round((low * high) ** 0.5), 1e-4, 1e-6) == pytest.approx(1e-5)


def test_teachers_with_classes_need_longer(monkeypatch):
    monkeypatch.setattr(small, "count", lambda net: PARAMETERS[1])
    found = [get("small:sid").defaults(Denoiser(tiny_net(label_dim=classes)))["until"] for classes in (0, 10)]
    assert found == [pytest.approx(404e6, rel=0.05), pytest.approx(713e6, rel=0.05)]


def test_what_is_given_is_kept_and_the_rest_follows(grey, tmp_path):
    given = get("small:sida", teacher=grey[0], data=grey[1], lr=1e-3, warmup=10, gan_weight=0.2).resolved()
    assert (given.lr, given.warmup, given.gan_weight, given.fake_lr) == (1e-3, 10, 0.2, 1e-3)
    assert (given.batch_size, given.micro_batch, given.until % 128, given.dtype) == (128, 128, 0, "float32")
    assert get("small:sida", teacher=grey[0], data=grey[1]).resolved().warmup == given.until // 9
    large = photos(tmp_path / "large", [(70, 80)], mode="L")
    wide = get("small:sid", teacher=teacher(tmp_path / "64", side=64), data=large).resolved()
    assert (wide.batch_size, wide.micro_batch) == (256, 32)


def test_gdd_sees_each_image_a_hundred_times_at_most(grey, monkeypatch):
    monkeypatch.setattr(small, "count", lambda net: PARAMETERS[1])
    recipe = get("small:gdd", teacher=grey[0], data=grey[1])
    assert recipe.resolved().until == DigitsGDD.until // 128 * 128
    assert dataclasses.replace(recipe, until=10**6).resolved().until == 10**6
    monkeypatch.setattr(small.fs, "images", lambda data: range(10_000))
    assert recipe.resolved().until == 1_000_000 // 128 * 128


def test_dropout_is_that_of_the_players(grey):
    for name, p in {"sid": 0.05, "sida": 0.05, "dmd2": 0.0, "ncvsd": 0.0}.items():
        method: Any = get(f"small:{name}", teacher=grey[0], data=grey[1]).run().method
        players = [m for m in method.modules() if isinstance(m, SongUNet)]
        assert [net.config.dropout for net in players] == [p] * len(players)
        expected, found = (model_folder.load(grey[0]).net.state_dict(), method.teacher.net.state_dict())
        assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_teachers_of_other_shapes_are_refused(tmp_path):
    path = teacher(tmp_path / "teacher", channels=4)
    with pytest.raises(ValueError, match=r"grey or RGB squares up to 128 pixels a side; got \(4, 16, 16\)"):
        get("small:sid", teacher=path, data="digits").run()


# A teacher, and a length that fits into a time

NARROW = {"channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": ()}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setitem(small.NETWORKS, 16, NARROW)
    return photos(tmp_path / "photos", [(20, 17), (16, 30), (18, 18)])


def test_a_teacher_packs_its_pictures_and_resumes(pictures, tmp_path, capsys):
    command = ["train", "small:teacher", "--data", pictures, "--until", "8", "--batch-size", "4", "--cbase", "8"]
    assert main([*command, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert "packed at 16x16" in err and "photos: 3 images of shape (3, 16, 16), no classes" in out
    assert "quality: a network that sees 3 images 3 times learns many of them by heart" in out
    assert main([*command, "--out", "run"]) == 0
    assert "packed before" in capsys.readouterr().err
    assert main([*command, "--out", "other", "--resolution", "8", "--dry-run"]) == 0
    assert "of shape (3, 8, 8)" in capsys.readouterr().out and not (tmp_path / "other").exists()
    assert main([*command, "--out", "other", "--resolution", "300"]) == 2
    assert "--resolution must be 8 to 128 pixels; got 300" in capsys.readouterr().err


def speed(per_parameter):
    """A measurement on a machine whose steps take this many seconds a parameter."""

    def measure(run):
        return estimate.Estimate(per_parameter * small.count(run.method), 0.0, 0, 1)

    return measure


def test_hours_choose_length_and_network(pictures, tmp_path, monkeypatch):
    recipe, options = get("small:teacher", data=pictures), training.Options(out=tmp_path / "run")
    found = []
    for per_parameter in (1e-9, 1e-5, 1e-2):
        monkeypatch.setattr(estimate, "measure", speed(per_parameter))
        found.append(training.within_hours(recipe, options, 2.0))
        run = found[-1].run()
        step = per_parameter * small.count(run.method)
        assert found[-1].until == int(7200 / step) * 128
    assert found[0].cbase == 64 and found[2].cbase == 24 and found[0].until > found[1].until > found[2].until


def test_a_resumed_run_keeps_its_hours(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "measure", lambda run: estimate.Estimate(1.0, 0.0, 0, 1))
    command = ["train", "small:teacher", "--data", pictures, "--batch-size", "4", "--out", "run", "--hours"]
    assert main([*command, str(3 / 3600)]) == 0
    assert "0.000833333 hours: 12 training images, cbase 24" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["until"], record["recipe"]["settings"]["cbase"]) == (12, 24)
    monkeypatch.setattr(estimate, "measure", lambda run: pytest.fail("measured again"))
    assert main([*command, "8"]) == 0
    assert "resuming: 12 of 12 images are done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hours", "1", "--until", "8"], "--hours and --until both set the length of the training; give one of them"),
        (["--hours", "0"], "--hours must be above 0; got 0"),
    ],
)
def test_hours_that_mean_nothing_are_refused(options, words, capsys):
    assert main(["train", "digits:teacher", "--out", "run", *options]) == 2
    assert words in capsys.readouterr().err


def test_hours_need_one_process_and_a_length(monkeypatch):
    with pytest.raises(ValueError, match="Own has no setting until"):
        training.within_hours(dataclasses.make_dataclass("Own", [])(), training.Options(), 1.0)
    monkeypatch.setattr(training, "launched", lambda: SimpleNamespace(rank=0, world=2))
    with pytest.raises(ValueError, match="--hours measures a single process"):
        training.within_hours(get("digits:teacher"), training.Options(), 1.0)


@pytest.mark.parametrize(("n", "words"), [(500, "by heart"), (5_000, "15,803 images"), (50_000, "CIFAR-10 (50,000")])
def test_what_to_expect_of_so_many_images(n, words):
    run: Any = SimpleNamespace(data=SimpleNamespace(data=range(n)), until=1_000_000)
    assert words in get("small:teacher").expected(run)
    assert "at best about as good as its teacher" in get("small:sid").expected(run)
