"""Posterior samples from seeds: every sample depends on its own seed and measurement alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.inputs import check_classes
from fewstep.core.noise import SeededNoise
from fewstep.inverse.likelihood import Likelihood
from fewstep.inverse.operator import Operator
from fewstep.inverse.solver import Solver
from fewstep.runtime.precision import tf32
from fewstep.samplers import last


def seed_of(seed: int, image: int, sample: int | None = None) -> int:
    """The seed of one sample of one image, or of its measurement; hashed, so that no two coincide by arithmetic."""
    words = [seed, image] if sample is None else [seed, image, sample + 1]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def measure(operator: Operator, x: Tensor, sigma_y: float, seeds: Sequence[int]) -> Tensor:
    """Return measurements y = A(x) + sigma_y eps.

    Args:
        operator: A.
        x: images (B, C, H, W).
        sigma_y: standard deviation of the noise, in the unit of y.
        seeds: a seed of the noise for each image.

    Returns:
        The measurements (B, ...).

    Example:
        >>> y = fs.inverse.measure(operator, x0, 0.05, seeds=[0, 1])
    """
    with torch.no_grad():
        y = operator(x)
    return y + sigma_y * SeededNoise(seeds)(y)


@tf32(False)
def sample_posterior(
    denoiser: Denoiser,
    operator: Operator,
    y: Tensor,
    sigma_y: float,
    seeds: Sequence[int],
    *,
    label: Tensor | None = None,
    solver: Solver = Solver(),
) -> Tensor:
    """Draw one posterior sample for each measurement.

    Every draw is random; the mean over many seeds estimates the posterior mean.

    Args:
        denoiser: an NCVSD student or a teacher.
        operator: an operator on images (or latents) of the denoiser's shape.
        y: measurements (B, ...).
        sigma_y: standard deviation of their noise, in the unit of y.
        seeds: a seed for each measurement.
        label: class indices (B,), None for no class.
        solver: the solver and its settings.

    Returns:
        Samples (B, C, H, W) in the units of the denoiser.

    Raises:
        ValueError: solver, label or operator do not fit the denoiser, or a sample is not finite.

    Example:
        >>> y = fs.inverse.measure(operator, x0, 0.05, seeds=[0, 1])
        >>> solver = fs.inverse.Solver("diffpir", evaluations=6)
        >>> found = fs.inverse.sample_posterior(model, operator, y, 0.05, seeds=[2, 3], label=label, solver=solver)
    """
    solver.check(denoiser)
    check_classes(label, len(y), denoiser.num_classes)
    if operator.shape != denoiser.shape:
        raise ValueError(f"the operator takes images of shape {operator.shape}, the model has {denoiser.shape}")
    noise = SeededNoise(seeds)
    z = noise.draw(denoiser.shape, torch.float32).to(y.device)
    x0 = last(solver.states(denoiser, label, Likelihood(operator, y, sigma_y), z, noise))
    if not x0.isfinite().all():
        bad = [seed for seed, image in zip(seeds, x0, strict=True) if not image.isfinite().all()]
        raise ValueError(f"the restorations of the seeds {bad} are not finite; check the model, or use more levels")
    return x0
