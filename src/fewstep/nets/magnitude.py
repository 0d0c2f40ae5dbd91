"""Layers that preserve the expected magnitude of their inputs, of which EDM2 is built (Karras et al., 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets.casting import cached_cast
from fewstep.nets.convolution import conv2d
from fewstep.runtime.distributed import local
from fewstep.runtime.precision import accurate


def normalize(x: Tensor, dim: int | tuple[int, ...], *, eps: float = 1e-4) -> Tensor:
    """Return x / (rms(x) + eps), with the root mean square over `dim` (Karras et al., 2024a, Eq. 47)."""
    count = math.prod([x.shape[d] for d in (dim if isinstance(dim, tuple) else (dim,))])
    rms = torch.linalg.vector_norm(accurate(x), dim=dim, keepdim=True) / math.sqrt(count)
    return x / (rms + eps).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Return silu(x) / 0.596, of unit variance for unit Gaussian inputs (Eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float | Tensor = 0.5) -> Tensor:
    """Return ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (Eq. 88)."""
    norm = ((1 - t) ** 2 + t**2) ** 0.5
    return a * ((1 - t) / norm) + b * (t / norm)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Return channels of `a`, then of `b`, scaled to contribute by 1 - t and t whatever their number (Eq. 103)."""
    na, nb = a.shape[1], b.shape[1]
    scale = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(na)), b * (scale * t / math.sqrt(nb))], dim=1)


class MPFourier(nn.Module):
    """sqrt(2) cos(x f + p) with fixed random f ~ 2 pi N(0, 1), p ~ 2 pi U(0, 1) (Eq. 75): (B,) -> (B, channels)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = accurate(x)
        return (math.sqrt(2) * (y.outer(self.freqs.to(y.dtype)) + self.phases.to(y.dtype)).cos()).to(x.dtype)


class MPConv(nn.Module):
    """A convolution, or a linear map if `kernel` is empty, with weights of unit norm per output and no bias (Eq. 66).

    forced: whether training calls `project_` before each step. normalizations: how often weights are normalised at each use.
    """

    forced = True
    normalizations = 1

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """gain: a factor () that may be learned."""
        weight = (
            cached_cast(self.weight, x, self.scaled) if gain is None else self.scaled(self.weight, gain).to(x.dtype)
        )
        return F.linear(x, weight) if weight.ndim == 2 else conv2d(x, weight, padding=weight.shape[-1] // 2)

    def scaled(self, weight: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """Weights of unit norm per output times the gain, in at least float32."""
        weight = accurate(weight)
        gain = accurate(gain) if isinstance(gain, Tensor) else gain
        for _ in range(self.normalizations):
            weight = normalize(weight, tuple(range(1, weight.ndim)))
        return weight * (gain / math.sqrt(weight[0].numel()))

    @torch.no_grad()
    def project_(self) -> None:
        """Set the weights to unit root mean square per output, in place ("forced weight normalization", Algorithm 1).

        It leaves the function that the network computes as it is, but for the eps of `normalize`.
        """
        weight = local(self.weight)  # whole rows, if it is sharded
        rows = accurate(weight).flatten(1)
        rms = rows.square().mean(dim=1, keepdim=True).sqrt()
        weight.copy_((rows / rms.clamp_min(torch.finfo(rms.dtype).tiny)).reshape(weight.shape))
