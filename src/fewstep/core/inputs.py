"""Checks of the arguments of denoisers: images, noise levels and classes.

Shapes and types are always checked. Values are looked at only where that is free: numbers, and tensors on the CPU. On a GPU
that would wait for the device; code that samples or trains there checks its arguments while they are on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from fewstep.runtime.autodiff import forward_mode
from fewstep.runtime.spelling import suggestion


def readable(x: Tensor) -> bool:
    """Whether the values of a tensor can be looked at for free: on the CPU, and not within a transform of `torch.func`."""
    plain = type(x) in (Tensor, nn.Parameter) and not is_functorch_wrapped_tensor(x)
    return plain and x.is_cpu and not forward_mode()


def describe(x: Any) -> str:
    """A value as errors show it: a tensor by its dtype, shape and device."""
    if not isinstance(x, Tensor):
        return repr(x)
    place = "" if x.is_cpu else f" on {x.device}"
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}{place}"


def check_images(x: Any, shape: tuple[int, ...], weight: Tensor | None, name: str = "x") -> None:
    """Raise ValueError unless `x` is a floating-point tensor (B, *shape) on the device of the network's `weight`."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[1:] != shape:
        hint = "; encode images with denoiser.codec.encode" if getattr(x, "dtype", None) == torch.uint8 else ""
        raise ValueError(
            f"{name} must be a floating-point tensor of shape (B, {', '.join(map(str, shape))}), images as this model takes "
            f"them; got {describe(x)}{hint}"
        )
    if weight is not None and x.device != weight.device:
        raise ValueError(f"{name} is on {x.device} and the model on {weight.device}; move one of them with .to(device)")


def max_sigma(sigma: float | Tensor, name: str = "sigma") -> float:
    """The largest noise level, or 0 if the values are not readable; raises ValueError unless all are positive and finite."""
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
    """Raise ValueError unless these are class indices (n,) from 0 to `num_classes` - 1."""
    takes = (
        f"label must be an int64 tensor of shape ({n},) with classes from 0 to {num_classes - 1}, or None for no class"
    )
    if not isinstance(label, Tensor) or label.dtype != torch.int64 or label.shape != (n,):
        one_hot = isinstance(label, Tensor) and label.shape == (n, num_classes)
        raise ValueError(
            f"{takes}; got {describe(label)}{'; for one-hot labels pass label.argmax(1)' if one_hot else ''}"
        )
    if device is not None and label.device != device:
        raise ValueError(f"label is on {label.device} and x on {device}; move it with .to(x.device)")
    if n and readable(label):
        low, high = int(label.min()), int(label.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"{takes}; got {low if low < 0 else high}")


def check_classes(label: Any, n: int, num_classes: int) -> None:
    """Raise ValueError unless `label` is None, one class of a model, or one class for each of `n` images."""
    if label is None:
        return
    if not num_classes:
        raise ValueError(f"this model has no classes; leave the label out; got {describe(label)}")
    try:
        values = torch.as_tensor(label).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"label must be a class from 0 to {num_classes - 1}; got {label!r}") from error
    if values.ndim > 1 or (values.ndim == 1 and len(values) != n):
        one_hot = "; for one-hot labels pass label.argmax(1)" if values.shape == (n, num_classes) else ""
        raise ValueError(f"expected one label or one for each of {n} images; got shape {tuple(values.shape)}{one_hot}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"label must be integers from 0 to {num_classes - 1}; got {describe(label)}")
    wrong = [k for k in values.flatten().unique().tolist() if not 0 <= k < num_classes]
    if wrong:
        raise ValueError(f"the classes of this model are 0 to {num_classes - 1}; got {', '.join(map(str, wrong[:5]))}")


SHOWN = 10
"""Names of classes in an error."""


def class_index(label: str, num_classes: int, names: Sequence[str] | None) -> int:
    """The index of a class by its name, or by its index in words; a name that is a number is read as an index.

    Raises:
        ValueError: there is no class of this name, or the names of the classes are not known.
    """
    if label.removeprefix("-").isdecimal():
        return int(label)
    if not num_classes:
        raise ValueError(f"this model has no classes; leave the label (--class) out; got {label!r}")
    if names is None:
        raise ValueError(
            f"this model does not know the names of its classes; give a number from 0 to {num_classes - 1}; got {label!r}"
        )
    if label in names:
        return [*names].index(label)
    known = f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}, or 0 to {num_classes - 1}"
    raise ValueError(f"there is no class {label!r}; {suggestion(label, names, f'the classes are {known}')}")
