"""Images per second: Heun's method, a one-step student, and one evaluation, beside EDM's network and sampler.

`python -m benchmarks sampling --reference EDM` also tells how far the images are from the reference's;
`--batch 1` gives the latency of a picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import networks, reference
from benchmarks.measure import Table, compared, flops
from fewstep.core.denoiser import Denoiser
from fewstep.sample import count_evaluations, generate


def arguments(parser: argparse.ArgumentParser) -> None:
    networks.arguments(parser, batch=8)
    parser.add_argument(
        "--steps", type=int, default=4, help="of Heun's method; 18 are EDM's, and as fast for each evaluation"
    )
    parser.add_argument("--reference", type=Path, help="checkout of EDM")


def run(given: argparse.Namespace) -> Iterator[Table]:
    if given.steps < 2:
        raise SystemExit(f"EDM's schedule has at least two steps; got --steps {given.steps}")
    ours = networks.denoiser(given)
    seeds, plan = list(range(given.batch)), ours.plan(given.steps)
    x = torch.randn(given.batch, *ours.shape, device=next(ours.parameters()).device)
    sigma = torch.ones((), device=x.device)

    @torch.inference_mode()
    def evaluate() -> Tensor:
        return ours(x, sigma)

    def sample() -> np.ndarray:
        return np.stack(list(generate(ours, seeds, plan=plan, batch_size=given.batch)))

    evaluations: dict[str, Callable[[], Any]] = {}
    samples: dict[str, Callable[[], Any]] = {}
    students: dict[str, Callable[[], Any]] = {}
    if given.reference is not None:
        theirs = networks.theirs(given.reference, ours)
        heun = reference.module(given.reference, "generate").edm_sampler
        latents = torch.stack([torch.randn(ours.shape, generator=torch.Generator().manual_seed(s)) for s in seeds])

        @torch.no_grad()
        def evaluate_theirs() -> Tensor:
            return theirs(x, sigma)

        @torch.no_grad()
        def sample_theirs() -> np.ndarray:
            images = heun(theirs, latents.to(x.device), num_steps=given.steps)
            return pixels_of(images)

        @torch.no_grad()
        def one_step_theirs() -> np.ndarray:
            noise = torch.stack([torch.randn(ours.shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
            return pixels_of(theirs(2.5 * noise.to(x.device), torch.full_like(sigma, 2.5)))

        evaluations["reference"], samples["reference"] = evaluate_theirs, sample_theirs
        students["reference"] = one_step_theirs
        gap = (evaluate() - evaluate_theirs()).abs()
        pixels = np.abs(sample().astype(int) - sample_theirs().astype(int))
        yield Table(
            "Ours against the reference with the same weights",
            [
                {"": "an evaluation, largest and mean difference", "max": gap.max().item(), "mean": gap.mean().item()},
                {"": "images, in grey values", "max": int(pixels.max()), "mean": float(pixels.mean())},
            ],
        )
    evaluations["fewstep"], samples["fewstep"] = evaluate, sample
    operations = flops(evaluate)
    name = f"{given.network}, batch {given.batch}, {ours.dtype}"
    yield compared(f"One evaluation of {name}", evaluations, given.repeats, images=given.batch, operations=operations)
    nfe = count_evaluations(plan)
    yield compared(f"Heun's method, {nfe} NFE", samples, given.repeats, images=given.batch, operations=nfe * operations)
    students["fewstep"] = one_step(ours, seeds)
    title = f"One step, from seeds to pixels, batch {given.batch}"
    yield compared(title, students, given.repeats, images=given.batch, operations=operations)


def pixels_of(images: Tensor) -> np.ndarray:
    """Arrays (n, H, W, C) as EDM's generate.py makes them."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def one_step(denoiser: Denoiser, seeds: list[int]) -> Callable[[], object]:
    student = Denoiser(denoiser.net, levels=(2.5,), dtype=denoiser.dtype)
    return lambda: list(generate(student, seeds, batch_size=len(seeds)))
