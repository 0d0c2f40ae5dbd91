"""How images are made, as data: a sampler, its noise levels and options, and guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.guidance import Guidance

Sampler = Callable[..., Iterator[Tensor]]
"""`(denoise, x, sigmas, **options) -> Iterator[x]`; the contract is in `fewstep.samplers.contract`."""


@dataclass(frozen=True)
class Plan:
    """How a model makes images. `Denoiser.plan` proposes one, and `fs.generate` carries it out.

    Args:
        sampler: the name of one of `fewstep.samplers`, or a function that follows their contract.
        sigmas: the noise levels (n + 1,), decreasing to a closing 0.
        options: options of the sampler, by name.
        guidance: guidance of the model; None for none.

    Example:
        >>> plan = fs.Plan("churn", fs.karras_sigmas(18), {"S_churn": 40.0})
        >>> images = fs.generate(model, range(64), plan=plan)
    """

    sampler: str | Sampler
    sigmas: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    guidance: Guidance | None = None

    @property
    def name(self) -> str:
        """The name of the sampler."""
        if isinstance(self.sampler, str):
            return self.sampler
        return getattr(self.sampler, "__name__", type(self.sampler).__name__)


def closed(levels: Sequence[float] | Tensor) -> Tensor:
    """Return noise levels, largest first, with the closing 0 that a sampler needs: (n + 1,) float64."""
    values = [float(level) for level in levels]
    return torch.tensor(values if values and values[-1] == 0 else [*values, 0.0], dtype=torch.float64)
