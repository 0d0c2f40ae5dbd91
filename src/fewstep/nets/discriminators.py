"""Discriminators: NCVSD's of pairs, made from a teacher's encoder, and GDD's on frozen feature networks.

The projected discriminator (Sauer et al., 2021, arXiv 2111.01007) is in the form of GDD (Zheng & Yang, 2024): frozen feature
networks process the image, frozen random convolutions mix their channels and their scales, and small heads with spectral
norms classify each scale. Only the heads are trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.network import Features
from fewstep.nets.controlled import encoder_half
from fewstep.nets.features import MIN_SIZE, FeatureNetwork, RandomConv2d, freeze
from fewstep.nets.layers import Init, Linear
from fewstep.nets.magnitude import MPConv, mp_cat
from fewstep.runtime.precision import accurate


class PairDiscriminator(nn.Module):
    """NCVSD's discriminator: whether an image belongs to an observation of it (Peng et al., 2025).

    Two encoders, `ctrl` for the observation and `enc` for the image. The logit is a linear map of their bottlenecks' channels,
    averaged over the pixels: without bias and of fixed gain for EDM2's networks, whose features have unit magnitude, an
    ordinary one for others. The weights train freely: no optimizer step is followed by EDM2's projection, as in the reference
    implementation.

    Args:
        net: the network of which both encoders are copies.

    Example:
        >>> net = fs.nets.PairDiscriminator(model.net)
        >>> logits = net(net.enc.encode(x, c_noise), net.ctrl.encode(y, c_noise))
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
        """Return logits, large for real pairs.

        Args:
            features: what `enc.encode` returned for images.
            control: what `ctrl.encode` returned for their observations.

        Returns:
            Logits (B, 1), at least float32.
        """
        both = mp_cat(control.bottleneck, features.bottleneck)
        return self.out_conv(accurate(both).mean((2, 3)))


@torch.no_grad()
def bottleneck_channels(net: Any) -> int:
    """Return the width of what an encoder returns, found with an empty image."""
    first = next(net.parameters())
    x = first.new_zeros(1, net.in_channels, net.resolution, net.resolution)
    return net.encode(x, first.new_zeros(1)).bottleneck.shape[1]


class Projection(nn.Module):
    """Features mixed at random across channels and across scales (Sauer et al., 2021, Sec. 3.2), and never trained.

    Level i of L becomes width 2^i channels by a 1x1 convolution. From the deepest level up, the mixture of the level
    below is added, the sum is doubled in size (bilinearly, corners aligned) and a 1x1 convolution halves its channels;
    the finest level keeps them.
    """

    def __init__(self, channels: Sequence[int], width: int, generator: torch.Generator) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(len(channels))]
        self.channels = tuple(w // 2 if i else w for i, w in enumerate(widths))
        self.across = nn.ModuleList(RandomConv2d(a, b, 1, generator) for a, b in zip(channels, widths, strict=True))
        self.over = nn.ModuleList(RandomConv2d(a, b, 1, generator) for a, b in zip(widths, self.channels, strict=True))

    def forward(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        mixed: list[Tensor] = []
        for across, over, feature in reversed(list(zip(self.across, self.over, features, strict=True))):
            x = across(feature)
            if mixed:
                x = x + mixed[-1]
            mixed.append(over(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)))
        return mixed[::-1]


class SpectralConv2d(nn.Module):
    """A convolution by W / s, with s = u^T W v the spectral norm of W as a matrix (Miyato et al., 2018).

    u and v are buffers which `iterate` moves towards the leading singular vectors. Evaluating the layer leaves them
    alone, so that it is a function of its input however often it is called; s is differentiated for W alone.
    """

    u: Tensor
    v: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        fresh = nn.Conv2d(inputs, outputs, kernel, bias=bias)
        self.weight, self.bias, self.stride, self.padding = fresh.weight, fresh.bias, stride, padding
        self.register_buffer("u", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(inputs * kernel**2), dim=0))
        self.iterate(15)

    @torch.no_grad()
    def iterate(self, n: int = 1) -> None:
        """Power iterations: v = W^T u, u = W v, of unit length."""
        matrix = self.weight.flatten(1)
        for _ in range(n):
            self.v.copy_(F.normalize(matrix.T @ self.u, dim=0))
            self.u.copy_(F.normalize(matrix @ self.v, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.u @ self.weight.flatten(1) @ self.v
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, (self.weight / norm).to(x.dtype), bias, self.stride, self.padding)


class ClassVector(nn.Module):
    """A class as a vector (B, n): a table of embeddings, and a linear layer of equalised rate with leaky ReLU (StyleGAN2)."""

    def __init__(self, num_classes: int, n: int, *, width: int = 320) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes, width)
        self.weight, self.bias = nn.Parameter(torch.randn(n, width)), nn.Parameter(torch.zeros(n))

    def forward(self, label: Tensor) -> Tensor:
        hidden = F.linear(self.table(label), self.weight / math.sqrt(self.weight.shape[1]), self.bias)
        return math.sqrt(2) * F.leaky_relu(hidden, 0.2)


