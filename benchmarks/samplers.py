"""Samplers against the truth: strong and weak orders on common Brownian paths, moments over the full range, cost.

`python -m benchmarks.samplers` prints the tables, from mixtures whose denoiser is known; where matplotlib is installed,
`--figure samplers.svg` (or .png) draws them. A few minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tests.convergence import Paths, anisotropic, expectation, geometric, on_a_line, slope
from torch import Tensor

from fewstep.noise import karras_sigmas
from fewstep.oracle import MixtureDenoiser
from fewstep.samplers import (
    Sampler,
    ancestral,
    counted,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_maruyama,
    heun,
    ito_taylor,
    last,
    stochastic_heun,
    taylor2,
)


class Entry(NamedTuple):
    """A sampler, and how many normals it draws a step (the second one belongs to I_z)."""

    sampler: Sampler
    draws: int = 1


STOCHASTIC = {
    "Euler-Maruyama": Entry(euler_maruyama),
    "ancestral": Entry(ancestral),
    "DPM-Solver++(2M) SDE": Entry(dpmpp_2m_sde),
    "stochastic Heun": Entry(stochastic_heun),
    "Ito-Taylor": Entry(ito_taylor, 2),
    "Ito-Taylor, simplified noise": Entry(partial(ito_taylor, noise_pair="simplified")),
    "Ito-Taylor without Laplacian": Entry(partial(ito_taylor, laplacian="none"), 2),
}
DETERMINISTIC = {"Euler": euler, "DPM-Solver++(2M)": dpmpp_2m, "Heun": heun, "Taylor": taylor2}
Table = dict[str, tuple[list[int], list[float]]]


def show(title: str, table: Table) -> None:
    print(f"\n{title}")
    for name, (counts, errors) in table.items():
        figures = "  ".join(f"{n}: {e:.2e}" for n, e in zip(counts, errors, strict=True))
        local = " ".join(f"{log2(a / b):.2f}" for a, b in pairwise(errors))
        print(f"  {name:30s} {figures}   order {slope(errors):.2f} ({local})", flush=True)


def strong(oracle: MixtureDenoiser, fine: Tensor, counts: list[int], samples: int, kappa: float = 1.0) -> Table:
    """Mean distance to the fine solution on the same paths."""
    torch.manual_seed(0)
    x = oracle.sample(samples // 2, float(fine[0])).repeat(2, 1)
    paths = Paths(fine, (samples // 2, x.shape[1]), kappa)
    truth = paths.end(ito_taylor, oracle, x, len(fine) - 1)

    def error(entry: Entry, n: int) -> float:
        return (paths.end(entry.sampler, oracle, x, n, entry.draws) - truth).norm(dim=1).mean().item()

    return {name: (counts, [error(entry, n) for n in counts]) for name, entry in STOCHASTIC.items()}


def weak(phi: Callable[[Any], Any], schedule: Callable[[int], Tensor], counts: list[int]) -> Table:
    """Error of E phi at the end of the schedule, by quadrature: nothing is sampled."""
    oracle, table = on_a_line(), {}
    exact = expectation(phi, ito_taylor, oracle, schedule(counts[0])[-1:])
    for name, entry in STOCHASTIC.items():
        # A step of the others, given the state, is not Gaussian (stochastic Heun) or needs more than the state.
        if entry.sampler not in (stochastic_heun, dpmpp_2m_sde):
            errors = [abs(expectation(phi, entry.sampler, oracle, schedule(n)) - exact) for n in counts]
            table[name] = (counts, errors)
    return table


def deterministic(counts: list[int]) -> Table:
    """Mean distance to the fine solution of the ODE."""
    oracle = anisotropic(2)
    x = oracle.sample(200, 2.0, generator=torch.Generator().manual_seed(0))

    def end(sampler: Sampler, n: int) -> Tensor:
        levels = geometric(2.0, 0.3, n)
        *_, state, _ = sampler(oracle, x, torch.cat([levels, levels.new_zeros(1)]))
        return state

    truth = end(heun, 4096)
    return {
        name: (counts, [(end(sampler, n) - truth).norm(dim=1).mean().item() for n in counts])
        for name, sampler in DETERMINISTIC.items()
    }


def cost(n: int = 40) -> None:
    print(f"\nEvaluations of {n} steps: plain, dual")
    for name, sampler in {**DETERMINISTIC, **{k: v.sampler for k, v in STOCHASTIC.items()}}.items():
        denoise = counted(on_a_line())
        last(sampler(denoise, torch.ones(1, 1).double(), karras_sigmas(n)))
        print(f"  {name:30s} {denoise.nfe:3d} {denoise.jvp:3d}")


def draw(tables: dict[str, Table], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tables), figsize=(5 * len(tables), 4), squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        for name, (counts, errors) in table.items():
            ax.loglog(counts, errors, marker="o", markersize=3, label=name)
        ax.set(title=title, xlabel="steps", ylabel="error")
        ax.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path)
    print(f"\n{path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, help="also draw the tables into this file")
    options = parser.parse_args()
    counts = [8, 16, 32, 64, 128]
    line = torch.linspace(2.0, 0.3, 513, dtype=torch.float64)
    tables = {
        "ODE, 2-D mixture, sigma 2 to 0.3": deterministic(counts),
        "strong, 1-D mixture, uniform sigma 2 to 0.3": strong(on_a_line(), line, counts, 8000),
        "strong, kappa = 0.5": strong(on_a_line(), line, counts, 8000, kappa=0.5),
        "strong, 2-D anisotropic mixture": strong(anisotropic(2), geometric(2.0, 0.3, 512), counts, 2000),
        "strong, 8-D anisotropic mixture": strong(anisotropic(8), geometric(2.0, 0.3, 512), counts, 2000),
        "weak cos 2x, geometric sigma 2 to 0.3": weak(
            lambda x: np.cos(2 * x), partial(geometric, 2.0, 0.3), [16, 32, 64, 128, 256]
        ),
        "E x^2, sigma 20 to 0.02, rho 7": weak(
            np.square, lambda n: karras_sigmas(n + 1, sigma_min=0.02, sigma_max=20)[:-1], [10, 20, 40, 80]
        ),
    }
    for title, table in tables.items():
        show(title, table)
    cost()
    if options.figure:
        draw(tables, options.figure)


if __name__ == "__main__":
    main()
