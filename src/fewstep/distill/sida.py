"""Adversarial score identity distillation (SiDA; Zhou et al., 2025, arXiv 2410.14919): SiD that also sees real images.

The encoder of the fake score is the discriminator, so that the game between real and fake costs no network: where SiD
evaluates the fake score, the same pass gives the logits. SiD2A is the same with a generator that SiD made.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.diagnostics import by_sigma
from fewstep.core.method import Batch, Loss, Method, Phase, sanitize
from fewstep.core.noise import KarrasUniform, add_noise, expand
from fewstep.core.objectives import DenoisingLoss, NoiseLevels
from fewstep.distill.adversarial import ClipValue, as_fake, as_real, discriminator_stats, encoder_logits
from fewstep.distill.players import check_teacher, few_steps, frozen, student
from fewstep.distill.sid import make_fake_score, relative_gap, sid_loss, teacher_error, uncertainty_weight

LossAveraging = Literal["micro_batch", "global"]


class SiDA(Method):
    """Adversarial score identity distillation (Zhou et al., 2025); SiD2A if `generator` is a student of SiD.

    Players: the teacher (fixed), the fake score, which is the discriminator too, and the generator. With the logits d of a noisy
    image, their mean over its pixels, n = sigma eps, and the terms of `SiD`,

    fake score:  lambda(sigma) |D(x0 + n) - x0|^2 + disc_weight lambda(sigma) (softplus(-d(image + n)) + softplus(d(x0 + n))) / 2,
    generator:   (loss_scale sid_loss + gan_weight C H W softplus(-clamp(d(x), -10, 10)) / w) / 2.

    Args:
        teacher: a denoiser of all noise levels.
        generator: what the generator starts from; None for the teacher.
        alpha: see `sid_loss`.
        levels: the noise levels from which the generator makes images, one for one step.
        noise: the levels at which the scores are compared.
        objective: the fake score's training; None for EDM's.
        uncertainty: whether all terms are weighted by the fake score's log-variance head; None for if the teacher has one.
        loss_scale: factor of SiD's loss.
        disc_weight: factor of the discriminator's loss: 1 (EDM) or 100 (EDM2).
        gan_weight: factor of the generator's adversarial loss.
        gates: training images after which the generator starts to train, with SiD's loss alone, and after which the sum above
            is its loss.
        average: "micro_batch" averages the softplus terms over the micro-batch, as published, so that a step depends on its size;
            with "global" each image has its own term, and a step does not depend on how its batch is split.
        clip: bound of each entry of the fake score's gradient (EDM), None for none (EDM2).

    Raises:
        ValueError: the teacher is not a denoiser of all noise levels, the generator does not fit it, `average` is unknown, or the
            gates are in the wrong order.

    Example:
        >>> method = fs.distill.SiDA(teacher, generator=generator, levels=(2.5,), gates=(0, 0))  # SiD2A
    """

    product = "generator"
    warm_started = ("generator",)

    def __init__(
        self,
        teacher: Denoiser,
        *,
        generator: Denoiser | None = None,
        alpha: float = 1.0,
        levels: tuple[float, ...] = (2.5,),
        noise: NoiseLevels = KarrasUniform(t_max=0.8),
        objective: DenoisingLoss | None = None,
        uncertainty: bool | None = None,
        loss_scale: float = 100.0,
        disc_weight: float = 1.0,
        gan_weight: float = 0.01,
        gates: tuple[int, int] = (100_000, 200_000),
        average: LossAveraging = "micro_batch",
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        check_teacher(teacher)
        if average not in get_args(LossAveraging):
            raise ValueError(f"average is one of {', '.join(get_args(LossAveraging))}; got {average!r}")
        if gates[0] > gates[1]:
            raise ValueError(
                f"gates are numbers of images, the smaller first: when training of the generator starts, and when the "
                f"adversarial term starts; got gates={gates}"
            )
        self.teacher = frozen(teacher)
        self.fake_score = make_fake_score(teacher, uncertainty)
        self.generator = student(teacher, generator, levels)
        self.alpha, self.levels, self.noise = alpha, levels, noise
        self.objective = objective or DenoisingLoss()
        self.loss_scale, self.disc_weight, self.gan_weight = loss_scale, disc_weight, gan_weight
        self.gates, self.average, self.clip = gates, average, clip
        self.phases = (
            Phase("fake_score", self.fake_score_loss, clean=sanitize if clip is None else ClipValue(clip)),
            Phase("generator", self.sid_alone, start=gates[0], stop=gates[1]),
            Phase("generator", self.sid_and_gan, start=gates[1]),
        )

    def averaged(self, terms: Tensor) -> Tensor:
        """Return the mean of the micro-batch for each image, or its own term; see `average`."""
        return terms.mean().expand_as(terms) if self.average == "micro_batch" else terms

    def fake_score_loss(self, batch: Batch) -> Loss:
        """Denoise generated images, and classify them against real ones at the same classes, levels and noise."""
        with torch.no_grad():
            x0 = few_steps(self.generator, batch, self.levels)
        augment = self.objective.augment or (lambda batch: batch)
        made, real = augment(batch._replace(image=x0)), augment(batch)
        sigma = self.objective.noise(x0)
        n = expand(sigma, x0) * torch.randn_like(x0)
        encoded = self.fake_score.encode(made.image + n, sigma, made.label, augment=made.augment)
        error = self.fake_score.decode(encoded) - made.image
        loss, metrics = self.objective.weigh(self.fake_score, sigma, error)
        fake_logits = encoder_logits(encoded)
        real_logits = encoder_logits(self.fake_score.encode(real.image + n, sigma, real.label, augment=real.augment))
        weight = self.objective.weight(sigma, self.fake_score.sigma_data) * uncertainty_weight(self.fake_score, sigma)
        disc = weight * self.averaged(as_real(real_logits) + as_fake(fake_logits)) / 2
        metrics |= {"disc": disc.detach().mean()} | discriminator_stats(real_logits, fake_logits)
        return loss + self.disc_weight * disc, metrics

    def predict_and_logits(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the fake score's prediction for noisy images and its logits, from one pass through the encoder."""
        encoded = self.fake_score.encode(x, sigma, label)
        return self.fake_score.decode(encoded), encoder_logits(encoded)

    def terms(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return SiD's and the adversarial loss of the generator, each (B,), and metrics."""
        x0 = few_steps(self.generator, batch, self.levels)
        sigma = self.noise(x0)
        x = add_noise(x0, sigma)
        teacher_x0 = self.teacher(x, sigma, batch.label)
        fake_x0, logits = self.predict_and_logits(x, sigma, batch.label)
        weight = uncertainty_weight(self.fake_score, sigma)
        sid = self.loss_scale * sid_loss(x0, teacher_x0, fake_x0, self.alpha) * weight
        scale = self.gan_weight * x0[0].numel() / teacher_error(x0, teacher_x0) * weight
        gan = scale * self.averaged(as_real(logits.clamp(-10, 10)))
        gap = by_sigma(sigma, relative_gap(x0, teacher_x0, fake_x0))
        return sid, gan, {"gap": gap, "logit": logits.detach().mean()}

    def sid_alone(self, batch: Batch) -> Loss:
        """Return the generator's loss (B,) before the adversarial term enters, and its metrics."""
        sid, _, metrics = self.terms(batch)
        return sid, metrics

    def sid_and_gan(self, batch: Batch) -> Loss:
        """Return the generator's loss (B,) with the adversarial term, and its metrics."""
        sid, gan, metrics = self.terms(batch)
        return (sid + gan) / 2, metrics | {"sid": sid.detach().mean(), "gan": gan.detach().mean()}
