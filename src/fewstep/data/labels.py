"""Classes without images, for methods that learn from their teacher alone."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from fewstep.core.method import Batch
from fewstep.data.stream import locate


class LabelData:
    """A data set without images, with one item for each class.

    Args:
        shape: (C, H, W) of an image.
        num_classes: 0 for none.
    """

    name = "no images"

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        self.shape, self.num_classes = shape, num_classes
        self.labels = np.arange(num_classes) if num_classes else None

    def __len__(self) -> int:
        return max(self.num_classes, 1)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.shape} {self.num_classes}".encode()).hexdigest()


class LabelStream:
    """As `ImageStream`, but of classes alone, all equally often; the images are zeros."""

    flip = False

    def __init__(self, data: LabelData, *, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"the seed of a stream must not be negative; got {seed}")
        self.data, self.seed = data, seed

    def batch(self, position: int, n: int) -> Batch:
        """The classes at positions position ... position + n - 1, on the CPU; a pure function."""
        labels = None
        if self.data.labels is not None:
            index, _ = locate(len(self.data), self.seed, position, n)
            labels = torch.from_numpy(self.data.labels[index])
        return Batch(torch.zeros(n, *self.data.shape), labels)
