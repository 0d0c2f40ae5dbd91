"""Convolutions of the EDM networks (Karras et al., 2022), with resampling and cheap derivatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets.casting import cast
from fewstep.nets.layers import Init
from fewstep.runtime.autodiff import forward_mode


class Convolution(torch.autograd.Function):
    """`F.conv2d` that keeps its input only for the gradient of the weight, and whose forward-mode derivative costs one
    convolution for each argument that has a tangent.

    PyTorch's own keeps the input of a fixed weight, too, and convolves with tangents of zeros. It is called with x, weight, bias,
    stride, padding, groups.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, *ctx.options = inputs
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.set_materialize_grads(False)
        ctx.like = torch.empty_like(x, device="meta")
        if not torch.is_inference_mode_enabled():  # whose tensors PyTorch 2.8 refuses to keep for a gradient
            ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        if forward_mode():
            ctx.save_for_forward(x, weight)

    @staticmethod
    def jvp(  # pyright: ignore[reportIncompatibleMethodOverride] - autograd gives one tangent for each input
        ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: None
    ) -> Tensor:
        x, weight = ctx.saved_tensors
        terms = [] if dx is None else [Convolution.apply(dx, weight, None, *ctx.options)]
        if dweight is not None:
            terms.append(Convolution.apply(x, dweight, None, *ctx.options))
        if dbias is not None:
            terms.append(dbias[:, None, None].expand_as(ctx.result) if not terms else dbias[:, None, None])
        return sum(terms[1:], terms[0])

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - autograd gives one gradient for each output
        ctx: Any, gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if gradient is None:  # nothing depends on the result
            return (None,) * 6
        x, weight = ctx.saved_tensors
        if x is None:  # only its shape and layout matter
            x = torch.empty_like(ctx.like, device=gradient.device)
        stride, padding, groups = ctx.options
        geometry = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups
        wanted = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.convolution_backward(gradient, x, weight, ctx.bias_shape, *geometry, wanted)
        return *gradients, None, None, None


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """`F.conv2d` with a cheap forward-mode derivative, which keeps little for gradients if the weight is fixed."""
    fixed = x.ndim == 4 and x.requires_grad and not weight.requires_grad and torch.is_grad_enabled()
    if forward_mode() or (fixed and not torch.compiler.is_compiling()):
        return Convolution.apply(x, weight, bias, stride, padding, groups)
    return F.conv2d(x, weight, bias, stride, padding, groups=groups)


class Conv2d(nn.Module):
    """A convolution that may first double or halve the resolution with a separable filter.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the kernel; 0 for resampling alone.
        bias: whether there is a bias.
        up: whether the resolution is doubled.
        down: whether the resolution is halved.
        resample_filter: taps of the filter; (1, 1) is nearest-neighbour doubling and 2x2 averaging.
        fused_resample: whether filter and convolution share one padding and a halving follows the convolution, as in the residual
            inputs of NCSN++.
        init: how weights are initialised.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: tuple[float, ...] = (1, 1),
        fused_resample: bool = False,
        init: Init = Init(),
    ) -> None:
        super().__init__()
        assert not (up and down)
        self.in_channels, self.out_channels, self.kernel = in_channels, out_channels, kernel
        self.up, self.down, self.fused_resample = up, down, fused_resample
        self.weight = self.bias = None
        if kernel:
            self.weight, self.bias = init.parameters((out_channels, in_channels, kernel, kernel), bias=bias)
        if up or down:
            taps = torch.tensor(resample_filter, dtype=torch.float32)
            self.register_buffer("resample_filter", (taps.outer(taps) / taps.sum() ** 2)[None, None])
        self.box = len(resample_filter) == 2 and len(set(resample_filter)) == 1
        self.pad, self.filter_pad = kernel // 2, (len(resample_filter) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = cast(self.weight, x), cast(self.bias, x)
        if weight is None:
            return self.resample(x, self.filter_pad)
        if not (self.up or self.down):
            return conv2d(x, weight, bias, padding=self.pad)
        if not self.fused_resample:
            return conv2d(self.resample(x, self.filter_pad), weight, bias, padding=self.pad)
        if self.down:
            x = conv2d(x, weight, padding=self.pad + self.filter_pad)
            return self.add(self.resample(x, 0), bias)
        x = self.resample(x, max(self.filter_pad - self.pad, 0))
        return conv2d(x, weight, bias, padding=max(self.pad - self.filter_pad, 0))

    @staticmethod
    def add(x: Tensor, bias: Tensor | None) -> Tensor:
        return x if bias is None else x + bias[:, None, None]

    def resample(self, x: Tensor, padding: int) -> Tensor:
        """Double (filter times 4) or halve the resolution, channel by channel."""
        if self.box and padding == 0:
            return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype)
        if self.up:
            taps = (4 * taps).expand(channels, -1, -1, -1)
            return F.conv_transpose2d(x, taps, stride=2, padding=padding, groups=channels)
        return conv2d(x, taps.expand(channels, -1, -1, -1), stride=2, padding=padding, groups=channels)
