"""Score identity distillation (SiD; Zhou et al., 2024, arXiv 2404.04057): one-step generation without data.

A fake score learns the distribution of generated images by denoising score matching; the generator follows the
difference of the teacher's and the fake score's denoised images, with gradients through both networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.distill.players import frozen, one_step, trainable
from fewstep.method import Batch, Loss, Method, Phase
from fewstep.noise import KarrasUniform, add_noise
from fewstep.objectives import DenoisingLoss, NoiseLevels


def sid_loss(x0: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """(real - fake) . ((real - x0) - alpha (real - fake)) / w per sample, summed over pixels (Zhou et al., 2024, Eq. 23).

    x0: generated images (B, C, H, W). real, fake: what teacher and fake score make of their noisy versions, with
    gradients. w = mean |x0 - real|, at least 1e-5, carries none. The loss is signed.
    """
    scale = (x0 - real).detach().float().abs().flatten(1).mean(1).clamp_min(1e-5)
    gap = real - fake
    return (gap * (real - x0 - alpha * gap)).flatten(1).sum(1) / scale


class SiD(Method):
    """Players: teacher (fixed), fake_score and generator, all from the teacher unless `generator` is given.

    alpha: 1 keeps the projected score matching term alone, 1.2 subtracts 0.2 |real - fake|^2 (the paper's two choices).
    sigma_init: the noise level from which the generator starts. noise: the levels at which the scores are compared.
    objective: the fake score's training. loss_scale: the paper's factor of the generator's loss (100); Adam is nearly
    blind to it.
    """

    product = "generator"

    def __init__(
        self,
        teacher: Denoiser,
        *,
        generator: Denoiser | None = None,
        alpha: float = 1.2,
        sigma_init: float = 2.5,
        noise: NoiseLevels = KarrasUniform(t_max=0.8),
        objective: DenoisingLoss | None = None,
        loss_scale: float = 100.0,
    ) -> None:
        super().__init__()
        if teacher.levels is not None:
            raise ValueError(
                f"the teacher must denoise at every noise level; this model is a generator made for sigma = "
                f"{', '.join(f'{s:g}' for s in teacher.levels)}. Give the teacher it was distilled from"
            )
        self.teacher = frozen(teacher)
        self.fake_score = trainable(teacher)
        self.generator = trainable(generator or teacher)
        self.generator.levels = (sigma_init,)
        self.alpha, self.sigma_init, self.noise, self.loss_scale = alpha, sigma_init, noise, loss_scale
        self.objective = objective or DenoisingLoss()
        self.phases = (Phase("fake_score", self.fake_score_loss), Phase("generator", self.generator_loss))

    def fake_score_loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            x0 = one_step(self.generator, batch, self.sigma_init)
        return self.objective(self.fake_score, Batch(x0, batch.label))

    def generator_loss(self, batch: Batch) -> Loss:
        x0 = one_step(self.generator, batch, self.sigma_init)
        sigma = self.noise(x0)
        x = add_noise(x0, sigma)
        real = self.teacher(x, sigma, batch.label)
        fake = self.fake_score(x, sigma, batch.label)
        loss = self.loss_scale * sid_loss(x0, real, fake, self.alpha)
        return loss, {"gap": (real - fake).detach().square().mean().sqrt()}
