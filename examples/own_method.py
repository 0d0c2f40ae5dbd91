"""A method of your own in one file: consistency distillation (Song et al., 2023, arXiv 2303.01469, Algorithm 2).

    fewstep distill examples/own_method.py:Consistency --teacher runs/teacher --data digits --out runs/consistency
    fewstep sample runs/consistency --grid images.png

A consistency model f(x; sigma) maps every point of a trajectory of the probability-flow ODE to its end. Two neighbouring
points on one trajectory must therefore have the same image: the teacher makes the second from the first by a step of Heun's
method. The target carries no gradient and is the model itself, without the average that the paper keeps: Song & Dhariwal
(2023, arXiv 2310.14189, Sec. 3.2) show that it does no good.
"""

from dataclasses import dataclass

import torch

import fewstep as fs
from fewstep.core.noise import expand


class ConsistencyDistillation(fs.Method):
    """loss = |f(x_n+1; sigma_n+1) - sg[f(x_n; sigma_n)]|^2, summed over pixels, with x_n+1 = x0 + sigma_n+1 eps and x_n one
    step of Heun's method from there with the teacher (Eq. 7 with the squared distance, lambda = 1 and mu = 0).
    """

    product = "generator"

    def __init__(self, teacher: fs.Denoiser, levels: int = 18, sigma_max: float = 80.0):
        super().__init__()
        fs.distill.check_teacher(teacher)
        self.teacher = fs.distill.frozen(teacher)
        self.generator = fs.distill.generator_of(teacher, sigma_max, eps=0.002)
        self.levels, self.sigma_max = levels, sigma_max
        self.phases = (fs.Phase("generator", self.consistency_loss),)

    def consistency_loss(self, batch: fs.Batch):
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
        return gap, {"gap": fs.by_sigma(sigma, gap.detach())}


@dataclass(frozen=True, kw_only=True)
class Consistency(fs.recipes.Distillation):
    """Consistency distillation of a teacher with EDM's preconditioning."""

    until: int = 1_000_000
    dtype: fs.recipes.Dtype = "float32"  # the loss is a small difference
    lr: float = 4e-4
    """Learning rate of Adam."""

    def parts(self) -> fs.recipes.Parts:
        teacher = self.loaded_teacher()
        adam = fs.Adam(self.lr, until=self.until, cooldown=self.until / 2)
        method = ConsistencyDistillation(teacher)
        return fs.recipes.Parts(method, self.stream(teacher), {"generator": adam}, ema=fs.HalfLife(20_000))
