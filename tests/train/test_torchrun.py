"""Jobs of torchrun: a rank that dies brings the others down, is named first, and a restart goes on from the last checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.cli import main
from fewstep.runtime.distributed import process_group
from tests import ROOT

RECIPE = '''
import os
import signal

import fewstep as fs
from fewstep.core.network import SamplingDefaults
from fewstep.core.objectives import DenoisingLoss, Pretraining
from tests.conftest import tiny_net

RANK, START = (os.environ.get(name) for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"))


class Stream(fs.ImageStream):
    """In its first life the second rank is killed, in the next one it raises; in others nothing happens."""

    def batch(self, position, n):
        print(f"start {START}: images from {position}", flush=True)
        if RANK == "1" and START == "0" and position >= 44:  # two batches ahead
            os.kill(os.getpid(), signal.SIGKILL)
        if RANK == "1" and START == "1" and position >= 44:
            raise RuntimeError("the cable was pulled")
        return super().batch(position, n)


def tiny(*, until: int = 64):
    """A tiny teacher."""
    import torch

    torch.manual_seed(0)
    net = tiny_net()
    net.sampling = SamplingDefaults(steps=2)  # grids are not looked at
    method = Pretraining(fs.Denoiser(net), DenoisingLoss())
    options = {"micro_batch": 4, "snapshots": 1, "checkpoint_seconds": 0.0}
    return fs.Run(method, Stream(fs.images("digits")), {"denoiser": fs.Adam(1e-3)}, 8, until, **options)
'''


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["nimg"], line["denoising_loss"]) for line in lines]


def test_a_rank_that_dies_is_named_and_a_restart_goes_on(tmp_path):
    """Killed at the fourth step, then an exception at the sixth: then torchrun has no restart left, and one process ends it."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    train = ["train", f"{tmp_path / 'recipe.py'}:tiny", "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    paths = os.pathsep.join([*sys.path, str(ROOT)])
    job = subprocess.run(
        [*torchrun, "-m", "fewstep", *train, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert job.returncode == 1
    assert "failed (exitcode: -9) local_rank: 1" in job.stderr
    line = next(i for i, row in enumerate(RECIPE.splitlines(), 1) if "the cable" in row)
    first = job.stderr.index(f"recipe.py, line {line}, in batch: RuntimeError: the cable was pulled")
    assert "fewstep: rank 1: error: " in job.stderr[:first]
    assert "Traceback" not in job.stderr[:first] and "[rank0]: Traceback" not in job.stderr
    _, cause = job.stderr.split("Root Cause")
    assert "rank      : 1 (local_rank: 1)" in cause and "RuntimeError: the cable was pulled" in cause
    begun = min(int(line.rsplit(" ", 1)[1]) for line in job.stdout.splitlines() if line.startswith("start 1:"))
    assert begun in (8, 16, 24)  # two steps before it died at the earliest, as one checkpoint may have been under way
    for folder in ("run", "whole"):
        assert main([*train, str(tmp_path / folder)]) == 0
    assert [nimg for nimg, _ in losses(tmp_path / "run")] == [8 * i for i in range(1, 9)]
    expected = [loss for _, loss in losses(tmp_path / "whole")]
    assert [loss for _, loss in losses(tmp_path / "run")] == pytest.approx(expected, rel=1e-6)


def test_restarts_on_several_machines_need_ranks_that_meet_anew(monkeypatch):
    """Else torchrun would tell them addresses of processes that are gone."""
    given = {"RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    for name, value in {**given, "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), process_group():
        pass
