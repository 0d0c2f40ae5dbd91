"""Training metrics per noise level, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

PER_DECADE = 3
FIRST, LAST = -8, 6
BINS = LAST - FIRST + 1
LEVELS = tuple(f"{float(f'{10 ** (k / PER_DECADE):.0e}'):g}" for k in range(FIRST, LAST + 1))
"""The middle of each bin in words: 0.002, 0.005, 0.01, ... 50, 100, that is 10^(k/3) rounded to a digit."""


@torch.no_grad()
def by_sigma(sigma: Tensor, value: Tensor) -> Tensor:
    """Return sum and count of a metric per logarithmic bin of sigma.

    There are three bins a decade, from 10^(-8/3) = 0.002 to 10^2. Each reaches half a bin to either side, the outermost to 0
    and to infinity. Sums and counts add up over micro-batches, ranks and steps; the mean of a bin is their ratio. In the metrics
    of a loss, the key "gap" is logged as its mean over all samples, and as `gap@0.1` for the bin of 0.1.

    Args:
        sigma: noise levels (B,).
        value: what to average (B,), such as the loss of each sample.

    Returns:
        Sums and counts (2, BINS), float32, detached.

    Raises:
        ValueError: the shapes are not one and the same (B,).

    Example:
        >>> metrics = {"error": fs.by_sigma(torch.tensor([0.1, 2.0]), torch.tensor([0.3, 0.7]))}
    """
    if sigma.shape != value.shape or sigma.ndim != 1:
        raise ValueError(
            f"expected sigma and value of one shape (B,); got {tuple(sigma.shape)} and {tuple(value.shape)}"
        )
    index = (PER_DECADE * sigma.log10()).round().clamp(FIRST, LAST) - FIRST
    inside = index[:, None] == torch.arange(BINS, device=sigma.device)
    # no product, as zero times infinity is not zero
    return torch.stack([torch.where(inside, value.float()[:, None], 0).sum(0), inside.sum(0).float()])
