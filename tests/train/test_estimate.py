"""What a run will take: the estimate is exact where time is linear, and leaves the run as it was."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.cli import main
from fewstep.core.method import Phase
from fewstep.core.objectives import Pretraining
from fewstep.train import estimate
from fewstep.train.loop import fit
from fewstep.train.settings import Run
from tests.train.test_run import ADAM, assert_same, final, sid_run, teacher_run

TIME = [0.0]
"""A clock that the losses below move."""


class Costly(Pretraining):
    """Two losses of known cost in seconds: `fixed` and `each` image; the second is due in every fourth step."""

    fixed, each = 0.5, 0.25

    def __init__(self, run: Run) -> None:
        assert isinstance(run.method, Pretraining)
        super().__init__(run.method.denoiser, run.method.objective)
        self.phases = (Phase("denoiser", self.first), Phase("denoiser", self.second, every=4, start=32))

    def first(self, batch):
        TIME[0] += self.fixed + self.each * len(batch.image)
        return self.objective(self.denoiser, batch)

    def second(self, batch):
        TIME[0] += 8.0
        return self.objective(self.denoiser, batch)


def costly(fixed=0.5, each=0.25, **options) -> Run:
    run = teacher_run()
    method = Costly(run)
    method.fixed, method.each = fixed, each
    settings: dict[str, Any] = {"batch_size": 8, "until": 128, "snapshots": 0, **options}
    return Run(method, run.data, {"denoiser": ADAM}, **settings)


def test_a_linear_cost_is_extrapolated_exactly(monkeypatch):
    monkeypatch.setattr(estimate, "SECONDS", 1e9)
    found = estimate.measure(costly(), clock=lambda: TIME[0])
    assert (found.images, found.step) == (8, 0.5 + 0.25 * 8 + 8 * 96 / 128 / 4)
    run = costly(batch_size=32, micro_batch=4)
    found = estimate.measure(run, clock=lambda: TIME[0])
    assert (found.images, found.step) == (4, pytest.approx(0.5 + 0.25 * 32 + 1.5, rel=1e-12))
    assert found.seconds(run) == 4 * found.step
    assert [found.images_in(run, t) for t in (0.0, 4 * found.step, 9.5 * found.step)] == [32, 128, 288]


def test_a_slow_step_is_measured_with_one_image():
    found = estimate.measure(costly(each=1000.0, until=80), clock=lambda: TIME[0])
    assert (found.images, found.step) == (1, pytest.approx(8 * (1000.5 + 8 * 48 / 80 / 4), rel=1e-12))


def test_small_batches_do_not_hide_the_cost_of_images():
    """Where noise makes the larger batch the faster one, an image still costs a tenth."""
    assert estimate.of_batch({1: 2.0, 2: 1.0}, 4) == 1.0 + 2 * 0.05
    assert estimate.of_batch({2: 1.0}, 8) == 4.0
    assert estimate.of_batch({2: 1.0, 4: 9.0}, 8) == 18.0


@pytest.mark.parametrize("students", [False, True])
def test_a_run_with_an_estimate_is_the_same_run(students, tmp_path):
    fit(teacher_run(until=16), tmp_path / "teacher")

    def run():
        return sid_run(tmp_path / "teacher", until=24) if students else teacher_run(until=24)

    fit(run(), tmp_path / "plain")
    measured = run()
    before = {k: v.clone() for k, v in measured.method.state_dict().items()}
    streams = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    estimate.measure(measured)
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert (str(np.random.get_state()), random.getstate()) == streams[1:]
    assert_same(before, measured.method.state_dict())
    assert all(p.grad is None for p in measured.method.parameters())
    fit(measured, tmp_path / "measured")
    assert_same(final(tmp_path / "plain"), final(tmp_path / "measured"))


def test_a_loss_that_a_copy_would_share_is_refused():
    run = teacher_run()
    original = run.method.phases[0].loss

    def shared(batch):
        return original(batch)

    run.method.phases = (Phase("denoiser", shared),)
    with pytest.raises(ValueError, match="the loss shared is not a method of Pretraining"):
        estimate.measure(run)


def test_memory_of_activations():
    """What autograd saves for a batch, without the weights; a fixed part is not multiplied by the batch."""
    layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    for n in (1, 4):
        with estimate.saved_bytes(layer) as found:
            layer(torch.ones(n, 8))
        assert sum(found) == 2 * 4 * 8 * n  # the first input, and the output of tanh
    assert estimate.activations({1: 130, 2: 160}, 10) == 100 + 10 * 30
    assert estimate.activations({1: 130}, 3) == 390


def test_memory_of_weights_and_optimizer():
    run = teacher_run()
    n = sum(p.nbytes for p in run.method.parameters())
    trainer = estimate.trainer_of_copy(run)
    everything = sum(t.nbytes for t in run.method.state_dict().values())
    average = sum(t.nbytes for t in trainer.averages[0].state_dict().values())
    assert estimate.bytes_held(trainer) == n + 2 * (2 * n + average) + everything


def test_what_is_printed(tmp_path):
    run = sid_run(fit_teacher(tmp_path), until=1_000)
    first, second = estimate.about(run)
    assert re.fullmatch(
        r"networks: teacher \(SongUNet\) of [\d.]+ M parameters, frozen; fake_score .*; generator .*", first
    )
    assert second == "training: 1,000 images in 125 steps of 8; 0.56 times the 1,797 images"
    time, memory = estimate.Estimate(0.5, 60.0, 3 * 2**30, 4).lines(run)
    assert time.startswith("time: 0.5 s a step on the CPU (1 thread), 2.04 minutes in all (measured with 4 images")
    assert memory.startswith("memory: about 3.0 GiB at the peak, an estimate")
    words = [estimate.period(s) for s in (0.01234, 99.0, 600.0, 7200.0, 86400 * 4, 2746 * 3600 * 24)]
    assert words == ["0.0123 s", "99 s", "10 minutes", "2 hours", "4 days", "2,746 days"]


def fit_teacher(tmp_path):
    fit(teacher_run(until=16), tmp_path / "teacher")
    return tmp_path / "teacher"


COMMAND = ["train", "digits:teacher", "--cbase", "8", "--until", "52", "--batch-size", "1", "--out"]


def test_a_dry_run_prints_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND, "run", "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in out] == ["digits", "networks", "training", "time", "memory"]
    assert list(tmp_path.iterdir()) == []


def test_commands_print_their_estimate_first_and_resume_without_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    measured = []

    def measure(run):
        assert not (tmp_path / "run" / "run.json").exists()
        measured.append(run)
        return estimate.Estimate(0.5, 0.0, 2**30, 4)

    monkeypatch.setattr(estimate, "measure", measure)
    assert main([*COMMAND, "run"]) == 0 and len(measured) == 1
    assert "time: 0.5 s a step on the CPU (1 thread), 26 s in all" in capsys.readouterr().out
    assert main([*COMMAND, "run", "--until", "60"]) == 2  # the learning rate depends on it
    assert main([*COMMAND, "run"]) == 0 and len(measured) == 1
    assert re.search(r"resuming: 52 of 52 images are done; 0 s left at [\d,.]+ images/s", capsys.readouterr().out)
    measured.clear()
    (tmp_path / "run").rename(tmp_path / "other")
    assert main([*COMMAND, "run"]) == 0 and len(measured) == 1


def test_training_goes_on_where_no_estimate_can_be_made(tmp_path, monkeypatch, capsys):
    def fail(run):
        raise TypeError("cannot pickle it")

    monkeypatch.setattr(estimate, "measure", fail)
    assert main([*COMMAND, str(tmp_path / "run")]) == 0
    assert "time: not estimated; a step on a copy of the method failed: cannot pickle it" in capsys.readouterr().out
