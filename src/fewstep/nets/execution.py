"""How the repeated blocks of networks run: compiled, or recomputed in the backward pass, on request."""

from __future__ import annotations

import inspect
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
from fewstep.runtime.environment import cache_folder

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
"""Operations that light recomputation does not repeat; nearly all of the cost is in them."""


class Block(nn.Module):
    """A repeated block of a network, (B, C, H, W), (B, emb_channels) -> (B, C', H', W'); subclasses define `compute`.

    compiled: `compute` as `compile_blocks` compiled it, or None. recomputed: see `recompute_blocks`; None for never. Copies of a
    block keep both.
    """

    compiled: Compute | None = None
    recomputed: Recomputation | None = None

    def compute(self, x: Tensor, emb: Tensor) -> Tensor:
        raise NotImplementedError  # each network's blocks define it

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        what = self.recomputed
        # forward mode keeps nothing for later, and before PyTorch 2.12 cannot pass through `checkpoint`
        if what is None or forward_mode() or (what != "light" and x.shape[-1] < what):
            return self.computed(x, emb)
        options: Any = {"use_reentrant": False, "preserve_rng_state": self.training}
        kernels = torch.backends.cuda  # these settings of attention hold on CPUs, too
        fused = kernels.flash_sdp_enabled() or kernels.mem_efficient_sdp_enabled() or kernels.cudnn_sdp_enabled()
        # Unfused attention means that a second derivative follows, and what selective checkpointing keeps can be used once only.
        # Compiled code writes into its own results, which selective checkpointing does not notice.
        if what == "light" and fused and self.compiled is None:
            options["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)
        return checkpoint(self.computed_within, GATHERED.get(), fused, x, emb, **options)

    def computed_within(self, network: nn.Module | None, fused: bool, x: Tensor, emb: Tensor) -> Tensor:
        """Compute within `network`, with fused attention or without: in a backward pass neither is set any more."""
        token = GATHERED.set(network)
        try:
            with nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
                return self.computed(x, emb)
        finally:
            GATHERED.reset(token)

    def computed(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.compiled is None or forward_mode():  # compiled code has no forward-mode derivative
            return self.compute(x, emb)
        for batch in (x, emb):
            torch._dynamo.maybe_mark_dynamic(batch, 0)
        return self.compiled(self, x, emb)


COMPILES = "isolate_recompiles" in inspect.signature(torch.compile).parameters
"""Whether this PyTorch compiles blocks of one shape apart from all others, as it does since 2.13."""
BACKEND = "inductor"
VARIANTS = 32
"""Most variants of one compiled block: with and without gradients, in training, for a batch of one, ..."""


def compile_blocks(module: nn.Module) -> None:
    """Compile the blocks of all networks in `module` by `torch.compile`, in place.

    A block is compiled when it is first used, once for all blocks of its kind and for batches of any size (regional compilation).
    The compiled code is kept in $TORCHINDUCTOR_CACHE_DIR, else in `inductor` in the cache folder. Results differ from those of
    plain blocks by rounding, and dropout draws other numbers. Forward-mode derivatives run plain blocks. A second derivative,
    which `torch.compile` does not have, raises RuntimeError; feature networks, of which R1 takes it, stay plain.

    Args:
        module: a denoiser, a method or any module that holds some.

    Raises:
        ValueError: PyTorch is older than 2.13.

    Example:
        >>> fs.nets.compile_blocks(model)
    """
    if not COMPILES:
        raise ValueError(
            f"--compile needs PyTorch 2.13 or newer; this is {torch.__version__}. Upgrade, or leave it out"
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    # `precision.tf32` decides this
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    plain = {block for features in module.modules() if isinstance(features, Frozen) for block in features.modules()}
    for block in module.modules():
        if isinstance(block, Block) and block not in plain:
            shapes = tuple((name, tuple(p.shape)) for name, p in block.named_parameters())
            block.compiled = compiled(type(block).compute, BACKEND, shapes)


def recompute_blocks(module: nn.Module, what: Recomputation) -> None:
    """Keep less for the backward pass and compute it again there (activation checkpointing), in place.

    Gradients are the same. Compiled blocks, and all blocks of which a second derivative is taken, keep their inputs alone.

    Args:
        module: a denoiser, a method or any module that holds some.
        what: a number of pixels: blocks on images of at least this side keep their inputs alone, for the time of one more
            evaluation. Or "light": all blocks keep the results of convolutions, matrix products and attention, and compute the
            rest again, which takes little time.

    Raises:
        ValueError: the number is less than 1.

    Example:
        >>> fs.nets.recompute_blocks(model, "light")
    """
    if what != "light" and what < 1:
        raise ValueError(f"blocks are recomputed from a side of at least 1 pixel on; got {what}")
    for block in module.modules():
        if isinstance(block, Block):
            block.recomputed = what


@cache
def compiled(compute: Compute, backend: str, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Compute:
    """`compute`, compiled for blocks of these shapes apart from all others, so that few variants are searched."""
    apart: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": VARIANTS}  # not known to the type checker
    return torch.compile(compute, backend=backend, dynamic=False, **apart)
