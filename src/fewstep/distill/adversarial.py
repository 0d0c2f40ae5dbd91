"""The two sides of the adversarial game, as terms of a loss, and how a discriminator does in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core.denoiser import Encoded
from fewstep.core.method import sanitize


def as_real(logits: Tensor) -> Tensor:
    """softplus(-logits), meaned over the logits of each sample: (B, ...) -> (B,).

    The loss of calling them real: a discriminator's on real images, and the non-saturating loss of a generator on its
    own (Goodfellow et al., 2014).
    """
    return F.softplus(-logits).flatten(1).mean(1)


def as_fake(logits: Tensor) -> Tensor:
    """softplus(logits), meaned over the logits of each sample: (B, ...) -> (B,)."""
    return F.softplus(logits).flatten(1).mean(1)


@torch.no_grad()
def discriminator_stats(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """How well a discriminator tells real from fake, by its logits (B, ...) on both: shares of logits on the right side,
    the mean margin between the two, and the mean sign of the real ones, by which adaptive augmentation steers.
    """
    return {
        "accuracy_real": (real > 0).float().mean(),
        "accuracy_fake": (fake < 0).float().mean(),
        "margin": real.float().mean() - fake.float().mean(),
        "sign_real": real.float().sign().mean(),
    }


def encoder_logits(encoded: Encoded) -> Tensor:
    """A denoiser's encoder as a discriminator: the mean over channels of its bottleneck, (B, h, w) in float32 at least.

    It has no parameters of its own (SiDA; Zhou et al., 2025, Sec. 3).
    """
    bottleneck = encoded.features.bottleneck
    return bottleneck.to(torch.promote_types(bottleneck.dtype, torch.float32)).mean(1)


@dataclass(frozen=True)
class ClipValue:
    """Mends gradients as `sanitize` does, then bounds each entry by `limit`."""

    limit: float

    def __call__(self, gradients: list[Tensor]) -> Tensor:
        broken = sanitize(gradients)
        for g in gradients:
            g.clamp_(-self.limit, self.limit)
        return broken


@dataclass(frozen=True)
class ClipNorm:
    """Mends gradients as `sanitize` does, then scales them all so that their norm is at most `limit`."""

    limit: float

    def __call__(self, gradients: list[Tensor]) -> Tensor:
        broken = sanitize(gradients)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        torch._foreach_mul_(gradients, (self.limit / norm.clamp_min(1e-12)).clamp_max(1))
        return broken
