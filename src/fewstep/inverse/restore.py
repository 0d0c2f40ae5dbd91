"""From images or measurements to posterior samples, in memory or in a folder: `fs.restore`."""

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

from fewstep.core.codec import Pixels
from fewstep.core.denoiser import Denoiser
from fewstep.inverse.folder import RestoredImage, replacing, write_image, write_summary
from fewstep.inverse.latent import Latent, pixel_decoder, pixel_shape
from fewstep.inverse.metrics import RestorationMetrics
from fewstep.inverse.operator import LangevinDiverged, Operator
from fewstep.inverse.posterior import measure, sample_posterior, seed_of
from fewstep.inverse.problem import Label, Problem, choose_labels, open_problem
from fewstep.inverse.solver import Solver, SolverName
from fewstep.inverse.tasks import check_task, task_operator
from fewstep.io.model_folder import card, find_model_folder, load
from fewstep.metrics.protocol import ROUNDING
from fewstep.runtime import outputs
from fewstep.runtime.distributed import barrier, device, rank, world_size
from fewstep.runtime.files import sha256
from fewstep.runtime.progress import Progress


@dataclass(frozen=True)
class Restoration:
    """What `restore` returns.

    Attributes:
        metrics: PSNR, SSIM and LPIPS where the truth is known, of all images and of each, with the protocol, as
            `metrics.json` holds them.
        images: this rank's images with their samples; empty if they were written to a folder.

    Example:
        >>> found = fs.restore(model, "digits", "box_inpainting", label="data", first=1, nfe=6)
        >>> samples = found.images[0].samples
    """

    metrics: dict[str, Any]
    images: list[RestoredImage]


def restore(
    model: Denoiser | str | Path,
    images: Any,
    task: str | Operator | Callable[[Tensor], Tensor],
    *,
    out: str | Path | None = None,
    measured: bool = False,
    samples: int = 4,
    first: int | None = None,
    seed: int = 0,
    sigma_y: float = 0.05,
    solver: SolverName | Solver = "pnp_gd",
    mask: str | Path | NDArray[Any] | None = None,
    kernel: str | Path | NDArray[Any] | None = None,
    factor: float | None = None,
    ncvsd_shift: bool = False,
    label: Label = None,
    vae: str | None = None,
    batch_size: int = 32,
    **options: Any,
) -> Restoration:
    """Restore images: simulate their measurements, or take given ones, and draw samples of the posterior p(x0 | y).

    Args:
        model: an NCVSD student or a teacher: a denoiser, or the path of a model or run folder.
        images: what is measured: the path or name of a source that `fs.images` opens, an opened data set, or an array
            uint8 (N, C, H, W). With `measured` a folder of NAME.npy (c, h, w) or NAME.png, or an array (N, ...).
        task: a name in `fs.inverse.TASKS`, `mine.py:operator`, an operator, or a function of images (B, C, H, W).
        out: folder for samples, means, deviations, measurements, sheets and metrics.json, in place of an earlier
            restoration; without it the samples are returned.
        measured: `images` are measurements.
        samples: draws for each image.
        first: restore only the first N images.
        seed: of all noise. A sample depends on it, on the image's place and on the sample's number alone.
        sigma_y: standard deviation of the measurement's noise, where images are in [-1, 1].
        solver: "pnp_gd", or "dps", "daps" or "diffpir" for a teacher; or a `fs.inverse.Solver`.
        mask: for inpainting, an array that is 0 where pixels are missing, or a file.
        kernel: for deblurring, an array (h, w), or an npy file.
        factor: of super-resolution.
        ncvsd_shift: the circular blurs also move the image by one pixel, as NCVSD's code does.
        label: a class for all images, by index or name, one for each, "data" (the labels of the data set) or "none". A model
            with classes needs one of them.
        vae: for a model of latents, the folder of its VAE or its name on the hub.
        batch_size: samples at a time; it does not change them.
        **options: with the solver's name, as of `Solver.of`: preset, nfe, prior_steps, weight, beta, rho, sigma_min,
            sigma_max, ema_sigma, ema_decay.

    Returns:
        Metrics and, without `out`, the restored images.

    Raises:
        ValueError: arguments, model, task and images do not fit each other, or a sample is not finite.

    Example:
        >>> found = fs.restore(model, "digits", "box_inpainting", label="data", first=1, nfe=6)
        >>> found.images[0].samples.shape
        torch.Size([4, 1, 8, 8])
    """
    for name, value in {"samples": samples, "batch": batch_size, "first": first}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative; got {seed}")
    if not 0 < sigma_y < math.inf:
        raise ValueError(
            f"sigma_y must be positive and finite; got {sigma_y}. For an exact measurement use a small value, such as 0.001"
        )
    name = task if isinstance(task, str) else getattr(task, "__name__", type(task).__name__)
    if isinstance(task, str):
        check_task(task)
    if isinstance(solver, Solver) and options:
        raise ValueError(f"{', '.join(options)}: give these to the Solver itself, or give the solver's name")
    chosen = solver if isinstance(solver, Solver) else Solver.of(solver, name, **options)
    if out is not None:
        paths = [path if isinstance(path, (str, Path)) else None for path in (model, mask, kernel, images)]
        outputs.folder(Path(out), apart=paths[:3], outside=paths[3:])

    where = None if isinstance(model, Denoiser) else Path(model)
    denoiser = model if isinstance(model, Denoiser) else load(model, device=device(), vae=vae)
    chosen.check(denoiser)
    denoiser.codec.prepare(next(denoiser.parameters()).device)
    shape = pixel_shape(denoiser)
    operator = task_operator(task, shape, mask=mask, kernel=kernel, factor=factor, ncvsd_shift=ncvsd_shift)
    problem = open_problem(images, operator, shape, measured=measured, first=first)
    labels = choose_labels(denoiser, problem, label)
    protocol = {
        "task": name,
        "model": None if where is None else card(where).name or where.name,
        "weights": None if where is None else sha256(find_model_folder(where) / "model.safetensors"),
        "images": str(images) if isinstance(images, (str, Path)) else problem.source,
        "measurement": "given" if measured else "simulated",
        "sigma_y": sigma_y,
        "seed": seed,
        "class": described_label(label),
        **chosen.describe(denoiser),
        "rounding": ROUNDING,
    }
    quality = RestorationMetrics(problem, shape, samples)
    mine = range(rank(), len(problem.names), world_size())
    settings = {"samples": samples, "seed": seed, "sigma_y": sigma_y, "batch_size": batch_size}

    def run(place: Path | None) -> list[RestoredImage]:
        kept: list[RestoredImage] = []
        with Progress("restore", total=len(mine) * samples, unit="samples") as progress:
            made = restored(denoiser, operator, problem, chosen, mine, labels, progress=progress.update, **settings)
            for i, image in made:
                quality.add(i, image)
                if place is None:
                    kept.append(image)
                else:
                    write_image(image, place)
        quality.merge_ranks()
        return kept

    barrier()  # every rank has read what it restores
    if out is None:
        kept = run(None)
        return Restoration(quality.summary(protocol), kept)
    with replacing(Path(out)) as place:
        run(place)
        metrics = quality.summary(protocol)
        if rank() == 0:
            write_summary(metrics, problem.names, place)
    return Restoration(metrics, [])