class Head(nn.Module):
    """The discriminator of one scale: 4x4 spectral convolutions of stride 2, batch norm and leaky ReLU, then a window of 4x4.

    Batch norm takes the statistics of the current batch, in training and in evaluation mode. Without classes the window gives
    a logit at each place; with classes 64 numbers h, and the logit is h . e / 8 with e the vector of the class.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(
                SpectralConv2d(a, b, 4, stride=2, padding=1),
                nn.BatchNorm2d(b, track_running_stats=False),
                nn.LeakyReLU(0.2),
            )
            for a, b in pairwise(channels)
        ]
        self.blocks = nn.Sequential(*blocks)
        n = 64 if num_classes else 1
        self.window = SpectralConv2d(channels[-1], n, MIN_SIZE, bias=False)
        self.vector = ClassVector(num_classes, n) if num_classes else None

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Return logits (B, K), one for each place."""
        h = self.window(self.blocks(x))
        if self.vector is not None:
            h = (h * self.vector(label)[:, :, None, None]).sum(1) / math.sqrt(h.shape[1])
        return h.flatten(1)


class ProjectedDiscriminator(nn.Module):
    """GDD's discriminator: logits of images by each of several frozen feature networks (Sauer et al., 2021).

    Level i of L has L - i blocks that halve the side, so that all scales are classified on windows of the same size; its
    widths end at width 2^(L - 1).

    Args:
        networks: the feature networks, which are not trained.
        num_classes: number of classes of the class-conditional heads; 0 for none.
        width: channels of the finest level.
        seed: seed of the projections, which are therefore the same on every rank and stored with the run; the heads are
            drawn from torch's stream.

    Raises:
        ValueError: there is no feature network.

    Example:
        >>> discriminator = fs.nets.ProjectedDiscriminator([fs.nets.Classifier((1, 8, 8), 10, width=8)], width=8)
        >>> logits = discriminator(x0)
    """

    def __init__(
        self, networks: Sequence[FeatureNetwork], *, num_classes: int = 0, width: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError(
                "a projected discriminator needs at least one feature network: PretrainedFeatures, the "
                "teacher's encoder (EncoderFeatures) or a trained Classifier"
            )
        self.num_classes = num_classes
        self.sees = " + ".join(network.name for network in networks)
        draw = torch.Generator().manual_seed(seed)
        self.networks = nn.ModuleList(freeze(network) for network in networks)
        self.projections = nn.ModuleList(Projection(network.channels, width, draw) for network in networks)
        self.heads = nn.ModuleList()
        for network, projection in zip(networks, self.projections, strict=True):
            levels = len(network.channels)
            plans = [
                [c, *(width * 2**d for d in range(i, levels))]
                for i, c in enumerate(cast(Projection, projection).channels)
            ]
            self.heads.append(nn.ModuleList(Head(plan, num_classes) for plan in plans))

    def forward(self, x: Tensor, label: Tensor | None = None) -> list[Tensor]:
        """Return the logits of images.

        Args:
            x: images (B, C, H, W) in [-1, 1].
            label: class indices (B,); None without classes.

        Returns:
            The logits (B, K) of each feature network.

        Raises:
            ValueError: the discriminator has classes, and there is no label.
        """
        if self.num_classes and label is None:
            raise ValueError("this discriminator is class-conditional; pass the label of the images")
        result = []
        for network, projection, heads in zip(self.networks, self.projections, self.heads, strict=True):
            mixed = projection(network(x, label))
            logits = [head(m, label) for head, m in zip(cast(nn.ModuleList, heads), mixed, strict=True)]
            result.append(torch.cat(logits, dim=1).to(x.dtype))
        return result

    def train(self, mode: bool = True) -> ProjectedDiscriminator:
        """Set training mode, but for the feature networks, which stay in evaluation mode."""
        super().train(mode)
        self.networks.eval()
        return self

    def after_step(self) -> None:
        """Take one power iteration of every spectral norm; called after each step of the heads."""
        for layer in self.modules():
            if isinstance(layer, SpectralConv2d):
                layer.iterate()
