"""Score identity distillation (SiD; Zhou et al., 2024, arXiv 2404.04057): one-step generation without data.

A fake score learns the distribution of generated images by denoising score matching; the generator follows the
difference of the teacher's and the fake score's denoised images, with gradients through both networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.diagnostics import by_sigma
from fewstep.core.method import Batch, Loss, Method, Phase
from fewstep.core.noise import KarrasUniform, add_noise
from fewstep.core.objectives import DenoisingLoss, NoiseLevels
from fewstep.distill.players import check_teacher, few_steps, frozen, student, trainable


def teacher_error(x0: Tensor, teacher_x0: Tensor) -> Tensor:
    """Return w = mean |x0 - teacher_x0| per sample (B,), at least 1e-5: it scales a generator's loss.

    It is in at least float32 and carries no gradient.
    """
    error = (x0 - teacher_x0).detach()
    return error.to(torch.promote_types(error.dtype, torch.float32)).abs().flatten(1).mean(1).clamp_min(1e-5)


def sid_loss(x0: Tensor, teacher_x0: Tensor, fake_x0: Tensor, alpha: float) -> Tensor:
    """Return SiD's loss of a generator per sample, summed over pixels (Zhou et al., 2024, Eq. 23).

    It is (teacher_x0 - fake_x0) . ((teacher_x0 - x0) - alpha (teacher_x0 - fake_x0)) / w, with w of `teacher_error`.

    Args:
        x0: generated images (B, C, H, W).
        teacher_x0: the teacher's prediction for their noisy versions, with gradients.
        fake_x0: the fake score's prediction for the same, with gradients.
        alpha: 1 keeps the projected score matching term alone; 1.2 subtracts 0.2 |teacher_x0 - fake_x0|^2.

    Returns:
        The loss (B,), which may be negative.

    Example:
        >>> loss = fs.distill.sid_loss(x0, teacher(x, sigma), fake_score(x, sigma), alpha=1.2)
    """
    gap = teacher_x0 - fake_x0
    return (gap * (teacher_x0 - x0 - alpha * gap)).flatten(1).sum(1) / teacher_error(x0, teacher_x0)


def relative_gap(x0: Tensor, teacher_x0: Tensor, fake_x0: Tensor) -> Tensor:
    """Return |teacher_x0 - fake_x0| / |teacher_x0 - x0| per sample (B,): the players' distance over the teacher's error."""
    gap, error = (v.detach().float().flatten(1).norm(dim=1) for v in (teacher_x0 - fake_x0, teacher_x0 - x0))
    return gap / error.clamp_min(1e-12)


def uncertainty_weight(denoiser: Denoiser, sigma: Tensor) -> Tensor | float:
    """Return e^-u(sigma) (B,), the weight of a noise level by the log-variance head of a denoiser; 1 without a head."""
    return 1.0 if denoiser.uncertainty is None else (-denoiser.log_variance(sigma)).exp()


def make_fake_score(teacher: Denoiser, uncertainty: bool | None) -> Denoiser:
    """Return a fake score that starts as the teacher.

    Args:
        teacher: the denoiser that is distilled.
        uncertainty: whether it has the teacher's log-variance head; None for a head if the teacher has one.

    Raises:
        ValueError: a head is asked for that the teacher does not have.
    """
    if uncertainty and teacher.uncertainty is None:
        raise ValueError(
            "uncertainty=True needs a teacher with a log-variance head, as EDM2's have; leave it out for this teacher"
        )
    result = trainable(teacher)
    if uncertainty is False:
        result.uncertainty = None
    return result


class SiD(Method):
    """Score identity distillation (Zhou et al., 2024).

    Players: the teacher (fixed), the fake score and the generator. With x0 = G(z), x = x0 + sigma eps, and the predictions
    teacher_x0 = teacher(x), fake_x0 = fake_score(x),

    fake score:  lambda(sigma) |D(x; sigma) - x0|^2,
    generator:   loss_scale (teacher_x0 - fake_x0) . ((teacher_x0 - x0) - alpha (teacher_x0 - fake_x0)) / w  (Eq. 23),

    where gradients flow through both predictions into x0.

    Args:
        teacher: a denoiser of all noise levels.
        generator: what the generator starts from; None for the teacher.
        alpha: 1 or 1.2, the paper's two choices; see `sid_loss`.
        levels: the noise levels from which the generator makes images, one for one step.
        noise: the levels at which the scores are compared.
        objective: the fake score's training; None for EDM's.
        uncertainty: whether both losses are weighted by the fake score's log-variance head (EDM2); None for if the
            teacher has one.
        loss_scale: factor of the generator's loss, to which Adam is nearly invariant; the paper's is 100.

    Raises:
        ValueError: the teacher is not a denoiser of all noise levels or has no log-variance head that is asked for, or the
            generator does not fit it.

    Example:
        >>> method = fs.distill.SiD(teacher, alpha=1.2)
        >>> optimizers = {"fake_score": fs.Adam(1e-5), "generator": fs.Adam(1e-5)}
        >>> run = fs.Run(method, stream, optimizers, batch_size=256, until=10**6)  # fs.fit(run, "runs/sid") trains it
    """

    product = "generator"
    warm_started = ("generator",)
    needs_images = False

    def __init__(
        self,
        teacher: Denoiser,
        *,
        generator: Denoiser | None = None,
        alpha: float = 1.2,
        levels: tuple[float, ...] = (2.5,),
        noise: NoiseLevels = KarrasUniform(t_max=0.8),
        objective: DenoisingLoss | None = None,
        uncertainty: bool | None = None,
        loss_scale: float = 100.0,
    ) -> None:
        super().__init__()
        check_teacher(teacher)
        self.teacher = frozen(teacher)
        self.fake_score = make_fake_score(teacher, uncertainty)
        self.generator = student(teacher, generator, levels)
        self.alpha, self.levels, self.noise, self.loss_scale = alpha, levels, noise, loss_scale
        self.objective = objective or DenoisingLoss()
        self.phases = (Phase("fake_score", self.fake_score_loss), Phase("generator", self.generator_loss))

    def fake_score_loss(self, batch: Batch) -> Loss:
        """Return the denoising loss (B,) of the fake score on generated images, and its metrics."""
        with torch.no_grad():
            x0 = few_steps(self.generator, batch, self.levels)
        return self.objective(self.fake_score, Batch(x0, batch.label))

    def generator_loss(self, batch: Batch) -> Loss:
        """Return the generator's loss (B,) and its metrics."""
        x0 = few_steps(self.generator, batch, self.levels)
        sigma = self.noise(x0)
        x = add_noise(x0, sigma)
        teacher_x0 = self.teacher(x, sigma, batch.label)
        fake_x0 = self.fake_score(x, sigma, batch.label)
        weight = uncertainty_weight(self.fake_score, sigma)
        loss = self.loss_scale * sid_loss(x0, teacher_x0, fake_x0, self.alpha) * weight
        return loss, {"gap": by_sigma(sigma, relative_gap(x0, teacher_x0, fake_x0))}
