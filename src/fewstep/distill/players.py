"""The players of distillation: copies of a teacher, and how a generator makes images while it trains."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch
from fewstep.core.noise import add_noise
from fewstep.runtime.precision import master

D = TypeVar("D", bound=Denoiser)


def frozen(denoiser: Denoiser) -> Denoiser:
    """Return a copy that is never trained: in evaluation mode, without gradients to its parameters.

    Args:
        denoiser: the model to copy, such as a teacher.

    Returns:
        The copy.

    Example:
        >>> teacher = fs.distill.frozen(model)
    """
    return copy.deepcopy(denoiser).requires_grad_(False).eval()


def trainable(denoiser: D) -> D:
    """Return a copy to train, with weights in at least float32 and without label dropout.

    A teacher may be trained without classes at times, for guidance; the players of distillation always know the class.

    Args:
        denoiser: the model to copy, such as a teacher.

    Returns:
        The copy.

    Example:
        >>> fake_score = fs.distill.trainable(teacher)
    """
    result = copy.deepcopy(denoiser).requires_grad_(True)
    master(result)
    for network in result.modules():
        config: Any = getattr(network, "config", None)
        if getattr(config, "label_dropout", 0.0):
            network.config = dataclasses.replace(config, label_dropout=0.0)
    return result


def check_teacher(teacher: Denoiser) -> None:
    """Check that a model is a denoiser of all noise levels, neither a generator nor a fake score of NCVSD.

    Args:
        teacher: the model.

    Raises:
        ValueError: it is not.

    Example:
        >>> fs.distill.check_teacher(teacher)
    """
    if not isinstance(teacher, Denoiser):
        raise ValueError(f"teacher is a model, such as fs.load(path); got a {type(teacher).__name__}")
    if teacher.needs_observation:
        raise ValueError("the teacher must be an unconditional denoiser; this one, a fake score, needs an observation")
    if teacher.levels is not None:
        raise ValueError(
            f"the teacher must denoise at every noise level; this model is a generator made for sigma = "
            f"{', '.join(f'{s:g}' for s in teacher.levels)}. Give the teacher it was distilled from"
        )


def student(teacher: Denoiser, generator: Denoiser | None, levels: tuple[float, ...]) -> Denoiser:
    """Return a generator to train: a copy of `generator` or, if None, of the teacher, without a log-variance head.

    Args:
        teacher: the denoiser that is distilled.
        generator: what to start from, or None for the teacher.
        levels: the noise levels from which it will make images, the highest first.

    Returns:
        The generator.

    Raises:
        ValueError: the levels do not decrease, or the generator makes images of another shape, of other classes or from
            other levels.

    Example:
        >>> generator = fs.distill.student(teacher, None, levels=(2.5,))
    """
    if not isinstance(levels, Sequence):
        raise ValueError(f"levels is a tuple of decreasing noise levels, such as (2.5,); got {levels!r}")
    if generator is not None and not isinstance(generator, Denoiser):
        raise ValueError(f"generator is a model, such as fs.load(path); got a {type(generator).__name__}")
    if not levels or any(a <= b for a, b in zip(levels, [*levels[1:], 0.0], strict=True)):
        raise ValueError(f"a generator needs decreasing noise levels above 0, such as (2.5,); got {levels}")
    if generator is not None:
        mine, theirs = ((d.shape, d.num_classes) for d in (generator, teacher))
        if mine != theirs:
            raise ValueError(
                f"the generator makes images of shape {mine[0]} in {mine[1]} classes, the teacher {theirs[0]} in "
                f"{theirs[1]}; give a student of this teacher"
            )
        if generator.levels not in (None, levels):
            raise ValueError(
                f"this generator makes images from sigma = {generator.levels}; got levels={levels}. Pass its own levels"
            )
    result = trainable(generator or teacher)
    result.levels, result.uncertainty = levels, None
    return result


def uniform_levels(sigma: float, steps: int) -> tuple[float, ...]:
    """Return the levels of SiDA's generators of N steps: sigma (N - s) / N for s = 0 ... N - 1.

    Args:
        sigma: the highest level.
        steps: number of steps N.

    Returns:
        Decreasing noise levels.

    Example:
        >>> fs.distill.uniform_levels(2.5, 2)
        (2.5, 1.25)
    """
    return tuple(sigma * (steps - s) / steps for s in range(steps))


def one_step(generator: Denoiser, batch: Batch, sigma: float) -> Tensor:
    """Generate images from noise in one evaluation, G(sigma z; sigma).

    Args:
        generator: the generator.
        batch: gives the labels, and the shape of the images.
        sigma: the generator's noise level.

    Returns:
        Images (B, C, H, W), with gradients.

    Example:
        >>> x0 = fs.distill.one_step(generator, batch, 2.5)
    """
    return generator(sigma * torch.randn_like(batch.image), sigma, batch.label)


def few_steps(generator: Denoiser, batch: Batch, levels: tuple[float, ...]) -> Tensor:
    """Generate images over the levels as `samplers.multistep` does, with gradients through every step.

    Args:
        generator: the generator.
        batch: gives the labels, and the shape of the images.
        levels: the generator's noise levels, the highest first.

    Returns:
        Images (B, C, H, W), with gradients.

    Example:
        >>> x0 = fs.distill.few_steps(generator, batch, (2.5, 1.25))
    """
    x0 = one_step(generator, batch, levels[0])
    for sigma in levels[1:]:
        x0 = generator(add_noise(x0, sigma), sigma, batch.label)
    return x0


def simulated(generator: Denoiser, batch: Batch, levels: tuple[float, ...]) -> Tensor:
    """Generate images by one step of a generator, drawn at random, with gradients through that step alone.

    The input of the step is what the generator itself makes at the levels before it, so that training matches sampling
    ("backward simulation", Yin et al., 2024b, Sec. 4.5).

    Args:
        generator: the generator.
        batch: gives the labels, and the shape of the images.
        levels: the generator's noise levels, the highest first.

    Returns:
        Images (B, C, H, W), with gradients.

    Example:
        >>> x0 = fs.distill.simulated(generator, batch, (2.5, 1.25))
    """
    k = int(torch.randint(len(levels), ()))
    if k == 0:
        return one_step(generator, batch, levels[0])
    with torch.no_grad():
        x0 = few_steps(generator, batch, levels[:k])
    return generator(add_noise(x0, levels[k]), levels[k], batch.label)
