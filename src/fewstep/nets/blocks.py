"""The repeated blocks of U-Nets, compiled or recomputed on request, and the one that DDPM++, NCSN++ and ADM have in common."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from fewstep.nets.convolution import Conv2d
from fewstep.nets.layers import IN_PARTS, Frozen, GroupNorm, Init, Linear, attention, dropout
from fewstep.runtime.autodiff import forward_mode
from fewstep.runtime.files import cache_folder

Compute = Callable[["Block", Tensor, Tensor], Tensor]
Recomputation = int | Literal["light"]
"""See `recompute_blocks`."""

KEPT = [
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""What light recomputation does not compute twice: where nearly all the operations are."""


class Block(nn.Module):
    """A block (B, C, H, W), (B, emb_channels) -> (B, C', H', W') of which a network has many; subclasses say in `compute`
    what it computes.

    compiled: `compute` as `compile_blocks` made it, None for none. recomputed: see `recompute_blocks`, None for never.
    Copies of the block have both.
    """

    compiled: Compute | None = None
    recomputed: Recomputation | None = None

    def compute(self, x: Tensor, emb: Tensor) -> Tensor:
        raise NotImplementedError  # each network's blocks define it

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        what = self.recomputed
        if what is None or (what != "light" and x.shape[-1] < what):
            return self.computed(x, emb)
        options: Any = {"use_reentrant": False, "preserve_rng_state": self.training}
        kernels = torch.backends.cuda  # what it says of attention holds on CPUs, too
        fused = kernels.flash_sdp_enabled() or kernels.mem_efficient_sdp_enabled() or kernels.cudnn_sdp_enabled()
        # where attention is not fused a second derivative follows, and what was kept serves once; compiled code writes into
        # its own results, and tells nobody
        if what == "light" and fused and self.compiled is None:
            options["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)
        return checkpoint(self.computed_within, IN_PARTS.get(), fused, x, emb, **options)

    def computed_within(self, network: nn.Module | None, fused: bool, x: Tensor, emb: Tensor) -> Tensor:
        """As a part of `network`, with fused attention or without: a backward pass no longer knows where it is."""
        token = IN_PARTS.set(network)
        try:
            with nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
                return self.computed(x, emb)
        finally:
            IN_PARTS.reset(token)

    def computed(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.compiled is None or forward_mode():  # of which compiled code has no derivative
            return self.compute(x, emb)
        for batch in (x, emb):
            torch._dynamo.maybe_mark_dynamic(batch, 0)
        return self.compiled(self, x, emb)


BACKEND = "inductor"
VARIANTS = 32
"""Of one compiled block: with and without gradients to weights or images, in training, of a batch of one, ..."""


def compile_blocks(module: nn.Module) -> None:
    """Let `torch.compile` compile the blocks of all networks in `module`, in place; nothing else of them changes.

    It happens when a block is first used, once for all blocks of one kind and for batches of any size (regional
    compilation): a network has a dozen kinds, where the whole would be one function that takes minutes to compile. What is
    compiled outlives the process in $TORCHINDUCTOR_CACHE_DIR, else in `inductor` in the cache folder. Results differ from
    those of plain blocks by rounding, and dropout draws other numbers. Forward-mode derivatives run plain blocks. Second
    derivatives, which `torch.compile` does not have, raise RuntimeError; feature networks, of which R1 takes them, stay plain.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    # PyTorch's advice on what `precision.tf32` decides
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    plain = {block for features in module.modules() if isinstance(features, Frozen) for block in features.modules()}
    for block in module.modules():
        if isinstance(block, Block) and block not in plain:
            shapes = tuple((name, tuple(p.shape)) for name, p in block.named_parameters())
            block.compiled = compiled(type(block).compute, BACKEND, shapes)


def recompute_blocks(module: nn.Module, what: Recomputation) -> None:
    """Let blocks keep less for the backward pass and compute it again there (activation checkpointing), in place; the
    gradients are the same.

    A number of pixels: blocks on images of at least so many a side keep their inputs alone, for the time of one more
    evaluation of those. "light": all blocks keep what convolutions, matrix products and attention give, for one backward
    pass, and compute norms, activations and sums again, which takes little time. Compiled blocks, and all of which a second
    derivative is taken, keep their inputs alone.
    """
    if what != "light" and what < 1:
        raise ValueError(f"blocks are recomputed from a side of at least 1 pixel on; got {what}")
    for block in module.modules():
        if isinstance(block, Block):
            block.recomputed = what


@cache
def compiled(compute: Compute, backend: str, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Compute:
    """`compute`, compiled for blocks of these shapes apart from all others, so that few variants are looked through."""
    apart: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": VARIANTS}  # not known to the type checker
    return torch.compile(compute, backend=backend, dynamic=False, **apart)


def add_augment(emb: Tensor, augment: Tensor | None, layer: Linear | None) -> Tensor:
    """The embedding (B, n) plus that of the augmentation labels (B, m), if there are any, by the network's layer for them.

    Raises ValueError for labels that the network cannot be told: it would learn the augmented images as they are.
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
