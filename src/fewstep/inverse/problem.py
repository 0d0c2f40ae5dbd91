"""What is restored: names, ground truth or measurements, and classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.core.denoiser import Denoiser
from fewstep.core.inputs import class_index
from fewstep.data import images as open_images
from fewstep.inverse.latent import Shape
from fewstep.inverse.nonlinear import PhaseRetrieval
from fewstep.inverse.operator import Operator
from fewstep.inverse.tasks import read_array, read_image

Label = int | str | Sequence[int] | None
"""A class by index or name, `data` for the labels of the data set, `none`, or one for each image."""


@dataclass(frozen=True)
class Problem:
    """The images of a restoration by name: their truth, uint8 (C, H, W), or their measurements, but not both.

    Attributes:
        source: where they come from, for the protocol.
        labels: of the data set, if it has any.
        class_names: likewise.
    """

    source: str
    names: Sequence[str]
    truth: Sequence[NDArray[np.uint8]] | None
    measurements: Sequence[NDArray[np.float32]] | None
    labels: NDArray[np.int64] | None = None
    class_names: Sequence[str] | None = None


def open_problem(
    images: Any, operator: Operator, shape: Shape, *, measured: bool = False, first: int | None = None
) -> Problem:
    """Open images to be measured, or measurements, and check that they fit before anything is computed.

    Args:
        images: a source that `fs.images` opens, an opened data set, or an array uint8 (N, C, H, W). With `measured` a
            folder of NAME.npy or NAME.png, or an array (N, ...).
        operator: of the task.
        shape: of the model's images, (C, H, W).
        measured: whether `images` are measurements.
        first: restore only the first N images.

    Raises:
        ValueError: the images have another shape, or the operator cannot have made the measurements.
    """
    if measured:
        return measured_problem(images, operator, first)
    if isinstance(images, (str, Path)):
        images = open_images(images)
    array = isinstance(images, (np.ndarray, torch.Tensor))
    if array:
        images = np.asarray(images)
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 (N, C, H, W); got {images.dtype} {images.shape}")
    found, source = (images.shape[1:], "an array") if array else (images.shape, images.name)
    if tuple(found) != shape:
        raise ValueError(
            f"the model restores images of shape {shape}, and {source} has {tuple(found)} (C, H, W); fewstep data pack "
            "converts images to another size"
        )
    count = len(images) if first is None else min(first, len(images))
    names = [name.replace("/", "-").rpartition(".")[0] for name in (getattr(images, "names", None) or [])[:count]]
    if len(set(names)) < count:
        names = [f"{i:06d}" for i in range(count)]
    labels, classes = (getattr(images, name, None) for name in ("labels", "class_names"))
    return Problem(source, names, [images[i] for i in range(count)], None, labels, classes)


def measured_problem(images: Any, operator: Operator, first: int | None) -> Problem:
    """Given measurements: an array (N, ...), or a folder of NAME.npy, or else of NAME.png."""
    if not isinstance(images, (str, Path)):
        arrays = [np.asarray(y, dtype=np.float32) for y in images[:first]]
        names = [f"{i:06d}" for i in range(len(arrays))]
        check_measurements(operator, names, arrays)
        return Problem("an array", names, None, arrays)
    folder = Path(images)
    files = (sorted(folder.glob("*.npy")) or sorted(folder.glob("*.png")))[:first]
    if not files:
        raise ValueError(
            f"{images}: expected a folder of measurements NAME.npy, as fewstep restore writes them, or NAME.png"
        )
    arrays = [read_array(file) if file.suffix == ".npy" else read_pixels(file, operator) for file in files]
    check_measurements(operator, files, arrays)
    return Problem(str(images), [file.stem for file in files], None, arrays)


def read_pixels(path: Path, operator: Operator) -> NDArray[np.float32]:
    """The measurement (c, h, w) that an image shows, float32 in [-1, 1]."""
    if isinstance(operator, PhaseRetrieval):
        raise ValueError(f"{path}: an image cannot hold the moduli of a Fourier transform; give NAME.npy")
    pixels = np.asarray(read_image(path), dtype=np.float32) / 127.5 - 1
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def check_measurements(operator: Operator, names: Sequence[str | Path], measurements: Sequence[NDArray[Any]]) -> None:
    """Raise ValueError, with the name, for a measurement that the operator cannot have made."""
    with torch.no_grad():
        expected = tuple(operator.A(torch.zeros(1, *operator.shape)).shape[1:])
    for name, y in zip(names, measurements, strict=True):
        floats = np.issubdtype(y.dtype, np.floating)
        if y.shape != expected or not floats or not np.isfinite(y).all():
            bad = int((~np.isfinite(y)).sum()) if floats else 0
            raise ValueError(
                f"{name}: this task's measurements are finite floats of shape {expected}; got {y.dtype} {y.shape}"
                + (f" with {bad} NaN or infinite values" if bad else "")
            )


def choose_labels(denoiser: Denoiser, problem: Problem, label: Label) -> list[int] | None:
    """The class of each image, or None for no class.

    Raises:
        ValueError: the model has classes and none was chosen, or the choice does not fit the model or the data.
    """
    n, classes = len(problem.names), denoiser.num_classes
    if not classes:
        if label not in (None, "none"):
            raise ValueError("this model has no classes; leave the label (--class) out")
        return None
    if label is None:
        raise ValueError(
            f"this model has {classes} classes: give a label (--class NUMBER, a name, data for the labels of the data set, or "
            "none)"
        )
    if label == "none":
        if not denoiser.supports_unconditional:
            warnings.warn(
                "label none: this model was trained with classes only (label_dropout 0), so its predictions without a "
                "class are unreliable; give a number, or data",
                stacklevel=2,
            )
        return None
    if label == "data":
        if problem.labels is None:
            raise ValueError("label data (--class data) needs a data set with labels; give a number, or none")
        chosen = [int(v) for v in problem.labels[:n]]
    elif isinstance(label, str):
        chosen = [class_index(label, classes, denoiser.class_names or problem.class_names)] * n
    else:
        chosen = [label] * n if isinstance(label, int) else [int(v) for v in label]
    if len(chosen) != n or min(chosen) < 0 or max(chosen) >= classes:
        raise ValueError(
            f"labels of this model are 0 to {classes - 1}, one for each of {n} images; got {len(chosen)} from "
            f"{min(chosen)} to {max(chosen)}"
        )
    return chosen
