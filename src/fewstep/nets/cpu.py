"""Kernels for CPUs alone, where PyTorch's own are slow: dropout, and group norm below float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.runtime.precision import accurate


def dropout(x: Tensor, p: float) -> Tensor:
    """Return `F.dropout(x, p)` computed with 16 random bits per value, four times as fast; p is rounded to 2^-16.

    The bits are assigned in the memory order of `runtime.precision.activations`, whatever the layout of `x`: with one
    channel, the layout that a tensor reports is arbitrary.
    """
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    # The bits become 0 and 1 in place: comparisons and conversions of bool tensors are ten times slower.
    kept = words.view(torch.int16)[: x.numel()].ge_(round(p * 2**16) - 2**15)
    low = x.ndim == 4 and x.dtype.itemsize < 4
    order = torch.empty_like(x, memory_format=torch.channels_last if low else torch.contiguous_format)
    return x * kept.to(x.dtype).div_(1 - p).as_strided(x.shape, order.stride())


def group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return `F.group_norm` of activations below float32, with weights in float32.

    PyTorch's kernels are slow for groups of fewer than 16 channels-last values: in both directions below 1,024 pixels, and in the
    backward pass from there on.
    """
    weight, bias = accurate(weight), accurate(bias)
    if x.shape[1] < 16 * num_groups:
        if x[0, 0].numel() < 1024:
            return F.group_norm(x.float(), num_groups, weight, bias, eps).to(x.dtype)
        if not torch.compiler.is_compiling():
            return SmallGroupNorm.apply(x, weight, bias, num_groups, eps)[0]
    return F.group_norm(x, num_groups, weight, bias, eps)


class SmallGroupNorm(torch.autograd.Function):
    """`F.group_norm` whose gradient is computed in float32, image by image, so that its operands stay in the cache.

    It is called with x, weight, bias, groups, eps, and returns the result, the means and the inverse deviations of the groups
    (B, groups).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        batch, channels = x.shape[:2]
        return torch.native_group_norm(x, weight, bias, batch, channels, x[0, 0].numel(), groups, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:2], *output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *moments = ctx.saved_tensors
        weight = weight.unflatten(0, (moments[0].shape[1], -1))

        def one_image(x: Tensor, dy: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The gradients of y = scale x + shift for one image, where scale = rstd weight and shift = bias - mean scale."""
            dmean, drstd, mean, rstd = (t[..., None] for t in rest)
            low, x, dy, n = x.dtype, x.float(), dy.float(), x.numel() / len(weight)
            dshift, dscale = (t.sum((2, 3)).unflatten(1, weight.shape) for t in (dy, dy * x))
            scale, dscale = rstd * weight, dscale - mean * dshift
            # d rstd / dx = (mean - x) rstd^3 / n and d mean / dx = 1 / n
            slope = -(drstd + (weight * dscale).sum(2, keepdim=True)) * rstd**3 / n
            offset = (dmean - (scale * dshift).sum(2, keepdim=True)) / n - slope * mean
            a, b, c = (t.expand_as(scale).reshape(-1, 1, 1) for t in (offset, slope, scale))
            dx = torch.addcmul(torch.addcmul(a, b, x), c, dy)
            return dx.to(low), (rstd * dscale).flatten(1), dshift.flatten(1)

        images = zip(*(t.split(1) for t in (x, *gradients, *moments)), strict=True)
        dx, dweight, dbias = (torch.cat(each) for each in zip(*(one_image(*image) for image in images), strict=True))
        return dx, dweight.sum(0), dbias.sum(0), None, None
