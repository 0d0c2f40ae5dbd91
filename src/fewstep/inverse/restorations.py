"""A folder of restorations: images or measurements in, samples, means, deviations, sheets and figures out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep import inverse
from fewstep.core.codec import Pixels
from fewstep.core.denoiser import Denoiser
from fewstep.data.codec import StabilityVAE, autoencoder
from fewstep.data.grid import grid, save_image, save_png
from fewstep.inverse import Operator
from fewstep.inverse.operator import LangevinDiverged
from fewstep.inverse.restore import Shape, Solver, measure, restore, seed_of
from fewstep.metrics.image import CONVENTIONS, measures
from fewstep.metrics.protocol import ROUNDING
from fewstep.runtime.distributed import from_first, rank, sum_over_ranks, world_size
from fewstep.runtime.files import new_file, new_folder, write_json

FOLDERS, FILES = ("samples", "mean", "deviation", "measurements", "sheets"), ("metrics.json", "sheet.png")
"""What a restoration writes."""
WINDOW, SMALL_WINDOW = 11, 7
"""Of SSIM, and of what smaller images have instead."""


def decoder(denoiser: Denoiser) -> Callable[[Tensor], Tensor]:
    """From the denoiser's units to pixels in [-1, 1], differentiable."""
    codec = denoiser.codec
    if isinstance(codec, Pixels):
        return lambda x: x
    if not isinstance(codec, StabilityVAE):
        raise ValueError(f"restoration knows pixels and the latents of the Stability VAE; got {type(codec).__name__}")

    def decode(x: Tensor) -> Tensor:
        scale, bias = codec.affine(x)
        return autoencoder(codec.vae, x.device).decode(((x - bias) / scale).float()).sample * 2 - 1

    return decode


def pixel_shape(denoiser: Denoiser) -> Shape:
    """The shape of the images behind the denoiser."""
    channels, height, width = denoiser.shape
    return (3, 8 * height, 8 * width) if isinstance(denoiser.codec, StabilityVAE) else (channels, height, width)


def coverage(samples: Tensor, truth: Tensor) -> float:
    """The share of pixels whose true value lies within the range of `samples` (S, C, H, W) that holds half of them.

    The range is that between their quartiles. If truth and samples are draws of one continuous law it is
    (S - 1) / (S + 1) / 2 on average.
    """
    low, high = samples.quantile(torch.tensor([0.25, 0.75]).to(samples), dim=0)
    return ((low <= truth) & (truth <= high)).float().mean().item()


def byte_image(x: Tensor) -> NDArray[np.uint8]:
    """Pixels in [-1, 1] (C, H, W) as uint8 (H, W, C)."""
    return Pixels().decode(x.detach().float()).permute(1, 2, 0).cpu().numpy()


def shown(x: Tensor, shape: Shape) -> NDArray[np.uint8]:
    """An image (c, h, w) of any size as a tile of an image's: repeated pixels, grey as needed, uint8 (H, W, C).

    Arrays with fewer or more axes are seen as rows of their last one.
    """
    channels, height, width = shape
    x = x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1])
    x = x.mean(0, keepdim=True) if len(x) not in (1, channels) else x
    x = torch.nn.functional.interpolate(x[None].float(), (height, width), mode="nearest")[0]
    return byte_image(x.expand(channels, -1, -1))


