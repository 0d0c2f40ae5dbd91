"""Adversarial losses per sample, statistics of a discriminator, and clipping of gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core.denoiser import Encoded
from fewstep.core.method import sanitize


def as_real(logits: Tensor) -> Tensor:
    """Return softplus(-logits), averaged over the logits of each sample: (B, ...) -> (B,).

    This is a discriminator's loss on real images, and the non-saturating loss of a generator (Goodfellow et al., 2014).
    """
    return F.softplus(-logits).flatten(1).mean(1)


def as_fake(logits: Tensor) -> Tensor:
    """Return softplus(logits), averaged over the logits of each sample: (B, ...) -> (B,).

    This is a discriminator's loss on generated images.
    """
    return F.softplus(logits).flatten(1).mean(1)


@torch.no_grad()
def discriminator_stats(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Return metrics of a discriminator from its logits (B, ...) on real and on generated images.

    Returns:
        The shares of logits on the right side of 0, the mean margin between the two, and the mean sign on real images.
    """
    return {
        "accuracy_real": (real > 0).float().mean(),
        "accuracy_fake": (fake < 0).float().mean(),
        "margin": real.float().mean() - fake.float().mean(),
        "sign_real": real.float().sign().mean(),
    }


def encoder_logits(encoded: Encoded) -> Tensor:
    """Return the mean over channels of an encoder's bottleneck as logits (B, h, w), in at least float32.

    A denoiser's encoder is then a discriminator without parameters of its own (SiDA; Zhou et al., 2025, Sec. 3).
    """
    bottleneck = encoded.features.bottleneck
    return bottleneck.to(torch.promote_types(bottleneck.dtype, torch.float32)).mean(1)


@dataclass(frozen=True)
class ClipValue:
    """Replaces non-finite gradients as `sanitize` does, then clamps each entry to [-limit, limit]."""

    limit: float

    def __call__(self, gradients: list[Tensor]) -> Tensor:
        broken = sanitize(gradients)
        for g in gradients:
            g.clamp_(-self.limit, self.limit)
        return broken


@dataclass(frozen=True)
class ClipNorm:
    """Replaces non-finite gradients as `sanitize` does, then scales all of them so that their norm is at most `limit`."""

    limit: float

    def __call__(self, gradients: list[Tensor]) -> Tensor:
        broken = sanitize(gradients)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        torch._foreach_mul_(gradients, (self.limit / norm.clamp(1e-12)).clamp(max=1))
        return broken
