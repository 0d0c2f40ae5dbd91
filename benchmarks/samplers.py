"""All samplers side by side: errors on a mixture with a known denoiser, and Frechet distances of a trained model.

`python -m benchmarks samplers --model runs/teacher --images digits --svg OUT.svg --json OUT.json`. Errors are measured
against a fine solution on the same Brownian paths: the distance to the path itself, and the error of its law (root mean
square difference of characteristic functions). An evaluation with its directional derivative (a dual one) counts as 2.5
plain evaluations.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.convergence import Draw, Paths, anisotropic, arrive
from benchmarks.measure import Table
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import karras_sigmas
from fewstep.core.plan import Plan
from fewstep.data import images as open_images
from fewstep.io.model_folder import card, find_model_folder, load
from fewstep.metrics.evaluation import evaluate
from fewstep.report import Series, line_chart
from fewstep.report.numerals import human
from fewstep.runtime.distributed import device
from fewstep.runtime.files import sha256
from fewstep.runtime.progress import track
from fewstep.sample import describe, generate
from fewstep.samplers import (
    Sampler,
    ancestral,
    churn,
    counted,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_maruyama,
    heun,
    ito_taylor,
    stochastic_heun,
    taylor2,
)

DUAL = 2.5
"""Plain evaluations that a dual one counts as; `python -m benchmarks dual` measures it."""

STEPS = (5, 10, 20, 40, 80)

BUDGETS = (9, 18, 36)
"""Plain evaluations, or their equivalent, of the trained model."""


MEASURES = {
    "path_error": "Distance to the fine solution on the same path",
    "law_error": "Error of the law (characteristic function)",
    "fd_pixels": "Frechet distance in pixel space",
}
COSTS = {"steps": "steps", "equivalent": "plain evaluations, a dual one counted as 2.5"}
CHARTS = (("path_error", "steps"), ("law_error", "equivalent"), ("fd_pixels", "equivalent"))
"""Measures and costs in the file of charts."""

WIDTH, HEIGHT, GAP = 480, 420, 24
"""Pixels of a chart, and between two."""


class Contender(NamedTuple):
    """A sampler. draw: what its noise stands for; None if it draws none, or none that paths can share."""

    name: str
    sampler: Sampler
    draw: Draw | None = None
    churned: bool = False


CONTENDERS = (
    Contender("Euler", euler),
    Contender("Heun", heun),
    Contender("DPM-Solver++(2M)", dpmpp_2m),
    Contender("Taylor", taylor2),
    Contender("Ito-Taylor, kappa 0", partial(ito_taylor, kappa=0.0)),
    Contender("Ito-Taylor", ito_taylor, "pair"),
    Contender("Ito-Taylor, simplified noise", partial(ito_taylor, noise_pair="simplified"), "decayed"),
    Contender("Euler-Maruyama", euler_maruyama, "increment"),
    Contender("ancestral", ancestral, "decayed"),
    Contender("DPM-Solver++(2M) SDE", dpmpp_2m_sde, "decayed"),
    Contender("stochastic Heun", stochastic_heun, "increment"),
    Contender("EDM churn", partial(churn, S_churn=10.0, S_min=0.05, S_max=50.0, S_noise=1.0), churned=True),
)


class Cost(NamedTuple):
    """Network evaluations per sample."""

    plain: int
    dual: int

    @property
    def equivalent(self) -> float:
        return self.plain + DUAL * self.dual


def cost(sampler: Sampler, sigmas: Tensor) -> Cost:
    """What a sampler evaluates on these levels, counted on a stub."""
    stub = counted(lambda x, sigma: x / (1 + sigma**2))
    for _ in sampler(stub, torch.zeros(1, 1, dtype=torch.float64), sigmas):
        pass
    return Cost(stub.nfe, stub.jvp)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="model or run folder for the Frechet distances; needs --images")
    parser.add_argument("--images", help="real images for the Frechet distances: zip, folder, or the built-in digits")
    parser.add_argument("--samples", type=int, default=4000, help="points of the mixture (default 4000)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="on the mixture (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the points and their noise (default 0)")
    parser.add_argument("--svg", type=Path, help="file for the charts")


def run(given: argparse.Namespace) -> Iterator[Table]:
    if (given.model is None) != (given.images is None):
        raise SystemExit("Frechet distances need both --model and --images; give both or neither")
    if given.samples < 2:
        raise SystemExit(f"--samples must be at least 2; got {given.samples}")
    # opened before the long work, so that a wrong path fails at once
    distances_of_model = iter(())
    if given.model is not None:
        distances_of_model = distances(given.model, load(given.model, device=device()), open_images(given.images))
    rows = [*convergence(given.samples, given.seed, given.steps), *distances_of_model]
    measured = [measure for measure in MEASURES if any(measure in row for row in rows)]
    for measure in measured:
        yield Table(f"{MEASURES[measure]}; in brackets the cost in {COSTS['equivalent']}", by_sampler(rows, measure))
    yield Table("All runs", rows)
    if given.svg is not None:
        given.svg.write_text(beside([chart(rows, m, c) for m, c in CHARTS if m in measured]), encoding="utf-8")


def convergence(samples: int, seed: int, steps: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each sampler and number of steps, on a 2-D mixture from sigma = 20 to 0.02."""
    oracle = anisotropic(2)
    fine = levels(4 * max(steps))
    g = torch.Generator().manual_seed(seed)
    paths = Paths(fine, (samples // 2, 2), generator=g)
    x = oracle.sample(samples // 2, 20.0, generator=g).repeat(2, 1)
    frequencies = 2 * torch.randn(2, 64, dtype=torch.float64, generator=g)
    ends = {True: paths.end(ito_taylor, oracle, x, len(fine) - 1), False: arrive(heun, oracle, x, fine)}
    jobs = [(c, n) for c in CONTENDERS if not c.churned for n in steps]
    for contender, n in track(jobs, total=len(jobs), description="mixture", unit="runs"):
        stochastic = contender.draw is not None
        end = (
            paths.end(contender.sampler, oracle, x, n, contender.draw)
            if contender.draw is not None
            else arrive(contender.sampler, oracle, x, levels(n))
        )
        gap = characteristic(end, frequencies) - characteristic(ends[stochastic], frequencies)
        spent = cost(contender.sampler, torch.cat([levels(n), torch.zeros(1, dtype=torch.float64)]))
        began = time.perf_counter()
        arrive(contender.sampler, oracle, x, levels(n))
        yield {
            "sampler": contender.name,
            "model": "2-D mixture",
            "steps": n,
            "nfe": spent.plain + spent.dual - 1,  # the evaluation at the end of the range is not needed here
            "dual": spent.dual,
            "equivalent": spent.equivalent - 1,
            "seconds": time.perf_counter() - began,
            "path_error": (end - ends[stochastic]).norm(dim=1).mean().item(),
            "law_error": gap.abs().square().mean().sqrt().item(),
            "n": samples,
        }


def levels(n: int) -> Tensor:
    return karras_sigmas(n + 1, sigma_min=0.02, sigma_max=20.0)[:-1]


def characteristic(x: Tensor, frequencies: Tensor) -> Tensor:
    """E exp(i w x) for frequencies (d, m)."""
    phase = x @ frequencies
    return torch.complex(phase.cos(), phase.sin()).mean(0)


def distances(model: Path, denoiser: Denoiser, real: Any) -> Iterator[dict[str, Any]]:
    """A row for each sampler and budget: the Frechet distance in pixel space of as many images as there are real ones,
    of the same classes.
    """
    about, weights = card(model), sha256(find_model_folder(model) / "model.safetensors")
    seeds = range(len(real))
    label = torch.from_numpy(real.labels) if denoiser.num_classes and real.labels is not None else None
    jobs = [(c, plan) for c in CONTENDERS for plan in plans(c, denoiser)]
    for contender, plan in track(jobs, total=len(jobs), description=about.name, unit="runs"):
        spent = cost(contender.sampler, plan.sigmas)
        began = time.perf_counter()
        made = [image.transpose(2, 0, 1) for image in generate(denoiser, seeds, label=label, plan=plan, batch_size=256)]
        seconds = time.perf_counter() - began
        described = {
            "model": about.name,
            "weights": weights,
            "labels": "drawn from the seeds" if label is None else "of the reference",
            **describe(plan),
            "sampler": contender.name,
        }
        (result, *_) = evaluate(made, real, protocol=described)
        yield {
            "sampler": contender.name,
            "model": about.name,
            "steps": len(plan.sigmas) - 1,
            "nfe": spent.plain + spent.dual,
            "dual": spent.dual,
            "equivalent": spent.equivalent,
            "seconds": seconds,
            result.metric: result.value,
            "n": result.n,
            "seeds": f"0-{len(seeds) - 1}",
            "weights": weights,
        }


def plans(contender: Contender, denoiser: Denoiser) -> Iterator[Plan]:
    """For each budget the plan with the most steps that it allows."""
    for budget in BUDGETS:
        for n in range(budget, 1, -1):
            sigmas = denoiser.sigmas(n)
            if cost(contender.sampler, sigmas).equivalent <= budget:
                yield Plan(contender.sampler, sigmas)
                break


def by_sampler(rows: Sequence[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """A row for each sampler: its values from few steps to many, each with its cost."""
    table = []
    for contender in CONTENDERS:
        mine = [row for row in rows if row["sampler"] == contender.name and measure in row]
        cells = {str(i + 1): f"{human(row[measure], 3)} ({human(row['equivalent'])})" for i, row in enumerate(mine)}
        table += [{"sampler": contender.name} | cells] if cells else []
    return table


def chart(rows: Sequence[dict[str, Any]], measure: str, cost: str) -> str:
    """One measure over one cost, a curve for each sampler."""
    series = []
    for slot, contender in enumerate(CONTENDERS):
        mine = [row for row in rows if row["sampler"] == contender.name and measure in row]
        if mine:
            x, y = [row[cost] for row in mine], [row[measure] for row in mine]
            series.append(Series(contender.name, x, y, "line+points", slot=slot))
    return line_chart(
        series,
        title=MEASURES[measure],
        x_label=COSTS[cost],
        y_label="lower is better",
        log_x=True,
        log_y=True,
        width=WIDTH,
        height=HEIGHT,
    )


def beside(charts: Sequence[str]) -> str:
    """Charts side by side in one drawing."""
    placed = (
        chart.replace("<svg ", f'<svg x="{i * (WIDTH + GAP)}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for i, chart in enumerate(charts)
    )
    width = len(charts) * (WIDTH + GAP) - GAP
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}">{"".join(placed)}</svg>\n'