@dataclass(frozen=True)
class Job:
    """What `restore_all` does. truth: images (C, H, W) uint8 by name, None where measurements are given. labels: a class
    of each image, or None.
    """

    task: str
    operator: Operator
    sigma_y: float
    names: Sequence[str]
    truth: Sequence[NDArray[np.uint8]] | None
    measurements: Sequence[NDArray[np.float32]] | None
    labels: Sequence[int] | None
    samples: int
    seed: int
    batch_size: int


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder for all ranks to fill, which becomes `out`, in place of an earlier restoration, once the block is through.

    ValueError if anything else is there. All ranks leave the block after the last of them has written.
    """
    if rank() != 0:
        yield from_first(out)
        return
    there = sorted(p.name for p in out.glob("*"))
    if there and ("metrics.json" not in there or set(there) - {*FOLDERS, *FILES}):
        raise ValueError(
            f"{out} holds {', '.join(there[:5])}, which is no whole restoration; choose another folder, or empty it"
        )
    with new_folder(out, (*FOLDERS, *FILES)) as partial:
        yield from_first(partial)


def restore_all(
    denoiser: Denoiser,
    job: Job,
    solver: Solver,
    out: Path,
    *,
    protocol: dict[str, Any],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Restore this rank's share of the images, write everything below `out`, return what metrics.json holds.

    Every rank writes the files of its images; figures are summed over ranks, and rank 0 writes metrics.json and sheet.png.
    """
    device = next(denoiser.parameters()).device
    decode = decoder(denoiser)
    shape = pixel_shape(denoiser)
    operator = job.operator.to(device)
    inner = operator if isinstance(denoiser.codec, Pixels) else inverse.Latent(operator, decode, denoiser.shape)
    named, notes = pair_measures(shape, truth=job.truth is not None)
    mine = range(rank(), len(job.names), world_size())
    table = torch.zeros(len(job.names), job.samples + 1, len(named), dtype=torch.float64, device=device)
    covered = torch.zeros(len(job.names), dtype=torch.float64, device=device)
    diverged = torch.zeros(len(job.names), job.samples, 2, dtype=torch.float64, device=device)
    ys, done = {i: measured(operator, job, i, device) for i in mine}, 0
    results: dict[int, list[Tensor]] = {i: [] for i in mine}
    todo = [(i, j) for i in mine for j in range(job.samples)]
    for start in range(0, len(todo), job.batch_size):
        part = todo[start : start + job.batch_size]
        y = torch.stack([ys[i] for i, _ in part])
        label = None if job.labels is None else torch.tensor([job.labels[i] for i, _ in part], device=device)
        seeds = [seed_of(job.seed, i, j) for i, j in part]
        with counted_divergences(part, diverged):
            x0 = restore(denoiser, inner, y, job.sigma_y, seeds, label=label, solver=solver)
        with torch.no_grad():
            images = decode(x0)
        for (i, j), image in zip(part, images, strict=True):
            results[i].append(image.cpu())
            save_image(byte_image(image), out / "samples" / str(j) / job.names[i])
            if len(results[i]) == job.samples:
                finish(job, i, torch.stack(results.pop(i)), ys[i], named, table, covered, out, shape)
        progress(done := done + len(part))
    sum_over_ranks([table, covered, diverged])
    result = {"protocol": {**protocol, **solver.describe(denoiser), "rounding": ROUNDING}, "notes": notes}
    result |= summary(job, table, covered, list(named))
    if diverged.any():
        result["langevin_diverged"] = [
            {"image": job.names[i], "sample": j, "mended_by_smaller_steps": int(a), "left_as_it_was": int(b)}
            for i, of in enumerate(diverged.tolist())
            for j, (a, b) in enumerate(of)
            if a or b
        ]
        notes["langevin"] = (
            f"steps diverged in {len(result['langevin_diverged'])} of {len(job.names) * job.samples} samples and were drawn "
            "again with half the size; metrics.json says which"
        )
    return result


@contextmanager
def counted_divergences(part: Sequence[tuple[int, int]], counts: Tensor) -> Iterator[None]:
    """Count in `counts` (images, samples, 2) how often Langevin steps of the batch `part` diverged and were mended, or not;
    other warnings go on.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", LangevinDiverged)
        yield
    for w in told:
        if isinstance(w.message, LangevinDiverged):
            for k in w.message.images:
                counts[*part[k], 0 if w.message.mended else 1] += 1
        else:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def measured(operator: Operator, job: Job, i: int, device: torch.device) -> Tensor:
    """The measurement of image `i`: given, or simulated from the truth."""
    if job.measurements is not None:
        return torch.from_numpy(np.asarray(job.measurements[i], dtype=np.float32)).to(device)
    assert job.truth is not None
    x = Pixels().encode(torch.from_numpy(np.asarray(job.truth[i])))[None].to(device)
    return measure(operator, x, job.sigma_y, [seed_of(job.seed, i)])[0]


def pair_measures(shape: Shape, *, truth: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The measures that can be had, and why the others cannot."""
    if not truth:
        return {}, {"metrics": "measurements were given without the truth"}
    named, notes = measures(["psnr"]), {}
    if min(shape[1:]) >= WINDOW:
        named |= measures(["ssim"])
    else:
        notes["ssim"] = f"none: its window of {WINDOW}x{WINDOW} is larger than images of {shape[1]}x{shape[2]}"
        named |= measures(["ssim_7"]) if min(shape[1:]) >= SMALL_WINDOW else {}
    try:
        named |= measures(["lpips"]) if min(shape[1:]) >= 32 else {}
        if min(shape[1:]) < 32:
            notes["lpips_vgg"] = "none: images below 32x32 are too small for its network"
    except ValueError as error:
        notes["lpips_vgg"] = f"none: {error}"
    return named, notes


