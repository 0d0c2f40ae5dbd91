import copy
import json

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fewstep.core.method import Batch, Method, Phase, sanitize
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.distill import SiD
from fewstep.recipes import get
from fewstep.train.ema import Average, HalfLife, profiles
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer

ADAM = Adam(1e-3)


def pretraining(denoiser, stream, **options):
    method = Pretraining(copy.deepcopy(denoiser), DenoisingLoss())
    return Trainer(method, stream, {"denoiser": ADAM}, **{"batch_size": 8, **options})


def sid(denoiser, stream, **options):
    method = SiD(denoiser)
    return Trainer(method, stream, {"fake_score": ADAM, "generator": ADAM}, **{"batch_size": 8, **options})


def weights(trainer):
    return {**trainer.method.state_dict(), **{f"ema.{k}": v for k, v in trainer.product.state_dict().items()}}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("make", [pretraining, sid])
def test_resume_is_the_same_run(make, denoiser, stream):
    whole = make(denoiser, stream)
    for _ in range(4):
        whole.step()
    first = make(denoiser, stream)
    for _ in range(2):
        first.step()
    torch.randn(7)  # whatever happens in between
    second = make(denoiser, stream)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(2):
        second.step()
    assert_equal(weights(whole), weights(second))
    assert second.position == whole.position > 0


class Mean(Method):
    """Regresses one weight on the mean of the images; its loss draws nothing."""

    product = "weight"

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.weight.weight)
        self.phases = (Phase("weight", self.regress),)

    def regress(self, batch):
        means = batch.image.flatten(1).mean(1, keepdim=True)
        return (self.weight(torch.ones_like(means)) - means).square().sum(1), {"mean": means.mean()}


def test_accumulated_gradients_are_those_of_the_batch(stream):
    results = []
    for micro_batch in (8, 4, 1):
        trainer = Trainer(Mean(), stream, {"weight": ADAM}, batch_size=8, micro_batch=micro_batch)
        logs = [trainer.step() for _ in range(3)][-1]
        results.append([weight(trainer.product), *(float(v) for v in logs.values())])
    assert results[1] == pytest.approx(results[0], rel=1e-6)
    assert results[2] == pytest.approx(results[0], rel=1e-6)


def two_ranks(rank, path, denoiser, stream, queue):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    trainer = sid(denoiser, stream, micro_batch=4)
    logs = [trainer.step() for _ in range(3)][-1]
    if rank == 0:
        queue.put(({k: v.numpy() for k, v in weights(trainer).items()}, logs["fake_score_loss"].item()))
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_are_one(denoiser, stream, tmp_path):
    one = sid(denoiser, stream, micro_batch=4)
    logs = [one.step() for _ in range(3)][-1]
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=two_ranks, args=(r, tmp_path / "store", denoiser, stream, queue)) for r in range(2)]
    for job in jobs:
        job.start()
    two, loss = queue.get(timeout=60)
    for job in jobs:
        job.join()
    assert loss == pytest.approx(logs["fake_score_loss"].item(), rel=1e-5)
    for name, value in weights(one).items():
        assert torch.allclose(value, torch.from_numpy(two[name]), atol=1e-6), name


def test_every_network_rests_between_moves(denoiser, stream):
    trainer = sid(denoiser, stream)
    seen = {}

    method = trainer.method
    assert isinstance(method, SiD)

    def spy(batch):
        seen.update({name: (m.training, next(m.parameters()).requires_grad) for name, m in method.named_children()})
        return method.fake_score_loss(batch)

    method.phases = (Phase("fake_score", spy),)
    trainer.step()
    assert seen == {"teacher": (False, False), "fake_score": (True, True), "generator": (False, False)}
    assert not any(m.training for m in trainer.method.modules())
    assert not any(p.requires_grad for p in trainer.method.parameters())


class Ball(Method):
    """One weight that is drawn to 1; the gradients of some steps are broken."""

    product = "weight"

    def __init__(self, phases):
        super().__init__()
        self.weight = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.weight.weight)
        self.phases = tuple(Phase("weight", self.pull, **p) for p in phases)

    def pull(self, batch):
        loss = (self.weight(torch.ones(len(batch.image), 1)) - 1).square().sum(1)
        return loss, {"distance": loss.sqrt().mean()}


