"""Ranks are no more than a way to compute the same: real processes against one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch, Method
from fewstep.core.network import SamplingDefaults
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.data import ImageStream, digits
from fewstep.distill import DMD2, GDD, NCVSD, SiDA
from fewstep.distill.gdd import EncoderFeatures
from fewstep.nets.discriminators import ProjectedDiscriminator
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.execution import recompute_blocks
from fewstep.runtime.distributed import backend, local, sum_over_ranks
from fewstep.train import gradients as gradient_sums
from fewstep.train.checkpoint import Checkpoints
from fewstep.train.checkpoint_files import damage, load
from fewstep.train.evaluation import Evaluation
from fewstep.train.gradients import summed_over_ranks
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.settings import Run
from fewstep.train.sharding import Replicate, Shard, Strategy, full, shardable
from fewstep.train.trainer import Trainer
from tests.conftest import tiny_net

CONTEXT = torch.multiprocessing.get_context("fork")


def one_rank(rank: int, path: Path, job: Callable[..., Any], given: tuple, queue: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        queue.put((rank, job(*given)))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def on_two_ranks(path: Path, job: Callable[..., Any], *given: Any) -> list[Any]:
    """What `job` returns on each of two processes; without tensors."""
    queue = CONTEXT.Queue()
    jobs = [CONTEXT.Process(target=one_rank, args=(r, path, job, given, queue)) for r in range(2)]
    for process in jobs:
        process.start()
    found: dict[int, Any] = {}
    while len(found) < 2:
        try:
            found.update([queue.get(timeout=1)])
        except Empty:
            codes = [process.exitcode for process in jobs]
            assert not any(codes), f"a rank ended with {codes}"
    for process in jobs:
        process.join()
    return [found[0], found[1]]


class Judge(nn.Module):
    """A small discriminator that can be differentiated twice; its last bias has no part in R1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3)

    def forward(self, x: torch.Tensor, label: torch.Tensor | None) -> list[torch.Tensor]:
        return [self.conv1(nn.functional.silu(self.conv0(x))).flatten(1)]


class DoubleStream(ImageStream):
    def batch(self, position: int, n: int) -> Batch:
        batch = super().batch(position, n)
        return batch._replace(image=batch.image.double())


def teacher(family: str, levels: int = 2) -> Denoiser:
    """With dropout, weights none of which is zero, and for EDM2 single numbers as weights and a log-variance head.

    In float64: a bias before a norm has the gradient 0, and Adam makes whole steps of what rounds it.
    """
    torch.manual_seed(1)
    small = {"channel_mult": (1, 2)[:levels], "num_blocks": 1, "attn_resolutions": (16 >> levels,), "dropout": 0.1}
    edm2 = EDM2Config(8, 1, 10, model_channels=16, channels_per_head=16, **small)
    net = EDM2UNet(edm2) if family == "edm2" else tiny_net(**small)
    denoiser = Denoiser(net, uncertainty=Uncertainty(16) if family == "edm2" else None)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return denoiser.double()


def method_of(kind: str) -> tuple[Method, dict[str, Adam]]:
    # every tensor in parts costs messages, so the networks of distillation have one resolution
    levels = 2 if kind == "pretraining" else 1
    denoiser = teacher("edm2" if kind in ("ncvsd", "pretraining") else "song", levels)
    denoiser.dtype = torch.float64
    if kind == "pretraining":
        method = Pretraining(denoiser, DenoisingLoss())
    elif kind == "sida":
        method = SiDA(denoiser, gates=(0, 20), average="global")
        recompute_blocks(method, 8)
    elif kind == "ncvsd":
        method = NCVSD(denoiser, gan_start=12)
        recompute_blocks(method, "light")
    elif kind == "dmd2":
        method = DMD2(denoiser, ratio=2)
    else:
        method = GDD(denoiser, Judge(), r1=1.0, r1_every=2)
    adam = Adam(1e-4)
    return method.double(), {phase.player: adam for phase in method.phases}


def train(kind: str, steps: int) -> dict[str, Any]:
    method, optimizers = method_of(kind)
    trainer = Trainer(
        method, DoubleStream(digits()), optimizers, batch_size=4, micro_batch=1 if kind == "pretraining" else 2
    )
    for _ in range(steps):
        trainer.step()
    return {k: v.numpy() for k, v in trainer.state_dict()["tensors"].items()}


