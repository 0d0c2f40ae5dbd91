"""Restoration tasks by name, and operators from what a user gives: a mask, a kernel, a factor, a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fewstep.data.color_modes import convert
from fewstep.data.files import load_image, parse_array
from fewstep.inverse.adapters import operator_of
from fewstep.inverse.blurs import CircularBlur, gaussian_kernel, motion_kernel
from fewstep.inverse.latent import Shape
from fewstep.inverse.masks import Inpainting, box_mask, random_mask
from fewstep.inverse.nonlinear import JPEG, PhaseRetrieval, Quantization
from fewstep.inverse.operator import Operator
from fewstep.inverse.resampling import colorization, super_resolution
from fewstep.runtime.files import regular
from fewstep.runtime.user_code import load_file


def blur_std(shape: Shape) -> float:
    """NCVSD's deviation of 3 pixels of 256, scaled to the image; at least 0.75 pixels."""
    return max(3 * min(shape[1:]) / 256, 0.75)


def motion_size(shape: Shape) -> int:
    """NCVSD's kernel of 61 pixels of 256, scaled to the image; odd, at least 5 where it fits."""
    return max(round(61 * min(shape[1:]) / 256) // 2 * 2 + 1, min(5, min(shape[1:]) // 2 * 2 - 1))


def gaussian_blur(shape: Shape, shift: tuple[int, int] = (0, 0)) -> Operator:
    return CircularBlur(gaussian_kernel(min(blur_std(shape), min(shape[1:]) / 8)), shape, shift)


def motion_blur(shape: Shape, shift: tuple[int, int] = (0, 0)) -> Operator:
    return CircularBlur(motion_kernel(motion_size(shape)), shape, shift)


BLURS = {"gaussian_deblur": gaussian_blur, "motion_deblur": motion_blur}
BLURS |= {f"{task}_circ": blur for task, blur in BLURS.items()}
"""Circular blurs; NCVSD's code calls them `gaussian_deblur_circ` and `motion_deblur_circ`."""
TASKS: dict[str, Callable[[Shape], Operator]] = {
    "box_inpainting": lambda s: Inpainting(box_mask(*s[1:]), s),
    "random_inpainting": lambda s: Inpainting(random_mask(*s[1:]), s),
    **BLURS,
    "super_resolution": lambda s: super_resolution(s, 4 if min(s[1:]) >= 32 else 2),
    "phase_retrieval": PhaseRetrieval,
    "colorization": colorization,
    "quantization": Quantization,
    "jpeg": JPEG,
}
"""The operator of each task, for images of one shape; sizes in pixels scale with the image."""
APPLIES_TO = {"mask": "inpainting", "kernel": "deblur", "factor": "super_resolution", "ncvsd_shift": "deblur"}
"""The tasks, by a part of their names, that an argument changes."""


def task_operator(
    task: str | Operator | Callable[..., Any],
    shape: Shape,
    *,
    mask: str | Path | NDArray[Any] | None = None,
    kernel: str | Path | NDArray[Any] | None = None,
    factor: float | None = None,
    ncvsd_shift: bool = False,
) -> Operator:
    """Return the operator of a task for images of one shape.

    Args:
        task: one of `TASKS`; `mine.py:operator`, a function in a file; an `Operator`, a deepinv physics object, or a
            function of images (B, C, H, W).
        shape: shape of the images (C, H, W).
        mask: for inpainting, an array (H, W) or (C, H, W) that is 0 where pixels are missing, or a file, see `read_mask`.
        kernel: for deblurring, an array (h, w) or an npy file.
        factor: factor of super-resolution.
        ncvsd_shift: the blurs also move the image by one pixel, up and left, as NCVSD's code does at even sizes.

    Returns:
        The operator.

    Raises:
        ValueError: there is no such task, an argument has no effect on it, or the operator does not fit the images.

    Example:
        >>> operator = fs.inverse.task_operator("super_resolution", (1, 8, 8), factor=2)
    """
    given = {"mask": mask, "kernel": kernel, "factor": factor, "ncvsd_shift": ncvsd_shift or None}
    for name, value in given.items():
        if value is not None and not (isinstance(task, str) and task in TASKS and APPLIES_TO[name] in task):
            raise ValueError(f"{name} has no effect on the task {task}; leave it out")
    shift = (-1, -1) if ncvsd_shift else (0, 0)
    if mask is not None:
        return Inpainting(torch.from_numpy(read_mask(mask) if isinstance(mask, (str, Path)) else np.array(mask)), shape)
    if kernel is not None:
        array = read_array(kernel) if isinstance(kernel, (str, Path)) else np.array(kernel)
        return CircularBlur(torch.from_numpy(array).double(), shape, shift)
    if factor is not None:
        return super_resolution(shape, factor)
    if not isinstance(task, str):
        return operator_of(task, shape)
    if ncvsd_shift:
        return BLURS[task](shape, shift)
    if ".py:" in task:
        file, _, name = task.rpartition(":")
        return operator_of(load_file(Path(file), name), shape)
    check_task(task)
    return TASKS[task](shape)


def check_task(task: str) -> None:
    """Raise ValueError unless this is the name of a task or of a function in a file."""
    if task not in TASKS and ".py:" not in task:
        raise ValueError(f"there is no task {task!r}; choose one of {', '.join(TASKS)}, or mine.py:operator")


def read_mask(path: str | Path) -> NDArray[Any]:
    """A mask (H, W), float32, 0 where pixels are missing.

    An npy file is used as it is, (C, H, W) too. The threshold of an image is half of its range, which is 0 to 1 if it
    has no larger value, else 0 to 255.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return read_array(path).astype(np.float32)
    pixels = np.asarray(read_image(path).convert("L"))
    if not pixels.any():
        raise ValueError(f"{path}: every pixel of this mask is black, which means missing; invert it")
    white = 1 if pixels.max() == 1 else 255
    return (pixels > white / 2).astype(np.float32)


def read_image(path: Path) -> Image.Image:
    """An image as grey or RGB of 8 bits; raises ValueError if the conversion would lose anything, such as transparency."""
    loaded = load_image(regular(path).read_bytes(), str(path))
    try:
        return convert(loaded, "plain")[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_array(path: str | Path) -> NDArray[Any]:
    """The array of an npy file, of real numbers, in memory of its own."""
    path = Path(path)
    array = parse_array(regular(path).read_bytes(), str(path))
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected an npy file of real numbers; got {array.dtype}")
    return array.copy()
