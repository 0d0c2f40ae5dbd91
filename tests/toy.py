"""The toy that every method of distillation must learn: eight modes on a ring, seen as images of shape (2, 1, 1).

The world is exactly known, the teacher a small network trained on it, the generator's start wrong: the teacher's answer
at a high noise level lies near the middle of the ring. `distilled` trains a method by the Trainer; `distance` and
`modes` say how far its product is from the world.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch, Method
from fewstep.core.network import Features
from fewstep.core.noise import LogNormal
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.core.oracle import MixtureDenoiser
from fewstep.samplers import find, last
from fewstep.train.ema import HalfLife
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer

MODES, RADIUS, STD = 8, 0.7, 0.13
"""Neighbouring modes are four deviations apart."""


def ring() -> MixtureDenoiser:
    """The world: eight equal Gaussians, with a deviation of 0.5 in each coordinate."""
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    means = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)[:, :, None, None]
    return MixtureDenoiser(torch.ones(MODES), means, torch.full((MODES,), STD**2))


class RingStream:
    """Endless draws of the world; the batch is a function of its position."""

    def batch(self, position: int, n: int) -> Batch:
        return Batch(ring().sample(n, generator=torch.Generator().manual_seed(position)))


@dataclass(frozen=True)
class ToyConfig:
    """width: of the hidden layers. blocks: in each half."""

    width: int = 64
    blocks: int = 1


class ToyBlock(nn.Module):
    """h + linear(silu(linear(h) + linear(embedding)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.embed, self.leave = (nn.Linear(width, width) for _ in range(3))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return h + self.leave(F.silu(self.enter(h) + self.embed(embedding)))


class ToyNet(nn.Module):
    """A network of linear layers in two halves, with the face of a U-Net for images of one pixel."""

    in_channels, resolution, num_classes = 2, 1, 0

    def __init__(self, config: ToyConfig = ToyConfig()) -> None:
        super().__init__()
        self.config = config
        self.freqs: Tensor
        self.register_buffer("freqs", torch.linspace(0.5, 4, config.width // 2))
        self.enter, self.leave = nn.Linear(2, config.width), nn.Linear(config.width, 2)
        self.enc = nn.ModuleList(ToyBlock(config.width) for _ in range(config.blocks))
        self.dec = nn.ModuleList(ToyBlock(config.width) for _ in range(config.blocks))

    def embed(self, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        phase = c_noise[:, None] * self.freqs
        return torch.cat([phase.cos(), phase.sin()], dim=1)

    def encode(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Features:
        embedding = self.embed(c_noise)
        h = self.enter(x.flatten(1))
        skips = []
        for block in self.enc:
            skips.append(h[:, :, None, None])
            h = block(h, embedding)
        return Features(h[:, :, None, None], tuple(skips), embedding)

    def decode(self, features: Features) -> Tensor:
        h = features.bottleneck.flatten(1)
        for block, skip in zip(self.dec, reversed(features.skips), strict=True):
            h = block(h + skip.flatten(1), features.embedding)
        return self.leave(F.silu(h))[:, :, None, None]


@lru_cache(maxsize=1)
def teacher(steps: int = 400) -> Denoiser:
    """A denoiser of the world, trained to the exact answer; about two seconds, once for all tests. Do not change it."""
    world = ring()

    def exact(x: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        return world(x, sigma)

    torch.manual_seed(0)
    method = Pretraining(Denoiser(ToyNet()), DenoisingLoss(LogNormal(-1.2, 1.5), target=exact))
    nimg = 256 * steps
    adam = Adam(4e-3, betas=(0.9, 0.99), cooldown=nimg / 2, until=nimg)
    trainer = Trainer(method, RingStream(), {"denoiser": adam}, batch_size=256, ema=HalfLife(5_000))
    for _ in range(steps):
        trainer.step()
    assert isinstance(trainer.product, Denoiser)
    return trainer.product


def distilled(
    method: Method,
    rates: Mapping[str, float],
    *,
    steps: int,
    batch_size: int = 256,
    half_life: float = 40_000,
    betas: tuple[float, float] = (0.0, 0.99),
) -> Denoiser:
    """The averaged product after `steps` steps of the Trainer; rates: of each player, which fall to 0 in the last half."""
    until = steps * batch_size
    adam = {name: Adam(lr, betas=betas, cooldown=until / 2, until=until) for name, lr in rates.items()}
    trainer = Trainer(method, RingStream(), adam, batch_size=batch_size, ema=HalfLife(half_life, rampup=0.2))
    for _ in range(steps):
        trainer.step()
    assert isinstance(trainer.product, Denoiser)
    return trainer.product


@torch.no_grad()
def sample(denoiser: Denoiser, n: int = 8192) -> Tensor:
    """Images (n, 2, 1, 1) as `fewstep.generate` makes them: a teacher by Heun with 35 evaluations, a generator by its levels."""
    plan = denoiser.plan()
    noise = torch.Generator().manual_seed(1)
    options = {}
    if denoiser.levels is not None:
        options["noise"] = lambda x: torch.randn(x.shape, generator=noise, dtype=x.dtype)
    z = torch.randn(n, *denoiser.shape, generator=noise)
    return last(find(plan.sampler)(denoiser, z * plan.sigmas[0], plan.sigmas, **options))


def distance(x: Tensor, directions: int = 64) -> float:
    """The sliced Wasserstein distance (of order 1) between images (n, 2, 1, 1) and the world, a sample 16 times as large."""
    world = ring().sample(16 * len(x), generator=torch.Generator().manual_seed(2))
    angle = torch.arange(directions) * (math.pi / directions)
    axes = torch.stack([angle.cos(), angle.sin()])
    mine, theirs = ((y.flatten(1).to(axes) @ axes).sort(dim=0).values for y in (x, world))
    # the quantiles of the middle of each of the n intervals
    return (mine - theirs[8::16]).abs().mean().item()


def modes(x: Tensor) -> Tensor:
    """The share of images within two deviations of each mode (8,); the world has (1 - e^-2) / 8 = 0.108 at each."""
    gap = (x[:, None].float() - ring().means).flatten(2).norm(dim=2)
    return (gap < 2 * STD).float().mean(0)


def assert_learned(generator: Denoiser, *, ratio: float = 1.5) -> None:
    """All modes have at least half of their share, and the distance is at most `ratio` times that of the teacher."""
    images, reference = sample(generator), distance(sample(teacher()))
    assert modes(images).min() > 0.054, modes(images)
    assert distance(images) <= ratio * reference, (distance(images), reference)