def sharded(kind: str, steps: int, before: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state before and after the steps with every large network in parts; the averaged product is a network again."""
    method, optimizers = method_of(kind)
    parts = {name: Shard() for name in shardable(method)}
    trainer = Trainer(method, DoubleStream(digits()), optimizers, batch_size=4, micro_batch=1, strategies=parts)
    states = []
    if before is not None:
        tensors = {k: torch.from_numpy(v) for k, v in before["tensors"].items()}
        trainer.load_state_dict(before | {"tensors": tensors})
    for n in (0, steps):
        for _ in range(n):
            trainer.step()
        state = trainer.state_dict()
        states.append(state | {"tensors": {k: full(v).numpy().copy() for k, v in state["tensors"].items()}})
    trainer.player_metrics()
    trainer.gather()
    assert all(p.isfinite().all() for p in trainer.product(torch.zeros(1, 1, 8, 8), 1.0, torch.tensor([3])))
    return states[0], states[1]


def replicated(kind: str, steps: int, before: dict[str, Any] | None = None) -> dict[str, Any]:
    method, optimizers = method_of(kind)
    trainer = Trainer(method, DoubleStream(digits()), optimizers, batch_size=4, micro_batch=1)
    if before is not None:
        trainer.load_state_dict(before | {"tensors": {k: torch.from_numpy(v) for k, v in before["tensors"].items()}})
    for _ in range(steps):
        trainer.step()
    state = trainer.state_dict()
    return state | {"tensors": {k: v.numpy().copy() for k, v in state["tensors"].items()}}


@pytest.mark.parametrize("kind", ["sida", "gdd", "ncvsd", "dmd2"])
def test_parts_are_the_whole(kind, tmp_path):
    """Replicated, then in parts on two ranks, then replicated on one: as one rank from beginning to end."""
    middle = replicated(kind, 2)
    before, after = on_two_ranks(tmp_path / "store", sharded, kind, 3, middle)[0]
    assert all((v == before["tensors"][k]).all() for k, v in middle["tensors"].items())
    expected = replicated(kind, 4, middle)
    assert distance(expected["tensors"], replicated(kind, 1, after)["tensors"]) <= 1e-6


def lowered(strategy: Strategy) -> list[float]:
    """The losses of three steps in bfloat16, of which the last weights are in the last."""
    torch.manual_seed(1)
    method = Pretraining(Denoiser(tiny_net(), dtype=torch.bfloat16), DenoisingLoss())
    trainer = Trainer(
        method, ImageStream(digits()), {"denoiser": Adam(1e-2)}, batch_size=4, strategies={"denoiser": strategy}
    )
    return [trainer.step()["denoising_loss"].item() for _ in range(3)]


def test_parts_below_float32(tmp_path):
    parts, whole = (on_two_ranks(tmp_path / type(s).__name__, lowered, s)[0] for s in (Shard(), Replicate()))
    assert parts == pytest.approx(whole, rel=0.02)


def scaled(strategy: type[Strategy]) -> tuple[list[float], list[float]]:
    """Losses and loss scales of a few steps in float16, of which some overflow, in few gradients."""
    denoiser = teacher("edm2").float()
    denoiser.dtype = torch.float16
    method = Pretraining(denoiser, DenoisingLoss())
    adam = Adam(1e-3, loss_scale=2.0**9)
    trainer = Trainer(
        method, ImageStream(digits()), {"denoiser": adam}, batch_size=4, strategies={"denoiser": strategy()}
    )
    logs = [trainer.step() for _ in range(4)]
    return [log["denoising_loss"].item() for log in logs], [log["loss_scale/denoiser"].item() for log in logs]


def test_parts_share_one_loss_scale(tmp_path):
    """A step that overflows on any rank is left out by all of them."""
    (losses, scales), other = on_two_ranks(tmp_path / "parts", scaled, Shard)
    assert (losses, scales) == other
    assert scales[0] > scales[-1]
    expected, expected_scales = on_two_ranks(tmp_path / "whole", scaled, Replicate)[0]
    assert scales == expected_scales
    assert losses == pytest.approx(expected, rel=2e-3) and losses[0] != losses[-1]


def distance(mine: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of any tensor, relative to its largest entry where that is above 1."""
    assert mine.keys() == theirs.keys()
    return max(float(abs(v - theirs[k]).max() / max(abs(v).max(), 1)) for k, v in mine.items() if v.size)


@pytest.mark.parametrize("kind", ["pretraining", "sida", "gdd"])
def test_two_ranks_are_one_after_20_steps(kind, tmp_path):
    one = train(kind, 20)
    two = on_two_ranks(tmp_path / "store", train, kind, 20)
    assert all((v == two[1][k]).all() for k, v in two[0].items())
    assert distance(one, two[0]) <= 1e-6


def figures(steps: int) -> tuple[list[float], Any]:
    """Of a training in float32: the losses, and the answers of the averaged product at four noise levels."""
    method = Pretraining(teacher("song").float(), DenoisingLoss())
    trainer = Trainer(method, ImageStream(digits()), {"denoiser": Adam(1e-4)}, batch_size=4, micro_batch=1)
    losses = [trainer.step()["denoising_loss"].item() for _ in range(steps)]
    sigma = torch.tensor([0.1, 0.5, 2.0, 20.0])
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * sigma[:, None, None, None]
    with torch.no_grad():
        return losses, trainer.product.eval()(x, sigma, torch.arange(4)).numpy()


def test_two_ranks_are_one_in_float32_but_for_weights_without_effect(tmp_path):
    losses, answers = figures(20)
    theirs, found = on_two_ranks(tmp_path / "store", figures, 20)[0]
    assert theirs == pytest.approx(losses, rel=1e-6)
    assert abs(found - answers).max() <= 1e-6 * abs(answers).max()


def gradients(bucket_bytes: int) -> list[Any]:
    """Of a sum of losses over the ranks: overlapping with backward, and by one message afterwards."""
    gradient_sums.BUCKET_BYTES = bucket_bytes
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2), nn.Linear(2, 2))
    params = list(net.parameters())
    rank = dist.get_rank()
    torch.manual_seed(rank)
    draws = [torch.randn(4, 3) for _ in range(2)]
    results = []
    for overlap in (True, False):
        net.zero_grad()
        # the last layer is used by the second rank alone, the one before it twice
        used = net if rank else net[:3]
        used(draws[0]).square().sum().backward()
        loss = used(draws[1]).square().sum() + net[2](torch.ones(5)).sum()
        if overlap:
            with summed_over_ranks(params):
                loss.backward()
        else:
            loss.backward()
            for p in params:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            sum_over_ranks([p.grad for p in params if p.grad is not None])
        results.append([p.grad.numpy().copy() for p in params if p.grad is not None])
    return results