def weight(module):
    return module.get_parameter("weight").item()


class Nothing:
    def batch(self, position, n):
        return Batch(torch.zeros(n, 1, 1, 1))


def test_phases_move_when_they_are_due():
    trainer = Trainer(Ball([{"every": 2, "start": 8, "stop": 24}]), Nothing(), {"weight": Adam(0.1)}, batch_size=4)
    moved = [bool(trainer.step()) for _ in range(8)]
    assert moved == [False, False, True, False, True, False, False, False]
    assert trainer.position == 8  # images are drawn by updates
    assert trainer.nimg == 32


def test_learning_rate_follows_the_images():
    adam = Adam(0.1, rampup=8, reference=16, cooldown=8, until=32)
    assert [adam.rate(n) for n in (0, 4, 8)] == pytest.approx([0, 0.05, 0.1])
    assert adam.rate(64 - 40) == pytest.approx(0.1 / (24 / 16) ** 0.5)
    assert adam.rate(28) == pytest.approx(0.1 / (28 / 16) ** 0.5 / 2)
    assert adam.rate(40) == 0
    trainer = Trainer(Ball([{}]), Nothing(), {"weight": Adam(0.1, rampup=8)}, batch_size=4)
    before = weight(trainer.product)
    trainer.step()
    assert weight(trainer.method.get_submodule("weight")) == before == 0  # the first step of a warm-up has rate 0
    trainer.step()
    assert weight(trainer.method.get_submodule("weight")) == pytest.approx(0.05)


def test_broken_gradients_are_mended_and_counted():
    grads = [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf"), -float("inf"), 2.0])]
    grads.append(torch.tensor([3.0]))
    assert sanitize(grads) == 2
    assert torch.cat(grads).tolist() == [1.0, 0.0, 1e5, -1e5, 2.0, 3.0]


def test_ema_half_life_and_ramp_up():
    profile = HalfLife(100, rampup=0.05)
    assert profile.decay(0, 8) == 0  # the first update is a copy
    assert profile.decay(200, 10) == pytest.approx(0.5)  # half-life 10
    assert profile.decay(10**6, 100) == pytest.approx(0.5)
    assert HalfLife(100, rampup=None).decay(0, 100) == pytest.approx(0.5)
    several = HalfLife(100), HalfLife(100, rampup=0.2), HalfLife(100, rampup=None)
    names = ["half-life-100", "half-life-100-rampup-0.2", "half-life-100-no-rampup"]
    assert [p.name for p in profiles(several)] == names
    module = nn.Linear(1, 1)
    average = Average(module, copy.deepcopy(module), HalfLife(8, rampup=None))
    nn.init.zeros_(average.module.get_parameter("weight"))
    nn.init.ones_(module.weight)
    average.update(0, 8)
    assert weight(average.module) == pytest.approx(0.5)


def test_refuses_wrong_settings(denoiser, stream):
    with pytest.raises(ValueError, match="multiple of micro_batch"):
        pretraining(denoiser, stream, micro_batch=3)
    with pytest.raises(ValueError, match=r"optimizer for each of \['denoiser'\]; got \['generator'\]"):
        Trainer(Pretraining(denoiser, DenoisingLoss()), stream, {"generator": ADAM}, batch_size=8)
    with pytest.raises(ValueError, match="named function"):
        Phase("denoiser", lambda batch: (batch.image, {}))


class Factor(Method):
    """The loss is the weight times a factor that depends on the step, 0 once."""

    product = "weight"

    def __init__(self, factors):
        super().__init__()
        self.weight = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.weight.weight)
        self.factors = iter(factors)
        self.phases = (Phase("weight", self.multiply),)

    def multiply(self, batch):
        weight = self.weight(torch.ones(len(batch.image), 1)).flatten()
        return weight * next(self.factors), {}


SCALED = Adam(0.1, loss_scale=2.0**10)


