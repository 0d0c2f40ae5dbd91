"""DMD2: the gradient of the paper, its two time scales, its generator of several steps, and the toy."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch
from fewstep.core.noise import add_noise, karras_sigmas
from fewstep.core.oracle import GaussianDenoiser
from fewstep.distill import DMD2, dmd_loss, sid_loss
from fewstep.distill.dmd2 import Head, level
from fewstep.distill.players import few_steps, simulated
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer
from tests import toy


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_gradient_is_that_of_sid_with_held_scores(alpha):
    """-(real - fake) / mean |x0 - real| per image, whatever alpha (Yin et al., 2024, Eq. 7 and 8)."""
    torch.manual_seed(0)
    x0, real, fake = torch.randn(3, 4, 2, 4, 4, dtype=torch.float64).unbind()
    x0.requires_grad_()
    [dmd] = torch.autograd.grad(dmd_loss(x0, real, fake).sum(), x0)
    [sid] = torch.autograd.grad(sid_loss(x0, real, fake, alpha).sum(), x0)
    expected = torch.stack([(fake[i] - real[i]) / (x0[i] - real[i]).abs().mean() for i in range(4)])
    assert torch.allclose(dmd, expected, rtol=1e-6)
    assert torch.allclose(sid, expected, rtol=1e-6)
    loss = dmd_loss(x0, real, fake)
    assert torch.allclose(loss, expected.square().sum(dim=(1, 2, 3)) / 2, rtol=1e-6)


def gaussian(mean: float, std: float) -> GaussianDenoiser:
    return GaussianDenoiser(torch.full((2, 1, 1), mean, dtype=torch.float64), std**2)


@pytest.mark.parametrize(
    ("mean", "std", "signs"),
    [(0.0, 1.0, (0, 0)), (0.5, 1.0, (-1, None)), (-0.5, 1.0, (1, None)), (0.0, 0.5, (None, 1))],
)
def test_gradient_vanishes_on_the_data_and_points_to_them(mean, std, signs):
    """Images m + s z, m = 0, s = 1, exact scores of both: the slopes in m and ln s against the mean and deviation of data."""
    torch.manual_seed(0)
    m, log_s = torch.zeros(2, dtype=torch.float64, requires_grad=True).unbind()
    x0 = m + log_s.exp() * torch.randn(20_000, 2, 1, 1, dtype=torch.float64)
    sigma = torch.rand(len(x0), dtype=torch.float64) + 0.2
    x = add_noise(x0.detach(), sigma)
    loss = dmd_loss(x0, gaussian(mean, std)(x, sigma), gaussian(0.0, 1.0)(x, sigma)).mean()
    slopes = torch.autograd.grad(loss, [m, log_s])
    for slope, sign in zip(slopes, signs, strict=True):
        if sign is not None:
            assert slope.sign().item() == sign


@pytest.fixture
def world(denoiser) -> tuple[DMD2, Batch]:
    torch.manual_seed(3)
    teacher = copy.deepcopy(denoiser).double()
    teacher.dtype = torch.float64
    method = DMD2(teacher).double()
    with torch.no_grad():
        for p in [*method.fake_score.parameters(), *method.generator.parameters()]:
            p.mul_(1 + 0.1 * torch.randn_like(p))
    return method, Batch(torch.randn(6, 1, 8, 8).double(), torch.arange(6))


def ramp(low: float, high: float) -> Tensor:
    """Levels as `KarrasUniform` draws them from a fresh stream."""
    return torch.stack([(low ** (1 / 7) + u * (high ** (1 / 7) - low ** (1 / 7))) ** 7 for u in torch.rand(6)]).double()


def noisy(image: Tensor, sigma: Tensor) -> Tensor:
    return image + sigma[:, None, None, None] * torch.randn_like(image)


def close(found: Tensor, expected: Tensor, tol: float = 1e-6) -> None:
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < tol, error.item()


def test_losses_are_the_paper_s(world):
    """Means over pixels: DMD + 3e-3 softplus(-d) of the generator, DSM + 1e-2 (softplus(-d) + softplus(d)) of the other."""
    method, batch = world
    score, head = method.fake_score.score, method.fake_score.head

    def logits(image: Tensor) -> Tensor:
        t = ramp(0.002, 80.0)
        return head(score.encode(noisy(image, t), t, batch.label).features.bottleneck)[:, 0, 0, 0]

    def start() -> Tensor:
        torch.randint(1, ())
        return method.generator(80 * torch.randn_like(batch.image), 80.0, batch.label)

    torch.manual_seed(7)
    x0 = start()
    sigma = ramp(level(20), level(980))
    x = noisy(x0, sigma)
    real, fake = method.teacher(x, sigma, batch.label).detach(), score(x, sigma, batch.label).detach()
    w = (x0 - real).abs().mean(dim=(1, 2, 3)).detach()
    target = (x0 + (real - fake) / w[:, None, None, None]).detach()
    expected = 0.5 * (x0 - target).square().mean(dim=(1, 2, 3)) - 3e-3 * F.logsigmoid(logits(x0))
    torch.manual_seed(7)
    loss, logs = method.generator_loss(batch)
    close(loss.detach(), expected.detach())
    weights = list(method.generator.parameters())
    mine, theirs = (torch.autograd.grad(v.mean(), weights) for v in (loss, expected))
    close(torch.cat([g.flatten() for g in mine]), torch.cat([g.flatten() for g in theirs]))
    assert {"gap", "dmd", "gan"} <= logs.keys()

    torch.manual_seed(8)
    x0 = start().detach()
    sigma = ramp(0.002, 80.0)
    error = score(noisy(x0, sigma), sigma, batch.label) - x0
    dsm = (1 / sigma**2 + 1 / 0.5**2) * error.square().mean(dim=(1, 2, 3))
    expected = dsm - 1e-2 * (F.logsigmoid(logits(batch.image)) + F.logsigmoid(-logits(x0)))
    torch.manual_seed(8)
    loss, logs = method.fake_score_loss(batch)
    close(loss.detach(), expected.detach())
    assert {"accuracy_real", "accuracy_fake", "margin", "disc"} <= logs.keys()


def test_levels_are_the_thousand_of_the_paper():
    sigmas = karras_sigmas(1000)[:-1].flip(0)
    assert [level(k) for k in (0, 20, 980, 999)] == pytest.approx([float(sigmas[k]) for k in (0, 20, 980, 999)])


def test_no_gradient_and_no_graph_through_the_scores(world, monkeypatch):
    method, batch = world
    method.fake_score.requires_grad_(False)
    graphs = {}
    for name, player in (("teacher", method.teacher), ("score", method.fake_score.score)):

        def decode(*args, name=name, original=player.decode):
            graphs[name] = torch.is_grad_enabled()
            return original(*args)

        monkeypatch.setattr(player, "decode", decode)
    loss, _ = method.generator_loss(batch)
    assert graphs == {"teacher": False, "score": False}
    loss.mean().backward()
    assert any(p.grad.abs().sum() > 0 for p in method.generator.parameters())
    assert all(p.grad is None for p in [*method.teacher.parameters(), *method.fake_score.parameters()])


def test_several_steps_are_trained_on_what_sampling_makes(denoiser, monkeypatch):
    """Each step of a generator gets the images of the steps before, and gradients reach that step alone."""
    method = DMD2(denoiser, levels=(80.0, 5.0, 1.0))
    assert method.generator.levels == (80.0, 5.0, 1.0)
    batch = Batch(torch.zeros(4, 1, 8, 8), torch.arange(4))
    for k in range(3):
        monkeypatch.setattr(torch, "randint", lambda n, size, k=k: torch.tensor(k))
        torch.manual_seed(0)
        x0 = simulated(method.generator, batch, method.levels)
        torch.manual_seed(0)
        expected = few_steps(method.generator, batch, method.levels[: k + 1])
        assert torch.equal(x0, expected)
        weight = next(method.generator.parameters())
        mine, theirs = (torch.autograd.grad(v.sum(), weight)[0] for v in (x0, expected))
        assert torch.equal(mine, theirs) == (k == 0)
        assert mine.abs().sum() > 0


def test_two_time_scales():
    torch.manual_seed(0)
    method = DMD2(Denoiser(toy.ToyNet(toy.ToyConfig(16, 1))), ratio=3)
    trainer = Trainer(method, toy.RingStream(), {"fake_score": Adam(1e-3), "generator": Adam(1e-3)}, batch_size=8)
    head = [p.clone() for p in method.fake_score.head.parameters()]
    moved = [{name for name in trainer.step() if name.endswith("_loss") and "/" not in name} for _ in range(6)]
    assert [len(m) for m in moved] == [2, 1, 1, 2, 1, 1]
    assert all("fake_score_loss" in m for m in moved)
    assert not any(torch.equal(a, b) for a, b in zip(head, method.fake_score.head.parameters(), strict=True))


def test_gradients_of_both_players_are_clipped():
    torch.manual_seed(0)
    method = DMD2(Denoiser(toy.ToyNet(toy.ToyConfig(16, 1))), clip=1e-6)
    trainer = Trainer(method, toy.RingStream(), {"fake_score": Adam(1e-3), "generator": Adam(1e-3)}, batch_size=8)
    logs = trainer.step()
    assert logs["grad_norm/generator_loss"].item() == pytest.approx(1e-6, rel=1e-3)
    assert logs["grad_norm/fake_score_loss"].item() == pytest.approx(1e-6, rel=1e-3)


def test_without_the_game_it_is_plain_distribution_matching(world):
    method, batch = world
    plain = DMD2(method.teacher, adversarial=False)
    assert (method.needs_images, plain.needs_images) == (True, False)
    torch.manual_seed(1)
    loss, logs = plain.generator_loss(batch)
    assert "gan" not in logs
    images = Batch(torch.full_like(batch.image, torch.nan), batch.label)
    torch.manual_seed(1)
    assert torch.equal(plain.generator_loss(images)[0], loss)
    assert plain.fake_score_loss(images)[0].isfinite().all()


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_the_head_ends_in_one_logit(n):
    head = Head(64, n)
    assert head(torch.randn(3, 64, n, n)).shape == (3, 1, 1, 1)
    if n == 8:
        assert [
            tuple(p.shape[2:]) for name, p in head.named_parameters() if name.startswith("conv") and p.ndim == 4
        ] == [
            (4, 4),
            (4, 4),
            (1, 1),
        ]


def test_refuses_what_does_not_fit(denoiser):
    with pytest.raises(ValueError, match="Give the teacher it was distilled from"):
        DMD2(DMD2(denoiser).generator)
    with pytest.raises(ValueError, match="decreasing noise levels"):
        DMD2(denoiser, levels=())


def test_toy():
    teacher = toy.teacher()  # first, as it draws random numbers when it is made
    torch.manual_seed(0)
    method = DMD2(teacher, levels=(2.5,), ratio=1)
    toy.assert_learned(toy.distilled(method, {"fake_score": 4e-3, "generator": 5e-4}, steps=400, half_life=20_000))
