"""SiDA: the reference's numbers, the paper's equations in float64, its laws, and the toy."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch, sanitize
from fewstep.core.noise import LogNormal, karras_ramp
from fewstep.core.objectives import DenoisingLoss
from fewstep.data.augment import AugmentPipe
from fewstep.distill import SiD, SiDA
from fewstep.distill.adversarial import ClipNorm, ClipValue, encoder_logits
from fewstep.distill.players import few_steps, uniform_levels
from fewstep.io.convert import convert
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.magnitude import MPConv
from fewstep.samplers import last, multistep
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer
from tests import GOLDEN, toy
from tests.conftest import tiny_net


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "sida.npz") as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


def imported(name: str) -> Denoiser:
    denoiser, _ = convert(GOLDEN / f"{name}.pkl")
    denoiser.levels = None  # the class of the snapshot is that of students
    return denoiser.eval()


@pytest.fixture(scope="module")
def pair() -> tuple[Denoiser, Denoiser]:
    return imported("sida-teacher"), imported("sida-fake")


def given(monkeypatch, method, x0: Tensor, sigma: Tensor, eps: Tensor) -> None:
    """Make a method's losses draw these images, levels and noise."""
    module = type(method).__module__
    monkeypatch.setattr(f"{module}.few_steps", lambda *_: x0)
    monkeypatch.setattr(f"{module}.add_noise", lambda x, s: x + s[:, None, None, None] * eps)
    monkeypatch.setattr(torch, "randn_like", lambda x: eps)
    method.noise = method.objective.noise = lambda x: sigma


def ramp(u: Tensor) -> Tensor:
    return karras_ramp(0.8 * u.flatten(), 0.002, 80.0, 7.0)


def close(found: Tensor, expected: Tensor, tol: float = 1e-4) -> None:
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < tol, error.item()


def test_networks_of_the_reference(golden, pair):
    teacher, fake = pair
    x, sigma, label = golden["x"], golden["sigma"], golden["labels"]
    with torch.no_grad():
        encoded = fake.encode(x, sigma, label)
        close(teacher(x, sigma, label), golden["teacher_denoised"])
        close(fake.decode(encoded), golden["fake_denoised"])
        close(encoder_logits(encoded), golden["fake_logits"].squeeze(1))


@pytest.mark.parametrize(("name", "alpha"), [("sid", 1.2), ("sid_alpha1", 1.0)])
def test_sid_of_the_reference(golden, pair, monkeypatch, name, alpha):
    method = SiD(pair[0], alpha=alpha)
    method.fake_score = pair[1]
    x0 = golden["x_generated"].clone().requires_grad_()
    given(monkeypatch, method, x0, ramp(golden[f"{name}_u"]), golden[f"{name}_eps"])
    loss, _ = method.generator_loss(Batch(x0, golden["labels"]))
    close(loss.detach() / 100, golden[f"{name}_loss"])
    [slope] = torch.autograd.grad(loss.sum() / 100, x0)
    close(slope, golden[f"{name}_grad"])


def test_generator_step_of_the_reference(golden, pair, monkeypatch):
    method = SiDA(pair[0])
    method.fake_score = pair[1]
    x0 = golden["x_generated"].clone().requires_grad_()
    given(monkeypatch, method, x0, ramp(golden["sida_u"]), golden["sida_eps"])
    batch = Batch(x0, golden["labels"])
    sid, gan, _ = method.terms(batch)
    close(sid.detach() / 100, golden["sida_sid_loss"])
    close(gan.detach() / 0.01, golden["sida_adv_loss"])
    total = method.sid_and_gan(batch)[0].mean()
    close(total.detach(), golden["sida_total"])
    [slope] = torch.autograd.grad(total, x0)
    close(slope, golden["sida_grad"])


def test_fake_score_step_of_the_reference(golden, pair, monkeypatch):
    method = SiDA(pair[0])
    method.fake_score = copy.deepcopy(pair[1]).requires_grad_(True)
    sigma = (-1.2 + 1.2 * golden["fake_z"].flatten()).exp()
    given(monkeypatch, method, golden["x_generated"], sigma, golden["fake_eps"])
    loss, logs = method.fake_score_loss(Batch(golden["x_real"], golden["labels"]))
    close(loss.detach().mean(), golden["fake_total"])
    close(logs["disc"], golden["fake_disc_loss"].mean())
    loss.mean().backward()
    gradients = [p.grad for p in method.fake_score.parameters() if p.grad is not None]
    close(torch.stack(torch._foreach_norm(gradients)).norm(), golden["fake_grad_norm"])
    first = next(p.grad for n, p in method.fake_score.named_parameters() if n.endswith("16x16_conv.weight"))
    close(first, golden["fake_grad_first_conv"])


