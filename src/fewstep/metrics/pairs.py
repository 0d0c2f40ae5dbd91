"""Sets of images compared pair by pair: the mean of PSNR, SSIM or LPIPS, with its protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.metrics.image import CONVENTIONS, Pair, measures
from fewstep.metrics.protocol import MetricResult
from fewstep.metrics.sources import batches, open_pairs
from fewstep.runtime.distributed import device, rank, sum_over_ranks, world_size
from fewstep.runtime.progress import track


def evaluate_sets(a: Path, b: Path, metrics: Sequence[str], *, batch_size: int = 16) -> list[MetricResult]:
    """Compare two sets of images that belong together one by one.

    Args:
        a: images from any source that `fs.images` opens.
        b: their targets, under the same names.
        metrics: names as `fewstep.metrics.image.measures` reads them: psnr, ssim, ssim_7, lpips_vgg, lpips_alex.
        batch_size: pairs at a time.

    Returns:
        The mean of each metric, with its protocol.

    Raises:
        ValueError: the sets do not match, or a metric is unknown or lacks its weights.

    Example:
        >>> results = fs.metrics.evaluate_sets(Path("images.npy"), Path("targets.npy"), ["psnr", "ssim_7"])
    """
    ours, theirs = open_pairs(a, b)
    named, n = measures(metrics), len(ours)
    reference = {"name": theirs.name, "n": n, "sha256": theirs.fingerprint}
    protocol = {"images": ours.name, "sha256": ours.fingerprint, "reference": reference, "fewstep": version("fewstep")}
    mine = range(rank(), n, world_size())
    both = zip(*(batches(map(images.__getitem__, mine), batch_size) for images in (ours, theirs)), strict=True)
    shown = track(both, total=-(-len(mine) // batch_size), description="eval pairs", unit="batches")
    return evaluate_pairs(((x, y) for x, y in shown), named, protocol=protocol)


def evaluate_pairs(
    pairs: Iterable[tuple[Tensor, Tensor]], named: dict[str, Pair], *, protocol: dict[str, Any] | None = None
) -> list[MetricResult]:
    """Return the mean of each measure over pairs of images, those of all ranks.

    Args:
        pairs: batches of (image, target), both (B, C, H, W).
        named: the measures by name, such as `psnr`.
        protocol: how the images were made.

    Returns:
        A result for each measure.

    Raises:
        ValueError: there are no pairs, or a value is not finite.

    Example:
        >>> results = fs.metrics.evaluate_pairs([(x0, torch.zeros_like(x0))], {"psnr": fs.metrics.psnr})
    """
    n, sums = 0, dict.fromkeys(named, 0.0)
    for image, target in pairs:
        for name, measure in named.items():
            values = measure(image, target)
            if bad := [n + i for i in range(len(values)) if not math.isfinite(values[i])]:
                raise ValueError(f"{name} of pair {bad[0] * world_size() + rank()} is not finite; check the images")
            sums[name] += float(values.double().sum())
        n += len(image)
    total = torch.tensor([n, *sums.values()], dtype=torch.float64, device=device())
    sum_over_ranks([total])
    n, sums = int(total[0]), dict(zip(named, total[1:].tolist(), strict=True))
    if n == 0:
        raise ValueError("there are no pairs of images to measure")

    def settings(name: str) -> dict[str, Any]:
        hashes = getattr(named[name], "sha256", None)
        return {"convention": CONVENTIONS[name], **({"sha256": hashes} if hashes else {})}

    return [MetricResult(name, sums[name] / n, n, {**(protocol or {}), "settings": settings(name)}) for name in named]
