"""The options of `sample` and `eval` that say how a model makes images; EDM's names where they exist."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser
    from fewstep.core.guidance import Guidance
    from fewstep.core.plan import Plan, Sampler


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
        guidance: scale of guidance; 1 means no guidance.
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
        """The plan for one model.

        Raises:
            ValueError: an option does not fit the model, or would have no effect.
        """
        from fewstep.sample import make_plan

        options = self.options()  # first, as it names the flag of a NaN
        return make_plan(denoiser, self.steps, sampler=self.chosen_sampler(), guidance=self.guided(), **options)

    def options(self) -> dict[str, Any]:
        """The options for `generate` that differ from their defaults."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"--{field.name.replace('_', '-')} must be a number; got nan")
        names = ("sigma_min", "sigma_max", "rho", "S_churn", "S_min", "S_max", "S_noise", "kappa", "randn_like")
        options = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Sampling, name)}
        if self.levels is not None:
            options["levels"] = levels(self.levels)
        if self.ts is not None:
            options["ts"] = indices(self.ts)
        if "randn_like" in options and self.sampler == "ito_taylor":  # which calls it otherwise
            options["noise_pair"] = {"db": "simplified", "ddb": "exact"}[options.pop("randn_like")]
        return options

    def chosen_sampler(self) -> str | Sampler | None:
        """The sampler by name, a function in a file, or EDM's general one."""
        choices: dict[str, Any] = {
            "solver": self.solver,
            "discretization": self.disc,
            "schedule": self.schedule,
            "scaling": self.scaling,
        }
        chosen = {name: value for name, value in choices.items() if value is not None}
        if chosen:
            if self.sampler is not None or self.levels is not None:
                raise ValueError(
                    "--solver, --disc, --schedule and --scaling are EDM's general sampler; leave other samplers out"
                )
            from fewstep.samplers import Ablation

            return Ablation(**chosen)
        file, _, name = (self.sampler or "").rpartition(":")
        if not file:
            return self.sampler
        from fewstep.runtime.own import load_file

        return load_file(Path(file), name)

    def guided(self) -> Guidance | None:
        """The guidance, None for none."""
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
        from fewstep.core.guidance import Guidance

        guide = None if self.guide is None else dataclasses.replace(self, vae=None).load(self.guide)
        return Guidance(self.guidance, guide, interval)


def indices(text: str) -> list[int]:
    """Indices of noise levels such as "10,22,39"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f'--ts are indices of noise levels, such as "10,22,39"; got {text!r}') from error


def levels(text: str) -> list[float]:
    """Noise levels such as "2.5,0.8"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f'noise levels are numbers, largest first, such as "2.5,0.8"; got {text!r}') from error