@pytest.mark.parametrize("bucket_bytes", [1, 64, 2**20])
def test_gradients_in_buckets_are_those_of_one_message(bucket_bytes, tmp_path):
    for overlapping, flat in on_two_ranks(tmp_path / "store", gradients, bucket_bytes):
        assert len(overlapping) == len(flat) == 6
        assert all((a == b).all() for a, b in zip(overlapping, flat, strict=True))


def unused() -> list[bool]:
    """Which parameters have a gradient when one of two layers has a part in the loss."""
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    params = list(net.parameters())
    with summed_over_ranks(params):
        net[0](torch.ones(2)).sum().backward()
    return [p.grad is not None for p in params]


def test_a_parameter_without_a_gradient_stays_without(tmp_path):
    assert on_two_ranks(tmp_path / "store", unused) == [[True, True, False, False]] * 2


def run_of(until: int, **options: Any) -> Run:
    torch.manual_seed(0)
    net = tiny_net()
    net.sampling = SamplingDefaults(steps=2)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType] - grids are not looked at
    method = Pretraining(Denoiser(net), DenoisingLoss())
    settings = {"batch_size": 8, "until": until, "snapshots": 1, "checkpoint_seconds": 1e9} | options
    return Run(method, ImageStream(digits()), {"denoiser": Adam(1e-4)}, **settings)


def fit_in(folder: Path, until: int, strategy: str) -> float:
    """The sum of the product's weights: it is a whole network on every rank."""
    return sum(float(p.double().sum()) for p in fit(run_of(until, strategy=strategy), folder).parameters())


def losses(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["denoising_loss"] for line in lines]


def test_ranks_and_strategy_may_change_between_resumes(tmp_path):
    """1 -> 2 -> 2 in parts -> 1, whose part is the whole: the same losses up to rounding.

    The micro-batch is the one with which the run began.
    """
    fit(run_of(80, micro_batch=4), tmp_path / "whole")
    folder = tmp_path / "parts"
    fit(run_of(16, micro_batch=4), folder)
    for until, strategy in ((32, "replicate"), (56, "shard")):
        first, second = on_two_ranks(tmp_path / strategy, fit_in, folder, until, strategy)
        assert first == second
    fit_in(folder, 80, "shard")
    assert len(losses(folder)) == 10
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


