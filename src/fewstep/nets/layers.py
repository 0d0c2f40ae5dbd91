"""Layers of the EDM networks (Karras et al., 2022): initialisation, precision, normalisation, embeddings, attention.

Parameters stay in float32 and are cast to the precision of the activations where they are used, those that do not move
once; nothing relies on autocast. Activations of less than float32 lie channels-last. Everything can be differentiated
in forward mode: where a fused kernel cannot, the same formula runs in plain operations (`forward_mode`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from fewstep.runtime.autodiff import forward_mode
from fewstep.runtime.precision import accurate

Law = Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]


@dataclass(frozen=True)
class Init:
    """How weights and biases are drawn: a unit-variance law for the fan of the layer, times a factor for each."""

    law: Law = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def scaled(self, factor: float) -> Init:
        return Init(self.law, self.weight * factor, self.bias * factor)

    def draw(self, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Tensor:
        """Unscaled: variance 2 / (fan_in + fan_out) (xavier, bound sqrt 3 larger if uniform) or 1 / fan_in (kaiming)."""
        variance = 2 / (fan_in + fan_out) if self.law.startswith("xavier") else 1 / fan_in
        if self.law.endswith("uniform"):
            return math.sqrt(3 * variance) * (2 * torch.rand(shape) - 1)
        return math.sqrt(variance) * torch.randn(shape)

    def parameters(self, shape: tuple[int, ...], *, bias: bool) -> tuple[nn.Parameter, nn.Parameter | None]:
        """A weight (out, in, *kernel) and, on request, a bias (out)."""
        area = math.prod(shape[2:])
        fans = shape[1] * area, shape[0] * area
        weight = nn.Parameter(self.draw(shape, *fans) * self.weight)
        return weight, nn.Parameter(self.draw(shape[:1], *fans) * self.bias) if bias else None


class Frozen(nn.Module):
    """A module that stays in evaluation mode, whatever its player does: a feature network."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Lowered(NamedTuple):
    """What was made of a parameter in another precision, and where and at which version its values were then."""

    origin: tuple[int, int]
    value: Tensor


LOWERED: MutableMapping[Tensor, Lowered] = WeakIdKeyDictionary()
"""Of the parameters that did not move when they were last used."""

IN_PARTS: ContextVar[nn.Module | None] = ContextVar("in_parts", default=None)
"""The network that computes, if its parameters are together for this alone (FSDP2): a copy would outlive them, and not
follow them."""


