"""Which kind of derivative is being computed."""

from __future__ import annotations

from torch.autograd import forward_ad


def forward_mode() -> bool:
    """Return whether a forward-mode derivative is being taken (`torch.func.jvp`, dual numbers).

    PyTorch's fused attention has no such derivative. Its group norm has none for channels-last tensors, and none that compiles.
    `torch.compile` traces through this function and guards its graphs on the level of differentiation.
    """
    return forward_ad._current_level >= 0
