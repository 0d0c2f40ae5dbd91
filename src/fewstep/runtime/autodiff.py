"""Which derivative is being taken."""

from __future__ import annotations

from torch.autograd import forward_ad


def forward_mode() -> bool:
    """Whether a forward-mode derivative is being taken (`torch.func.jvp`, dual numbers).

    PyTorch's fused attention has no such derivative, its group norm has none for channels-last tensors and none that
    compiles. `torch.compile` traces through this, and guards its graphs on the level of differentiation.
    """
    return forward_ad._current_level >= 0
