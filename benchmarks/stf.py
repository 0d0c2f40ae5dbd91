"""The stable target field on real images: variance and bias of its targets, and what they cost a training step.

`python -m benchmarks stf IMAGES.zip --out OUT.svg --json OUT.json`. For each sigma: the trace of the covariance
of the target about the exact posterior mean of the set, per pixel, for the clean image and for n references, and for
n = 64 the squared bias, that is how far the mean of many targets at one x is from the exact one, beside that of a target
whose references lack the image itself. Then the seconds of a training step of CIFAR-10's DDPM++ and of the target.
A few minutes on two cores, or on a GPU if there is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np
import torch

from benchmarks.measure import Table, alternate, ratio
from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch
from fewstep.core.noise import add_noise
from fewstep.core.objectives import DenoisingLoss, Rule, StableTarget, exact_denoiser, posterior_mean
from fewstep.core.oracle import EmpiricalDenoiser
from fewstep.data import ImageStream, images
from fewstep.data.augment import AugmentPipe
from fewstep.nets.sizes import EDM_SIZES
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.report import Series, line_chart
from fewstep.runtime.distributed import device
from fewstep.runtime.precision import fast_dtype

CPU = torch.device("cpu")
COUNTS = (64, 1024, 4096)
POINTS = 64


def exact_posterior(stream: ImageStream) -> EmpiricalDenoiser:
    """The exact denoiser of the whole set, in float64."""
    parts = [stream.batch(i, min(1000, len(stream.data) - i)).image for i in range(0, len(stream.data), 1000)]
    return EmpiricalDenoiser(torch.cat([part.double() for part in parts]))


def variances(stream: ImageStream, exact: EmpiricalDenoiser, sigmas: list[float]) -> dict[str, list[float]]:
    """E|T - E[x0 | x]|^2 per pixel, over images and noise."""
    result: dict[str, list[float]] = {"clean image": []} | {f"n = {n}": [] for n in COUNTS}
    for sigma in sigmas:
        torch.manual_seed(0)
        batch = Batch(stream.sample(POINTS, CPU).image)
        levels = torch.full((POINTS,), sigma)
        x = add_noise(batch.image, levels)
        truth = exact(x, levels)
        targets = {"clean image": batch.image} | {
            f"n = {n}": posterior_mean(
                x, levels, batch, Batch(stream.sample(n - POINTS, CPU).image) if n > POINTS else None
            )
            for n in COUNTS
        }
        for name, target in targets.items():
            result[name].append((target - truth).square().mean().item())
        print(f"sigma {sigma:7.3f}  " + "  ".join(f"{k}: {v[-1]:.2e}" for k, v in result.items()), flush=True)
    return result


def biases(
    stream: ImageStream, exact: EmpiricalDenoiser, sigmas: list[float], n: int, trials: int
) -> dict[str, list[float]]:
    """The squared bias per pixel at 4 points x, less what the sampling error explains; so it may be negative."""
    result: dict[str, list[float]] = {"with the image": [], "without the image": []}
    for sigma in sigmas:
        torch.manual_seed(1)
        levels = torch.full((4,), sigma)
        x = add_noise(stream.sample(4, CPU).image, levels)
        truth = exact(x, levels)
        makers = exact.weights(x, levels).multinomial(trials, replacement=True)  # images that x may have come from
        for name in result:
            gaps = []
            for i in range(4):
                targets = []
                for j in range(trials):
                    references = stream.sample(n, CPU).image
                    if name == "with the image":
                        references[0] = exact.points[makers[i, j]]
                    split = references.split([1, n - 1])
                    targets.append(posterior_mean(x[i, None], levels[:1], *map(Batch, split)))
                found = torch.cat(targets)
                gaps.append((found.mean(0) - truth[i]).square().mean() - found.var(0).mean() / trials)
            result[name].append(torch.stack(gaps).mean().item())
        print(
            f"sigma {sigma:7.3f}  squared bias " + "  ".join(f"{k}: {v[-1]:+.1e}" for k, v in result.items()),
            flush=True,
        )
    return result


def effective(stream: ImageStream, sigmas: list[float], classes: bool) -> dict[str, list[float]]:
    """The share of images with any reference but themselves at EDM's augmentation of CIFAR-10, and the mean effective
    number of references, 1 / sum w^2, for both rules and the largest count.
    """
    pipe, result = AugmentPipe(0.12), {}
    for rule in get_args(Rule):
        torch.manual_seed(2)
        batch = stream.sample(4 * POINTS, CPU)
        batch = pipe(batch if classes else Batch(batch.image))
        more = StableTarget(stream, COUNTS[-1], augment=pipe, rule=rule)
        references, label = exact_denoiser(*more.references(batch))
        for sigma in sigmas:
            levels = torch.full((len(batch.image),), sigma)
            weights = references.weights(add_noise(batch.image, levels), levels, label)
            result.setdefault(f"{rule}: with references", []).append((weights > 0).sum(1).gt(1).float().mean().item())
            result.setdefault(f"{rule}: effective", []).append((1 / weights.square().sum(1)).mean().item())
    return result


def cost(stream: ImageStream, n: int, micro_batch: int, place: torch.device) -> dict[str, float]:
    """Seconds of forward and backward of CIFAR-10's DDPM++ on one micro-batch with augmentation, and of the
    target of `n` references, which is added to it.
    """
    torch.manual_seed(0)
    config = EDM_SIZES["edm-cifar10-32x32-uncond-vp"]
    assert isinstance(config, SongConfig)
    denoiser = Denoiser(SongUNet(config), dtype=fast_dtype()).to(place).train()
    batch = Batch(stream.batch(0, micro_batch).image.to(place))
    pipe = AugmentPipe()
    plain, stable = DenoisingLoss(augment=pipe), StableTarget(stream, n, augment=pipe)

    def step() -> None:
        plain(denoiser, batch)[0].mean().backward()
        denoiser.zero_grad()

    sigma = torch.full((micro_batch,), 0.5, device=place)
    augmented = pipe(batch)
    x = add_noise(augmented.image, sigma)
    times = alternate({"target": lambda: stable(x, sigma, augmented), "step": step}, 3)
    result = {name: median(values) for name, values in times.items()}
    return result | {"ratio": 1 + ratio(times["target"], times["step"])}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="zip or folder of images of 32x32 pixels")
    parser.add_argument("--out", type=Path, default=Path("stf.svg"), help="where the figure is written")
    parser.add_argument("--trials", type=int, default=64, help="targets at each x for the bias")
    parser.add_argument("--micro-batch", type=int, default=64, help="images of a training step")


def columns(name: str, values: list[float], series: dict[str, list[float]]) -> list[dict[str, float]]:
    return [{name: v} | {key: s[i] for key, s in series.items()} for i, v in enumerate(values)]


def run(given: argparse.Namespace) -> Iterator[Table]:
    stream = ImageStream(images(given.images))
    exact = exact_posterior(stream)
    timed = cost(stream, COUNTS[-1], given.micro_batch, device())
    yield Table(f"Seconds for {given.micro_batch} images, {fast_dtype()}", [timed])
    sigmas, levels = np.geomspace(1, 80, 14).tolist(), [2.0, 4.0, 8.0, 16.0]
    trace = variances(stream, exact, sigmas)
    about = f"{stream.data.name}, {len(stream.data):,} images, sha256 {stream.data.fingerprint}"
    yield Table(f"Trace of the covariance of the target, per pixel: {about}", columns("sigma", sigmas, trace))
    for classes in (False, True):
        counts = effective(stream, [*levels, 80.0], classes)
        yield Table(
            f"Of {COUNTS[-1]:,} references, {'with' if classes else 'without'} classes, augmented",
            columns("sigma", [*levels, 80.0], counts),
        )
    bias = biases(stream, exact, levels, POINTS, given.trials)
    yield Table(f"Squared bias of the target of {POINTS} references", columns("sigma", levels, bias))
    chart = line_chart(
        [Series(name, sigmas, values, "line+points") for name, values in trace.items()],
        title=f"Variance of the target, {stream.data.name}",
        x_label="sigma",
        y_label="trace of the covariance, per pixel",
        log_x=True,
    )
    given.out.write_text(chart, encoding="utf-8")
