"""Which kind of derivative is being computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch.autograd import forward_ad


def forward_mode() -> bool:
    """Return whether a forward-mode derivative is being taken (`torch.func.jvp`, dual numbers).

    PyTorch's fused attention has no such derivative. Its group norm has none for channels-last tensors, and none that compiles.
    `torch.compile` traces through this function and guards its graphs on the level of differentiation.
    """
    return forward_ad._current_level >= 0


@contextmanager
def forward_derivatives() -> Iterator[None]:
    """Take forward-mode derivatives for the duration, within inference mode too.

    PyTorch's inference mode may switch them off, and all of them are then zero without a word, as in 2.8 to 2.10. There it is
    left for the duration; tensors that were made within it must be cloned before they are differentiated.
    """
    if not (torch.is_inference_mode_enabled() and zero_in_inference_mode()):
        yield
        return
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


@cache
def zero_in_inference_mode() -> bool:
    """Whether this PyTorch's forward-mode derivatives are zero in inference mode."""
    with torch.inference_mode():
        x = torch.ones((), device="cpu")
        return not torch.func.jvp(torch.exp, (x,), (x,))[1]
