"""What `fewstep data stats` measures: counts and moments of a data set, and the noise distribution that they suggest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fewstep.data.images import ImageData
from fewstep.data.ranks import from_first, gather, ranks
from fewstep.runtime.progress import track

PIECE = 2**23
"""Pixels that are counted at a time."""


def stats(data: ImageData) -> dict[str, Any]:
    """Counts and moments of a data set, and the noise distribution and recipe that they suggest. Pixels are in [-1, 1].

    sigma_data is the standard deviation over all pixels. The proposed ln(sigma) ~ N(mean, std^2) is EDM's (-1.2, 1.2),
    made for sigma_data = 0.5 and 32 to 64 pixels (Karras et al., 2022, Table 1), shifted by ln(sigma_data / 0.5), since
    sigma matters relative to the data, and outside of that range by the ln of the ratio of resolutions, since averaging
    over a larger image removes more noise (Hoogeboom et al., 2023, Eq. 4).

    Args:
        data: the data set; ranks share the work.

    Returns:
        n, shape (C, H, W), classes (images of each, None without classes), mean, sigma_data, and proposal: sigma_data, noise
        (mean and std of ln sigma), and recipe (None where no recipe for pixels fits).

    Raises:
        ValueError: all pixels are equal.
    """
    counts = np.zeros(256, dtype=np.int64)
    me, world = ranks()
    size = max(1, min(256, PIECE // math.prod(data.shape)))
    starts = range(size * me, len(data), size * world)
    for start in track(starts, total=len(starts), description=f"reading {data.name}", unit="batches"):
        batch = data.gather(np.arange(start, min(start + size, len(data)))).reshape(-1)
        for i in range(0, batch.size, PIECE):
            counts += np.bincount(batch[i : i + PIECE], minlength=256)  # which makes int64 of them
    counts = from_first(np.sum(gather(counts), axis=0))
    values = np.arange(256) / 127.5 - 1
    mean = float(counts @ values / counts.sum())
    sigma_data = math.sqrt(float(counts @ (values - mean) ** 2 / counts.sum()))
    if sigma_data == 0:
        raise ValueError(f"{data.name}: all pixels are {mean}; there is nothing to learn")
    classes = None
    if data.labels is not None:
        names = data.class_names or [str(i) for i in range(data.num_classes)]
        classes = dict(zip(names, np.bincount(data.labels, minlength=data.num_classes).tolist(), strict=True))
    width = data.shape[-1]
    shift = math.log(sigma_data / 0.5) + math.log(width / min(max(width, 32), 64))
    return {
        "n": len(data),
        "shape": list(data.shape),
        "classes": classes,
        "mean": mean,
        "sigma_data": sigma_data,
        "proposal": {
            "sigma_data": round(sigma_data, 3),
            "noise": {"mean": round(-1.2 + shift, 2), "std": 1.2},
            "recipe": "small:teacher" if width <= 128 else None,
        },
    }
