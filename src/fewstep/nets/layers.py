"""Layers of the EDM networks (Karras et al., 2022): initialisation, linear maps, normalisation, embeddings, attention.

Parameters stay in float32 and are cast to the precision of the activations where they are used (`nets.casting`).
Everything can be differentiated in forward mode: where a fused kernel cannot, the same formula runs in plain operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets import cpu
from fewstep.nets.casting import cast
from fewstep.runtime.autodiff import forward_mode
from fewstep.runtime.precision import accurate

Distribution = Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]


@dataclass(frozen=True)
class Init:
    """How the weights and biases of a layer are initialised.

    Args:
        distribution: variance 2 / (fan_in + fan_out) for xavier, 1 / fan_in for kaiming.
        weight: factor of the weights.
        bias: factor of the biases.
    """

    distribution: Distribution = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def scaled(self, factor: float) -> Init:
        return Init(self.distribution, self.weight * factor, self.bias * factor)

    def draw(self, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Tensor:
        """Draw a tensor without the factors."""
        variance = 2 / (fan_in + fan_out) if self.distribution.startswith("xavier") else 1 / fan_in
        if self.distribution.endswith("uniform"):
            return math.sqrt(3 * variance) * (2 * torch.rand(shape) - 1)
        return math.sqrt(variance) * torch.randn(shape)

    def parameters(self, shape: tuple[int, ...], *, bias: bool) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Return a weight (out, in, *kernel) and, if asked for, a bias (out,)."""
        area = math.prod(shape[2:])
        fans = shape[1] * area, shape[0] * area
        weight = nn.Parameter(self.draw(shape, *fans) * self.weight)
        return weight, nn.Parameter(self.draw(shape[:1], *fans) * self.bias) if bias else None


class Frozen(nn.Module):
    """A module that always stays in evaluation mode, whatever the module that holds it does: a feature network."""

    entry_points = None
    """Never sharded, with all that it contains: R1 differentiates it twice."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Apply `F.dropout`, on CPUs by a faster kernel.

    The kernel draws other numbers than PyTorch's, and so does compiled code; both are functions of torch's random stream.
    """
    if not (0 < p < 1 and training and x.is_cpu) or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    return cpu.dropout(x, p)


def check_halvings(resolution: int, halvings: int) -> None:
    """Raise ValueError unless the resolution can be halved so often."""
    if resolution % 2**halvings:
        raise ValueError(
            f"a network with {halvings + 1} resolutions halves the image {halvings} times; "
            f"{resolution} pixels are not divisible by {2**halvings}"
        )


def check_taps(taps: Sequence[float]) -> None:
    """Raise ValueError unless these are the taps of a filter that halves and doubles images."""
    if not taps or len(taps) % 2 or not sum(taps):
        raise ValueError(f"a resampling filter needs an even number of taps with a sum other than 0; got {taps}")


def one_hot(label: Tensor | None, num_classes: int, emb: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Return class indicators (B, num_classes) with the batch size, dtype and device of `emb` (B, n).

    Args:
        label: class indices (B,), or None for zeros.
        num_classes: number of classes.
        emb: the embedding that the indicators will be added to.
        dropout: probability of hiding each class, for classifier-free guidance.
    """
    if label is None:
        return emb.new_zeros(len(emb), num_classes)
    vector = F.one_hot(label, num_classes).to(emb.dtype)
    if dropout:
        vector = vector * (torch.rand(len(emb), 1, device=emb.device) >= dropout)
    return vector


class Linear(nn.Module):
    """A linear map whose parameters are cast to the precision of its input."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, init: Init = Init()) -> None:
        super().__init__()
        self.weight, self.bias = init.parameters((out_features, in_features), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, cast(self.weight, x), cast(self.bias, x))


class GroupNorm(nn.Module):
    """Group norm with groups of at least `min_channels_per_group` channels, and at most `num_groups` of them."""

    def __init__(
        self, channels: int, *, num_groups: int = 32, min_channels_per_group: int = 4, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if channels < min_channels_per_group:
            raise ValueError(f"group norm needs at least {min_channels_per_group} channels; got {channels}")
        self.num_groups = min(num_groups, channels // min_channels_per_group)
        while channels % self.num_groups:  # the published rule gives no equal groups for some widths
            self.num_groups -= 1
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if forward_mode():
            return self.in_plain_operations(x)
        if x.is_cpu and x.dtype.itemsize < 4:
            return cpu.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(x, self.num_groups, cast(self.weight, x), cast(self.bias, x), self.eps)

    def in_plain_operations(self, x: Tensor) -> Tensor:
        """The same in few operations and copies, since each costs two or three times as much in forward mode."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        variance, mean = torch.var_mean(x.reshape(len(x), self.num_groups, -1), -1, correction=0)
        channels = len(weight) // self.num_groups
        scale = (variance + self.eps).rsqrt().repeat_interleave(channels, dim=1) * weight
        shift = bias - mean.repeat_interleave(channels, dim=1) * scale
        return torch.addcmul(shift[..., None, None], x, scale[..., None, None])


class PositionalEmbedding(nn.Module):
    """[cos(x f), sin(x f)] with f_k = 10000^(-k / (n / 2 - e)), k < n / 2, e = 1 with `endpoint`: (B,) -> (B, channels)."""

    def __init__(self, channels: int, *, max_positions: int = 10000, endpoint: bool = False) -> None:
        super().__init__()
        self.channels, self.max_positions, self.endpoint = channels, max_positions, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        k = torch.arange(half, dtype=torch.float32, device=x.device) / (half - self.endpoint)
        angle = x.outer((1 / self.max_positions) ** k.to(x.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """[cos(2 pi f x), sin(2 pi f x)] with fixed random f ~ N(0, scale^2) (Song et al., 2021): (B,) -> (B, channels)."""

    freqs: Tensor

    def __init__(self, channels: int, *, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        angle = x.outer(2 * math.pi * self.freqs.to(x.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


FEW = 64
"""Tokens up to which attention on CPUs is computed in float32, whatever the precision of the network."""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(c)) v over (B, heads, tokens, c), with the softmax in at least float32.

    Below float32, PyTorch's fused kernel for CPUs takes ten times as long for few tokens as it does in float32.
    """
    if not forward_mode():
        few = q.is_cpu and q.dtype.itemsize < 4 and q.shape[-2] <= FEW
        # The fused kernels need contiguous channels; otherwise PyTorch silently takes the slow kernel.
        dtype = v.dtype
        q, k, v = ((t.float() if few else t).contiguous() for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).to(dtype)
    logits = accurate(q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return logits.softmax(-1).to(v.dtype) @ v
