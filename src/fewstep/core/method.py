"""What a training algorithm is: its players (networks), the phases in which they train, and the product it leaves.

This is the whole contract between algorithms and the Trainer: a Method holds networks and losses, the Trainer holds
optimizers, averages, counters and the random stream. Neither knows the other's particulars.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """A batch of training images.

    Args:
        image: images (B, C, H, W) in the denoiser's units.
        label: class indices (B,) int64; None without classes.
        augment: augmentation labels (B, n), how the images were augmented; None without augmentation.

    Example:
        >>> loss, metrics = fs.DenoisingLoss()(model, fs.Batch(x0, label))
    """

    image: Tensor
    label: Tensor | None = None
    augment: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; a copy out of pinned memory does not wait.

        Args:
            device: where to.
        """
        rest = (None if x is None else x.to(device, non_blocking=True) for x in (self.label, self.augment))
        return Batch(self.image.to(device, non_blocking=True), *rest)

    def pinned(self) -> Batch:
        """Return the batch in pinned memory, from which a GPU copies while it computes."""
        rest = (None if x is None else x.pin_memory() for x in (self.label, self.augment))
        return Batch(self.image.pin_memory(), *rest)


Loss = tuple[Tensor, dict[str, Tensor]]
"""The loss per sample (B,), summed over pixels, and what to log (detached): scalars, and metrics `by_sigma`."""


class Clean(Protocol):
    """Makes gradients finite in place before an optimizer step; returns how many were not, as a tensor."""

    def __call__(self, gradients: list[Tensor], /) -> Tensor: ...


@torch.no_grad()
def replace_nonfinite(gradients: list[Tensor], infinity: float) -> Tensor:
    """NaN -> 0, +-inf -> +-`infinity`, in place; counted, never silent.

    The count is of parameters whose gradient has an entry, or a norm, that is not finite.
    """
    broken = torch.stack(torch._foreach_norm(gradients)).isfinite().logical_not().sum()
    for g in gradients:
        torch.nan_to_num(g, nan=0.0, posinf=infinity, neginf=-infinity, out=g)
    return broken


def sanitize(gradients: list[Tensor]) -> Tensor:
    """NaN -> 0, +inf -> 1e5, -inf -> -1e5, as EDM and its descendants do before every step."""
    return replace_nonfinite(gradients, 1e5)


def zero_nonfinite(gradients: list[Tensor]) -> Tensor:
    """Every entry that is not finite -> 0, as EDM2 does before every step."""
    return replace_nonfinite(gradients, 0.0)


@dataclass(frozen=True)
class Phase:
    """One update of one player: minimise `loss` over the parameters of `player`.

    Args:
        player: the name of a submodule of the method.
        loss: `Batch -> (loss per sample (B,), metrics)`; logged under the name of the function.
        every: steps from one update to the next.
        start: images of training before the first update.
        stop: images of training after which it no longer trains.
        clean: replaces gradients that are not finite before an optimizer step.

    Raises:
        ValueError: the loss is a lambda, which has no name.

    Example:
        >>> phases = (fs.Phase("fake_score", method.fake_score_loss), fs.Phase("generator", method.generator_loss, start=10_000))
    """

    player: str
    loss: Callable[[Batch], Loss]
    every: int = 1
    start: float = 0
    stop: float = math.inf
    clean: Clean = sanitize

    def __post_init__(self) -> None:
        if self.name == "<lambda>":
            raise ValueError("a phase is logged under the name of its loss; give it a named function, not a lambda")

    @property
    def name(self) -> str:
        return self.loss.__name__

    def losses(self, batch: Batch) -> Loss:
        """Compute the loss of a batch.

        Args:
            batch: images and labels.

        Returns:
            The loss (B,) and the metrics to log, tensors by name.

        Raises:
            ValueError: the function returned something else, or a loss that does not depend on the player.
        """
        found = self.loss(batch)
        n = len(batch.image)
        contract = f"the loss {self.name} must return a pair: the loss per sample ({n},), and a dict of what to log"
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(f"{contract}, as in (loss, {{}}); it returned {kind(found)}")
        loss, logs = found
        if not isinstance(loss, Tensor) or loss.shape != (n,):
            raise ValueError(f"{contract}; its first is {kind(loss)}. Sum over pixels, not over the batch")
        if not isinstance(logs, Mapping) or not all(isinstance(value, Tensor) for value in logs.values()):
            raise ValueError(f"{contract}, tensors by name; its second is {kind(logs)}")
        if not loss.requires_grad:
            raise ValueError(
                f"the loss {self.name} does not depend on the parameters of the {self.player}, which it trains"
            )
        return loss, dict(logs)

    def due(self, step: int, nimg: int) -> bool:
        """Return whether the phase trains its player at a step.

        Args:
            step: the number of the step, from 0.
            nimg: images of training before the step.
        """
        return step % self.every == 0 and self.start <= nimg < self.stop


def kind(value: object) -> str:
    """A value in an error: of a tensor its shape, else its type."""
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class Method(nn.Module):
    """Networks and losses of one algorithm, without optimizers, loop, device or files.

    Attributes:
        phases: the updates of a training step, in order.
        product: the player that is averaged, evaluated and saved.
        needs_images: whether the method uses the images of the data, or only their labels.
        warm_started: players that train and start as copies of given networks, whose weights decide the result.
        uneven: whether ranks evaluate networks in different numbers, so that these cannot be sharded.
        every_level: whether the product denoises at all noise levels although there is a teacher. Otherwise it is a
            generator, which has its `levels`.
        ramp_after_transfer: whether the average of a product that starts from another network's weights keeps its ramp-up.

    Example:
        >>> class Regression(fs.Method):
        ...     product = "denoiser"
        ...
        ...     def __init__(self, denoiser):
        ...         super().__init__()
        ...         self.denoiser = denoiser
        ...         self.phases = (fs.Phase("denoiser", self.error),)
        ...
        ...     def error(self, batch):
        ...         x0 = self.denoiser(fs.add_noise(batch.image, 0.5), 0.5, batch.label)
        ...         return (x0 - batch.image).square().flatten(1).sum(1), {}
        >>> method = Regression(model)
    """

    phases: tuple[Phase, ...]
    product: str
    needs_images: bool = True
    warm_started: tuple[str, ...] = ()
    uneven: bool = False
    every_level: bool = False
    ramp_after_transfer: bool = True

    def after_step(self, logs: dict[str, Tensor], images: int) -> None:
        """Called after each step of the Trainer, for updates without a gradient: estimates, adaptive settings.

        Keep state in buffers, so that a resumed run is the same run.

        Args:
            logs: What the step logged, the same on every rank.
            images: Training images of the step.
        """
