"""The players of NCVSD (Peng et al., 2025, arXiv 2506.09416), made from a teacher: networks that see an observation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser, Observation
from fewstep.core.denoiser import Denoiser, Preconditioned
from fewstep.core.network import Features
from fewstep.core.precondition import Precondition
from fewstep.nets.controlled import Controlled, without_dropout
from fewstep.nets.discriminators import PairDiscriminator
from fewstep.nets.edm2 import Uncertainty


class ConditionalDiscriminator(Preconditioned):
    """Logits (B, 1) of whether `x` at `sigma` is a noisy real image of the observation `given`; large for real ones."""

    entry_points = ("forward", "see")
    """The methods that evaluate the network, as in `Denoiser`."""

    def __init__(
        self, net: PairDiscriminator, *, precondition: Precondition, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(net, precondition, dtype)

    def see(self, given: Observation, label: Tensor | None = None) -> Features:
        """Return the features of an observation, which serve for all images that are compared with it."""
        return self.features(self.net.ctrl, *given, label)

    def forward(
        self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None, *, given: Observation | Features
    ) -> Tensor:
        """given: the observation, or what `see` made of it."""
        control = given if isinstance(given, Features) else self.see(given, label)
        return self.net(self.features(self.net.enc, x, sigma, label), control)


def conditional(teacher: Denoiser, *, fused: bool = False) -> ConditionalDenoiser:
    """Return a conditional denoiser whose prediction is the teacher's until it is trained.

    It has no dropout. Its log-variance head is new, since the teacher's, where there is one, has learned another error.

    Args:
        teacher: a denoiser of all noise levels.
        fused: whether it starts at the teacher's prediction for x and y together, instead of for x alone.
    """
    return ConditionalDenoiser(Controlled(without_dropout(teacher.net)), fused=fused, **shared(teacher))


def generative(teacher: Denoiser, *, centred: bool = False, **options: Any) -> GenerativeDenoiser:
    """Return a generative denoiser whose draws are the teacher's prediction at the raised level until it is trained.

    Args:
        teacher: a denoiser of all noise levels.
        centred: whether it makes images about the `mean_images` of the teacher instead of about 0.
        **options: gamma, sigma_init, sigma_end and levels of `GenerativeDenoiser`.
    """
    means = (teacher.num_classes or 1) if centred else 0
    result = GenerativeDenoiser(Controlled(without_dropout(teacher.net)), means=means, **options, **shared(teacher))
    if centred:
        result.mean = mean_images(teacher, result.sigma_init)
    return result


@torch.no_grad()
def mean_images(teacher: Denoiser, sigma: float, *, draws: int = 32) -> Tensor:
    """Return a denoiser's estimate of E[x0] for each class (K, C, H, W), or for all images (1, C, H, W) without classes.

    It is the prediction for pure noise at the level `sigma`, averaged over `draws` fixed draws.
    """
    teacher = copy.deepcopy(teacher).eval()
    place = next(teacher.parameters()).device
    z = torch.randn(draws, *teacher.shape, generator=torch.Generator().manual_seed(0)).to(place)
    classes = [torch.full((draws,), k, device=place) for k in range(teacher.num_classes)] or [None]
    return torch.stack([teacher(sigma * z, sigma, label).mean(0) for label in classes])


def shared(teacher: Denoiser) -> dict[str, Any]:
    head = teacher.uncertainty
    channels = head.channels if isinstance(head, Uncertainty) else 128
    return {
        "precondition": teacher.precondition,
        "dtype": teacher.dtype,
        "codec": teacher.codec,
        "class_names": teacher.class_names,
        "uncertainty": Uncertainty(channels, getattr(teacher.net.config, "normalizations", 1)),
    }


def pair_discriminator(teacher: Denoiser) -> ConditionalDiscriminator:
    """Return NCVSD's discriminator: two copies of the teacher's encoder and a new last layer."""
    net = PairDiscriminator(without_dropout(teacher.net))
    return ConditionalDiscriminator(net, precondition=teacher.precondition, dtype=teacher.dtype)
