"""NCVSD's control branch (Peng et al., 2025, arXiv 2506.09416): a U-Net with a second image as input, made from any U-Net here.

Two encoders, one for each image, and a decoder are copies of one network, each with its own embedding of noise level and class.
Parameters are named as those of the published students below `model.`: `ctrl`, `enc`, `dec`.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.network import Features
from fewstep.nets.edm2 import EDM2UNet
from fewstep.nets.magnitude import mp_sum


def without(net: nn.Module, *names: str) -> Any:
    """Return a copy of a network without some of its parts, which can encode or decode but not both."""
    half = copy.deepcopy(net)
    for name in names:
        if hasattr(half, name):
            delattr(half, name)
    return half


def encoder_half(net: nn.Module) -> Any:
    return without(net, "dec", "out_norm", "out_conv", "out_gain")


def without_dropout(net: nn.Module) -> Any:
    """Return the network with the same tensors and without dropout of activations and labels."""
    config: Any = net.config
    off = {name: 0.0 for name in ("dropout", "label_dropout") if getattr(config, name, 0.0)}
    if not off:
        return net
    kind: Any = type(net)
    with torch.device("meta"):
        result = kind(dataclasses.replace(config, **off))
    result.load_state_dict(net.state_dict(), assign=True)
    return result


class Controlled(nn.Module):
    """F(x, y): a network with a control branch for an observation y, as in NCVSD (Peng et al., 2025).

    The decoder works on the features of `x`, into which those of `y` are merged by

    mp_sum(of x, of y, w) = ((1 - w) of x + w of y) / sqrt((1 - w)^2 + w^2),

    with one weight w in [0, 1] for the bottleneck and one for each skip connection. The weights start at 0, so that a new
    network predicts what the given one does and ignores `y`; gradients reach them nevertheless. Networks other than EDM2's
    train at about a tenth of its learning rate; their w is ten times the parameter, which would otherwise take too long to
    leave 0.

    Args:
        net: the network whose copies the parts are: EDM2's, DDPM++, NCSN++ or ADM, or any other with `enc`, `dec`, `embed`,
            `encode` and `decode`.

    Example:
        >>> net = fs.nets.Controlled(model.net)
        >>> features = net.merge(net.encode(x, c_noise), net.ctrl.encode(y, c_noise))
        >>> out = net.decode(features)
    """

    forced = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        whole: Any = net
        self.config, self.in_channels = whole.config, whole.in_channels
        self.resolution, self.num_classes = whole.resolution, whole.num_classes
        n_skips = sum("aux" not in name for name, _ in whole.enc.named_children())
        self.gain = 1.0 if isinstance(net, EDM2UNet) else 10.0
        self.ctrl, self.enc, self.dec = encoder_half(net), encoder_half(net), without(net, "enc")
        self.dec.additional_x_weight = nn.Parameter(torch.zeros(1))
        self.dec.additional_skips_weight = nn.Parameter(torch.zeros(n_skips))

    def encode(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Features:
        """Return the features of `x` alone, with the decoder's own embedding; arguments as of the network's `encode`."""
        features = self.enc.encode(x, c_noise, label, augment)
        return features._replace(embedding=self.dec.embed(c_noise, label, augment))

    def merge(self, features: Features, control: Features) -> Features:
        """Merge the features of an observation into those of an image.

        Args:
            features: what `encode` returned for the image.
            control: what `ctrl.encode` returned for the observation.

        Returns:
            The features for `decode`.
        """
        weights = torch.cat([self.dec.additional_x_weight, self.dec.additional_skips_weight])
        deepest, *shares = (self.gain * weights).clamp(0, 1)
        skips = zip(features.skips, control.skips, shares, strict=True)
        return features._replace(
            bottleneck=mix(features.bottleneck, control.bottleneck, deepest),
            skips=tuple(mix(a, b, w) for a, b, w in skips),
        )

    def decode(self, features: Features) -> Tensor:
        """Return the output of merged features."""
        return self.dec.decode(features)

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp the merge weights w to [0, 1], in place, before each step: outside they would get no gradient."""
        self.dec.additional_x_weight.clamp_(0, 1 / self.gain)
        self.dec.additional_skips_weight.clamp_(0, 1 / self.gain)


def mix(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return mp_sum(a, b, w.to(a.dtype))
