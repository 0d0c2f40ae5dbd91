"""Inverse problems measured: bias over levels, the solver's overhead, and solvers side by side at equal evaluations.

`python -m benchmarks inverse levels` prints the errors of mean and covariance on Gaussian toys, exactly, without sampling.
`python -m benchmarks inverse overhead` times PnP-GD of 100 images of 64x64 with 49 calls against 49 batched evaluations.
`python -m benchmarks inverse table --model TEACHER [--student NCVSD] [--data digits]` restores the first images by every
solver on five tasks: PSNR, SSIM, LPIPS where its weights can be had, seconds, and network evaluations, in one run.
`python -m benchmarks inverse loop --reference NCVSD` runs PnP-GD with NCVSD's settings of Gaussian deblurring beside NCVSD's.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.measure import Table, alternate, clock, compared
from fewstep import inverse
from fewstep.core.codec import Pixels
from fewstep.core.conditional import GenerativeDenoiser
from fewstep.core.denoiser import Denoiser, lay_out
from fewstep.core.noise import SeededNoise
from fewstep.core.oracle import GaussianDenoiser
from fewstep.data import images
from fewstep.distill.conditional import generative
from fewstep.inverse import BALANCED, PUBLISHED, Likelihood, averaged, balanced_sigmas, pnp_gd, published_sigmas
from fewstep.inverse.metrics import pair_measures
from fewstep.inverse.pnp_gd import PnPPreset, named_preset
from fewstep.inverse.posterior import measure, sample_posterior, seed_of
from fewstep.inverse.solver import Solver, fitted
from fewstep.inverse.tasks import TASKS
from fewstep.io.export import upstream_state_dict
from fewstep.io.model_folder import load
from fewstep.metrics.image import CONVENTIONS
from fewstep.nets.edm2 import EDM2UNet
from fewstep.nets.sizes import EDM2_SIZES
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.runtime.distributed import device
from fewstep.runtime.precision import fast_dtype
from fewstep.samplers import last

F64 = torch.float64
CORRELATIONS, NOISES = (0.3, 0.6, 0.8, 0.95), (0.05, 0.2, 0.5)
FIVE = ("box_inpainting", "gaussian_deblur", "motion_deblur", "super_resolution", "phase_retrieval")


class Impulses:
    """Noise whose row 0 is zero and whose other rows have a one in one coordinate of one draw: an affine map's matrix."""

    def __init__(self, d: int, draws: int) -> None:
        self.d, self.rows, self.begin = d, 1 + d * draws, 1

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[self.begin : self.begin + self.d] = torch.eye(self.d, dtype=x.dtype).view(self.d, *x.shape[1:])
        self.begin += self.d
        return out


