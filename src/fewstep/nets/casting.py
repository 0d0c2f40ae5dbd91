"""Parameters in the precision of the activations that they meet; parameters that do not change are cast only once.

Parameters stay in float32 and nothing relies on autocast: a layer casts what it uses. Casting all weights of a frozen
teacher in every evaluation would cost a fifth of its time, so that such casts are cached.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from fewstep.runtime.autodiff import forward_mode


class CachedCast(NamedTuple):
    """What was computed from a parameter, and the address and version that its values had then."""

    origin: tuple[int, int]
    value: Tensor


CACHE: MutableMapping[Tensor, CachedCast] = WeakIdKeyDictionary()
"""For parameters that did not require gradients when they were last used; an entry is dropped with its parameter."""

GATHERED: ContextVar[nn.Module | None] = ContextVar("gathered", default=None)
"""The network being evaluated if its parameters are sharded (FSDP2) and gathered for this evaluation alone.

Within it nothing is cached: a copy would outlive the gathered parameters, and would not follow them.
"""


def cached_cast(parameter: Tensor, x: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `make(parameter)` in the precision of `x`, with gradients if the parameter requires them.

    The result is cached for a parameter that requires no gradients or is used in inference mode, if the precision is below
    float32. The cached copy of a convolution's weight lies as the activations do. It is dropped when the version of the
    parameter counts up, and by any use with gradients, since fused optimizers do not count their writes.

    Args:
        parameter: the weight or bias.
        x: the activations.
        make: what is computed from the parameter; always the same function for one parameter.
    """
    if forward_mode() or torch.compiler.is_compiling() or GATHERED.get() is not None:
        return make(parameter).to(x.dtype)
    # a parameter with a stored gradient may be about to change in a fused step
    if parameter.requires_grad and (parameter.grad is not None or not torch.is_inference_mode_enabled()):
        if CACHE:
            CACHE.pop(parameter, None)
        return make(parameter).to(x.dtype)
    if x.dtype.itemsize >= 4 or not isinstance(parameter, nn.Parameter) or parameter.is_inference():
        return make(parameter).to(x.dtype)
    known, origin = CACHE.get(parameter), (parameter.data_ptr(), parameter._version)
    if known is None or known.origin != origin or known.value.dtype != x.dtype:
        last = parameter.ndim == 4 and not x.is_contiguous()
        layout = torch.channels_last if last else torch.preserve_format
        with torch.inference_mode(False), torch.no_grad():  # the copy may be used in a backward pass later
            known = CachedCast(origin, make(parameter).to(x.dtype, memory_format=layout))
        CACHE[parameter] = known
    return known.value


@overload
def cast(parameter: Tensor, x: Tensor) -> Tensor: ...
@overload
def cast(parameter: None, x: Tensor) -> None: ...
def cast(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """Return `parameter` in the precision of `x`; see `cached_cast`."""
    return None if parameter is None else cached_cast(parameter, x, lambda value: value)
