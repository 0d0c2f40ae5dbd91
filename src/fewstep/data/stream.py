"""Batches as a function of training progress: the same images on every machine and after every resume."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.core.codec import Pixels
from fewstep.core.method import Batch
from fewstep.data.images import ImageData


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The permutation of `n` images in an epoch, and which of them are mirrored; it depends on (seed, epoch) alone.

    The images are sorted by random 64-bit keys, whose lowest bit decides on mirroring. Keys are the raw output of PCG64, which
    does not change between versions of NumPy, unlike its shuffles.
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    order = np.argsort(keys, kind="stable")
    return order, (keys[order] & 1).astype(bool)


def locate(size: int, seed: int, position: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Indices into `size` images of the positions position ... position + n - 1 of an endless stream, and which are mirrored.

    Returns:
        Indices int64 (n,) and whether to mirror, bool (n,).
    """
    if position < 0 or n < 1:
        raise ValueError(f"a batch needs position >= 0 and n >= 1; got position={position}, n={n}")
    parts = []
    while n > 0:
        epoch, start = divmod(position, size)
        order, mirror = epoch_order(size, seed, epoch)
        parts.append((order[start : start + n], mirror[start : start + n]))
        position, n = position + len(parts[-1][0]), n - len(parts[-1][0])
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


class ImageStream:
    """An endless shuffled stream of `data`, in which every image has a global position, counted in images from 0.

    Epoch e, the positions from e len(data) to (e + 1) len(data) - 1, visits every image once, in an order that depends
    on (seed, e) alone.

    Args:
        data: the data set.
        seed: seed of the order, not negative.
        flip: mirror each image left to right with probability 1/2.

    Raises:
        ValueError: the seed is negative.

    Example:
        >>> stream = fs.ImageStream(fs.images("digits"), seed=0)
        >>> batch = stream.batch(0, 64)
    """

    def __init__(self, data: ImageData, *, seed: int = 0, flip: bool = False) -> None:
        if seed < 0:
            raise ValueError(f"the seed of a stream must not be negative; got {seed}")
        self.data, self.seed, self.flip = data, seed, flip

    def batch(self, position: int, n: int) -> Batch:
        """The images at positions position ... position + n - 1 in [-1, 1], (n, C, H, W) float32, on the CPU.

        A pure function: adjacent batches concatenate to one batch, so a rank or a micro-batch asks for its share.
        """
        return self.gather(*self.locate(position, n), torch.device("cpu"))

    def sample(self, n: int, device: torch.device) -> Batch:
        """`n` images drawn independently of each other, with replacement, by torch's random stream of the CPU."""
        index = torch.randint(len(self.data), (n,))
        return self.gather(index.numpy(), (torch.rand(n) < 0.5).numpy(), device)

    def gather(self, index: NDArray[np.int64], mirror: NDArray[np.bool_], device: torch.device) -> Batch:
        """The images at the given indices into the data (n,), those of `mirror` (n,) mirrored if the stream flips."""
        images = self.data.gather(index)
        if self.flip:
            images[mirror] = images[mirror, ..., ::-1]
        labels = None if self.data.labels is None else torch.from_numpy(self.data.labels[index]).to(device)
        return Batch(Pixels().encode(torch.from_numpy(images).to(device)), labels)

    def locate(self, position: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Indices into the data (n,), and whether the images there are mirrored (n,)."""
        return locate(len(self.data), self.seed, position, n)
