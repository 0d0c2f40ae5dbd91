"""The samplers by name, and which options each takes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from fewstep.core.plan import Sampler
from fewstep.samplers.distilled import multistep, posterior
from fewstep.samplers.dpm_solver import ancestral, dpmpp_2m, dpmpp_2m_sde
from fewstep.samplers.edm import churn, euler, heun
from fewstep.samplers.ito_taylor import ito_taylor, taylor2
from fewstep.samplers.sde import euler_maruyama, stochastic_heun
from fewstep.samplers.second_order_sde import second_order_sde

NAMED: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "churn": churn,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "ancestral": ancestral,
    "euler_maruyama": euler_maruyama,
    "stochastic_heun": stochastic_heun,
    "taylor2": taylor2,
    "ito_taylor": ito_taylor,
    "second_order_sde": second_order_sde,
    "multistep": multistep,
    "posterior": posterior,
}
"""The samplers that a name chooses, as `sampler="heun"` or `--sampler heun`."""


def find(sampler: str | Sampler) -> Sampler:
    """Return the sampler of a name.

    Args:
        sampler: one of `NAMED`, or a function, which is returned as it is.

    Returns:
        The sampler, a generator function.

    Raises:
        ValueError: there is no sampler of that name.

    Example:
        >>> sampler = fs.samplers.find("heun")
    """
    if not isinstance(sampler, str):
        return sampler
    if sampler not in NAMED:
        raise ValueError(
            f"there is no sampler {sampler!r}; there are {', '.join(sorted(NAMED))}, and functions of your own "
            "(--sampler mine.py:function)"
        )
    return NAMED[sampler]


def parameters(sampler: Sampler) -> Collection[str]:
    """The names of the parameters of a sampler."""
    return inspect.signature(sampler).parameters


def check_options(name: str, known: Collection[str], options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that would have no effect with a sampler that takes those of `known`."""
    for option in options:
        if option not in known:
            takers = sorted(name for name, function in NAMED.items() if option in parameters(function))
            raise ValueError(
                f"{option} has no effect with {name}; samplers that take it: {', '.join(takers)}"
                if takers
                else f"{name} takes no option {option!r}; it takes {', '.join(sorted(set(known) - WITHHELD)) or 'none'}"
            )
        if option in ("S_min", "S_max", "S_noise") and "S_min" in known and not options.get("S_churn"):
            raise ValueError(f"{option} has no effect without S_churn, the amount of fresh noise")


WITHHELD = {"denoise", "x", "sigmas", "noise", "mean", "round_sigma", "idle_noise"}
"""The parameters of samplers that are not options: `fs.generate` fills them in."""
