"""A training step of a teacher by the Trainer, beside EDM's loop: loss, gradients, Adam and the average.

`python -m benchmarks teacher --reference EDM`. The traces of both losses and of float32 stand side by side. `overhead` is what
a step of the same network takes of next to no work: Python, dispatch, and one pixel in 1,024.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import networks, reference
from benchmarks.measure import Table, alternate, compared, flops
from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Method
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.runtime.distributed import device


def arguments(parser: argparse.ArgumentParser) -> None:
    networks.arguments(parser, batch=8)
    parser.add_argument("--reference", type=Path, help="checkout of EDM")


def pretraining(denoiser: Denoiser) -> Method:
    return Pretraining(denoiser, DenoisingLoss())


def run(given: argparse.Namespace) -> Iterator[Table]:
    ours = networks.denoiser(given)
    steps: dict[str, Callable[[], Any]] = {}
    if given.reference is not None:
        images = networks.Noise(ours).batch(0, given.batch).image.to(device())
        theirs = networks.theirs(given.reference, ours)
        steps["reference"] = reference.teacher_step(given.reference, theirs, images)
    trainer = networks.trainer(pretraining(ours), ours, given.batch)
    steps["fewstep"] = trainer.step
    operations = flops(trainer.step)
    name = f"{given.network}, batch {given.batch}, {ours.dtype}"
    yield compared(f"A training step of {name}", steps, given.repeats, images=given.batch, operations=operations)
    yield traces(given)
    yield overhead(given, trainer.step)


def traces(given: argparse.Namespace, steps: int = 4) -> Table:
    """The losses of the first steps in float32 and in the precision measured, with the same seeds."""
    rows: list[dict[str, Any]] = [{"": f"step {k + 1}"} for k in range(steps)]
    for dtype in dict.fromkeys((torch.float32, networks.precision(given))):
        denoiser = networks.denoiser(given, dropout=0.0)  # whose draws depend on the layout
        denoiser.dtype = dtype
        trainer = networks.trainer(pretraining(denoiser), denoiser, given.batch)
        for row in rows:
            row[str(dtype)] = trainer.step()["denoising_loss"].item()
    return Table("Losses of the same steps", rows)


def overhead(given: argparse.Namespace, step: Callable[[], object]) -> Table:
    """A step of as many layers that have next to nothing to compute, against the whole: an upper bound of the overhead."""
    config = networks.SIZES[given.network]
    halvings = len(config.channel_mult) - 1
    side = config.img_resolution
    small = 2**halvings
    attends = tuple(max(1, r * small // side) for r in config.attn_resolutions)
    tiny = networks.denoiser(given, img_resolution=small, model_channels=32, attn_resolutions=attends)
    idle = networks.trainer(pretraining(tiny), tiny, 1)
    times = alternate({"whole": step, "next to no work": idle.step}, given.repeats)
    whole, rest = (median(times[name]) for name in times)
    return Table(
        "Overhead of Python and dispatch",
        [
            {"": f"a step of {given.batch} images", "seconds": whole},
            {"": f"as many layers, one image of {small}x{small}, 32 channels", "seconds": rest},
            {"": "at most, of the step", "seconds": f"{100 * rest / whole:.2f} %"},
        ],
    )
