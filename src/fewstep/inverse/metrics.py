"""How close restorations are to the truth, and whether their spread is calibrated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.codec import Pixels
from fewstep.inverse.folder import RestoredImage, byte_image
from fewstep.inverse.latent import Shape
from fewstep.inverse.problem import Problem
from fewstep.metrics.image import CONVENTIONS, measures
from fewstep.runtime.distributed import device, sum_over_ranks

WINDOW, SMALL_WINDOW = 11, 7
"""Of SSIM, and of its variant for smaller images."""
SMALLEST_LPIPS = 32


def coverage(samples: Tensor, truth: Tensor) -> float:
    """The share of pixels whose true value lies between the quartiles of `samples` (S, C, H, W).

    If truth and samples are draws of one continuous law it is (S - 1) / (S + 1) / 2 on average.
    """
    low, high = samples.quantile(torch.tensor([0.25, 0.75]).to(samples), dim=0)
    return ((low <= truth) & (truth <= high)).float().mean().item()


def pair_measures(shape: Shape, *, truth: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The measures that images of this shape allow, and why the others are left out."""
    if not truth:
        return {}, {"metrics": "measurements were given without the truth"}
    size = min(shape[1:])
    names, notes = ["psnr"], {}
    if size >= WINDOW:
        names.append("ssim")
    else:
        notes["ssim"] = f"left out: its window of {WINDOW}x{WINDOW} is larger than images of {shape[1]}x{shape[2]}"
        names += ["ssim_7"] if size >= SMALL_WINDOW else []
    found = measures(names)
    if size < SMALLEST_LPIPS:
        notes["lpips_vgg"] = f"left out: its network needs images of at least {SMALLEST_LPIPS}x{SMALLEST_LPIPS}"
        return found, notes
    try:
        return found | measures(["lpips"]), notes
    except ValueError as error:  # its weights are missing
        return found, notes | {"lpips_vgg": f"left out: {error}"}


class RestorationMetrics:
    """PSNR, SSIM, LPIPS and coverage of a problem's restored images, image by image, summed over ranks."""

    def __init__(self, problem: Problem, shape: Shape, samples: int) -> None:
        n = len(problem.names)
        self.problem, self.samples = problem, samples
        self.measures, self.notes = pair_measures(shape, truth=problem.truth is not None)
        self.table = torch.zeros(n, samples + 1, len(self.measures), dtype=torch.float64, device=device())
        self.covered = torch.zeros(n, dtype=torch.float64, device=device())
        self.diverged = torch.zeros(n, samples, 2, dtype=torch.float64, device=device())

    def add(self, i: int, image: RestoredImage) -> None:
        """Measure the samples of image `i`, and their mean, as the bytes that are written."""
        self.diverged[i] = image.diverged
        if image.truth is None:
            return
        truth = torch.from_numpy(image.truth)
        made = torch.stack([torch.from_numpy(byte_image(x)).permute(2, 0, 1) for x in (*image.samples, image.mean)])
        for k, compute in enumerate(self.measures.values()):
            self.table[i, :, k] = compute(made, truth.expand(made.shape)).double()
        if self.samples > 1:
            self.covered[i] = coverage(image.samples, Pixels().encode(truth))

    def merge_ranks(self) -> None:
        sum_over_ranks([self.table, self.covered, self.diverged])

    def summary(self, protocol: dict[str, Any]) -> dict[str, Any]:
        """What metrics.json holds: values of each image and sample, their means over images, and the protocol."""
        names, n = self.problem.names, len(self.problem.names)
        metrics = {name: self.mean_values(k, name) for k, name in enumerate(self.measures)}
        if metrics and self.samples > 1:
            metrics["coverage_of_quartiles"] = {
                "value": self.covered.mean().item(),
                "calibrated": 0.5 * (self.samples - 1) / (self.samples + 1),
            }
        images = {
            names[i]: {
                name: {"samples": self.table[i, :-1, k].tolist(), "mean_of_samples": self.table[i, -1, k].item()}
                for k, name in enumerate(self.measures)
            }
            for i in range(n)
        }
        result: dict[str, Any] = {"protocol": protocol, "notes": dict(self.notes), "n": n, "samples": self.samples}
        result |= {"metrics": metrics, "images": images}
        if self.diverged.any():
            result["langevin_diverged"] = [
                {"image": names[i], "sample": j, "fixed_by_smaller_steps": int(a), "left_as_it_was": int(b)}
                for i, of in enumerate(self.diverged.tolist())
                for j, (a, b) in enumerate(of)
                if a or b
            ]
            result["notes"]["langevin"] = (
                f"steps diverged in {len(result['langevin_diverged'])} of {n * self.samples} samples and were drawn again "
                "with half the size; metrics.json lists them"
            )
        return result

    def mean_values(self, k: int, name: str) -> dict[str, Any]:
        """Means of one measure over the images; best-of-N uses the ground truth, as its name says."""
        samples = self.table[:, :-1, k]
        best = samples.amin(1) if name.startswith("lpips") else samples.amax(1)
        values = {
            "sample": samples.mean().item(),
            "sample_std_over_images": samples.mean(1).std(correction=0).item(),
            "mean_of_samples": self.table[:, -1, k].mean().item(),
            "convention": CONVENTIONS[name],
        }
        if self.samples > 1:
            values[f"best_of_{self.samples}_runs_chosen_by_the_truth"] = best.mean().item()
        return values