def test_an_overflow_is_left_out_and_halves_the_scale():
    trainer = Trainer(Factor([1.0, 3e38, 1.0]), Nothing(), {"weight": SCALED}, batch_size=1)
    plain = Trainer(Factor([1.0, 1.0]), Nothing(), {"weight": Adam(0.1)}, batch_size=1)
    logs, weights = [], []
    for _ in range(3):
        logs.append({k: v.item() for k, v in trainer.step().items()})
        weights.append(weight(trainer.method.get_submodule("weight")))
    for _ in range(2):
        plain.step()
    assert [line["loss_scale/weight"] for line in logs] == [2**10, 2**10, 2**9]
    assert [line["nonfinite/multiply"] for line in logs] == [0, 1, 0]
    assert logs[0]["grad_norm/multiply"] == 1  # without the scale
    assert weights[1] == weights[0]
    assert weights[2] == weight(plain.method.get_submodule("weight"))  # the moments did not move either


def test_scale_grows_and_is_kept_with_the_checkpoint():
    def trainer():
        return Trainer(Factor([3e38, 1.0, 1.0, 1.0]), Nothing(), {"weight": SCALED}, batch_size=1)

    whole, first, second = trainer(), trainer(), trainer()
    for t in (whole, first):
        t.scalers["weight"].set_growth_interval(2)
    logs = [whole.step() for _ in range(4)][-1]
    assert logs["loss_scale/weight"] == 2**10  # halved once, doubled once
    for _ in range(2):
        first.step()
    state = first.state_dict()
    second.load_state_dict({**copy.deepcopy(state), "scalers": json.loads(json.dumps(state["scalers"]))})
    assert isinstance(second.method, Factor)
    second.method.factors = iter([1.0, 1.0])
    logs = [second.step() for _ in range(2)][-1]
    assert logs["loss_scale/weight"] == 2**10
    assert second.state_dict()["scalers"] == whole.state_dict()["scalers"]


def test_small_gradients_survive_in_float16(denoiser, stream):
    """With a loss of 1e-9 of its size, float16 loses the gradients that the scale keeps."""

    class Small(Pretraining):
        def __init__(self, *args):
            super().__init__(*args)
            self.phases = (Phase("denoiser", self.small_loss),)

        def small_loss(self, batch):
            loss, _ = self.denoising_loss(batch)
            return 1e-9 * loss, {}

    norms = {}
    for name, dtype, scale in [
        ("plain", torch.float16, None),
        ("scaled", torch.float16, 2.0**24),
        ("exact", None, None),
    ]:
        mine = copy.deepcopy(denoiser)
        mine.dtype = dtype or torch.float32
        trainer = Trainer(
            Small(mine, DenoisingLoss()), stream, {"denoiser": Adam(1e-3, loss_scale=scale)}, batch_size=8
        )
        norms[name] = trainer.step()["grad_norm/small_loss"].item()
    assert norms["scaled"] == pytest.approx(norms["exact"], rel=0.02)
    assert norms["plain"] < 0.7 * norms["exact"]


def test_condition_of_the_players(denoiser, stream):
    trainer = sid(denoiser, stream)
    trainer.settings["generator"] = Adam(1e-3, rampup=16)
    for _ in range(2):
        trainer.step()
    found = trainer.player_metrics()
    square = sum(p.detach().double().square().sum() for p in trainer.player("fake_score").parameters())
    assert found["weight_norm/fake_score"] == pytest.approx(float(square) ** 0.5, rel=1e-6)
    assert (found["learning_rate/fake_score"], found["learning_rate/generator"]) == (1e-3, 5e-4)
    assert "weight_norm/teacher" not in found


def test_recipes_scale_the_loss_in_float16_alone():
    for dtype, scale in (("float16", 2.0**16), ("bfloat16", None), ("float32", None)):
        run = get("small:teacher", data="digits", until=1000, dtype=dtype).run()
        assert run.optimizers["denoiser"].loss_scale == scale
        assert run.method.denoiser.dtype == getattr(torch, dtype)
