"""How the repeated blocks of networks run: compiled, or recomputed in the backward pass, on request."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from fewstep.nets.casting import GATHERED
from fewstep.nets.layers import Frozen
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
        return checkpoint(self.computed_within, GATHERED.get(), fused, x, emb, **options)

    def computed_within(self, network: nn.Module | None, fused: bool, x: Tensor, emb: Tensor) -> Tensor:
        """As a part of `network`, with fused attention or without: a backward pass no longer knows where it is."""
        token = GATHERED.set(network)
        try:
            with nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
                return self.computed(x, emb)
        finally:
            GATHERED.reset(token)

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
