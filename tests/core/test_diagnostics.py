"""Figures per noise level: what falls into which bin, and that micro-batches, steps and the log do not bias a mean."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fewstep.core.diagnostics import BINS, LEVELS, by_sigma
from fewstep.core.method import Batch, Method, Phase
from fewstep.train.log import Log
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer


def test_bins_are_thirds_of_decades_with_open_ends():
    assert " ".join(LEVELS) == "0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5 1 2 5 10 20 50 100"
    sums, counts = by_sigma(torch.tensor([float(name) for name in LEVELS]), torch.arange(BINS).float())
    assert sums.tolist() == list(range(BINS)) and counts.tolist() == [1] * BINS
    edge = 10 ** (-0.5 / 3)  # between the bins of 0.5 and 1
    sums, counts = by_sigma(
        torch.tensor([0.0, 1e-9, 0.99 * edge, 1.01 * edge, 80.0, 1e9]), torch.tensor([1.0, 2, 3, 4, 5, 6])
    )
    assert {LEVELS[i]: (sums[i].item(), n) for i, n in enumerate(counts.tolist()) if n} == {
        "0.002": (3, 2),
        "0.5": (3, 1),
        "1": (4, 1),
        "100": (11, 2),
    }


def test_an_infinite_value_stays_in_its_bin_and_no_gradient_is_kept():
    value = torch.tensor([float("inf"), 1.0], requires_grad=True)
    result = by_sigma(torch.tensor([0.1, 1.0]), value)
    assert result.isfinite().sum() == result.numel() - 1
    assert not result.requires_grad


def test_refuses_shapes_that_do_not_match():
    with pytest.raises(ValueError, match=r"of one shape \(B,\); got \(2,\) and \(3,\)"):
        by_sigma(torch.ones(2), torch.ones(3))


class Levels(Method):
    """Takes the image itself for noise level and for figure."""

    product = "weight"

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(1, 1)
        self.phases = (Phase("weight", self.study),)

    def study(self, batch):
        level = batch.image.flatten()
        return self.weight(level[:, None]).square().sum(1), {"gap": by_sigma(level, 3 * level), "mean": level.mean()}


class Ladder:
    def batch(self, position, n):
        return Batch(torch.tensor([0.1, 1.0, 1.0, 10.0]).repeat(10)[position : position + n].view(n, 1, 1, 1))


@pytest.mark.parametrize("micro_batch", [4, 2, 1])
def test_the_log_holds_means_per_level(tmp_path, micro_batch):
    trainer = Trainer(Levels(), Ladder(), {"weight": Adam(0.0)}, batch_size=4, micro_batch=micro_batch)
    log = Log(tmp_path / "log.jsonl", 0)
    for _ in range(3):
        log.add(trainer.step())
    log.write({"nimg": 12})
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = {k: v for k, v in line.items() if k.startswith("study/")}
    expected = {"gap": 3 * 3.025, "gap@0.1": 0.3, "gap@1": 3.0, "gap@10": 30.0, "mean": 3.025}
    assert found == pytest.approx({f"study/{k}": v for k, v in expected.items()})
