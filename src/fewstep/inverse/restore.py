"""From measurements to posterior samples: tasks, and solvers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fewstep import inverse
from fewstep.core.conditional import GenerativeDenoiser
from fewstep.core.denoiser import Denoise, Denoiser
from fewstep.core.noise import Noise, karras_sigmas
from fewstep.inverse import Likelihood, Operator
from fewstep.inverse.operator import Decomposed
from fewstep.inverse.pnp_gd import BALANCED, PUBLISHED, PnPPreset
from fewstep.runtime.precision import tf32
from fewstep.sample import SeededNoise, check_label
from fewstep.samplers import last

Shape = tuple[int, int, int]
SolverName = Literal["pnp_gd", "dps", "daps", "diffpir"]
NFE = 49


def blur_std(shape: Shape) -> float:
    """NCVSD's deviation of 3 pixels of 256, for images of any size; at least 0.75 pixels."""
    return max(3 * min(shape[1:]) / 256, 0.75)


def motion_size(shape: Shape) -> int:
    """NCVSD's kernel of 61 pixels of 256, for images of any size; odd, at least 5 where it fits."""
    return max(round(61 * min(shape[1:]) / 256) // 2 * 2 + 1, min(5, min(shape[1:]) // 2 * 2 - 1))


def gaussian_blur(shape: Shape, shift: tuple[int, int] = (0, 0)) -> Operator:
    return inverse.CircularBlur(inverse.gaussian_kernel(min(blur_std(shape), min(shape[1:]) / 8)), shape, shift)


def motion_blur(shape: Shape, shift: tuple[int, int] = (0, 0)) -> Operator:
    return inverse.CircularBlur(inverse.motion_kernel(motion_size(shape)), shape, shift)


BLURS = {"gaussian_deblur": gaussian_blur, "motion_deblur": motion_blur}
BLURS |= {f"{task}_circ": blur for task, blur in BLURS.items()}
"""Circular blurs; NCVSD's code calls them `gaussian_deblur_circ` and `motion_deblur_circ`."""
TASKS: dict[str, Callable[[Shape], Operator]] = {
    "box_inpainting": lambda s: inverse.Inpainting(inverse.box_mask(*s[1:]), s),
    "random_inpainting": lambda s: inverse.Inpainting(inverse.random_mask(*s[1:]), s),
    **BLURS,
    "super_resolution": lambda s: inverse.super_resolution(s, 4 if min(s[1:]) >= 32 else 2),
    "phase_retrieval": inverse.PhaseRetrieval,
    "colorization": inverse.colorization,
    "quantization": inverse.Quantization,
    "jpeg": inverse.JPEG,
}
"""The operator of each task, for images of one shape; sizes in pixels scale with the image."""


@dataclass(frozen=True)
class Solver:
    """How a measurement is inverted. `evaluations` of the network for each sample, at most.

    preset: of pnp_gd. prior_steps: evaluations of an ordinary denoiser for one draw (pnp_gd) or one estimate (daps).
    options: of the solver function, such as weight, trust, zeta, persistence.
    """

    name: SolverName = "pnp_gd"
    preset: PnPPreset = BALANCED
    evaluations: int = NFE
    prior_steps: int = 3
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in get_args(SolverName):
            raise ValueError(f"no solver is called {self.name!r}; there are {', '.join(get_args(SolverName))}")

    def calls(self, denoiser: Denoiser) -> int:
        """Network evaluations for one draw or estimate of x0."""
        if isinstance(denoiser, GenerativeDenoiser) or self.name in ("dps", "diffpir"):
            return 1
        return self.prior_steps

    def levels(self, denoiser: Denoiser) -> int:
        """Noise levels that the evaluations allow."""
        if self.evaluations < self.calls(denoiser):
            raise ValueError(
                f"{self.evaluations} evaluations are fewer than one draw of x0 takes, {self.calls(denoiser)}"
            )
        return self.evaluations // self.calls(denoiser)

    def nfe(self, denoiser: Denoiser) -> int:
        """Network evaluations for each sample."""
        return self.levels(denoiser) * self.calls(denoiser)

    def check(self, denoiser: Denoiser) -> None:
        draws = isinstance(denoiser, GenerativeDenoiser)
        if denoiser.levels is not None and not draws:
            raise ValueError(
                "this generator makes images from its own noise levels alone; restoration needs a teacher, which denoises "
                "at every level, or an NCVSD student"
            )
        if draws and self.name != "pnp_gd":
            raise ValueError(
                f"{self.name} needs a denoiser that answers with the mean, and this one draws; take pnp_gd"
            )

    def states(
        self, denoiser: Denoiser, label: Tensor | None, likelihood: Likelihood, z: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """The solver's states for unit noise `z` (B, C, H, W); the last one is the restoration."""
        n, sigma_y = self.levels(denoiser), likelihood.sigma_y
        draws = isinstance(denoiser, GenerativeDenoiser)
        denoise: Denoise = partial(denoiser, label=label, **({"noise": noise} if draws else {}))
        if self.name == "pnp_gd":
            if not draws:
                denoise = inverse.drawn(denoise, self.prior_steps, noise=noise)
            p = fitted(self.preset, likelihood.operator)
            options = {"persistence": p.persistence} | self.options
            sigmas = p.sigmas(n, sigma_y)
            fit = Likelihood(likelihood.operator, likelihood.y, sigma_y, p.coupling).measured(p.beta)
            states = inverse.pnp_gd(denoise, fit, sigmas[0].to(z) * z, sigmas, noise=noise, **options)
            return inverse.averaged(states, sigmas, below=p.ema_below, decay=p.ema_decay) if p.ema_decay else states
        low, high = max(0.01, denoiser.sigma_min), min(80.0, denoiser.sigma_max)
        sigmas = karras_sigmas(n, sigma_min=low, sigma_max=high) if n > 1 else torch.tensor([high, 0.0]).double()
        solve = {"dps": inverse.dps, "daps": inverse.daps, "diffpir": inverse.diffpir}[self.name]
        if self.name == "daps":
            denoise = inverse.solved(denoise, self.prior_steps)
        return solve(denoise, likelihood, sigmas[0].to(z) * z, sigmas, noise=noise, **self.options)

    def describe(self, denoiser: Denoiser) -> dict[str, Any]:
        preset = asdict(self.preset) if self.name == "pnp_gd" else {}
        preset = {"preset": preset.pop("name"), "preset_settings": preset} if preset else {}
        options = {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in self.options.items()}
        prior = {} if self.calls(denoiser) == 1 else {"prior_steps": self.prior_steps}
        return {"solver": self.name, **preset, **prior, "nfe": self.nfe(denoiser), "options": options}


def fitted(preset: PnPPreset, operator: Operator) -> PnPPreset:
    """The preset as an operator can take it: tight coupling and persistence need a known decomposition."""
    if isinstance(operator, Decomposed) or preset.coupling == "split":
        return preset
    return replace(preset, coupling="split", persistence=0.0, sigma_min=preset.sigma_min or 0.02)


def named_preset(name: str, task: str) -> PnPPreset:
    """`balanced`, or `published`: NCVSD's for this task."""
    if name == "balanced":
        return BALANCED
    if name != "published":
        raise ValueError(f"the presets are balanced and published; got {name!r}")
    if task not in PUBLISHED:
        raise ValueError(f"nothing is published for the task {task}; there is {', '.join(PUBLISHED)}, or take balanced")
    return PUBLISHED[task]


def seed_of(seed: int, image: int, sample: int | None = None) -> int:
    """The seed of one sample of one image, or of its measurement; no two coincide by arithmetic."""
    words = [seed, image] if sample is None else [seed, image, sample + 1]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def measure(operator: Operator, x: Tensor, sigma_y: float, seeds: Sequence[int]) -> Tensor:
    """y = A(x) + sigma_y eps for images x (B, C, H, W), the noise of each from its own seed."""
    with torch.no_grad():
        y = operator(x)
    return y + sigma_y * SeededNoise(seeds)(y)


@tf32(False)
def restore(
    denoiser: Denoiser,
    operator: Operator,
    y: Tensor,
    sigma_y: float,
    seeds: Sequence[int],
    *,
    label: Tensor | None = None,
    solver: Solver = Solver(),
) -> Tensor:
    """One posterior sample (B, C, H, W), in the units of the denoiser, for each measurement in `y` (B, ...).

    label: class indices (B,), None for no class. Each sample depends on its own seed and measurement only. Every draw is
    random; the mean over many seeds estimates the posterior mean.
    """
    solver.check(denoiser)
    check_label(denoiser, label, len(y))
    if operator.shape != denoiser.shape:
        raise ValueError(f"the operator takes images of shape {operator.shape}, the model has {denoiser.shape}")
    noise = SeededNoise(seeds)
    z = noise.draw(denoiser.shape, torch.float32).to(y.device)
    x0 = last(solver.states(denoiser, label, Likelihood(operator, y, sigma_y), z, noise))
    if not x0.isfinite().all():
        bad = [seed for seed, image in zip(seeds, x0, strict=True) if not image.isfinite().all()]
        raise ValueError(f"the restorations of the seeds {bad} are not finite; check the model, or take more levels")
    return x0
