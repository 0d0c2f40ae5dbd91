"""The examples do what they say: each reaches the answer of an exact world, and runs from the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewstep as fs
from fewstep.cli import main
from fewstep.core.network import Features
from fewstep.core.oracle import GaussianDenoiser
from fewstep.runtime.user_code import load_file
from fewstep.samplers.contract import Counted
from fewstep.train.trainer import Trainer
from tests import ROOT

MEAN, STD = 0.3, 0.5
EXAMPLES = ROOT / "examples"


def trajectory(x: Tensor, sigma: float | Tensor, end: float) -> Tensor:
    """Where the probability-flow ODE of N(MEAN, STD^2) carries x from sigma to the level `end`."""
    start = STD**2 + torch.as_tensor(sigma).view(-1, 1, 1, 1) ** 2
    return MEAN + (x - MEAN) * ((STD**2 + end**2) / start).sqrt()


@dataclass(frozen=True)
class AffineConfig:
    width: int = 32


class AffineNet(nn.Module):
    """F(x; c_noise) = a(c_noise) x + b(c_noise): it can be the answer of a Gaussian world."""

    in_channels, resolution, num_classes = 1, 1, 0

    def __init__(self, config: AffineConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden, self.out = nn.Linear(1, config.width), nn.Linear(config.width, 2)

    def encode(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Features:
        return Features(x, (), self.out(F.silu(self.hidden(c_noise[:, None]))))

    def decode(self, features: Features) -> Tensor:
        a, b = features.embedding[:, :, None, None].chunk(2, dim=1)
        return a * features.bottleneck + b


class ExactTeacher(fs.Denoiser):
    """The exact denoiser of the world, whose network is what a student starts from."""

    def forward(self, x: Tensor, sigma: Any, label: Tensor | None = None, *, augment: Tensor | None = None) -> Tensor:
        return GaussianDenoiser(torch.full((1, 1, 1), MEAN), STD**2)(x, sigma)


class World:
    def batch(self, position: int, n: int) -> fs.Batch:
        generator = torch.Generator().manual_seed(position)
        return fs.Batch(MEAN + STD * torch.randn(n, 1, 1, 1, generator=generator))


def method(levels: int, sigma_max: float) -> Any:
    torch.manual_seed(0)
    kind: Any = load_file(EXAMPLES / "own_method.py", "ConsistencyDistillation")
    return kind(ExactTeacher(AffineNet(AffineConfig())), levels=levels, sigma_max=sigma_max)


def test_own_method_has_no_loss_at_the_consistency_function():
    """Up to the error of a step of Heun's method, of third order, squared."""
    losses = []
    for levels in (18, 36):
        exact = method(levels, 80.0)
        exact.generator.forward = lambda x, sigma, label=None: trajectory(x, sigma, 0.002)
        losses.append(exact.consistency_loss(World().batch(0, 4096))[0].mean())
    assert losses[0] < 1e-4 and losses[1] < losses[0] / 2**5, losses


def test_own_method_reaches_the_sampler_of_its_teacher():
    """One evaluation for all steps of Heun's method with the exact denoiser."""
    steps, size, levels, sigma = 600, 256, 10, 5.0
    adam = fs.Adam(1e-2, until=steps * size, cooldown=steps * size / 2)
    trainer = Trainer(method(levels, sigma), World(), {"generator": adam}, batch_size=size, ema=fs.HalfLife(5_000))
    for _ in range(steps):
        trainer.step()
    generator: Any = trainer.product
    x = sigma * torch.randn(4096, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    world = GaussianDenoiser(torch.full((1, 1, 1), MEAN), STD**2)
    *_, expected, _ = fs.samplers.heun(world, x.double(), fs.karras_sigmas(levels, sigma_max=sigma))
    with torch.no_grad():
        assert (generator(x, sigma) - expected).square().mean().sqrt() < 0.05 * STD


def test_own_method_is_a_command(denoiser, tmp_path):
    teacher, out = fs.save(denoiser, tmp_path / "teacher"), tmp_path / "run"
    options = ["--teacher", str(teacher), "--until", "32", "--batch-size", "16", "--out", str(out)]
    assert main(["distill", f"{EXAMPLES}/own_method.py:Consistency", "--data", "digits", *options]) == 0
    card = fs.card(out)
    assert (card.name, card.method) == ("Consistency", "ConsistencyDistillation")
    assert fs.load(out).levels == (80.0,)


def test_own_method_and_its_recipe_are_about_60_lines():
    assert len((EXAMPLES / "own_method.py").read_text().splitlines()) <= 65


def test_own_sampler_is_of_second_order():
    sampler = load_file(EXAMPLES / "own_sampler.py", "adams_bashforth")
    world = GaussianDenoiser(torch.full((1, 1, 1), MEAN, dtype=torch.float64), STD**2)
    x = 80 * torch.randn(64, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for n in (40, 80, 160):
        denoise = Counted(world)
        *_, before, end = sampler(denoise, x, fs.karras_sigmas(n))
        errors.append(float((before - trajectory(x, 80.0, 0.002)).abs().max()))
        assert denoise.nfe == n and torch.allclose(end, trajectory(x, 80.0, 0.0), atol=10 * errors[-1])
    assert all(1.8 < math.log2(a / b) < 2.3 for a, b in pairwise(errors)), errors


def test_own_sampler_is_an_option(denoiser, tmp_path):
    model = fs.save(denoiser, tmp_path / "model")
    argv = ["sample", str(model), "--sampler", f"{EXAMPLES}/own_sampler.py:adams_bashforth", "--steps", "3"]
    assert main([*argv, "--seeds", "0-1", "--npz", str(tmp_path / "images.npz")]) == 0
