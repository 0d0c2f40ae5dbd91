"""Discriminators made of a teacher's encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.network import Features
from fewstep.nets.controlled import encoder_half
from fewstep.nets.edm2 import MPConv, mp_cat
from fewstep.nets.layers import Init, Linear
from fewstep.runtime.precision import accurate


class PairDiscriminator(nn.Module):
    """NCVSD's: whether an image belongs to an observation of it (Peng et al., 2025). Two encoders, `ctrl` for the
    observation and `enc` for the image; the logit is a linear map of their bottlenecks' channels, averaged over the pixels:
    without bias and of fixed gain for EDM2's, whose features have unit magnitude, an ordinary one for others'.

    net: the network of which both encoders are copies. Its weights train freely: an optimizer step is not followed by
    EDM2's projection, as in the reference implementation.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        whole: Any = net
        self.num_classes = whole.num_classes
        self.ctrl, self.enc = encoder_half(net), encoder_half(net)
        width = 2 * bottleneck_channels(self.enc)
        layers = [layer for layer in self.modules() if isinstance(layer, MPConv)]
        self.out_conv = MPConv(width, 1) if layers else Linear(width, 1, init=Init("kaiming_uniform", weight=0.1))
        for layer in [*layers, self.out_conv]:
            layer.forced = False

    def forward(self, features: Features, control: Features) -> Tensor:
        """Logits (B, 1), large for real pairs, of the features of images and of their observations; at least float32."""
        both = mp_cat(control.bottleneck, features.bottleneck)
        return self.out_conv(accurate(both).mean((2, 3)))


@torch.no_grad()
def bottleneck_channels(net: Any) -> int:
    """The width of what an encoder returns, seen on an empty image."""
    first = next(net.parameters())
    x = first.new_zeros(1, net.in_channels, net.resolution, net.resolution)
    return net.encode(x, first.new_zeros(1)).bottleneck.shape[1]
