"""SiD against exact scores: the generator's gradient vanishes where fake equals real, and equals the paper's elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distill import SiD, sid_loss
from fewstep.method import Batch
from fewstep.noise import add_noise, expand
from tests.conftest import tiny_net


def gaussian(mean: float, std: float):
    """The exact denoiser of N(mean, std^2) in every pixel."""

    def denoise(x, sigma):
        level = expand(sigma, x)
        return (std**2 * x + level**2 * mean) / (std**2 + level**2)

    return denoise


def generator_gradient(real, fake, alpha, n=200_000):
    """d loss / d (mean, log std) of the images mean + std z, whose exact score is `fake`."""
    torch.manual_seed(0)
    mean, log_std = torch.zeros(2, dtype=torch.float64, requires_grad=True).unbind()
    x0 = mean + log_std.exp() * torch.randn(n, 1, dtype=torch.float64)
    sigma = torch.full((n,), 0.7, dtype=torch.float64)
    x = add_noise(x0, sigma)
    loss = sid_loss(x0, real(x, sigma), fake(x, sigma), alpha).mean()
    return torch.autograd.grad(loss, [mean, log_std])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_gradient_vanishes_where_fake_is_real(alpha):
    same = gaussian(0.0, 1.0)
    assert [g.abs().item() for g in generator_gradient(same, same, alpha)] == [0.0, 0.0]


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (-0.5, 1.0)])
def test_gradient_points_to_the_real_mean(mean, std):
    slope, _ = generator_gradient(gaussian(mean, std), gaussian(0.0, 1.0), 1.0)
    assert slope.sign().item() == -math.copysign(1, mean)


def test_loss_is_the_paper_s_formula():
    torch.manual_seed(1)
    x0, real, fake = (torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for alpha in (1.0, 1.2):
        expected = []
        for i in range(3):
            w = (x0[i] - real[i]).abs().mean().detach()
            gap = real[i] - fake[i]
            expected.append((1 - alpha) * gap.square().sum() / w + (gap * (fake[i] - x0[i])).sum() / w)
        loss = sid_loss(x0, real, fake, alpha)
        assert torch.allclose(loss, torch.stack(expected), rtol=1e-6)
    detached = sid_loss(x0, real.detach(), fake.detach(), 1.2).sum()
    [slope] = torch.autograd.grad(detached, x0)
    w = (x0 - real).abs().flatten(1).mean(1)
    dmd = -(real - fake) / w[:, None, None, None]  # Yin et al., 2024: distribution matching, for any alpha
    assert torch.allclose(slope, dmd.detach(), rtol=1e-6)


def test_gradients_flow_through_both_scores_to_the_generator_alone(denoiser):
    torch.manual_seed(0)
    method = SiD(denoiser, alpha=1.0)
    with torch.no_grad():
        for p in method.fake_score.parameters():
            p.mul_(1.1)
    method.fake_score.requires_grad_(False)
    batch = Batch(torch.zeros(4, 1, 8, 8), torch.arange(4))
    loss, logs = method.generator_loss(batch)
    assert loss.shape == (4,)
    assert logs["gap"] > 0
    loss.sum().backward()
    assert all(p.grad is not None for p in method.generator.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.generator.parameters())
    assert all(p.grad is None for p in [*method.teacher.parameters(), *method.fake_score.parameters()])
    method.fake_score_loss(batch)  # nothing to differentiate here: the images are given
    assert method.generator.levels == (2.5,)
    assert method.teacher.levels is None


def test_a_student_is_no_teacher(denoiser):
    with pytest.raises(ValueError, match=r"made for sigma = 2\.5\. Give the teacher"):
        SiD(SiD(denoiser).generator)


def test_toy_generator_takes_the_shape_of_the_data():
    """A generator mean + std z against exact scores of data and of itself ends on the data's mean and deviation."""
    torch.manual_seed(0)
    target = gaussian(0.3, 0.5)
    mean, log_std = nn.Parameter(torch.tensor(-0.6)), nn.Parameter(torch.tensor(-1.6))
    optimizer = torch.optim.Adam([mean, log_std], lr=0.02)
    for _ in range(400):
        x0 = mean + log_std.exp() * torch.randn(256, 1)
        sigma = torch.rand(256) * 2 + 0.05
        x = add_noise(x0, sigma)
        fake = gaussian(mean.detach().item(), log_std.detach().exp().item())
        loss = sid_loss(x0, target(x, sigma), fake(x, sigma), 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mean.item() == pytest.approx(0.3, abs=0.05)
    assert log_std.exp().item() == pytest.approx(0.5, abs=0.05)


def test_teacher_without_copying_is_untouched(denoiser):
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    method = SiD(denoiser, generator=Denoiser(tiny_net()))
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert denoiser.levels is None
