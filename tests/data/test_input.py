"""Batches are read ahead: the same ones, in the background, with errors where they belong."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.train.optim import Adam
from fewstep.train.read_ahead import ReadAhead
from fewstep.train.trainer import Trainer
from tests.conftest import tiny_net

CPU = torch.device("cpu")


class Counting:
    """The batch is its positions; notes what was read, and fails once at a position."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.read: list[int] = []
        self.threads: set[str] = set()
        self.fails_at = fails_at

    def batch(self, position: int, n: int) -> Batch:
        self.threads.add(threading.current_thread().name)
        self.read.append(position)
        if position == self.fails_at:
            self.fails_at = None
            raise OSError(f"the disk is gone at {position}")
        return Batch(torch.arange(position, position + n).float().view(n, 1, 1, 1))


def first(batch: Batch) -> int:
    return int(batch.image[0])


def test_batches_are_those_of_the_positions_each_read_once_and_ahead():
    stream = Counting()
    data = ReadAhead(stream, 4, 8, CPU)
    assert [first(data.batch(p)) for p in (4, 12, 20)] == [4, 12, 20]
    data.thread.shutdown()
    assert stream.read == [4, 12, 20, 28, 36]  # two ahead
    assert threading.current_thread().name not in stream.threads


def test_another_position_than_the_next_ones():
    data = ReadAhead(Counting(), 4, 4, CPU)
    assert [first(data.batch(p)) for p in (0, 100, 104, 4, 4)] == [0, 100, 104, 4, 4]


def test_an_error_comes_with_its_batch_and_again_is_tried_again():
    data = ReadAhead(Counting(fails_at=8), 4, 4, CPU)
    assert [first(data.batch(p)) for p in (0, 4)] == [0, 4]
    with pytest.raises(OSError, match="gone at 8"):
        data.batch(8)
    assert [first(data.batch(p)) for p in (8, 12)] == [8, 12]


class Direct(ReadAhead):
    """Reads when asked, in the calling thread."""

    def batch(self, position: int) -> Batch:
        return self.read(position)


def test_training_is_the_same(stream, monkeypatch):
    torch.manual_seed(0)
    net, ends = tiny_net(), []
    for kind in (ReadAhead, Direct):
        monkeypatch.setattr("fewstep.train.trainer.ReadAhead", kind)
        method = Pretraining(Denoiser(copy.deepcopy(net)), DenoisingLoss())
        trainer = Trainer(method, stream, {"denoiser": Adam(1e-3)}, batch_size=8, micro_batch=4)
        for _ in range(3):
            trainer.step()
        ends.append(torch.cat([p.flatten() for p in method.parameters()]))
    assert torch.equal(*ends)


def test_a_failing_read_ends_the_step_that_needs_it():
    stream = Counting(fails_at=8)
    stream.batch = lambda position, n, read=stream.batch: Batch(torch.zeros(n, 1, 8, 8), read(position, n).label)
    method = Pretraining(Denoiser(tiny_net(label_dim=0)), DenoisingLoss())
    trainer = Trainer(method, stream, {"denoiser": Adam(1e-3)}, batch_size=4)
    trainer.step()
    trainer.step()
    with pytest.raises(OSError, match="gone at 8"):
        trainer.step()