def lowered(parameter: Tensor, x: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """`make(parameter)` in the precision of `x`, with gradients if the parameter moves.

    Below float32, of a parameter that requires no gradients, or serves in inference mode, it is made once, and for a
    convolution laid out as the activations are; `make` is always the same for it. A write into the parameter, which counts
    up its version, makes the copy void, and so does a use with gradients: fused optimizers do not count.
    """
    if forward_mode() or torch.compiler.is_compiling() or IN_PARTS.get() is not None:
        return make(parameter).to(x.dtype)
    # with a gradient in store a fused step may come
    if parameter.requires_grad and (parameter.grad is not None or not torch.is_inference_mode_enabled()):
        if LOWERED:
            LOWERED.pop(parameter, None)
        return make(parameter).to(x.dtype)
    if x.dtype.itemsize >= 4 or not isinstance(parameter, nn.Parameter) or parameter.is_inference():
        return make(parameter).to(x.dtype)
    known, origin = LOWERED.get(parameter), (parameter.data_ptr(), parameter._version)
    if known is None or known.origin != origin or known.value.dtype != x.dtype:
        layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        with torch.inference_mode(False), torch.no_grad():  # it may serve in a backward pass later
            known = Lowered(origin, make(parameter).to(x.dtype, memory_format=layout))
        LOWERED[parameter] = known
    return known.value


@overload
def cast(parameter: Tensor, x: Tensor) -> Tensor: ...
@overload
def cast(parameter: None, x: Tensor) -> None: ...
def cast(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """`parameter` in the precision of `x`; see `lowered`."""
    return None if parameter is None else lowered(parameter, x, lambda value: value)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`; on a CPU with 16 random bits for a value, p rounded to 2^-16, four times as fast as PyTorch's own.

    The bits are dealt out in the order of `activations`, whatever that of `x`: with one channel it is a matter of chance.
    Compiled code has draws of its own, which are functions of torch's random stream, too.
    """
    if not (0 < p < 1 and training and x.is_cpu) or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    # 0 and 1 in the place of the bits: for truth values the kernels of comparison and conversion are ten times slower
    kept = words.view(torch.int16)[: x.numel()].ge_(round(p * 2**16) - 2**15)
    low = x.ndim == 4 and x.dtype.itemsize < 4
    order = torch.empty_like(x, memory_format=torch.channels_last if low else torch.contiguous_format)
    return x * kept.to(x.dtype).div_(1 - p).as_strided(x.shape, order.stride())


def check_halvings(resolution: int, halvings: int) -> None:
    if resolution % 2**halvings:
        raise ValueError(
            f"a network with {halvings + 1} resolutions halves the image {halvings} times; "
            f"{resolution} pixels are not divisible by {2**halvings}"
        )


def check_taps(taps: Sequence[float]) -> None:
    if not taps or len(taps) % 2 or not sum(taps):
        raise ValueError(f"a filter that halves and doubles has an even number of taps, whose sum is not 0; got {taps}")


def one_hot(label: Tensor | None, num_classes: int, emb: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Class indicators (B, num_classes), in the batch, dtype and device of `emb` (B, n).

    Zero for no class, and for each class hidden with probability `dropout` (classifier-free guidance's training).
    """
    if label is None:
        return emb.new_zeros(len(emb), num_classes)
    vector = F.one_hot(label, num_classes).to(emb.dtype)
    if dropout:
        vector = vector * (torch.rand(len(emb), 1, device=emb.device) >= dropout)
    return vector


class Linear(nn.Module):
    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, init: Init = Init()) -> None:
        super().__init__()
        self.weight, self.bias = init.parameters((out_features, in_features), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, cast(self.weight, x), cast(self.bias, x))


class SmallGroups(torch.autograd.Function):
    """`F.group_norm` with a gradient that is taken in float32, image by image, so that its operations stay in the cache.

    Called with x, weight, bias, groups, eps; the result is followed by mean and 1 / deviation of the groups (B, groups).
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

        def pulled(x: Tensor, dy: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The gradients of one image, whose result is scale x + shift: scale = rstd weight, shift = bias - mean scale."""
            dmean, drstd, mean, rstd = (t[..., None] for t in rest)
            low, x, dy, n = x.dtype, x.float(), dy.float(), x.numel() / len(weight)
            dshift, dscale = (t.sum((2, 3)).unflatten(1, weight.shape) for t in (dy, dy * x))
            scale, dscale = rstd * weight, dscale - mean * dshift
            # the derivatives of rstd and mean in x are (mean - x) rstd^3 / n and 1 / n
            slope = -(drstd + (weight * dscale).sum(2, keepdim=True)) * rstd**3 / n
            offset = (dmean - (scale * dshift).sum(2, keepdim=True)) / n - slope * mean
            a, b, c = (t.expand_as(scale).reshape(-1, 1, 1) for t in (offset, slope, scale))
            dx = torch.addcmul(torch.addcmul(a, b, x), c, dy)
            return dx.to(low), (rstd * dscale).flatten(1), dshift.flatten(1)

        images = zip(*(t.split(1) for t in (x, *gradients, *moments)), strict=True)
        dx, dweight, dbias = (torch.cat(each) for each in zip(*(pulled(*image) for image in images), strict=True))
        return dx, dweight.sum(0), dbias.sum(0), None, None


class GroupNorm(nn.Module):
    """Groups of at least `min_channels_per_group` channels, at most `num_groups` of them."""

    def __init__(
        self, channels: int, *, num_groups: int = 32, min_channels_per_group: int = 4, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if channels < min_channels_per_group:
            raise ValueError(f"a group has at least {min_channels_per_group} channels; got {channels} in all")
        self.num_groups = min(num_groups, channels // min_channels_per_group)
        while channels % self.num_groups:  # widths for which the published rule gives no equal groups
            self.num_groups -= 1
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not forward_mode():
            # on CPUs the kernels take weights in float32; for less than 16 channels-last values of a low precision they are
            # slow, below 1,024 pixels in both directions and from there on backward
            mixed = x.is_cpu and x.dtype.itemsize < 4
            small = mixed and x.shape[1] < 16 * self.num_groups
            weight, bias = (
                (accurate(self.weight), accurate(self.bias)) if mixed else (cast(self.weight, x), cast(self.bias, x))
            )
            if small and x[0, 0].numel() < 1024:
                return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)
            if small and not torch.compiler.is_compiling():
                return SmallGroups.apply(x, weight, bias, self.num_groups, self.eps)[0]
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        # few passes and few copies of the pixels, since each costs two or three as a dual number
        variance, mean = torch.var_mean(x.reshape(len(x), self.num_groups, -1), -1, correction=0)
        channels = len(weight) // self.num_groups
        scale = (variance + self.eps).rsqrt().repeat_interleave(channels, dim=1) * weight
        shift = bias - mean.repeat_interleave(channels, dim=1) * scale
        return torch.addcmul(shift[..., None, None], x, scale[..., None, None])


class PositionalEmbedding(nn.Module):
    """[cos(x f), sin(x f)] with f_k = 10000^(-k / (n / 2 - e)), k < n / 2, e = 1 with `endpoint` (Transformer embedding)."""

    def __init__(self, channels: int, *, max_positions: int = 10000, endpoint: bool = False) -> None:
        super().__init__()
        self.channels, self.max_positions, self.endpoint = channels, max_positions, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        k = torch.arange(half, dtype=torch.float32, device=x.device) / (half - self.endpoint)
        angle = x.outer((1 / self.max_positions) ** k.to(x.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """[cos(2 pi f x), sin(2 pi f x)] with fixed random f ~ N(0, scale^2) (Song et al., 2021)."""

    freqs: Tensor

    def __init__(self, channels: int, *, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        angle = x.outer(2 * math.pi * self.freqs.to(x.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(c)) v over (B, heads, tokens, c); the softmax in at least float32."""
    if not forward_mode():
        # the fused kernels take contiguous channels, and all else falls back to the unfused ones without a word
        return F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
    logits = accurate(q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return logits.softmax(-1).to(v.dtype) @ v
