"""The preconditionings of upstream networks, from the attributes of a snapshot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeGuard

import torch

from fewstep.core.precondition import EDM, IDDPM, VE, VP, Boundary

if TYPE_CHECKING:
    from fewstep.io.convert.snapshot import UpstreamSnapshot


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is an int or float, and neither a bool nor an object that acts like a number."""
    return type(value) in (int, float)


def number(attributes: dict[str, object], name: str) -> float:
    """An attribute that must be a number from 0 on."""
    value = attributes.get(name)
    if not is_number(value) or not value >= 0 or (name == "sigma_data" and not 0 < value < math.inf):
        raise ValueError(f"the preconditioning has no usable {name}; got a {type(value).__name__}")
    return float(value)


def count(attributes: dict[str, object], name: str) -> int:
    """An attribute that must be a positive integer of moderate size."""
    value = attributes.get(name)
    if not is_number(value) or not 0 < value < 2**16 or value != int(value):
        raise ValueError(f"the preconditioning has no usable {name}; got a {type(value).__name__}")
    return int(value)


def edm(snapshot: UpstreamSnapshot) -> EDM:
    return EDM(**{name: number(snapshot.attributes, name) for name in ("sigma_data", "sigma_min", "sigma_max")})


def vp(snapshot: UpstreamSnapshot) -> VP:
    a = snapshot.attributes
    return VP(number(a, "beta_d"), number(a, "beta_min"), count(a, "M"), number(a, "epsilon_t"))


def ve(snapshot: UpstreamSnapshot) -> VE:
    return VE(number(snapshot.attributes, "sigma_min"), number(snapshot.attributes, "sigma_max"))


def iddpm(snapshot: UpstreamSnapshot) -> IDDPM:
    """The noise levels in the file must be those of the formula, since export computes them again."""
    a, u = snapshot.attributes, snapshot.state.get("u")
    steps = count(a, "M")
    if u is None or u.shape != (steps + 1,):
        raise ValueError(f"iDDPM's levels u need shape ({steps + 1},); got {'none' if u is None else tuple(u.shape)}")
    precondition = IDDPM(number(a, "C_1"), number(a, "C_2"), steps)
    # The last bits depend on the processor that computed them.
    if not torch.allclose(u.float(), precondition.table, rtol=1e-4, atol=0):
        raise ValueError("iDDPM's levels u do not match its constants C_1, C_2, M; the file is damaged")
    return precondition


def edm2(snapshot: UpstreamSnapshot) -> EDM:
    return EDM(number(snapshot.attributes, "sigma_data"))


def gdd(snapshot: UpstreamSnapshot) -> Boundary:
    return Boundary(number(snapshot.attributes, "sigma_data"), number(snapshot.attributes, "eps"))