# The paper's equations, in float64 and by the definitions, on a small network with classes.


@pytest.fixture
def world(denoiser) -> tuple[SiDA, Batch]:
    """SiDA in float64, its fake score away from the teacher, in the state of a generator's phase."""
    torch.manual_seed(3)
    teacher = copy.deepcopy(denoiser).double()
    teacher.dtype = torch.float64
    method = SiDA(teacher, alpha=1.0)
    with torch.no_grad():
        for p in [*method.fake_score.parameters(), *method.generator.parameters()]:
            p.mul_(1 + 0.1 * torch.randn_like(p))
    method.fake_score.requires_grad_(False)
    return method, Batch(torch.randn(6, 1, 8, 8).double(), torch.arange(6))


def drawn(method: SiDA, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Generated images, levels and noisy images as the generator's loss draws them from a fresh stream."""
    x0 = method.generator(2.5 * torch.randn_like(batch.image), torch.tensor(2.5), batch.label)
    sigma = torch.stack([(0.002 ** (1 / 7) + 0.8 * u * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for u in torch.rand(6)])
    return x0, sigma, x0 + sigma.double()[:, None, None, None] * torch.randn_like(x0)


def test_generator_loss_is_the_paper_s(world):
    """0.5 (100 sum l_sid + 0.01 C H W softplus(-d) / w), the softplus averaged over the batch; value and gradient."""
    method, batch = world
    torch.manual_seed(7)
    x0, sigma, x = drawn(method, batch)
    real, encoded = method.teacher(x, sigma, batch.label), method.fake_score.encode(x, sigma, batch.label)
    fake, logits = method.fake_score.decode(encoded), encoded.features.bottleneck.mean(dim=1)
    bce = -F.logsigmoid(logits.clamp(-10, 10)).mean()
    total = []
    for i in range(6):
        w = (x0[i] - real[i]).abs().mean().detach()
        sid = ((real[i] - fake[i]) * ((real[i] - x0[i]) - (real[i] - fake[i])) / w).sum()
        total.append(0.5 * 100 * sid + 0.5 * 0.01 * 64 * bce / w)
    expected = torch.stack(total)
    torch.manual_seed(7)
    loss, _ = method.sid_and_gan(batch)
    close(loss.detach(), expected.detach(), 1e-6)
    weights = list(method.generator.parameters())
    mine, theirs = (torch.autograd.grad(v.mean(), weights) for v in (loss, expected))
    close(torch.cat([g.flatten() for g in mine]), torch.cat([g.flatten() for g in theirs]), 1e-6)


def test_fake_score_loss_is_the_paper_s(world):
    """lambda |D(x0 + n) - x0|^2 + lambda (BCE_real + BCE_fake) / 2, with one level and one noise for real and fake."""
    method, batch = world
    method.fake_score.requires_grad_(True)
    torch.manual_seed(8)
    x0 = method.generator(2.5 * torch.randn_like(batch.image), 2.5, batch.label).detach()
    sigma = (-1.2 + 1.2 * torch.randn(6)).exp().double()
    n = sigma[:, None, None, None] * torch.randn_like(x0)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    error = method.fake_score(x0 + n, sigma, batch.label) - x0

    def logits(image: Tensor) -> Tensor:
        return method.fake_score.encode(image + n, sigma, batch.label).features.bottleneck.mean(dim=1)

    bce = (-F.logsigmoid(logits(batch.image)).mean() - F.logsigmoid(-logits(x0)).mean()) / 2
    expected = weight * error.square().sum(dim=(1, 2, 3)) + weight * bce
    torch.manual_seed(8)
    loss, logs = method.fake_score_loss(batch)
    close(loss.detach(), expected.detach(), 1e-6)
    weights = list(method.fake_score.parameters())
    mine, theirs = (torch.autograd.grad(v.mean(), weights) for v in (loss, expected))
    close(torch.cat([g.flatten() for g in mine]), torch.cat([g.flatten() for g in theirs]), 1e-6)
    assert {"accuracy_real", "accuracy_fake", "margin", "disc", "error"} <= logs.keys()


def test_adversarial_gradient_scales_with_the_batch_s_mean_of_1_over_w(world):
    """-(1 - sigmoid(d_j)) C H W gan_weight mean(1 / w) / (b h w) in each logit; its own 1 / w with `global`."""
    method, batch = world
    seen = {}
    original = method.predict_and_logits

    def predict_and_logits(*args):
        fake, logits = original(*args)
        seen["logits"] = logits
        return fake, logits

    method.predict_and_logits = predict_and_logits
    for average in ("micro_batch", "global"):
        method.average = average
        torch.manual_seed(7)
        x0, sigma, x = drawn(method, batch)
        w = (x0 - method.teacher(x, sigma, batch.label)).abs().mean(dim=(1, 2, 3)).detach()
        torch.manual_seed(7)
        gan = method.terms(batch)[1].sum() / 6
        d = seen["logits"]
        [slope] = torch.autograd.grad(gan, d)
        scale = (1 / w).mean() if average == "micro_batch" else (1 / w)[:, None, None]
        expected = -(1 - d.sigmoid()) * 64 * 0.01 * scale / (6 * 4 * 4)
        close(slope, expected.detach(), 1e-6)
    assert d.abs().max() < 10


def test_global_terms_do_not_depend_on_how_the_batch_is_split(world, monkeypatch):
    method, batch = world
    torch.manual_seed(7)
    x0, sigma, _ = drawn(method, batch)
    x0, eps = x0.detach(), torch.randn_like(x0)
    results: dict[tuple[str, int], float] = {}
    for average in ("micro_batch", "global"):
        method.average = average
        for part in (6, 3):
            loss = torch.zeros(())
            for k in range(0, 6, part):
                mine = slice(k, k + part)
                given(monkeypatch, method, x0[mine], sigma[mine], eps[mine])
                piece = Batch(batch.image[mine], batch.label[mine])
                loss = loss + method.sid_and_gan(piece)[0].sum() + method.fake_score_loss(piece)[0].sum()
            results[average, part] = loss.item()
    assert results["global", 3] == pytest.approx(results["global", 6], rel=1e-12)
    assert results["micro_batch", 3] != pytest.approx(results["micro_batch", 6], rel=1e-6)


def test_saturated_logits_give_the_generator_nothing(world):
    method, batch = world
    original = method.predict_and_logits
    for shift, moves in ((-9.0, True), (-11.0, False), (11.0, False)):

        def predict_and_logits(*args, shift=shift):
            fake, logits = original(*args)
            return fake, logits - logits.detach() + shift

        method.predict_and_logits = predict_and_logits
        slopes = torch.autograd.grad(method.terms(batch)[1].sum(), list(method.generator.parameters()))
        assert any(g.abs().sum() > 0 for g in slopes) == moves


# EDM2


def edm2_teacher() -> Denoiser:
    torch.manual_seed(0)
    config = EDM2Config(
        8, 4, 10, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(), channels_per_head=16
    )
    teacher = Denoiser(EDM2UNet(config), uncertainty=Uncertainty(16)).eval()
    with torch.no_grad():
        for name, p in teacher.named_parameters():
            if name.endswith("gain"):
                p.fill_(0.7)
    return teacher


@pytest.mark.parametrize("adversarial", [True, False])
def test_log_variance_weighs_every_term(adversarial):
    """lambda e^-u (error + n u e^u / lambda + disc), e^-u on both terms of the generator, whose copy has no head."""
    method: Any = SiDA(edm2_teacher(), disc_weight=100.0, clip=None) if adversarial else SiD(edm2_teacher())
    with torch.no_grad():
        method.fake_score.uncertainty.linear.weight.mul_(3)
        method.fake_score.net.out_gain.add_(0.1)
    plain = copy.deepcopy(method)
    plain.fake_score.uncertainty = None
    batch = Batch(torch.randn(3, 4, 8, 8), torch.arange(3))
    sigmas = torch.tensor([0.1, 0.5, 3.0])
    for m in (method, plain):
        m.noise = m.objective.noise = lambda x: sigmas
    u = method.fake_score.log_variance(sigmas)
    assert u.abs().min() > 1e-3
    torch.manual_seed(1)
    loss = (method.sid_and_gan if adversarial else method.generator_loss)(batch)[0]
    torch.manual_seed(1)
    bare = (plain.sid_and_gan if adversarial else plain.generator_loss)(batch)[0]
    close(loss.detach(), (bare * (-u).exp()).detach(), 1e-5)
    torch.manual_seed(2)
    loss = method.fake_score_loss(batch)[0]
    torch.manual_seed(2)
    bare = plain.fake_score_loss(batch)[0]
    close(loss.detach(), (bare * (-u).exp() + 256 * u).detach(), 1e-5)
    assert method.generator.uncertainty is None
    [slope] = torch.autograd.grad(loss.sum(), method.fake_score.uncertainty.linear.weight)
    assert slope.abs().sum() > 0


class Flat:
    """Noise in place of images."""

    def __init__(self, *shape: int, classes: int = 0) -> None:
        self.shape, self.classes = shape, classes

    def batch(self, position: int, n: int) -> Batch:
        label = torch.arange(position, position + n) % self.classes if self.classes else None
        return Batch(torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(position)), label)


def test_weights_of_edm2_stay_on_their_sphere():
    method = SiDA(edm2_teacher(), disc_weight=100.0, clip=None, gates=(0, 0))
    adam = {"fake_score": Adam(1e-2), "generator": Adam(1e-2)}
    trainer = Trainer(method, Flat(4, 8, 8, classes=10), adam, batch_size=2)
    trainer.step()
    trainer.settings = dict.fromkeys(adam, Adam(0))  # what a step begins with is then what it leaves
    trainer.step()
    for player in (method.fake_score, method.generator):
        layers = [m for m in player.modules() if isinstance(m, MPConv)]
        assert len(layers) > 10
        for layer in layers:
            assert torch.allclose(layer.weight.flatten(1).square().mean(1), torch.ones(len(layer.weight)), atol=1e-4)


# Laws


def toy_method(**options) -> SiDA:
    torch.manual_seed(0)
    return SiDA(Denoiser(toy.ToyNet(toy.ToyConfig(16, 1))), **options)


def toy_trainer(**options) -> Trainer:
    method = toy_method(gates=(16, 32), **options)
    return Trainer(method, toy.RingStream(), {"fake_score": Adam(1e-3), "generator": Adam(1e-3)}, batch_size=8)


def test_gates_open_at_the_published_images():
    phases = toy_method().phases
    names = {n: [p.name for p in phases if p.due(0, n)] for n in (0, 99_999, 100_000, 199_999, 200_000)}
    assert [v[1:] for v in names.values()] == [[], [], ["sid_alone"], ["sid_alone"], ["sid_and_gan"]]
    assert all(v[0] == "fake_score_loss" for v in names.values())
    assert isinstance(phases[0].clean, ClipValue)
    assert phases[1].clean is sanitize
    trainer = toy_trainer()
    start = [p.clone() for p in trainer.player("generator").parameters()]
    moved = []
    for _ in range(5):
        logs = trainer.step()
        now = list(trainer.player("generator").parameters())
        moved.append((any(not torch.equal(a, b) for a, b in zip(start, now, strict=True)), "sid_and_gan" in logs))
    assert moved == [(False, False), (False, False), (True, False), (True, False), (True, True)]


def test_a_resumed_run_is_the_same_across_the_gates():
    whole, first, second = toy_trainer(), toy_trainer(), toy_trainer()
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        second.step()
    for a, b in zip(whole.method.state_dict().values(), second.method.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_gradients_are_clipped():
    grads = [torch.tensor([3.0, -0.5, float("nan")]), torch.tensor([float("inf"), -7.0])]
    assert ClipValue(1.0)(grads) == 2
    assert torch.cat(grads).tolist() == [1.0, -0.5, 0.0, 1.0, -1.0]
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    ClipNorm(1.0)(grads)
    assert torch.cat(grads).tolist() == pytest.approx([0.6, 0.0, 0.8])
    ClipNorm(10.0)(grads)
    assert torch.cat(grads).tolist() == pytest.approx([0.6, 0.0, 0.8])


def test_only_the_generator_s_graph_is_kept(world):
    method, batch = world
    loss, _ = method.sid_and_gan(batch)
    loss.mean().backward()
    assert all(p.grad is not None for p in method.generator.parameters())
    assert all(p.grad is None for p in [*method.teacher.parameters(), *method.fake_score.parameters()])


def test_a_step_evaluates_each_encoder_as_often_as_needed(world, monkeypatch):
    """Per step: the generator twice, the teacher once, the fake score's encoder on fake, real and again on fake."""
    method, batch = world
    counts = dict.fromkeys(("teacher", "fake_score", "generator"), 0)
    graphs = []
    for name, player in method.named_children():

        def encode(*args, name=name, original=player.encode, **options):
            counts[name] += 1
            graphs.append((name, torch.is_grad_enabled()))
            return original(*args, **options)

        monkeypatch.setattr(player, "encode", encode)
    method.fake_score_loss(batch)
    assert graphs[0] == ("generator", False)
    method.sid_and_gan(batch)
    assert counts == {"teacher": 1, "fake_score": 3, "generator": 2}


def test_several_steps_train_as_they_sample(denoiser):
    assert uniform_levels(2.5, 4) == (2.5, 1.875, 1.25, 0.625)
    method = SiDA(denoiser, levels=uniform_levels(2.5, 3))
    assert method.generator.levels == method.levels
    batch = Batch(torch.zeros(4, 1, 8, 8), torch.arange(4))
    torch.manual_seed(0)
    x0 = few_steps(method.generator, batch, method.levels)
    torch.manual_seed(0)
    z = torch.randn(4, 1, 8, 8)
    sigmas = torch.tensor([*method.levels, 0.0])
    expected = last(multistep(lambda x, s: method.generator(x, s, batch.label), 2.5 * z, sigmas))
    assert torch.allclose(x0, expected, atol=1e-6)
    assert x0.requires_grad


def test_real_and_generated_images_are_augmented_apart(monkeypatch):
    torch.manual_seed(0)
    teacher = Denoiser(tiny_net(augment_dim=9))
    method = SiDA(teacher, objective=DenoisingLoss(LogNormal(), augment=AugmentPipe(0.9)))
    seen = []
    original = method.fake_score.encode
    monkeypatch.setattr(
        method.fake_score, "encode", lambda *a, augment: seen.append(augment) or original(*a, augment=augment)
    )
    method.fake_score_loss(Batch(torch.rand(4, 1, 8, 8), torch.arange(4)))
    assert len(seen) == 2
    assert not torch.equal(*seen)


def test_refuses_what_does_not_fit(denoiser):
    student = SiD(denoiser).generator
    with pytest.raises(ValueError, match="Give the teacher it was distilled from"):
        SiDA(student)
    with pytest.raises(ValueError, match="log-variance head"):
        SiDA(denoiser, uncertainty=True)
    with pytest.raises(ValueError, match=r"in 5 classes, the teacher \(1, 8, 8\) in 10"):
        SiDA(denoiser, generator=Denoiser(tiny_net(label_dim=5)))
    with pytest.raises(ValueError, match=r"from sigma = \(2\.5,\); got levels=\(80\.0,\)"):
        SiDA(denoiser, generator=student, levels=(80.0,))
    with pytest.raises(ValueError, match="decreasing noise levels"):
        SiDA(denoiser, levels=(1.0, 2.0))
    with pytest.raises(ValueError, match="average is one of micro_batch, global; got 'batch'"):
        SiDA(denoiser, average=cast(Any, "batch"))
    with pytest.raises(ValueError, match=r"got gates=\(200, 100\)"):
        SiDA(denoiser, gates=(200, 100))
    assert SiDA(edm2_teacher(), uncertainty=False).fake_score.uncertainty is None


# The toy

RATES = {"fake_score": 4e-3, "generator": 1e-3}


@pytest.fixture(scope="module")
def sid_student() -> Denoiser:
    teacher = toy.teacher()  # first, as it draws random numbers when it is made
    torch.manual_seed(0)
    return toy.distilled(SiD(teacher), RATES, steps=300, half_life=12_000)


def test_toy_sid(sid_student):
    toy.assert_learned(sid_student)


def test_toy_sida():
    torch.manual_seed(0)
    toy.assert_learned(toy.distilled(SiDA(toy.teacher(), gates=(1_280, 12_800)), RATES, steps=500, half_life=20_000))


def test_toy_sid2a(sid_student):
    method = SiDA(toy.teacher(), generator=sid_student, gates=(6_400, 6_400))
    toy.assert_learned(toy.distilled(method, RATES, steps=250, half_life=20_000))
