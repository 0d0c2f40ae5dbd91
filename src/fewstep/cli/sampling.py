"""The options of `sample` and `eval` that say how a model makes images; EDM's names where they exist."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fewstep.core.conditional import GenerativeDenoiser
    from fewstep.core.denoiser import Denoiser
    from fewstep.sample import Guidance, Plan


@dataclass(frozen=True)
class Sampling:
    """How a model makes images.

    Attributes:
        sampler: euler, heun, churn, dpmpp_2m, ancestral, taylor2, ito_taylor, second_order_sde, ... or mine.py:function;
            a generator's own way, heun or (with S_churn) churn if left out.
        steps: of the sampler; a generator's own if left out, else 18, or 32 for EDM2's networks.
        levels: the noise levels themselves, largest first, such as 2.5,0.8; instead of steps and range.
        ts: NCVSD's noise levels by index, closed by 39, such as 10,22,39 for two steps; instead of levels.
        sigma_min: lowest noise level (0.002, or that of the network).
        sigma_max: highest noise level (80, or that of the network).
        rho: exponent of the noise levels.
        S_churn: amount of fresh noise.
        S_min: lowest level that gets fresh noise.
        S_max: highest level that gets fresh noise; of second_order_sde, the level down to which steps are of second order.
        S_noise: inflation of the fresh noise.
        solver: of EDM's general sampler.
        disc: its discretization.
        schedule: its sigma(t).
        scaling: its s(t).
        kappa: stochasticity of ito_taylor; 0 is the ODE, 1 the reverse SDE.
        randn_like: noise of ito_taylor and second_order_sde; ddb draws the exact pair, db the simplified one.
        guidance: scale of guidance; 1 is none.
        guide: model folder of a weaker model to steer away from; the model without its class if left out.
        guidance_min: lowest noise level that is guided.
        guidance_max: highest noise level that is guided.
        dtype: in which the network computes; auto is bfloat16 where the hardware has it, several times as fast.
        vae: for a model of latents, the folder of its VAE (diffusers' AutoencoderKL) or the name on the hub; what the model
            names if left out.
        tf32: in float32, GPUs may round the factors of products to 10 bits.
        compile: compile the blocks of the network first (torch.compile); slow to start, then quicker on GPUs.
    """

    sampler: str | None = None
    steps: int | None = None
    levels: str | None = None
    ts: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    solver: Literal["euler", "heun"] | None = None
    disc: Literal["vp", "ve", "iddpm", "edm"] | None = None
    schedule: Literal["vp", "ve", "linear"] | None = None
    scaling: Literal["vp", "none"] | None = None
    kappa: float | None = None
    randn_like: Literal["db", "ddb"] | None = None
    guidance: float = 1.0
    guide: Path | None = None
    guidance_min: float = 0.0
    guidance_max: float = math.inf
    dtype: Literal["float32", "auto", "bfloat16", "float16"] = "float32"
    vae: str | None = None
    tf32: bool = False
    compile: bool = False

    @property
    def general(self) -> dict[str, str]:
        """The choices for EDM's general sampler that were given."""
        choices = {
            "solver": self.solver,
            "discretization": self.disc,
            "schedule": self.schedule,
            "scaling": self.scaling,
        }
        return {k: v for k, v in choices.items() if v is not None}

    @property
    def options(self) -> dict[str, Any]:
        """The options for a sampler that differ from their defaults."""
        names = ("S_churn", "S_min", "S_max", "S_noise", "kappa", "randn_like")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Sampling, name)}

    def load(self, path: Path) -> Denoiser:
        """The model on this process's device, in the precision asked for, compiled if asked for."""

        from fewstep.io.model_folder import load
        from fewstep.nets.execution import compile_blocks
        from fewstep.runtime.distributed import device

        denoiser = load(path, device=device(), dtype=self.dtype, vae=self.vae)
        if self.compile:
            compile_blocks(denoiser)
        return denoiser

    def plan(self, denoiser: Denoiser) -> Plan:
        """The plan for one model; options that would have no effect are refused."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"--{field.name.replace('_', '-')} must be a number; got nan")
        from fewstep import samplers
        from fewstep.core.conditional import GenerativeDenoiser
        from fewstep.sample import default_plan

        draws = isinstance(denoiser, GenerativeDenoiser)
        if draws and self.sampler in (None, "posterior"):
            return dataclasses.replace(self.drawn(denoiser), guidance=self.guided())
        if draws and self.find() is not samplers.multistep and ":" not in str(self.sampler):
            raise ValueError(
                f"this model draws images where {self.sampler} needs their mean; use posterior, multistep, or leave the "
                "sampler out"
            )
        if self.ts is not None or (self.sampler == "posterior" and not draws):
            raise ValueError(
                "--ts and --sampler posterior are for models that draw from the posterior (NCVSD), which this is not; "
                "use --levels or --steps"
            )
        ranged = [name for name in ("sigma_min", "sigma_max", "rho") if getattr(self, name) != getattr(Sampling, name)]
        given = [
            *(name for name in ("solver", "disc", "schedule", "scaling") if getattr(self, name)),
            *self.options,
            *ranged,
        ]
        own = self.sampler is None and self.levels is None and not given
        if denoiser.levels is not None and self.sampler is None and given:
            raise ValueError(
                f"{', '.join(f'--{name}' for name in given)} would have no effect: this model generates from its own "
                "noise levels. Leave the option out, or name a --sampler"
            )
        plan = default_plan(denoiser, self.steps) if own else self.chosen(denoiser)
        return dataclasses.replace(plan, guidance=self.guided())

    def drawn(self, denoiser: GenerativeDenoiser) -> Plan:
        """A plan for a model that draws from the posterior: its own levels, or those given."""
        import torch

        from fewstep.sample import Plan, default_plan
        from fewstep.samplers import indexed_sigmas, posterior

        network = {"dtype": "float32", "vae": None, "tf32": False, "compile": False}
        others = dataclasses.replace(
            self, sampler=None, steps=None, levels=None, ts=None, guidance=1.0, guide=None, **network
        )
        chosen = [name for name in ("steps", "levels", "ts") if getattr(self, name) is not None]
        given = [f.name for f in dataclasses.fields(others) if getattr(others, f.name) != f.default]
        if given or len(chosen) > 1:
            raise ValueError(
                "this model draws from the posterior: it takes one of --steps, --levels and --ts, and no option of other "
                f"samplers; got {', '.join(f'--{name}' for name in given or chosen)}"
            )
        if self.levels is not None:
            first = torch.tensor([denoiser.sigma_init], dtype=torch.float64)
            return Plan(posterior, torch.cat([first, levels(self.levels)]))
        if self.ts is not None:
            return Plan(posterior, indexed_sigmas(indices(self.ts), sigma_init=denoiser.sigma_init))
        return default_plan(denoiser, self.steps)

    def chosen(self, denoiser: Denoiser) -> Plan:
        """A plan of a named sampler on chosen noise levels."""
        from fewstep import samplers
        from fewstep.sample import Plan

        steps = denoiser.sampling.steps if self.steps is None else self.steps
        bounds = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        if self.general:
            if self.sampler is not None or self.levels is not None:
                raise ValueError(
                    "--solver, --disc, --schedule and --scaling are EDM's general sampler; leave other samplers out"
                )
            if self.disc not in (None, "edm") and self.rho != Sampling.rho:
                raise ValueError(f"--rho has no effect with --disc {self.disc}; it shapes the levels of --disc edm")
            options = self.taken(samplers.Ablation, "EDM's general sampler")
            general = samplers.Ablation(**self.general, **bounds, **options, precondition=denoiser.precondition)
            return Plan.of(denoiser, general, general.sigmas(steps))
        sampler = self.find()
        options = self.taken(sampler, f"the sampler {sampler.__name__}")
        if self.levels is not None:
            if self.steps is not None or any(v is not None for v in bounds.values()) or self.rho != Sampling.rho:
                raise ValueError(
                    "--levels are the noise levels themselves; leave --steps, --sigma-min, --sigma-max and --rho out"
                )
            return Plan.of(denoiser, sampler, levels(self.levels), **options)
        limits = {k: v for k, v in bounds.items() if v is not None}
        return Plan.of(denoiser, sampler, samplers.edm_sigmas(denoiser, steps, rho=self.rho, **limits), **options)

    def taken(self, sampler: Callable[..., Any], name: str) -> dict[str, Any]:
        """The options as the sampler's own; those that would have no effect are refused."""
        known, options = inspect.signature(sampler).parameters, self.options
        for option in options:
            if not takes(sampler, option):
                takers = sorted(taker for taker, function in named_samplers().items() if takes(function, option))
                raise ValueError(f"--{option} has no effect with {name}; the samplers {', '.join(takers)} take it")
            if option in ("S_min", "S_max", "S_noise") and "S_min" in known and not self.S_churn:
                raise ValueError(f"--{option} has no effect without --S_churn, the amount of fresh noise")
        if "randn_like" in options and "randn_like" not in known:
            options["noise_pair"] = {"db": "simplified", "ddb": "exact"}[options.pop("randn_like")]
        if "rho" in known:
            options["rho"] = self.rho
        return options

    def find(self) -> Callable[..., Any]:
        """The sampler by name: one of `fewstep.samplers`, or a function in a file."""
        from fewstep import samplers
        from fewstep.runtime.own import load_file

        if self.sampler is None:
            if self.levels is not None:
                return samplers.multistep
            return samplers.churn if self.S_churn else samplers.heun
        file, _, name = self.sampler.rpartition(":")
        if file:
            return load_file(Path(file), name)
        known = named_samplers()
        if name not in known:
            raise ValueError(
                f"there is no sampler {name!r}; there are {', '.join(sorted(known))}, and mine.py:function"
            )
        return known[name]

    def guided(self) -> Guidance | None:
        from fewstep.sample import Guidance

        interval = (self.guidance_min, self.guidance_max)
        if self.guidance == 1:
            if self.guide is not None or interval != (0.0, math.inf):
                raise ValueError(
                    "--guide, --guidance-min and --guidance-max have no effect without --guidance SCALE, such as 1.5"
                )
            return None
        if not 0 <= interval[0] < interval[1]:
            raise ValueError(
                f"guidance needs 0 <= --guidance-min < --guidance-max; got {interval[0]} and {interval[1]}"
            )
        guide = None if self.guide is None else dataclasses.replace(self, vae=None).load(self.guide)
        return Guidance(self.guidance, guide, interval)


def indices(text: str) -> list[int]:
    """Indices of noise levels such as "10,22,39"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f'--ts are indices of noise levels, such as "10,22,39"; got {text!r}') from error


def named_samplers() -> dict[str, Callable[..., Any]]:
    """The samplers of `fewstep.samplers` by their names."""
    from fewstep import samplers

    return {
        name: f for name, f in vars(samplers).items() if inspect.isfunction(f) and takes(f, "denoise", "x", "sigmas")
    }


SPELLED = {"randn_like": "noise_pair"}
"""Options that some samplers call otherwise."""


def takes(sampler: Callable[..., Any], *options: str) -> bool:
    """Whether a sampler has all of these options, under the command line's name or its own."""
    known = inspect.signature(sampler).parameters
    return all(option in known or SPELLED.get(option) in known for option in options)


def levels(text: str) -> Any:
    """Noise levels such as "2.5,0.8", closed by a zero."""
    import torch

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f'noise levels are numbers, largest first, such as "2.5,0.8"; got {text!r}') from error
    if values[-1] != 0:
        values.append(0.0)
    return torch.tensor(values, dtype=torch.float64)
