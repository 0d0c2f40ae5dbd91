"""Improved distribution matching distillation (DMD2; Yin et al., 2024b, arXiv 2405.14867), for comparison.

The generator follows the difference of teacher and fake score, without gradients through them; the fake score, which
trains more often, carries a small discriminator on its bottleneck.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser, Encoded
from fewstep.core.diagnostics import by_sigma
from fewstep.core.method import Batch, Loss, Method, Phase
from fewstep.core.noise import KarrasUniform, add_noise, expand, karras_ramp
from fewstep.core.objectives import DenoisingLoss, NoiseLevels
from fewstep.distill.adversarial import ClipNorm, as_fake, as_real, discriminator_stats
from fewstep.distill.players import check_teacher, frozen, simulated, student, trainable
from fewstep.distill.sid import relative_gap, teacher_error


def dmd_loss(x0: Tensor, teacher_x0: Tensor, fake_x0: Tensor) -> Tensor:
    """Return |x0 - sg[x0 + (teacher_x0 - fake_x0) / w]|^2 / 2 per sample, summed over pixels (Yin et al., 2024, Eq. 7).

    Its gradient in x0 is -(teacher_x0 - fake_x0) / w with w = mean |x0 - teacher_x0|, which is that of `sid_loss` if no
    gradient flows through the scores.

    Args:
        x0: generated images (B, C, H, W).
        teacher_x0: the teacher's prediction for their noisy versions.
        fake_x0: the fake score's prediction for the same.

    Returns:
        The loss (B,).

    Example:
        >>> loss = fs.distill.dmd_loss(x0, teacher(x, sigma), fake_score(x, sigma))
    """
    target = x0 + (teacher_x0 - fake_x0) / expand(teacher_error(x0, teacher_x0), x0)
    return (x0 - target.detach()).square().flatten(1).sum(1) / 2


def level(step: int) -> float:
    """Return noise level `step` of DMD2's thousand on EDM's ramp, from 0.002 at step 0 to 80 at step 999."""
    return float(karras_ramp(torch.tensor(step / 999, dtype=torch.float64), 0.002, 80.0, 7.0))


class Head(nn.Module):
    """A discriminator on a bottleneck (B, C, n, n): two convolutions down to one pixel, one to a logit; (B, 1, 1, 1).

    For n = 8 as published: kernel 4 by stride 2, kernel 4 by stride 4, each with GroupNorm and SiLU.
    """

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, channels, 4, 2, 1) if n > 1 else nn.Conv2d(channels, channels, 1)
        rest = max(n // 2, 1)
        groups = math.gcd(32, channels, max(channels // 8, 1))  # of 8 channels at least, as one pixel is left
        self.conv0, self.norm0 = first, nn.GroupNorm(groups, channels)
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, rest, rest), nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, 1, 1)

    def forward(self, bottleneck: Tensor) -> Tensor:
        h = F.silu(self.norm0(self.conv0(bottleneck.to(self.conv0.weight.dtype))))
        return self.conv2(F.silu(self.norm1(self.conv1(h))))


class Critic(nn.Module):
    """The fake score and the discriminator on its bottleneck, which train together."""

    def __init__(self, score: Denoiser) -> None:
        super().__init__()
        self.score = score
        place = next(score.parameters())
        with torch.no_grad():
            x = torch.zeros(1, *score.shape, device=place.device)
            _, channels, height, width = score.encode(x, 1.0).features.bottleneck.shape
        if height != width or height & (height - 1):
            raise ValueError(
                f"the head needs a square bottleneck of 1, 2, 4, 8 ... pixels a side; got {height}x{width}"
            )
        self.head = Head(channels, height).to(place.device)

    def logits(self, encoded: Encoded) -> Tensor:
        return self.head(encoded.features.bottleneck)


class DMD2(Method):
    """Improved distribution matching distillation (Yin et al., 2024b).

    Players: the teacher (fixed), the fake score with the discriminator's head, and the generator. Losses are averaged over
    pixels, as published:

    generator:   dmd_loss / (C H W) + gan_weight softplus(-d(x0 + t n)),
    fake score:  lambda(sigma) mean |D(x0 + sigma eps) - x0|^2
                 + disc_weight (softplus(-d(image + t n)) + softplus(d(x0 + t' n'))).

    Args:
        teacher: a denoiser of all noise levels.
        generator: what the generator starts from; None for the teacher.
        levels: the noise levels from which the generator makes images, the highest first. With several, one step is trained at a
            time, on what the steps before it make ("backward simulation").
        noise: the levels at which the scores are compared.
        fake_noise: the levels at which the fake score is trained and the discriminator looks.
        gan_weight: factor of the generator's adversarial loss.
        disc_weight: factor of the discriminator's loss.
        ratio: steps of the fake score for one of the generator.
        adversarial: False leaves plain distribution matching, which needs no images.
        clip: largest norm of the gradients.

    Raises:
        ValueError: the teacher is not a denoiser of all noise levels, the generator does not fit it, or the bottleneck is not a
            square of 1, 2, 4, 8 ... pixels a side.

    Example:
        >>> method = fs.distill.DMD2(teacher, levels=(80.0, 5.0, 1.0))
    """

    product = "generator"
    warm_started = ("generator",)

    def __init__(
        self,
        teacher: Denoiser,
        *,
        generator: Denoiser | None = None,
        levels: tuple[float, ...] = (80.0,),
        noise: NoiseLevels = KarrasUniform(sigma_min=level(20), sigma_max=level(980)),
        fake_noise: NoiseLevels = KarrasUniform(),
        gan_weight: float = 3e-3,
        disc_weight: float = 1e-2,
        ratio: int = 5,
        adversarial: bool = True,
        clip: float = 10.0,
    ) -> None:
        super().__init__()
        check_teacher(teacher)
        self.teacher = frozen(teacher)
        score = trainable(teacher)
        score.uncertainty = None
        self.fake_score = Critic(score)
        self.generator = student(teacher, generator, levels)
        self.levels, self.noise, self.objective = levels, noise, DenoisingLoss(fake_noise)
        self.gan_weight, self.disc_weight, self.ratio, self.clip = gan_weight, disc_weight, ratio, clip
        self.adversarial = self.needs_images = adversarial
        self.uneven = len(levels) > 1  # which step is trained is drawn
        self.phases = (
            Phase("generator", self.generator_loss, every=ratio, clean=ClipNorm(clip)),
            Phase("fake_score", self.fake_score_loss, clean=ClipNorm(clip)),
        )

    def noisy_logits(self, image: Tensor, label: Tensor | None) -> Tensor:
        """Return the logits of images after noise is added, at a level drawn for each."""
        t = self.objective.noise(image)
        return self.fake_score.logits(self.fake_score.score.encode(add_noise(image, t), t, label))

    def generator_loss(self, batch: Batch) -> Loss:
        """Return the generator's loss (B,) and its metrics."""
        x0 = simulated(self.generator, batch, self.levels)
        sigma = self.noise(x0)
        with torch.no_grad():
            x = add_noise(x0, sigma)
            teacher_x0 = self.teacher(x, sigma, batch.label)
            fake_x0 = self.fake_score.score(x, sigma, batch.label)
        loss = dmd_loss(x0, teacher_x0, fake_x0) / x0[0].numel()
        metrics = {"gap": by_sigma(sigma, relative_gap(x0, teacher_x0, fake_x0))}
        if not self.adversarial:
            return loss, metrics
        gan = as_real(self.noisy_logits(x0, batch.label))
        return loss + self.gan_weight * gan, metrics | {"dmd": loss.detach().mean(), "gan": gan.detach().mean()}

    def fake_score_loss(self, batch: Batch) -> Loss:
        """Return the loss (B,) of the fake score and of the discriminator's head, and its metrics."""
        with torch.no_grad():
            x0 = simulated(self.generator, batch, self.levels)
        loss, metrics = self.objective(self.fake_score.score, batch._replace(image=x0))
        loss = loss / x0[0].numel()
        if not self.adversarial:
            return loss, metrics
        real, fake = self.noisy_logits(batch.image, batch.label), self.noisy_logits(x0, batch.label)
        disc = as_real(real) + as_fake(fake)
        return loss + self.disc_weight * disc, metrics | {"disc": disc.detach().mean()} | discriminator_stats(
            real, fake
        )
