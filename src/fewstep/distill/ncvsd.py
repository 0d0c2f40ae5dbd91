"""Noise conditional variational score distillation (NCVSD; Peng et al., ICML 2025, arXiv 2506.09416).

A teacher becomes a generative denoiser: one evaluation draws x0 from p(x0 | y = x0 + sigma n), for every sigma. The idea
is that the unconditional teacher D knows the score of the diffused posterior. Two Gaussian observations of one image,
y at sigma and x = x0 + t eps, are as good as a single one, hence

    E[x0 | x, y] = D(*combine_observations(y, sigma, x, t)),    grad_x ln p(x; t | y) = (E[x0 | x, y] - x) / t^2,

and the generator is trained by variational score distillation: by the difference of this score to that of its own draws,
which a conditional fake score learns. A discriminator of pairs (image, observation) lets it exceed the teacher. Data are
needed by all players, as y is made from real images.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser, Observation
from fewstep.core.denoiser import Denoiser
from fewstep.core.diagnostics import by_sigma
from fewstep.core.method import Batch, Loss, Method, Phase, zero_nonfinite
from fewstep.core.noise import LogNormal, add_noise, combine_observations, expand, karras_ramp
from fewstep.core.objectives import DenoisingLoss, NoiseLevels, edm_weight
from fewstep.distill.adversarial import as_fake, as_real, discriminator_stats
from fewstep.distill.conditional import ConditionalDiscriminator, conditional, generative, pair_discriminator
from fewstep.distill.players import check_teacher, frozen, trainable
from fewstep.runtime.precision import master


@dataclass(frozen=True)
class KarrasGrid:
    """Draws uniformly from the `n` levels of `karras_sigmas(n)`, at which NCVSD observes: x (B, ...) -> (B,)."""

    n: int = 1000
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, x: Tensor) -> Tensor:
        index = torch.randint(self.n, (len(x),), device=x.device)
        return karras_ramp(index / (self.n - 1), self.sigma_min, self.sigma_max, self.rho)


def vsd_loss(x0: Tensor, teacher_x0: Tensor, fake_x0: Tensor, weight: Tensor, u: Tensor | None = None) -> Tensor:
    """Return lambda(t) / e^u |x0 - sg[x0 + teacher_x0 - fake_x0]|^2 + n u per sample, summed over n pixels (Peng et al., 2025).

    Its gradient in x0 is -2 lambda / e^u (teacher_x0 - fake_x0).

    Args:
        x0: draws (B, C, H, W).
        teacher_x0: the teacher's prediction for their noisy versions; it carries no gradient.
        fake_x0: the fake score's prediction for the same; it carries no gradient.
        weight: lambda (B,).
        u: the generator's log-variance (B,), which learns the size of the difference; None for none.

    Returns:
        The loss (B,).

    Example:
        >>> loss = fs.distill.vsd_loss(x0, teacher(x, sigma), fake_score(x, sigma), weight=torch.ones(len(x0)))
    """
    loss = weight * (x0 - (x0 + teacher_x0 - fake_x0).detach()).square().flatten(1).sum(1)
    return loss if u is None else loss / u.exp() + u * x0[0].numel()


class NCVSD(Method):
    """Noise conditional variational score distillation (Peng et al., 2025).

    Players: the teacher (fixed), the fake score, the discriminator and the generator. With y = image + sigma n,
    x0 = G(y, sigma, z) and x = x0 + t eps,

    fake score:     lambda(t) / e^u |s(x; t, y, sigma) - x0|^2 + n u,
    discriminator:  (softplus(d(x, y)) + softplus(-d(image + t eps, y))) / 2,
    generator:      lambda(t) / e^u |x0 - sg[x0 + D(combine_observations(y, x)) - s(x; t, y, sigma)]|^2 + n u
                    + gan_weight softplus(-d(x, y)).

    The adversarial terms are per image and count once per pixel, as in the reference implementation.

    Args:
        teacher: a denoiser of all noise levels.
        generator: what the generator starts from; None for a new one, made from the teacher. Given players are copied.
        fake_score: likewise.
        discriminator: likewise.
        gamma: of a new generator, the share by which it raises the noise level of its input.
        sigma_init: of a new generator, the level of the observation from which it makes images.
        levels: of a new generator, the levels at which it samples by default.
        centred: whether a new generator makes images about the mean image instead of 0, as levels close to the images need.
        observed: the noise levels sigma of the observations.
        noise: the levels t at which scores are compared, the fake score is trained and the discriminator looks.
        fused: whether a new fake score is fused, see `ConditionalDenoiser`; the paper's is not.
        gan_weight: factor of the adversarial term; with 0 there is no discriminator.
        gan_start: training images after which the adversarial term enters; the discriminator is trained from the beginning.
        loss_scale: factor of all losses, to which Adam is nearly invariant: 1, and 0.1 in the FFHQ run in float16.

    Raises:
        ValueError: the teacher is not a denoiser of all noise levels, or a given player does not fit the teacher or an option.

    Example:
        >>> method = fs.distill.NCVSD(teacher, gamma=1.4, levels=(2.5,), centred=True, fused=True)
    """

    product = "generator"

    def __init__(
        self,
        teacher: Denoiser,
        *,
        generator: GenerativeDenoiser | None = None,
        fake_score: ConditionalDenoiser | None = None,
        discriminator: ConditionalDiscriminator | None = None,
        gamma: float = 0.414,
        sigma_init: float = 80.0,
        levels: tuple[float, ...] = (80.0,),
        centred: bool = False,
        observed: NoiseLevels = KarrasGrid(),
        noise: NoiseLevels = LogNormal(-0.8, 1.6),
        fused: bool = False,
        gan_weight: float = 1.0,
        gan_start: float = 0,
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_teacher(teacher)
        for name, player in (("generator", generator), ("fake score", fake_score)):
            if player is not None and (player.shape, player.num_classes) != (teacher.shape, teacher.num_classes):
                raise ValueError(
                    f"the teacher makes images of shape {teacher.shape} in {teacher.num_classes} classes; the {name} "
                    f"{player.shape} in {player.num_classes}"
                )
        options: dict[str, Any] = {"gamma": gamma, "sigma_init": sigma_init, "levels": levels, "centred": centred}
        usual = inspect.signature(NCVSD).parameters
        if generator is not None and (mine := [k for k, v in options.items() if v != usual[k].default]):
            raise ValueError(f"the given generator has its own {', '.join(mine)}; leave the option out")
        if fake_score is not None and fused and not fake_score.fused:
            raise ValueError("the given fake score is not fused; leave fused out")
        if (lowest := getattr(observed, "sigma_min", None)) is not None:
            options["sigma_end"] = lowest
        self.teacher = frozen(teacher)
        self.fake_score = conditional(teacher, fused=fused) if fake_score is None else trainable(fake_score)
        if gan_weight:
            self.discriminator = pair_discriminator(teacher) if discriminator is None else copy.deepcopy(discriminator)
        self.generator = generative(teacher, **options) if generator is None else trainable(generator)
        initial = {
            "fake_score": fake_score,
            "discriminator": discriminator if gan_weight else None,
            "generator": generator,
        }
        self.warm_started = tuple(name for name, player in initial.items() if player is not None)
        for name, player in self.named_children():
            player.requires_grad_(name != "teacher")
            master(player)
        self.observed, self.noise = observed, noise
        self.gan_weight, self.loss_scale = gan_weight, loss_scale
        self.phases = (Phase("fake_score", self.fake_score_loss, clean=zero_nonfinite),)
        if gan_weight:
            self.phases += (
                Phase("discriminator", self.discriminator_loss, clean=zero_nonfinite),
                Phase("generator", self.vsd_loss, stop=gan_start, clean=zero_nonfinite),
                Phase("generator", self.generator_loss, start=gan_start, clean=zero_nonfinite),
            )
        else:
            self.phases += (Phase("generator", self.vsd_loss, clean=zero_nonfinite),)

    def observe(self, batch: Batch) -> Observation:
        """Return noisy observations of the images of a batch."""
        sigma = self.observed(batch.image)
        return Observation(add_noise(batch.image, sigma), sigma)

    def fake_score_loss(self, batch: Batch) -> Loss:
        """Denoising score matching on the generator's draws, lambda(t) / e^u |s(x0 + t eps; t, y, sigma) - x0|^2 + n u."""
        given = self.observe(batch)
        with torch.no_grad():
            x0 = self.generator(*given, batch.label)
        t = self.noise(x0)
        error = self.fake_score(add_noise(x0, t), t, batch.label, given=given) - x0
        loss, metrics = DenoisingLoss().weigh(self.fake_score, t, error)
        return self.loss_scale * loss, metrics

    def discriminator_loss(self, batch: Batch) -> Loss:
        """(softplus(d(fake)) + softplus(-d(real))) / 2 of images at one level t, each with the same observation."""
        given = self.observe(batch)
        with torch.no_grad():
            x0 = self.generator(*given, batch.label)
        t, seen = self.noise(x0), self.discriminator.see(given, batch.label)
        real = self.discriminator(add_noise(batch.image, t), t, batch.label, given=seen)
        fake = self.discriminator(add_noise(x0, t), t, batch.label, given=seen)
        loss = (as_fake(fake) + as_real(real)) / 2 * x0[0].numel()
        return self.loss_scale * loss, discriminator_stats(real, fake)

    def vsd_loss(self, batch: Batch) -> Loss:
        """The generator's loss before the adversarial term enters."""
        vsd, _, _, metrics = self.distil(batch)
        return self.loss_scale * vsd, metrics

    def generator_loss(self, batch: Batch) -> Loss:
        """VSD and softplus(-d(x)) on the same noisy draws; the second has its gradient through x."""
        vsd, (x, t), given, metrics = self.distil(batch)
        gan = as_real(self.discriminator(x, t, batch.label, given=given))
        loss = vsd + self.gan_weight * x[0].numel() * gan
        return self.loss_scale * loss, {**metrics, "vsd": vsd.detach().mean(), "gan": gan.detach().mean()}

    def distil(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor], Observation, dict[str, Tensor]]:
        """Return the VSD loss of fresh draws; their noisy versions with their levels; what they were drawn from; metrics."""
        given = self.observe(batch)
        x0 = self.generator(*given, batch.label)
        t = self.noise(x0)
        x = add_noise(x0, t)
        with torch.no_grad():
            teacher_x0 = self.teacher(*combine_observations(*given, x, t), batch.label)
            fake_x0 = self.fake_score(x, t, batch.label, given=given)
            gap = (teacher_x0 - fake_x0).square().flatten(1).mean(1).sqrt()
        sigma = expand(given.sigma, x0).flatten()
        u = None if self.generator.uncertainty is None else self.generator.log_variance(sigma)
        loss = vsd_loss(x0, teacher_x0, fake_x0, edm_weight(t, self.generator.sigma_data), u)
        return loss, (x, t), given, {"gap": by_sigma(t, gap)}
