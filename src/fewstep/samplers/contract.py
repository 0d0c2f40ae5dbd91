"""The contract of samplers: generator functions `(denoise, x, sigmas, **options) -> Iterator[Tensor]`.

A sampler receives a noisy image `x` (B, ...) at level `sigmas[0]` and the decreasing levels `sigmas` (n + 1,), closed by a
zero; it yields the state at each next level, the last one at sigma = 0. `denoise` gets `x` in the state's dtype
(float64 where accuracy counts) and sigma as a 0-dim tensor. States are never changed in place, so that they may be
kept. Samplers run without gradients. Stochastic ones take `noise`, which draws unit Gaussian noise like its argument:
with one random stream per image, an image depends on its own seed only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor

from fewstep.core.noise import Denoise
from fewstep.runtime.autodiff import forward_mode


def last(states: Iterable[Tensor], *, like: Tensor | None = None) -> Tensor:
    """Return the final state of a sampler; the others are not kept.

    Args:
        states: what the sampler returned.
        like: a tensor of the shape that the state must have; None for any shape.

    Returns:
        The last state (B, ...).

    Raises:
        ValueError: the function returned something instead of yielding states, or yielded something else.

    Example:
        >>> x0 = fs.samplers.last(fs.samplers.heun(denoise, sigmas[0] * z, sigmas))
    """
    check_states(states)
    return final_state(deque(states, maxlen=1), like)


def check_states(states: Any) -> None:
    """Raise ValueError for what a function returned that does not yield."""
    if not isinstance(states, Iterator):
        raise ValueError(
            "a sampler is a generator function, which yields the state x at every noise level (yield x); this one returned "
            f"a {type(states).__name__}"
        )


def final_state(kept: deque[Tensor], like: Tensor | None) -> Tensor:
    """The only entry of `kept`, the last state of a sampler, of the shape of `like`; ValueError if it is no such tensor."""
    if not kept:
        raise ValueError("the sampler yielded no state; its schedule needs at least one step")
    if not isinstance(kept[0], Tensor) or (like is not None and kept[0].shape != like.shape):
        got = f"shape {tuple(kept[0].shape)}" if isinstance(kept[0], Tensor) else f"a {type(kept[0]).__name__}"
        shape = "the state x, a tensor" if like is None else f"the state x of shape {tuple(like.shape)}"
        raise ValueError(f"a sampler yields {shape}; this one yielded {got}")
    return kept[0]


def steps(sigmas: Tensor, *, distinct: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs (sigma, sigma_next) of a schedule.

    Args:
        sigmas: Noise levels (n + 1,) that do not increase and end in their only 0.
        distinct: Whether levels must differ, for formulas that divide by the step. Levels rounded to those of a network may
            coincide.

    Raises:
        ValueError: The levels are not such a schedule.
    """
    if not isinstance(sigmas, Tensor):
        raise ValueError(f"noise levels are a tensor (n + 1,), such as fs.karras_sigmas(18); got {sigmas!r}")
    values: list[float] = sigmas.flatten().tolist()
    if sigmas.ndim != 1 or len(values) < 2 or values[-1] != 0 or not all(a >= b for a, b in pairwise(values)):
        raise ValueError(f"noise levels must be (n + 1,) with n >= 1, decrease and end in 0; got {values}")
    if values[-2] == 0 or (distinct and len(set(values)) < len(values)):
        raise ValueError(f"this sampler needs distinct noise levels; take fewer steps, or euler or heun; got {values}")
    return pairwise(sigmas.unbind())


class Counted:
    """A denoiser that counts its evaluations: `nfe` the plain ones, `jvp` the dual ones (with a forward derivative).

    A dual evaluation also returns the value; it costs about as much as two to two and a half plain ones.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.
    """

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.nfe = 0
        self.jvp = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if forward_mode():
            self.jvp += 1
        else:
            self.nfe += 1
        return self.denoise(x, sigma)


def counted(denoise: Denoise) -> Counted:
    """Wrap a denoiser with counters of its evaluations.

    Args:
        denoise: the denoiser, `(x, sigma) -> x0`.

    Returns:
        The same denoiser with the counters `nfe` (plain evaluations) and `jvp` (dual evaluations).

    Example:
        >>> denoise = fs.samplers.counted(denoise)
        >>> x0 = fs.samplers.last(fs.samplers.heun(denoise, sigmas[0] * z, sigmas))
        >>> denoise.nfe == 2 * (len(sigmas) - 1) - 1
        True
    """
    return Counted(denoise)


def unwrapped(denoise: Denoise) -> Any:
    """The denoiser inside `functools.partial` and `counted`."""
    while isinstance(denoise, partial | Counted):
        denoise = denoise.func if isinstance(denoise, partial) else denoise.denoise
    return denoise
