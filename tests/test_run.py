"""A run survives whatever happens to it: the same command again ends in the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep import checkpoint
from fewstep.data import ImageStream, digits
from fewstep.denoiser import Denoiser
from fewstep.distill import SiD
from fewstep.objectives import DenoisingLoss, Pretraining
from fewstep.train.optim import Adam
from fewstep.train.run import Run, fit
from tests.conftest import tiny_net

ADAM = Adam(2e-3)


def teacher_run(until: int = 64, seed: int = 0, **options) -> Run:
    torch.manual_seed(seed)
    method = Pretraining(Denoiser(tiny_net()), DenoisingLoss())
    defaults = {
        "batch_size": 8,
        "until": until,
        "seed": seed,
        "snapshots": 2,
        "checkpoint_seconds": 0.0,
        "name": "teacher",
    }
    return Run(method, ImageStream(digits()), {"denoiser": ADAM}, **{**defaults, **options})


def sid_run(teacher: Path, until: int = 64) -> Run:
    optimizers = {"fake_score": ADAM, "generator": ADAM}
    method = SiD(checkpoint.load(teacher))
    return Run(
        method, ImageStream(digits()), optimizers, batch_size=8, until=until, checkpoint_seconds=0.0, snapshots=1
    )


def final(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").iterdir())
    return {k: v.clone() for k, v in load_file(newest / "state.safetensors").items()}  # apart from the mapped file


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_interrupted_run_ends_in_the_same_weights(tmp_path):
    fit(teacher_run(), tmp_path / "whole")
    fit(teacher_run(until=40), tmp_path / "parts")
    fit(teacher_run(), tmp_path / "parts")
    assert_same(final(tmp_path / "whole"), final(tmp_path / "parts"))
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["nimg"] for line in log] == [8 * i for i in range(1, 9)]


def test_a_student_resumes_likewise_and_inherits(tmp_path):
    fit(teacher_run(until=16), tmp_path / "teacher")
    fit(sid_run(tmp_path / "teacher"), tmp_path / "whole")
    fit(sid_run(tmp_path / "teacher", until=32), tmp_path / "parts")
    student = fit(sid_run(tmp_path / "teacher"), tmp_path / "parts")
    assert_same(final(tmp_path / "whole"), final(tmp_path / "parts"))
    assert student.levels == (2.5,)
    assert checkpoint.load(tmp_path / "parts").levels == (2.5,)


LONG = 480
CHILD = f"""
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.test_run import teacher_run, fit
fit(teacher_run(until={LONG}), Path(sys.argv[1]))
"""


def start(folder: Path) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env=env, stderr=subprocess.DEVNULL)


def newest(folder: Path) -> str:
    return max((p.name for p in folder.glob("checkpoints/[0-9]*")), default="")


def test_kill_at_any_moment(tmp_path):
    """A process is killed again and again, between steps and in the middle of saving; a checkpoint follows every step."""
    moments = random.Random(0)
    folder = tmp_path / "killed"
    for _ in range(2):
        before, job = newest(folder), start(folder)
        while newest(folder) == before and job.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        job.send_signal(signal.SIGKILL)
        job.wait()
    assert "" < newest(folder) < f"{LONG:012d}"
    assert start(folder).wait() == 0
    fit(teacher_run(until=LONG, checkpoint_seconds=1e9), tmp_path / "whole")
    assert_same(final(tmp_path / "whole"), final(folder))


def test_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, capsys):
    folder = tmp_path / "run"
    fit(teacher_run(), folder)
    expected = final(folder)
    newest = max((folder / "checkpoints").iterdir())
    data = bytearray((newest / "state.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "state.safetensors").write_bytes(data)
    fit(teacher_run(), folder)
    assert f"checkpoint {newest} is damaged" in capsys.readouterr().err
    assert_same(expected, final(folder))
    (newest / "state.safetensors").write_bytes(data[: len(data) // 2])
    (newest / "state.json").write_text("{")
    fit(teacher_run(), folder)
    assert_same(expected, final(folder))


def test_another_configuration_is_refused(tmp_path):
    fit(teacher_run(until=8), tmp_path / "run")
    with pytest.raises(ValueError, match=r"belongs to another configuration: batch_size was 8, is 4; .*--fresh"):
        fit(teacher_run(until=8, batch_size=4), tmp_path / "run")
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        fit(teacher_run(until=8, seed=1), tmp_path / "run")
    fit(teacher_run(until=8, batch_size=4), tmp_path / "run", fresh=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no run"):
        fit(teacher_run(), tmp_path / "full")


def test_full_disk_while_saving_loses_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    fit(teacher_run(until=32), folder)
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewstep.train.run.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        fit(teacher_run(), folder)
    monkeypatch.undo()
    after = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {k: after[k] for k in before if k.name != "log.jsonl"} == {
        k: v for k, v in before.items() if k.name != "log.jsonl"
    }
    assert not [p for p in after if "partial" in str(p)]
    fit(teacher_run(), tmp_path / "whole")
    fit(teacher_run(), folder)
    assert_same(final(tmp_path / "whole"), final(folder))


def test_lost_loss_stops_the_run(tmp_path):
    run = teacher_run(checkpoint_seconds=0.0)
    run.optimizers = {"denoiser": Adam(1e30)}
    with pytest.raises(ValueError, match=r"denoising_loss became infinite or undefined .* Lower the learning rate"):
        fit(run, tmp_path / "run")