def finish(
    job: Job,
    i: int,
    samples: Tensor,
    y: Tensor,
    named: dict[str, Any],
    table: Tensor,
    covered: Tensor,
    out: Path,
    shape: Shape,
) -> None:
    """Write what belongs to one image and measure it: its samples, then their mean."""
    name = job.names[i]
    mean, deviation = samples.mean(0), samples.std(0, correction=0)
    view = job.operator.view(y[None])[0].cpu()
    spread = [byte_image(mean), byte_image(4 * deviation - 1)]
    tiles = [shown(view, shape), *(byte_image(x) for x in samples), *(spread if job.samples > 1 else [])]
    (out / "measurements").mkdir(parents=True, exist_ok=True)
    with new_file(out / "measurements" / f"{name}.npy") as partial_file, partial_file.open("wb") as file:
        np.save(file, y.cpu().numpy(), allow_pickle=False)
    save_png(grid(tiles[0], scale=1), out / "measurements" / f"{name}.png")
    for kind, picture in zip(("mean", "deviation"), spread, strict=True):
        save_image(picture, out / kind / name)
    if job.truth is not None:
        original = torch.from_numpy(np.asarray(job.truth[i]))
        tiles.insert(0, original.permute(1, 2, 0).numpy())
        both = torch.from_numpy(np.stack([byte_image(x) for x in (*samples, mean)])).permute(0, 3, 1, 2)
        for k, compute in enumerate(named.values()):
            table[i, :, k] = compute(both, original.expand(both.shape)).double()
        if job.samples > 1:
            covered[i] = coverage(samples, Pixels().encode(original))
    save_png(grid(np.stack(tiles), columns=len(tiles)), out / "sheets" / f"{name}.png")


def summary(job: Job, table: Tensor, covered: Tensor, names: list[str]) -> dict[str, Any]:
    """Figures of each image and sample, their means over images, and the best of the runs, labelled as such."""
    per_image = {
        job.names[i]: {
            name: {"samples": table[i, :-1, k].tolist(), "mean_of_samples": table[i, -1, k].item()}
            for k, name in enumerate(names)
        }
        for i in range(len(job.names))
    }
    figures: dict[str, Any] = {}
    for k, name in enumerate(names):
        samples = table[:, :-1, k]
        best = samples.amin(1) if name.startswith("lpips") else samples.amax(1)
        figures[name] = {
            "sample": samples.mean().item(),
            "sample_std_over_images": samples.mean(1).std(correction=0).item(),
            "mean_of_samples": table[:, -1, k].mean().item(),
            "convention": CONVENTIONS[name],
        }
        if job.samples > 1:
            figures[name][f"best_of_{job.samples}_runs_chosen_by_the_truth"] = best.mean().item()
    if names and job.samples > 1:
        figures["coverage_of_quartiles"] = {
            "value": covered.mean().item(),
            "calibrated": 0.5 * (job.samples - 1) / (job.samples + 1),
        }
    return {"n": len(job.names), "samples": job.samples, "figures": figures, "images": per_image}


def write_summary(result: dict[str, Any], job: Job, out: Path, *, rows: int = 8) -> None:
    """metrics.json, and sheet.png: the first images' sheets below each other."""
    from PIL import Image

    write_json(out / "metrics.json", result)
    strips = []
    for name in job.names[:rows]:
        with Image.open(out / "sheets" / f"{name}.png") as image:
            strips.append(np.asarray(image))
    gap = np.full((max(1, math.ceil(strips[0].shape[0] / 40)), *strips[0].shape[1:]), 255, np.uint8)
    stacked = np.concatenate([part for strip in strips for part in (strip, gap)][:-1])
    save_png(Image.fromarray(stacked), out / "sheet.png")
