"""What denoisers are called with: images, noise levels and classes that are none are refused by name.

Shapes and types are always checked. Values are looked at only where that is free: numbers, and tensors on the CPU. On a GPU
it would wait for the device; code that samples or trains there checks what it is given while it is on the CPU.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from fewstep.runtime.autodiff import forward_mode


def readable(x: Tensor) -> bool:
    """Whether the values of a tensor can be looked at for free: on the CPU, and not within a transform of `torch.func`."""
    plain = type(x) in (Tensor, nn.Parameter) and not is_functorch_wrapped_tensor(x)
    return plain and x.is_cpu and not forward_mode()


def told(x: Any) -> str:
    """A value as an error shows it: a tensor by its type and shape."""
    if not isinstance(x, Tensor):
        return repr(x)
    place = "" if x.is_cpu else f" on {x.device}"
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}{place}"


def check_images(x: Any, shape: tuple[int, ...], weight: Tensor | None, name: str = "x") -> None:
    """Refuse what is no batch (B, *shape) of floating-point images on the device of the network's `weight`."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[1:] != shape:
        hint = "; encode images with denoiser.codec.encode" if getattr(x, "dtype", None) == torch.uint8 else ""
        raise ValueError(
            f"{name} must be a floating-point tensor of shape (B, {', '.join(map(str, shape))}), images as this model takes "
            f"them; got {told(x)}{hint}"
        )
    if weight is not None and x.device != weight.device:
        raise ValueError(f"{name} is on {x.device} and the model on {weight.device}; move one of them with .to(device)")


def highest(sigma: float | Tensor, name: str = "sigma") -> float:
    """The largest of these noise levels, 0 where they cannot be looked at; refuses those that are not positive and finite."""
    if not isinstance(sigma, Tensor):
        value = worst = float(sigma)
    elif sigma.numel() and readable(sigma):
        values = sigma.detach().double()
        value = float(values.max())  # NaN if any is
        worst = float(values.min()) if math.isfinite(value) else value
    else:
        return 0.0
    if not 0 < worst < math.inf:
        zero = "; at 0 the image itself is the answer" if worst == 0 else ""
        raise ValueError(f"{name} must be positive and finite; got {worst:g}{zero}")
    return value


def check_label(label: Any, n: int, num_classes: int, device: torch.device | None = None) -> None:
    """Refuse what are no class indices (n,) from 0 to `num_classes` - 1."""
    takes = (
        f"label must be an int64 tensor of shape ({n},) with classes from 0 to {num_classes - 1}, or None for no class"
    )
    if not isinstance(label, Tensor) or label.dtype != torch.int64 or label.shape != (n,):
        one_hot = isinstance(label, Tensor) and label.shape == (n, num_classes)
        raise ValueError(f"{takes}; got {told(label)}{'; of one-hot labels take label.argmax(1)' if one_hot else ''}")
    if device is not None and label.device != device:
        raise ValueError(f"label is on {label.device} and x on {device}; move it with .to(x.device)")
    if n and readable(label):
        low, high = int(label.min()), int(label.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"{takes}; got {low if low < 0 else high}")


def check_guidance(scale: Any, interval: Any) -> None:
    """Refuse a scale or an interval of noise levels by which nothing can be guided."""
    if not isinstance(scale, Real) or not 0 <= float(scale) < math.inf:
        raise ValueError(f"guidance needs a finite scale of at least 0 (0 is the guide alone, 1 none); got {scale!r}")
    try:
        low, high = map(float, interval)
    except (TypeError, ValueError) as error:
        raise ValueError(f"guidance needs an interval (low, high) of noise levels; got {interval!r}") from error
    if not 0 <= low < high:
        raise ValueError(f"guidance needs an interval of noise levels with 0 <= low < high; got {interval!r}")
