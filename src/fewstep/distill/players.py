"""The players of distillation: copies of a teacher, and one step of a generator."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.method import Batch


def frozen(denoiser: Denoiser) -> Denoiser:
    """A copy that never moves: evaluation mode, no gradients to its parameters."""
    return copy.deepcopy(denoiser).requires_grad_(False).eval()


def trainable(denoiser: Denoiser) -> Denoiser:
    """A copy that moves."""
    return copy.deepcopy(denoiser).requires_grad_(True)


def one_step(generator: Denoiser, batch: Batch, sigma: float) -> Tensor:
    """Images (B, C, H, W) made from noise in one evaluation, G(sigma z; sigma), with the labels of the batch."""
    return generator(sigma * torch.randn_like(batch.image), sigma, batch.label)
