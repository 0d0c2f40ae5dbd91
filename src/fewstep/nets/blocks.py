"""The residual block that DDPM++, NCSN++ and ADM have in common."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.nets.convolution import Conv2d
from fewstep.nets.execution import Block
from fewstep.nets.layers import GroupNorm, Init, Linear, attention, dropout


def add_augment(emb: Tensor, augment: Tensor | None, layer: Linear | None) -> Tensor:
    """Return the embedding (B, n) plus that of the augmentation labels (B, m), if there are any.

    Raises:
        ValueError: the network has no layer for these labels, and would learn the augmented images as they are.
    """
    if augment is None:
        return emb
    width = 0 if layer is None else layer.weight.shape[1]
    if augment.shape[1] != width:
        raise ValueError(
            f"this network takes augmentation labels of {width} columns; got {augment.shape[1]}. Build it with "
            f"augment_dim={augment.shape[1]} or train it without augmentation"
        )
    return emb if layer is None else emb + layer(augment.to(emb.dtype))


class UNetBlock(Block):
    """The residual block of DDPM++, NCSN++ and ADM, with optional resampling and self-attention.

    h = conv1(dropout(silu(mix(norm1(conv0(silu(norm0(x)))), affine(emb))))); the result is (h + skip(x)) skip_scale,
    after attention (proj(attention) + h) skip_scale. mix is a scale and shift after norm1 (`adaptive_scale`) or an
    addition before it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        num_heads: int | None = None,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: tuple[float, ...] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: Init = Init(),
        init_zero: Init = Init(weight=0.0),
        init_attn: Init | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_heads = (num_heads or out_channels // channels_per_head) if attention else 0
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        resampling = {"up": up, "down": down, "resample_filter": resample_filter}

        self.norm0 = GroupNorm(in_channels, eps=eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, init=init, **resampling)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), init=init)
        self.norm1 = GroupNorm(out_channels, eps=eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init=init_zero)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, init=init, **resampling)
        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, eps=eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, init=init_attn or init)
            self.proj = Conv2d(out_channels, out_channels, 1, init=init_zero)

    def compute(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        p = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = p.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + p))
        h = self.conv1(dropout(h, self.dropout, self.training))
        h = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.num_heads:
            h = (self.proj(self.attend(h)) + h) * self.skip_scale
        return h

    def attend(self, h: Tensor) -> Tensor:
        """Self-attention over the pixels. The channels of `qkv` are ordered head, channel, then q, k, v."""
        batch, channels, height, width = h.shape
        qkv = self.qkv(self.norm2(h)).reshape(batch, self.num_heads, channels // self.num_heads, 3, height * width)
        q, k, v = qkv.transpose(2, 4).unbind(3)
        return attention(q, k, v).transpose(2, 3).reshape(h.shape)
