"""What trains is held in float32, whatever file it came from: one step of every method from networks in float16."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import fewstep as fs
from fewstep.core.method import Batch, zero_nonfinite
from fewstep.distill import DMD2, GDD, NCVSD, SiD, SiDA
from fewstep.distill.gdd import INNATE, EncoderFeatures
from fewstep.io.convert import convert
from fewstep.nets.discriminators import ProjectedDiscriminator
from fewstep.train.ema import HalfLife, PowerFunction
from fewstep.train.optim import Adam
from fewstep.train.posthoc import reconstruct
from fewstep.train.trainer import Trainer
from tests import GOLDEN


class Noise:
    """Endless images of noise, for networks of any shape."""

    def __init__(self, model):
        self.shape, self.classes = model.shape, model.num_classes

    def batch(self, position, n):
        images = torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(position)) / 2
        return Batch(images, torch.arange(n) % self.classes if self.classes else None)


def half(name):
    """A network as published files hold it: every tensor in float16."""
    return convert(GOLDEN / f"{name}.pkl", kind="teacher")[0].half()


def tensors(module):
    return {k: v for k, v in module.state_dict().items() if v.is_floating_point()}


def pretraining(teacher):
    return fs.Pretraining(teacher, fs.DenoisingLoss(), clean=zero_nonfinite)


def sid2a(teacher):
    student = half("edm2-cond" if teacher.uncertainty else "edm-ddpmpp-cond")
    student.levels, student.uncertainty = (2.5,), None
    return SiDA(teacher, generator=student, gates=(0, 0))


def gdd(teacher, freeze=()):
    judge = ProjectedDiscriminator([EncoderFeatures(teacher, 0.1)], num_classes=teacher.num_classes, width=4)
    return GDD(teacher, judge, freeze=freeze)


METHODS = {
    "pretraining": pretraining,
    "sid": SiD,
    "sida": partial(SiDA, gates=(0, 0)),
    "sid2a": sid2a,
    "dmd2": partial(DMD2, ratio=1),
    "gdd": gdd,
    "gddi": partial(gdd, freeze=INNATE),
    "ncvsd": NCVSD,
}


@pytest.mark.parametrize("teacher", ["edm2-cond", "edm-ddpmpp-cond"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_from_float16(name, teacher):
    if (name, teacher) == ("gddi", "edm2-cond"):
        pytest.skip("EDM2 has none of the layers that GDD-I freezes")
    torch.manual_seed(0)
    given = half(teacher)
    method = METHODS[name](given)
    players = list(dict.fromkeys(phase.player for phase in method.phases))
    if name != "pretraining":  # which trains what it is given
        assert all(v.dtype == torch.float16 for v in tensors(given).values())
        moving = [v for p in players for v in method.get_submodule(p).parameters() if v.requires_grad]
        assert moving and all(v.dtype == torch.float32 for v in moving)
    optimizers = {player: Adam(1e-5, eps=1e-12) for player in players}
    trainer = Trainer(method, Noise(given), optimizers, batch_size=4, ema=(HalfLife(), PowerFunction(0.1)))
    before = {player: {k: v.clone() for k, v in tensors(method.get_submodule(player)).items()} for player in players}
    logs = trainer.step()
    assert all(v.isfinite().all() for v in logs.values())
    for player in players:
        seen = ("networks.",)  # the feature networks of a discriminator never train
        after = {k: v for k, v in tensors(method.get_submodule(player)).items() if not k.startswith(seen)}
        assert {v.dtype for v in after.values()} == {torch.float32}
        assert all(v.isfinite().all() for v in after.values())
        moved = torch.cat([(after[k] != before[player][k]).flatten() for k in after])
        assert moved.float().mean() > (0.2 if name == "gddi" and player == "generator" else 0.6)
    for average in trainer.averages:
        assert {v.dtype for v in tensors(average.module).values()} == {torch.float32}


def test_a_method_of_ones_own_is_trained_in_float32_and_its_teacher_stays():
    """The Trainer sees to it, whatever a method forgot."""

    class Mine(fs.Method):
        product = "student"

        def __init__(self, teacher):
            super().__init__()
            self.teacher, self.student = teacher.requires_grad_(False), half("edm-ddpmpp-cond")
            self.phases = (fs.Phase("student", self.imitation),)

        def imitation(self, batch):
            x = fs.add_noise(batch.image, 1.0)
            error = self.student(x, 1.0, batch.label) - self.teacher(x, 1.0, batch.label)
            return (error + 0.1).square().flatten(1).sum(1), {}

    method = Mine(half("edm-ddpmpp-cond"))
    trainer = Trainer(method, Noise(method.teacher), {"student": Adam(1e-5, eps=1e-12)}, batch_size=4)
    before = {k: v.clone() for k, v in tensors(method.student).items()}
    trainer.step()
    assert {v.dtype for v in tensors(method.teacher).values()} == {torch.float16}
    after = tensors(method.student)
    assert {v.dtype for v in (*after.values(), *tensors(trainer.product).values())} == {torch.float32}
    assert torch.cat([(after[k] != before[k]).flatten() for k in after]).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["edm2-cond", "edm-ddpmpp-cond", "edm-adm-cond"])
def test_networks_stored_in_float16_compute_in_the_precision_that_is_asked_for(name, dtype):
    model = half(name)
    x, sigma, label = torch.randn(2, *model.shape), torch.tensor([0.5, 5.0]), torch.tensor([0, 1])
    with torch.no_grad():
        exact = convert_and_round(name)(x, sigma, label)
        assert model.dtype == torch.float32  # unless it is said
        assert (model(x, sigma, label) - exact).abs().max() < 2e-6 * exact.abs().max()
        model.dtype = dtype
        low = model(x, sigma, label)
    assert low.dtype == x.dtype
    assert 1e-5 < (low - exact).abs().max() < 0.1


def convert_and_round(name):
    """The network in float32 with the numbers of the one in float16: also its gains are then multiplied in float32."""
    return half(name).float()


def test_reconstructions_of_files_in_float16_are_in_float32(tmp_path):
    """Parameters are sums of several files; buffers are those of the last one."""
    for nimg, std in ((1024, 0.05), (1024, 0.1), (2048, 0.05), (2048, 0.1)):
        card = fs.Card(nimg=nimg, ema={"kind": "PowerFunction", "std": std})
        fs.save(half("edm2-cond"), tmp_path / "averages" / str(std) / str(nimg), card)
    [path] = reconstruct(tmp_path, [0.075])
    assert {v.dtype for v in tensors(fs.load(path)).values()} == {torch.float32}


def test_edm2_averages_the_weights_that_the_optimizer_left():
    """Not those of unit length: they are projected at the next training step, after the average took them."""
    torch.manual_seed(0)
    model = convert(GOLDEN / "edm2-cond.pkl")[0]
    profile = PowerFunction(0.1)
    trainer = Trainer(
        pretraining(model), Noise(model), {"denoiser": Adam(1e-2, betas=(0.9, 0.99))}, batch_size=4, ema=profile
    )
    name = "net.out_conv.weight"
    weight, expected = model.get_parameter(name), torch.zeros(())
    for step in range(3):
        trainer.step()
        lengths = weight.flatten(1).square().mean(1).sqrt()
        assert (lengths - 1).abs().max() > 1e-4
        beta = profile.decay(4 * step, 4)
        expected = beta * expected + (1 - beta) * weight.detach()
    assert torch.allclose(trainer.product.get_parameter(name), expected, rtol=0, atol=1e-6)
    before = weight.clone()
    trainer.step()  # projects first: where Adam moves by at most 0.01, the lengths are 1 to that
    assert (weight.flatten(1).square().mean(1).sqrt() - 1).abs().max() < 0.02
    assert not torch.equal(before, weight)