def described_label(label: Label) -> int | str:
    if label is None or isinstance(label, (int, str)):
        return "none" if label is None else label
    return "given for each image"


def restored(
    denoiser: Denoiser,
    operator: Operator,
    problem: Problem,
    solver: Solver,
    indices: Sequence[int],
    labels: Sequence[int] | None,
    *,
    samples: int,
    seed: int,
    sigma_y: float,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[int, RestoredImage]]:
    """The images of a problem at `indices`, one after the other, each with all its samples.

    Batches go across images. progress: is called with the number of samples that are done.
    """
    where = next(denoiser.parameters()).device
    operator, decode = operator.to(where), pixel_decoder(denoiser)
    inner = operator if isinstance(denoiser.codec, Pixels) else Latent(operator, decode, denoiser.shape)
    ys = {i: measurement(operator, problem, i, seed, sigma_y, where) for i in indices}
    found: dict[int, list[Tensor]] = {i: [] for i in indices}
    diverged = {i: torch.zeros(samples, 2, dtype=torch.float64) for i in indices}
    todo = [(i, j) for i in indices for j in range(samples)]
    for start in range(0, len(todo), batch_size):
        part = todo[start : start + batch_size]
        y = torch.stack([ys[i] for i, _ in part])
        label = None if labels is None else torch.tensor([labels[i] for i, _ in part], device=where)
        with counted_divergences([diverged[i][j] for i, j in part]):
            seeds = [seed_of(seed, i, j) for i, j in part]
            x0 = sample_posterior(denoiser, inner, y, sigma_y, seeds, label=label, solver=solver)
        with torch.no_grad():
            images = decode(x0).cpu()
        progress(start + len(part))
        for (i, _), image in zip(part, images, strict=True):
            found[i].append(image)
            if len(found[i]) == samples:
                truth = None if problem.truth is None else np.asarray(problem.truth[i])
                view = operator.view(ys[i][None])[0].cpu()
                done = RestoredImage(problem.names[i], ys[i].cpu(), view, torch.stack(found.pop(i)), truth, diverged[i])
                yield i, done


@contextmanager
def counted_divergences(counts: Sequence[Tensor]) -> Iterator[None]:
    """Count, for each image of a batch, in `counts` (2,) how often its Langevin steps diverged and were drawn again with
    smaller steps, or were given up; other warnings pass.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LangevinDiverged)
        yield
    for warning in caught:
        if isinstance(warning.message, LangevinDiverged):
            for k in warning.message.images:
                counts[k][0 if warning.message.mended else 1] += 1
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def measurement(operator: Operator, problem: Problem, i: int, seed: int, sigma_y: float, where: torch.device) -> Tensor:
    """The measurement of image `i`: given, or simulated from the truth."""
    if problem.measurements is not None:
        return torch.from_numpy(np.asarray(problem.measurements[i], dtype=np.float32)).to(where)
    assert problem.truth is not None
    x = Pixels().encode(torch.from_numpy(np.asarray(problem.truth[i])))[None].to(where)
    return measure(operator, x, sigma_y, [seed_of(seed, i)])[0]
