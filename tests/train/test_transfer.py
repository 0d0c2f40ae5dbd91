"""Runs that start from the weights of another network, as by EDM's `--transfer`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import fewstep as fs
from fewstep.cli import main
from fewstep.distill import SiD
from fewstep.io.card import license_names
from fewstep.io.convert import convert
from fewstep.nets.song import SongUNet
from fewstep.runtime.files import read_json
from fewstep.train.trainer import Trainer
from tests import GOLDEN
from tests.conftest import tiny_net
from tests.recipes.test_recipes import pack


@pytest.fixture
def images(tmp_path):
    return fs.images(pack(tmp_path / "images.zip", 16, classes=10, n=20))


def training(images, ema=fs.HalfLife(1000), **options):
    """A run of the kind of `edm-ddpmpp-cond`, with other weights."""
    config = convert(GOLDEN / "edm-ddpmpp-cond.pkl", kind="teacher")[0].net.config
    torch.manual_seed(5)
    denoiser = fs.Denoiser(SongUNet(dataclasses.replace(config, **options)))
    method = fs.Pretraining(denoiser, fs.DenoisingLoss())
    return fs.Run(
        method,
        fs.ImageStream(images),
        {"denoiser": fs.Adam(1e-3, rampup=1e6)},
        batch_size=4,
        until=8,
        snapshots=1,
        ema=ema,
        card=fs.Card(method="EDM"),
    )


def player(run, name="denoiser") -> Any:
    return run.method.get_submodule(name)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return {name for name in set(a) & set(b) if torch.equal(a[name], b[name].to(a[name].dtype))}


def test_a_training_starts_from_an_upstream_file(images, tmp_path):
    path = GOLDEN / "edm-ddpmpp-cond.pkl"
    source, _ = convert(path, kind="teacher")
    run = training(images)
    assert len(same(player(run), source)) < len(source.state_dict()) / 2
    run = fs.transfer(run, path)
    taken = run.transfer
    assert taken is not None
    assert same(player(run), source) == set(source.state_dict())
    assert (taken.taken, taken.new, taken.unused, taken.differs) == (len(source.state_dict()), (), (), ())
    assert run.ema == fs.HalfLife(1000, rampup=None)
    # the average starts at these weights, too: at a rate of 0 it stays there
    trainer = Trainer(run.method, run.data, run.optimizers, batch_size=4, ema=run.ema)
    trainer.step()
    for name, value in trainer.product.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[name], rtol=0, atol=1e-6)


def test_it_is_told_in_the_run_and_in_the_card(images, tmp_path):
    path = GOLDEN / "edm-ddpmpp-cond.pkl"
    run = training(images)
    run = fs.transfer(run, path)
    taken = run.transfer
    assert taken is not None
    fs.fit(run, tmp_path / "run")
    record = read_json(tmp_path / "run" / "run.json")
    assert record["transfer"]["source"] == str(path)
    assert record["identity"]["transfer"] == record["transfer"]["sha256"] == taken.sha256
    card = fs.card(tmp_path / "run")
    assert card.lineage[0] == "edm-ddpmpp-cond"
    assert card.license.startswith("not stated by the file; networks published by NVIDIA")
    with pytest.raises(ValueError, match="belongs to another configuration: .*transfer was "):
        fs.fit(training(images), tmp_path / "run")


def test_what_one_of_the_two_lacks_is_named_and_said(images, tmp_path):
    """A run with the layer for augmentation labels starts from a network without it, and the other way round."""
    run = training(images)
    before = {k: v.clone() for k, v in player(run).state_dict().items()}
    plain = training(images, augment_dim=0)
    precondition = fs.precondition.EDM(sigma_data=0.4)
    source = fs.Denoiser(player(plain).net, precondition=precondition, levels=(80.0,))
    with torch.no_grad():
        for p in source.parameters():
            p.add_(1)
    fs.save(source, tmp_path / "source", fs.Card(name="plain", license="CC0-1.0", lineage=["scratch"]))
    run = fs.transfer(run, tmp_path / "source")
    taken = run.transfer
    assert taken is not None
    assert taken.new == ("net.map_augment.weight",)
    assert torch.equal(player(run).net.map_augment.weight, before["net.map_augment.weight"])
    words = str(taken)
    assert f"copied {taken.taken} tensors; 1 missing there, unchanged: net.map_augment.weight" in words
    assert "precondition differs: there {'kind': 'EDM', " in words
    assert "levels differs: there [80.0], here None" in words
    assert (run.card.license, run.card.lineage) == ("CC0-1.0", ["plain", "scratch"])
    again = training(images, augment_dim=0)
    unused = fs.transfer(again, GOLDEN / "edm-ddpmpp-cond.pkl").transfer
    assert unused is not None and unused.unused == ("net.map_augment.weight",)


def test_a_generator_starts_so_and_inherits_both_licenses(denoiser, data, tmp_path):
    """What SiD2A does with a student; the fake score starts from the teacher."""
    student = fs.Denoiser(tiny_net(), levels=(2.5,)).half()
    fs.save(student, tmp_path / "student", fs.Card(name="student", license="MIT"))
    teacher = fs.Card(name="teacher", license="CC BY-NC-SA 4.0")
    optimizers = {"fake_score": fs.Adam(1e-5), "generator": fs.Adam(1e-5)}

    def run():
        return fs.Run(
            SiD(denoiser), fs.ImageStream(data), optimizers, batch_size=4, until=4, card=teacher.student("SiD")
        )

    first = run()
    ema = first.ema
    first = fs.transfer(first, tmp_path / "student")
    taken = first.transfer
    assert taken is not None
    assert same(player(first, "generator"), student) == set(student.state_dict())
    assert same(player(first, "fake_score"), denoiser) == set(denoiser.state_dict())
    assert {p.dtype for p in player(first, "generator").parameters()} == {torch.float32}
    assert (taken.differs, first.ema) == ((), ema)  # as in SiD2A the ramp-up of the average stays
    assert first.card.license == "all of: CC BY-NC-SA 4.0; MIT"
    assert license_names(first.card.license)["license"] == "other"  # and never the freer one
    assert first.card.lineage == ["teacher", "student"]
    assert first.identity() != run().identity()


def test_what_does_not_fit_is_refused(images, tmp_path):
    seven = fs.images(pack(tmp_path / "seven.zip", 16, classes=7, n=14))
    with pytest.raises(
        ValueError, match=r"net.map_label.weight has the shape \(16, 10\), in the denoiser .* \(16, 7\)\. A"
    ):
        fs.transfer(training(seven, label_dim=7), GOLDEN / "edm-ddpmpp-cond.pkl")
    with pytest.raises(
        ValueError, match="no tensor in common with the denoiser of this run, a Denoiser around SongUNet; it"
    ):
        fs.transfer(training(images), GOLDEN / "ncvsd-student.pkl")
    with pytest.raises(ValueError, match="nowhere.pkl is missing"):
        fs.transfer(training(images), tmp_path / "nowhere.pkl")
    wide = training(images, model_channels=32)
    before = {k: v.clone() for k, v in player(wide).state_dict().items()}
    with pytest.raises(ValueError, match=r"and \d+ more differ"):
        fs.transfer(wide, GOLDEN / "edm-ddpmpp-cond.pkl")
    assert same(player(wide), player(wide)) == set(before)  # nothing was half taken
    assert all(torch.equal(v, before[k]) for k, v in player(wide).state_dict().items())


def test_the_command_line(tmp_path, capsys):
    out, first = tmp_path / "second", tmp_path / "first"
    command = ["train", "digits:teacher", "--until", "128", "--lr", "0"]
    assert main([*command, "--seed", "1", "--out", str(first)]) == 0
    again = [*command, "--transfer", str(first), "--out", str(out)]
    assert main(again) == 0
    assert f"{first}: copied " in capsys.readouterr().out
    assert same(fs.load(out), fs.load(first)) == set(fs.load(first).state_dict())
    assert main(again) == 0  # it resumes
    capsys.readouterr()
    assert main([*command, "--transfer", "nothing.pkl", "--out", str(tmp_path / "third")]) == 2
    assert "nothing.pkl is missing" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
