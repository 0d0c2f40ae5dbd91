"""Which solver inverts a measurement, and with which settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise, karras_sigmas
from fewstep.inverse.daps import daps, estimate_by_ode
from fewstep.inverse.diffpir import diffpir
from fewstep.inverse.dps import dps
from fewstep.inverse.likelihood import Likelihood
from fewstep.inverse.operator import Decomposed, Operator
from fewstep.inverse.pnp_gd import BALANCED, PnPPreset, averaged, draw_by_sde, named_preset, pnp_gd

SolverName = Literal["pnp_gd", "dps", "daps", "diffpir"]
PresetName = Literal["published", "balanced"]
NFE = 49
WEIGHTS = {"dps": "weight", "diffpir": "trust"}
"""What `weight` is called in the solvers that have one."""


@dataclass(frozen=True)
class Solver:
    """The solver of an inverse problem and its settings.

    Args:
        name: "pnp_gd", "dps", "daps" or "diffpir".
        preset: preset of pnp_gd.
        evaluations: network evaluations for each sample, at most.
        prior_steps: evaluations by an ordinary denoiser for one draw (pnp_gd) or one estimate (daps).
        options: options of the solver function, such as weight, trust, zeta, persistence.

    Raises:
        ValueError: there is no such solver, or a number is less than 1.

    Example:
        >>> solver = fs.inverse.Solver("daps", evaluations=60, options={"radius": 0.4})
    """

    name: SolverName = "pnp_gd"
    preset: PnPPreset = BALANCED
    evaluations: int = NFE
    prior_steps: int = 3
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in get_args(SolverName):
            raise ValueError(f"there is no solver {self.name!r}; choose one of {', '.join(get_args(SolverName))}")
        for name, value in {"nfe": self.evaluations, "prior_steps": self.prior_steps}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")

    @classmethod
    def of(
        cls,
        name: SolverName,
        task: str,
        *,
        preset: PresetName = "published",
        nfe: int = NFE,
        prior_steps: int = 3,
        weight: float | None = None,
        **changes: float | None,
    ) -> Solver:
        """Return the settings of a solver for a task, as the command line has them.

        Args:
            name: name of the solver.
            task: the task whose published preset pnp_gd takes.
            preset: preset of pnp_gd, "published" or "balanced".
            nfe: network evaluations for each sample, at most.
            prior_steps: as of `Solver`.
            weight: the step of dps, the trust of diffpir.
            **changes: changes of pnp_gd's preset: beta, rho, sigma_min, sigma_max, ema_sigma, ema_decay; None keeps its value.

        Returns:
            The solver.

        Raises:
            ValueError: an option has no effect on this solver, or its value is not valid.
        """
        changes = {key: value for key, value in changes.items() if value is not None}
        if name != "pnp_gd" and changes:
            raise ValueError(f"{', '.join(changes)}: options of pnp_gd, which have no effect on {name}; leave them out")
        if weight is not None:
            if name not in WEIGHTS:
                raise ValueError(f"weight has no effect on {name}; leave it out")
            if not 0 < weight < float("inf"):
                raise ValueError(f"weight must be positive and finite; got {weight}")
            return cls(name, evaluations=nfe, prior_steps=prior_steps, options={WEIGHTS[name]: weight})
        if name != "pnp_gd":
            return cls(name, evaluations=nfe, prior_steps=prior_steps)
        if "rho" in changes and preset == "balanced":
            raise ValueError("rho has no effect on the preset balanced; leave it out, or use the preset published")
        if "ema_sigma" in changes:
            changes["ema_below"] = changes.pop("ema_sigma")
        return cls(name, replace(named_preset(preset, task), **changes), nfe, prior_steps)

    def calls(self, denoiser: Denoiser) -> int:
        """Return the number of network evaluations for one draw or estimate of x0."""
        if denoiser.draws or self.name in ("dps", "diffpir"):
            return 1
        return self.prior_steps

    def levels(self, denoiser: Denoiser) -> int:
        """Return for how many noise levels the evaluations suffice."""
        if self.evaluations < self.calls(denoiser):
            raise ValueError(
                f"nfe = {self.evaluations} is fewer than one draw of x0 takes with this model: {self.calls(denoiser)}"
            )
        return self.evaluations // self.calls(denoiser)

    def nfe(self, denoiser: Denoiser) -> int:
        """Return the number of network evaluations for each sample."""
        return self.levels(denoiser) * self.calls(denoiser)

    def check(self, denoiser: Denoiser) -> None:
        """Raise ValueError if this solver cannot restore with the denoiser."""
        if denoiser.levels is not None and not denoiser.draws:
            raise ValueError(
                "this generator makes images from its own noise levels only; restoration needs a teacher, which denoises "
                "at every level, or an NCVSD student"
            )
        if denoiser.draws and self.name != "pnp_gd":
            raise ValueError(
                f"{self.name} needs a denoiser that predicts the mean, and this model draws samples; use pnp_gd"
            )

    def states(
        self, denoiser: Denoiser, label: Tensor | None, likelihood: Likelihood, z: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the solver's states for unit noise `z` (B, C, H, W); the last one is the restoration."""
        n, sigma_y = self.levels(denoiser), likelihood.sigma_y
        denoise = denoiser.bind(label, noise)
        if self.name == "pnp_gd":
            if not denoiser.draws:
                denoise = draw_by_sde(denoise, self.prior_steps, noise=noise)
            p = fitted(self.preset, likelihood.operator)
            options = {"persistence": p.persistence} | self.options
            sigmas = p.sigmas(n, sigma_y)
            fit = Likelihood(likelihood.operator, likelihood.y, sigma_y, p.coupling).measured(p.beta)
            states = pnp_gd(denoise, fit, sigmas[0].to(z) * z, sigmas, noise=noise, **options)
            return averaged(states, sigmas, below=p.ema_below, decay=p.ema_decay) if p.ema_decay else states
        low, high = max(0.01, denoiser.sigma_min), min(80.0, denoiser.sigma_max)
        sigmas = karras_sigmas(n, sigma_min=low, sigma_max=high) if n > 1 else torch.tensor([high, 0.0]).double()
        solve = {"dps": dps, "daps": daps, "diffpir": diffpir}[self.name]
        if self.name == "daps":
            denoise = estimate_by_ode(denoise, self.prior_steps)
        return solve(denoise, likelihood, sigmas[0].to(z) * z, sigmas, noise=noise, **self.options)

    def describe(self, denoiser: Denoiser) -> dict[str, Any]:
        """Return the solver's part of a protocol."""
        preset = asdict(self.preset) if self.name == "pnp_gd" else {}
        preset = {"preset": preset.pop("name"), "preset_settings": preset} if preset else {}
        options = {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in self.options.items()}
        prior = {} if self.calls(denoiser) == 1 else {"prior_steps": self.prior_steps}
        return {"solver": self.name, **preset, **prior, "nfe": self.nfe(denoiser), "options": options}


def fitted(preset: PnPPreset, operator: Operator) -> PnPPreset:
    """The preset for an operator: without tight coupling and persistence if its decomposition is not known."""
    if isinstance(operator, Decomposed) or preset.coupling == "split":
        return preset
    return replace(preset, coupling="split", persistence=0.0, sigma_min=preset.sigma_min or 0.02)
