"""All samplers in one run: errors on a mixture whose denoiser is known, and Frechet distances of a trained model.

The errors are those against the fine solution on the same paths: that of the path itself, and that of its law, as the
root mean square difference of characteristic functions. A dual evaluation counts as 2.5 plain ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.bench.convergence import Draw, Paths, anisotropic, arrive
from fewstep.bench.page import write
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import karras_sigmas
from fewstep.data import images as open_images
from fewstep.io.model_folder import card, load, model_folder
from fewstep.metrics.evaluate import evaluate
from fewstep.runtime.distributed import device
from fewstep.runtime.files import sha256
from fewstep.runtime.progress import track
from fewstep.sample import Plan, generate
from fewstep.samplers import (
    Sampler,
    ancestral,
    churn,
    counted,
    dpmpp_2m,
    dpmpp_2m_sde,
    edm_sigmas,
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
"""On the mixture."""

BUDGETS = (9, 18, 36)
"""Plain evaluations, or their equivalent, of the trained model."""


class Contender(NamedTuple):
    """A sampler; draw: what its noise stands for, None if it draws none or none that can be shared."""

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
    """Evaluations per sample."""

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


def bench_samplers(
    out: Path, *, model: Path | None = None, reference: str | None = None, samples: int = 4000, seed: int = 0
) -> None:
    """Measure, and write results.json, samplers.md (the table), samplers.svg and samplers.html into `out`.

    model, reference: a model or run folder and real images for the Frechet distances; both or none. samples: points of
    the mixture.
    """
    if (model is None) != (reference is None):
        raise ValueError(
            "Frechet distances need both a model and a reference; give --model and --reference, or neither"
        )
    if samples < 2:
        raise ValueError(f"--samples must be at least 2; got {samples}")
    # opened before the long work, so that a wrong path fails at once
    trained = (
        None if model is None or reference is None else (model, load(model, device=device()), open_images(reference))
    )
    rows = list(convergence(samples, seed))
    if trained is not None:
        rows += distances(*trained)
    write(out, rows, order=[c.name for c in CONTENDERS])


def convergence(samples: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each sampler and number of steps, on a 2-D mixture from sigma = 20 to 0.02."""
    oracle = anisotropic(2)
    fine = levels(4 * max(STEPS))
    g = torch.Generator().manual_seed(seed)
    paths = Paths(fine, (samples // 2, 2), generator=g)
    x = oracle.sample(samples // 2, 20.0, generator=g).repeat(2, 1)
    frequencies = 2 * torch.randn(2, 64, dtype=torch.float64, generator=g)
    ends = {True: paths.end(ito_taylor, oracle, x, len(fine) - 1), False: arrive(heun, oracle, x, fine)}
    jobs = [(c, n) for c in CONTENDERS if not c.churned for n in STEPS]
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
            "model": "2-D mixture",
            "method": "exact denoiser",
            "sampler": contender.name,
            "steps": n,
            "nfe": spent.plain + spent.dual - 1,  # the evaluation at the end of the range is not needed here
            "dual": spent.dual,
            "equivalent": spent.equivalent - 1,
            "seconds": time.perf_counter() - began,
            "path_error": (end - ends[stochastic]).norm(dim=1).mean().item(),
            "law_error": gap.abs().square().mean().sqrt().item(),
            "n": samples,
            "seeds": str(seed),
            "protocol": {"sigma": "20 to 0.02, rho 7", "kappa": 1 if stochastic else 0, "fine_steps": len(fine) - 1},
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
    about, weights = card(model), sha256(model_folder(model) / "model.safetensors")
    seeds = range(len(real))
    label = torch.from_numpy(real.labels) if denoiser.num_classes and real.labels is not None else None
    jobs = [(c, plan) for c in CONTENDERS for plan in plans(c, denoiser)]
    for contender, plan in track(jobs, total=len(jobs), description=about.name, unit="runs"):
        spent = cost(partial(plan.sampler, **plan.options), plan.sigmas)
        began = time.perf_counter()
        made = [image.transpose(2, 0, 1) for image in generate(denoiser, seeds, label=label, plan=plan, batch_size=256)]
        seconds = time.perf_counter() - began
        described = {
            "model": about.name,
            "weights": weights,
            "labels": "drawn from the seeds" if label is None else "of the reference",
            **plan.describe(),
            "sampler": contender.name,
        }
        (result, *_) = evaluate(made, real, protocol=described)
        yield {
            "model": about.name,
            "method": about.method,
            "sampler": contender.name,
            "steps": len(plan.sigmas) - 1,
            "nfe": spent.plain + spent.dual,
            "dual": spent.dual,
            "equivalent": spent.equivalent,
            "seconds": seconds,
            result.metric: result.value,
            "n": result.n,
            "seeds": f"0-{len(seeds) - 1}",
            "images_per_second": len(seeds) / seconds,
            "protocol": dict(result.protocol),
        }


def plans(contender: Contender, denoiser: Denoiser) -> Iterator[Plan]:
    """For each budget the plan with the most steps that it allows."""
    for budget in BUDGETS:
        for n in range(budget, 1, -1):
            sigmas = edm_sigmas(denoiser, n)
            if cost(contender.sampler, sigmas).equivalent <= budget:
                yield Plan(contender.sampler, sigmas)
                break
