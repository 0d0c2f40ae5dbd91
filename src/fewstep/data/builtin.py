"""The data set of digits that ships with the package."""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np

from fewstep.data.images import ImageData


def digits() -> ImageData:
    """The 1,797 test images of "Optical Recognition of Handwritten Digits": uint8 (1, 8, 8), 10 classes.

    E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, CC BY 4.0. Values 0 to 16 are scaled to
    round(255 v / 16).
    """
    with np.load(io.BytesIO(files("fewstep.data").joinpath("digits.npz").read_bytes())) as data:
        values, labels = data["images"], data["labels"]
    scaled = np.round(values * (255 / 16)).astype(np.uint8)[:, None]
    return ImageData(scaled, labels, name="digits", class_names=[str(digit) for digit in range(10)])
