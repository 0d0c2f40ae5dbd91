"""In which precision numbers are multiplied: what the hardware is fast in, and what float32 means on GPUs.

Networks compute in the precision that they are given (`Denoiser(dtype=...)`). float32 means float32: TF32, in which GPUs
round the factors of products and convolutions to 10 bits, is off unless it is asked for, as in EDM and its descendants,
although PyTorch itself convolves in it. Who wants speed takes bfloat16; who asks for float32 has a reason, such as a loss
that is a small difference, or images that a seed gave before. Metrics never compute in TF32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.runtime.autodiff import forward_mode
from fewstep.runtime.distributed import device

PRODUCTS = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
"""Layers whose precision `lower` chooses."""


def fast_dtype(place: torch.device | None = None) -> torch.dtype:
    """Return bfloat16 where a device computes in it (GPUs since 2020, CPUs with AVX512-BF16), else float32.

    Elsewhere bfloat16 is emulated, a hundred times slower.

    Args:
        place: the device; None for that of this process.
    """
    kind = (place or device()).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and torch.cpu._is_avx512_bf16_supported()  # there is no public name for it
    return torch.bfloat16 if native else torch.float32


DTYPES = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
}
"""In which networks can compute."""


def chosen_dtype(name: str | torch.dtype, place: torch.device | None = None) -> torch.dtype:
    """Return the precision of a name.

    Args:
        name: one of `DTYPES`, of which auto is `fast_dtype`; or a dtype.
        place: the device; None for that of this process.

    Raises:
        ValueError: there is no such precision, or no network computes in it.
    """
    if name == "auto":
        return fast_dtype() if place is None else fast_dtype(place)
    chosen = DTYPES.get(name) if isinstance(name, str) else name
    if chosen is None or chosen not in DTYPES.values():
        raise ValueError(f"dtype {name}: networks compute in auto, {', '.join(DTYPES)}")
    return chosen


def master(module: nn.Module) -> None:
    """Store networks that train in at least float32, in place, whatever file they came from; frozen networks stay as they are.

    A step of Adam is smaller than the distance between two numbers in float16 or bfloat16, in which published networks
    are stored. The precision in which they compute is separate (`Denoiser.dtype`).
    """
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        return
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
            tensor.data = tensor.data.float()
    for child in module.children():
        master(child)


def accurate(x: Tensor) -> Tensor:
    """Return `x` in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def activations(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Images (B, C, H, W) as the input of a network that computes in `dtype`, as `layout` has it."""
    low = dtype.itemsize < 4 and not forward_mode()
    return x.to(dtype, memory_format=layout(x.shape[-2:], x.device) if low else torch.preserve_format)


SMALL = 64
"""Pixels of the largest images that stay channels-first on a CPU."""


def layout(size: Sequence[int], place: torch.device) -> torch.memory_format:
    """How the activations of images of this height and width lie in a network that computes below float32.

    Channels-last, where the convolutions of CPUs and GPUs are two to five times as fast (in float32 the normalisations lose
    what convolutions gain). Small images on a CPU stay channels-first: there the convolutions are equally fast, and the
    normalisations four times as fast.
    """
    small = place.type == "cpu" and size[0] * size[1] <= SMALL
    return torch.contiguous_format if small else torch.channels_last


def lower(network: nn.Module, dtype: torch.dtype) -> None:
    """Let the layers of `PRODUCTS` of a frozen network compute in `dtype`, in place.

    Their weights are cast once, their inputs at each call. Sums of their outputs and values in float32 are in float32, by
    PyTorch's type promotion. With float32 nothing changes.
    """

    def cast(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        once = {x: x.to(dtype) for x in inputs}  # attention to itself is quick if all three are one tensor
        return tuple(once[x] for x in inputs)

    for layer in network.modules() if dtype != torch.float32 else ():
        if isinstance(layer, PRODUCTS):
            layer.to(dtype).register_forward_pre_hook(cast)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether GPUs may round the factors of float32 products and convolutions to 10 bits, for the duration."""
    before = {(place, name): getattr(place, name) for place, name in switches()}
    try:
        for place, name in before:
            setattr(place, name, allowed if name == "allow_tf32" else "tf32" if allowed else "ieee")
        yield
    finally:
        for (place, name), value in before.items():
            setattr(place, name, value)


def switches() -> list[tuple[Any, str]]:
    """PyTorch's settings of TF32: objects, and the names of their attributes. Since 2.9 they are one for each operation."""
    cudnn: Any = torch.backends.cudnn  # the newer settings are not known to the type checker
    if hasattr(cudnn, "conv"):
        return [(place, "fp32_precision") for place in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)]
    return [(torch.backends.cuda.matmul, "allow_tf32"), (cudnn, "allow_tf32")]
