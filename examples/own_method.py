"""A method of your own in one file: consistency distillation (Song et al., 2023, arXiv 2303.01469, Algorithm 2).

    fewstep distill examples/own_method.py:digits --teacher runs/teacher --out runs/consistency
    fewstep sample runs/consistency --grid images.png

A consistency model f(x; sigma) maps every point of a trajectory of the probability-flow ODE to its end. Two neighbouring
points on one trajectory must therefore have the same image: the teacher makes the second from the first by a step of Heun's
method. The target carries no gradient and is the model itself, without the average that the paper keeps: Song & Dhariwal
(2023, arXiv 2310.14189, Sec. 3.2) show that it does no good.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import fewstep as fs
from fewstep.core.noise import expand
from fewstep.data import digits as built_in_digits
from fewstep.distill.gdd import generator_of
from fewstep.distill.players import check_teacher, frozen


class ConsistencyDistillation(fs.Method):
    """Players: teacher (fixed) and generator, which is the identity at the lowest level.

    loss = |f(x_n+1; sigma_n+1) - sg[f(x_n; sigma_n)]|^2, summed over pixels, with x_n+1 = x0 + sigma_n+1 eps and x_n one step of
    Heun's method from there with the teacher (Eq. 7 with the squared distance, lambda = 1 and mu = 0).

    Args:
        teacher: a denoiser of all noise levels under EDM's preconditioning.
        levels: number of noise levels N on Karras' ramp.
        sigma_max: the highest level, from which the generator makes images in one step.
    """

    product = "generator"

    def __init__(self, teacher: fs.Denoiser, *, levels: int = 18, sigma_max: float = 80.0) -> None:
        super().__init__()
        check_teacher(teacher)
        self.teacher = frozen(teacher)
        self.generator = generator_of(teacher, sigma_max, eps=0.002)
        self.levels, self.sigma_max = levels, sigma_max
        self.phases = (fs.Phase("generator", self.consistency_loss),)

    def consistency_loss(self, batch: fs.Batch) -> tuple[Tensor, dict[str, Tensor]]:
        sigmas = fs.karras_sigmas(self.levels, sigma_max=self.sigma_max)[:-1].to(batch.image)
        n = torch.randint(self.levels - 1, (len(batch.image),), device=batch.image.device)
        sigma, lower = sigmas[n], sigmas[n + 1]
        x = fs.add_noise(batch.image, sigma)
        with torch.no_grad():  # Heun's step
            step = expand(lower - sigma, x)
            slope = (x - self.teacher(x, sigma, batch.label)) / expand(sigma, x)
            euler = x + step * slope
            ahead = x + step / 2 * (slope + (euler - self.teacher(euler, lower, batch.label)) / expand(lower, x))
            target = self.generator(ahead, lower, batch.label)
        gap = (self.generator(x, sigma, batch.label) - target).square().flatten(1).sum(1)
        return gap, {"gap": gap.detach().mean()}


def digits(teacher: Path, *, lr: float = 4e-4, batch_size: int = 128, until: int = 1_000_000, seed: int = 0) -> fs.Run:
    """Consistency distillation of a teacher of the built-in digits.

    Args:
        teacher: a model folder or a run.
        lr: learning rate of Adam.
        batch_size: images per step.
        until: training images in all.
        seed: of data order and noise.
    """
    torch.manual_seed(seed)
    data = fs.ImageStream(built_in_digits(), seed=seed)
    return fs.Run(
        ConsistencyDistillation(fs.load(teacher)),
        data,
        {"generator": fs.Adam(lr, until=until, cooldown=until / 2)},
        batch_size=batch_size,
        until=until,
        ema=fs.HalfLife(20_000),
        seed=seed,
        name="consistency",
        card=fs.Card(method="consistency distillation"),
    )