def toy_error(sigmas: Tensor, correlation: float, sigma_y: float, coupling: Any, persistence: float) -> Tensor:
    """Largest errors of the posterior's mean and covariance: two pixels of unit deviation, the first measured as 1."""
    covariance = torch.tensor([[1, correlation], [correlation, 1]], dtype=F64)
    prior = GaussianDenoiser(torch.zeros(1, 1, 2, dtype=F64), covariance)
    op = inverse.Inpainting(torch.tensor([[1.0, 0.0]]), (1, 1, 2))
    noise = Impulses(2, 2 * len(sigmas))

    def draw(u: Tensor, sigma: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(
            torch.linalg.inv(torch.linalg.inv(covariance) + torch.eye(2, dtype=F64) / sigma**2)
        )
        return prior(u, sigma) + noise(u) @ factor.T

    x = sigmas[0] * noise(torch.zeros(noise.rows, 1, 1, 2, dtype=F64))
    likelihood = Likelihood(op, torch.ones(noise.rows, 1, 1, 2, dtype=F64), sigma_y, coupling)
    out = last(pnp_gd(draw, likelihood, x, sigmas, persistence=persistence, noise=noise)).flatten(1)
    spread = out[1:] - out[0]
    A = torch.tensor([[1, 0]], dtype=F64)
    mean, exact = prior.posterior(A, torch.ones(1, dtype=F64), sigma_y).moments()
    return torch.stack([(out[0] - mean.flatten()).abs().max(), (spread.T @ spread - exact).abs().max()])


def levels() -> Table:
    """The error of the mean and of the covariance, worst and mean over twelve toys."""
    kinds: dict[str, tuple[Callable[[int], Tensor], Any, float]] = {
        "published": (lambda n: published_sigmas(n + 1), "split", 0.0),
        "balanced levels": (lambda n: balanced_sigmas(n, sigma_min=0.02), "split", 0.0),
        "and tight coupling": (lambda n: balanced_sigmas(n), "tight", 0.0),
        "and persistence (balanced)": (lambda n: balanced_sigmas(n), BALANCED.coupling, BALANCED.persistence),
    }
    body = []
    for name, (make, coupling, persistence) in kinds.items():
        for n in (25, 49, 99, 199, 499):
            found = torch.stack([toy_error(make(n), c, s, coupling, persistence) for c in CORRELATIONS for s in NOISES])
            worst, mean = found.amax(0), found.mean(0)
            body.append([name, str(n), *(f"{v:.4f}" for v in (worst[0], mean[0], worst[1], mean[1]))])
    heads = ["settings", "calls", "mean, worst", "mean, average", "covariance, worst", "average"]
    return Table("Errors on Gaussian toys", [dict(zip(heads, row, strict=True)) for row in body])


def overhead(channels: int, repeats: int, batch: int, tasks: list[str]) -> Table:
    """CPU or GPU seconds of PnP-GD and of its evaluations alone, alternating in one process; the ratio of the medians."""
    torch.manual_seed(0)
    here = device()
    net = SongUNet(SongConfig(64, label_dim=0, model_channels=channels, channel_mult=(1, 2, 2), num_blocks=1))
    student = generative(Denoiser(net)).to(here).eval().requires_grad_(False)
    shape = student.shape
    body = []
    for task in tasks:
        op = TASKS[task](shape).to(here)
        y = torch.randn(batch, *op.A(torch.zeros(1, *shape, device=here)).shape[1:], device=here) * 0.3
        preset = fitted(BALANCED, op)
        sigmas = preset.sigmas(49, 0.05)

        def alone(y: Tensor = y, sigmas: Tensor = sigmas) -> None:
            x = torch.randn(len(y), *shape, device=here)
            with torch.no_grad():
                for sigma in sigmas[:-1]:
                    student(x, sigma)

        def solved(y: Tensor = y, sigmas: Tensor = sigmas, op: Any = op, preset: PnPPreset = preset) -> None:
            noise = SeededNoise(range(len(y)))
            x = sigmas[0].float() * noise(torch.zeros(len(y), *shape, device=here))
            likelihood = Likelihood(op, y, 0.05, preset.coupling)
            bound = partial(student, noise=noise)
            last(pnp_gd(bound, likelihood, x, sigmas, persistence=preset.persistence, noise=noise))

        a, s = (median(v) for v in alternate({"alone": alone, "solved": solved}, repeats).values())
        body.append([task, f"{a:.2f}", f"{s:.2f}", f"{100 * (s / a - 1):.1f} %"])
    parameters = sum(p.numel() for p in student.parameters())
    title = f"{batch} images of 64x64, 49 calls of a student with {parameters:,} parameters, on {here}"
    heads = ["task", "evaluations, s", "PnP-GD, s", "overhead"]
    return Table(title, [dict(zip(heads, row, strict=True)) for row in body])


def loop(given: argparse.Namespace) -> Iterator[Table]:
    """PnP-GD with NCVSD's settings of Gaussian deblurring, ours and theirs: images in float32, on the CPU, and seconds."""
    torch.manual_seed(0)
    here, preset = device(), PUBLISHED["gaussian_deblur"]
    config = dataclasses.replace(EDM2_SIZES["edm2-img64-xs"], model_channels=given.channels, label_dim=0)
    student = generative(Denoiser(EDM2UNet(config))).eval().requires_grad_(False)
    for p in student.parameters():
        p.add_(0.3 * torch.rand_like(p))  # no gain and no share of the observation is 0
    theirs = reference.ncvsd_student(given.reference, config).eval().requires_grad_(False)
    theirs.load_state_dict(upstream_state_dict(student))
    op = inverse.CircularBlur(
        inverse.gaussian_kernel(3.0), student.shape, (-1, -1)
    )  # theirs moves the image by a pixel
    y = op(torch.rand(given.batch, *student.shape) * 2 - 1) + 0.05 * torch.randn(given.batch, *student.shape)
    sigmas = preset.sigmas(given.nfe, 0.05)
    ema = (preset.ema_below, preset.ema_decay)
    options: dict[str, Any] = {"evaluations": given.nfe, "beta": preset.beta, "ema": ema}

    def solved() -> Tensor:
        likelihood = Likelihood(op, y, 0.05, preset.coupling).measured(preset.beta)
        states = pnp_gd(student, likelihood, sigmas[0].to(y) * torch.randn_like(y), sigmas)
        return last(averaged(states, sigmas, below=ema[0], decay=ema[1]))

    answers: list[Tensor] = []
    for solve in (reference.deblur(given.reference, theirs, y, **options), solved):
        torch.manual_seed(1)
        answers.append(solve())
    gap = (answers[0] - answers[1]).abs() / answers[0].std()
    found = {"": "difference in deviations", "largest": gap.max().item(), "mean": gap.mean().item()}
    yield Table("Images of the same weights and draws in float32", [found])
    student.dtype = fast_dtype()
    lay_out(student.to(here))
    theirs.to(here)
    op, y = op.to(here), y.to(here)
    title = f"PnP-GD of {given.nfe} evaluations, {given.channels} channels, batch {given.batch}, {student.dtype}"
    steps = {"reference": reference.deblur(given.reference, theirs, y, **options), "fewstep": solved}
    yield compared(title, steps, given.repeats, images=given.batch)


def contenders(
    teacher: Denoiser, student: GenerativeDenoiser | None, task: str, nfe: int, prior_steps: int
) -> dict[str, tuple[Denoiser, Solver]]:
    published, balanced = named_preset("published", task), BALANCED
    found: dict[str, tuple[Denoiser, Solver]] = {}
    if student is not None:
        found["PnP-GD published, student"] = (student, Solver("pnp_gd", published, nfe))
        found["PnP-GD balanced, student"] = (student, Solver("pnp_gd", balanced, nfe))
    return found | {
        "PnP-GD published, teacher": (teacher, Solver("pnp_gd", published, nfe, prior_steps)),
        "PnP-GD balanced, teacher": (teacher, Solver("pnp_gd", balanced, nfe, prior_steps)),
        "DPS": (teacher, Solver("dps", evaluations=nfe)),
        "DAPS": (teacher, Solver("daps", evaluations=nfe, prior_steps=5)),
        "DiffPIR": (teacher, Solver("diffpir", evaluations=nfe, options={"trust": 1.0})),
    }


def compare(
    model: Path, student: Path | None, data: str, n: int, nfe: int, prior_steps: int, tasks: list[str]
) -> Table:
    """Every solver on every task, the same measurements and seeds, one sample each."""
    here = device()
    teacher = load(model, device=here)
    draws = None if student is None else load(student, device=here)
    if draws is not None and not isinstance(draws, GenerativeDenoiser):
        raise ValueError(f"{student} is no generative denoiser; train one with an ncvsd recipe")
    source = images(data)
    truth = Pixels().encode(torch.stack([torch.from_numpy(source[i].copy()) for i in range(n)])).to(here)
    has_labels = source.labels is not None and teacher.num_classes
    label = torch.as_tensor(source.labels[:n], device=here) if has_labels else None  # pyright: ignore[reportOptionalSubscript]
    named, notes = pair_measures(teacher.shape, truth=True)
    body = []
    for task in tasks:
        op = TASKS[task](teacher.shape).to(here)
        y = measure(op, truth, 0.05, [seed_of(0, i) for i in range(n)])
        for name, (denoiser, solver) in contenders(teacher, draws, task, nfe, prior_steps).items():
            began = clock()
            seeds = [seed_of(0, i, 0) for i in range(n)]
            own = label if denoiser.num_classes else None
            x0 = sample_posterior(denoiser, op, y, 0.05, seeds, label=own, solver=solver).float()
            seconds = clock() - began
            scores = [f"{compute(x0, truth).mean():.3f}" for compute in named.values()]
            body.append([task, name, str(solver.nfe(denoiser)), *scores, f"{seconds:.1f}"])
            print(*body[-1], flush=True)
    labels = "their labels given" if has_labels else "no labels"
    about = [
        f"{n} images of {data}, sigma_y 0.05, one sample each, {labels}; DPS also takes a backward pass for each NFE; "
        "seconds are the processor's, or the wall's with a GPU",
        *(f"{name}: {CONVENTIONS[name]}" for name in named),
        *(f"{name}: {note}" for name, note in notes.items()),
    ]
    heads = ["task", "solver", "NFE", *named, "seconds"]
    return Table("\n".join(about), [dict(zip(heads, row, strict=True)) for row in body])


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["levels", "overhead", "table", "loop"])
    parser.add_argument("--channels", type=int, default=32, help="width of the network of `overhead` and `loop`")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=100, help="images of `overhead` and `loop`")
    parser.add_argument("--reference", type=Path, help="checkout of NCVSD, for `loop`")
    parser.add_argument("--model", type=Path, help="teacher of `table`")
    parser.add_argument("--student", type=Path, help="NCVSD student of `table`")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--num", type=int, default=100, help="images of `table`")
    parser.add_argument("--nfe", type=int, default=49)
    parser.add_argument("--prior-steps", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(FIVE))


def run(given: argparse.Namespace) -> Iterator[Table]:
    tasks = given.tasks.split(",")
    if given.what == "levels":
        yield levels()
    elif given.what == "overhead":
        yield overhead(given.channels, given.repeats, given.batch, tasks)
    elif given.what == "loop":
        if given.reference is None:
            raise SystemExit("loop needs --reference")
        yield from loop(given)
    elif given.model is None:
        raise SystemExit("table needs --model")
    else:
        yield compare(given.model, given.student, given.data, given.num, given.nfe, given.prior_steps, tasks)