@dataclass(frozen=True)
class Interrupted(Evaluation):
    """An evaluation during which one rank, and no other, gets SIGTERM."""

    victim: int = 0

    def prepare(self, data: Any) -> Callable[..., Any]:
        measure, calls = super().prepare(data), iter(range(2))

        def terminate(*_: object) -> None:
            if next(calls, None) == 1 and dist.get_rank() == self.victim:
                os.kill(os.getpid(), signal.SIGTERM)

        def interrupted(denoiser: Denoiser, watch: Any) -> Any:
            with denoiser.register_forward_pre_hook(terminate):
                return measure(denoiser, watch)

        return interrupted


def fit_interrupted(folder: Path, victim: int) -> int:
    evaluation = Evaluation(8, n=20) if victim < 0 else Interrupted(8, n=20, victim=victim)
    try:
        fit(run_of(16, evaluation=evaluation), folder)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_rank_in_an_evaluation_stops_both(tmp_path, victim):
    """The next start repeats what was not finished."""
    folder = tmp_path / "run"
    assert on_two_ranks(tmp_path / "first", fit_interrupted, folder, victim) == [75, 75]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"{8:012d}"]
    assert not (folder / "metrics.jsonl").exists()
    assert on_two_ranks(tmp_path / "second", fit_interrupted, folder, -1) == [0, 0]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["nimg"] for line in lines] == [8, 16]


def held_and_written(folder: Path, strategy: type[Strategy]) -> tuple[int, int, int]:
    """Bytes of the copy that a rank makes for a checkpoint, of the shard that it writes, and of the whole state."""
    method, optimizers = method_of("ncvsd")
    layout = {name: strategy() for name in shardable(method)}
    trainer = Trainer(method, DoubleStream(digits()), optimizers, batch_size=4, micro_batch=1, strategies=layout)
    trainer.step()
    saves = Checkpoints(folder)
    state = trainer.state_dict()
    saves.save(state, seconds=0.0)
    saves.close()
    dist.barrier()
    (path,) = folder.glob("[0-9]*")
    held = sum(local(t).nbytes for t in saves.staged.values())
    written = (path / f"shard-{dist.get_rank() + 1:05d}.safetensors").stat().st_size
    assert damage(path) is None
    before = {k: full(v) for k, v in state["tensors"].items()}
    for into in (trainer.tensors, None):
        again = load(path, into)["tensors"]
        assert again.keys() == before.keys()
        assert all(torch.equal(full(v), before[k]) for k, v in again.items())
    return held, written, sum(t.nbytes for t in before.values())


def test_each_rank_holds_and_writes_its_parts(tmp_path):
    """Both ranks hold all that is replicated, and each writes about half of it."""
    for strategy, share in ((Shard, 0.5), (Replicate, 1.0)):
        found = on_two_ranks(
            tmp_path / f"{strategy.__name__}-store", held_and_written, tmp_path / strategy.__name__, strategy
        )
        size = found[0][2]
        for held, written, _ in found:
            assert held == pytest.approx(share * size, rel=0.08)
            assert written == pytest.approx(0.5 * size, rel=0.2)
        assert sum(held for held, _, _ in found) == pytest.approx(2 * share * size, rel=0.04)


def test_messages_of_both_devices_are_carried(monkeypatch):
    """Counts of images lie on the CPU, beside GPUs too."""
    assert dist.BackendConfig(cast("Any", backend())).get_device_backend_map()["cpu"] == "gloo"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dist.BackendConfig(cast("Any", backend())).get_device_backend_map() == {"cpu": "gloo", "cuda": "nccl"}


RATES = {"fake_score": Adam(1e-3), "generator": Adam(1e-3)}


def begun() -> list[float]:
    """The sums of a method's tensors after the Trainer has it, made without a common seed."""
    torch.manual_seed(dist.get_rank())
    method = DMD2(Denoiser(tiny_net()))
    Trainer(method, ImageStream(digits()), RATES, batch_size=2)
    return [float(x.double().sum()) for x in method.state_dict().values()]


def test_ranks_begin_with_the_weights_of_the_first(tmp_path):
    first, second = on_two_ranks(tmp_path / "store", begun)
    assert first == second


def test_networks_in_parts_are_evaluated_alike_by_all_ranks(tmp_path):
    run = run_of(8)
    several = DMD2(Denoiser(tiny_net()), levels=(10.0, 1.0))
    with pytest.raises(ValueError, match="each rank draws which step it trains, .* Use strategy replicate"):
        Run(several, run.data, RATES, batch_size=2, until=2, strategy="shard")
    judge = ProjectedDiscriminator([EncoderFeatures(Denoiser(tiny_net()), 0.2)], num_classes=10, width=8)
    assert shardable(GDD(Denoiser(tiny_net()), judge)) == ["generator"]
