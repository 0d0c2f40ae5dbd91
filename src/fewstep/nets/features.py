"""Frozen feature networks of a projected discriminator (GDD; Zheng & Yang, 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets.layers import Frozen
from fewstep.runtime.precision import activations, lower

MIN_SIZE = 4
"""The least side of the deepest features: the heads of the discriminator end in a window of 4x4."""


class FeatureNetwork(Protocol):
    """The contract of a frozen network of feature maps, each of half the side of the one before it.

    Attributes:
        name: its name in cards and records.
        channels: channels of each level, the finest first.

    Example:
        >>> network: fs.nets.FeatureNetwork = fs.nets.Classifier((1, 8, 8), 10, width=8)
        >>> widths = [len(maps[0]) for maps in network(x0)]
    """

    name: str
    channels: tuple[int, ...]

    def __call__(self, x: Tensor, label: Tensor | None = None, /) -> Sequence[Tensor]: ...


@dataclass(frozen=True)
class Backbone:
    """A network of `fewstep.nets.backbones` by the name of its weights.

    Args:
        name: name of the weights.
        mean: means of its input's channels, for pixels in [0, 1].
        std: standard deviations of its input's channels.
        tokens: widths of the levels of a transformer, whose maps are equally fine and are brought to four scales by frozen
            random convolutions.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokens: tuple[int, ...] = ()


HALF = (0.5, 0.5, 0.5)
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
EFFICIENTNET = Backbone("tf_efficientnet_lite0", HALF, HALF)
VGG = Backbone("vgg16_bn", **IMAGENET)
DEIT = Backbone("deit_base_distilled_patch16_224", **IMAGENET, tokens=(96, 192, 384, 768))


class PretrainedFeatures(Frozen):
    """A backbone with its published weights; its name has the SHA-256 of their file.

    Args:
        backbone: what the network expects as input.
        net: the network with its weights, as `fewstep.io.feature_networks.open_network` returns it.
        digest: the SHA-256 of the weights, from the same function.
        size: the side to which smaller images are enlarged first, bilinearly; a transformer takes this size alone.
        seed: seed of the frozen convolutions behind a transformer.
        dtype: the precision of its products and its features, in which a discriminator on them computes as well.

    Example:
        >>> from fewstep.nets.features import VGG
        >>> from fewstep.nets.backbones import VGG16BN
        >>> features = fs.nets.PretrainedFeatures(VGG, VGG16BN(), "untrained", size=32)
        >>> maps = features(x0)
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        net: nn.Module,
        digest: str,
        *,
        size: int = 224,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.net = net
        self.size, self.exactly, self.dtype = size, bool(backbone.tokens), dtype
        self.name = f"{backbone.name} (sha256 {digest})"
        lower(self.net, dtype)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(backbone, name)).view(1, -1, 1, 1))
        found = tuple(cast(Any, self.net).channels)
        self.scale = Pyramid(found, backbone.tokens, seed) if backbone.tokens else None
        self.channels = backbone.tokens or found

    def forward(self, x: Tensor, label: Tensor | None = None) -> Sequence[Tensor]:
        """Return the feature maps of images.

        Args:
            x: images (B, C, H, W) in [-1, 1], grey or RGB.
            label: has no effect.

        Returns:
            The feature maps of each level, the finest first.

        Raises:
            ValueError: the images have neither 1 nor 3 channels.
        """
        if x.shape[1] not in (1, 3):
            raise ValueError(f"{self.name} takes grey or RGB images; got {x.shape[1]} channels")
        x = ((x + 1) / 2).expand(-1, 3, -1, -1)
        x = (x - self.mean) / self.std
        if x.shape[-1] < self.size or self.exactly:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        features = [f.to(self.dtype) for f in self.net(activations(x, self.dtype))]
        return features if self.scale is None else self.scale(features)


class Classifier(nn.Module):
    """A small convolutional classifier, whose features are used where no pretrained network is available; train its logits first.

    At each scale, from the image's own down to 4 pixels a side: two 3x3 convolutions, each with group norm and SiLU.

    Args:
        shape: shape of the images (C, H, W).
        num_classes: number of classes.
        width: channels at the first scale, twice as many at each further one.

    Raises:
        ValueError: the images are smaller than 4 pixels, or there are fewer than two classes.

    Example:
        >>> classifier = fs.nets.Classifier((1, 8, 8), num_classes=10, width=8)
        >>> logits = classifier.logits(x0)
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, width: int = 32) -> None:
        super().__init__()
        depth = int(math.log2(min(shape[1:]) / MIN_SIZE)) + 1
        if depth < 1 or num_classes < 2:
            raise ValueError(
                f"a classifier needs images of {MIN_SIZE} pixels a side and two classes; got {shape} and {num_classes}"
            )
        self.name, self.num_classes = f"classifier of {num_classes} classes trained on the spot", num_classes
        self.channels = tuple(width * 2**i for i in range(depth))
        self.stages = nn.ModuleList(stage(a, b) for a, b in pairwise((shape[0], *self.channels)))
        self.head = nn.Linear(self.channels[-1], num_classes)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Sequence[Tensor]:
        """Return the feature maps of images (B, C, H, W), the finest first; the label has no effect."""
        features = []
        for layer in self.stages:
            x = layer(F.avg_pool2d(x, 2) if features else x)
            features.append(x)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of the classes (B, num_classes)."""
        return self.head(self(x)[-1].mean((2, 3)))


def stage(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
    return nn.Sequential(*layers)


class RandomConv2d(nn.Module):
    """A convolution that is never trained: its weights are buffers, drawn as PyTorch draws them from a generator of its own.

    The distribution is U(-b, b) with b the inverse root of the fan-in.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, generator: torch.Generator, *, stride: int = 1, up: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.up = stride, 0 if up else kernel // 2, up
        shape = (inputs, outputs, kernel, kernel) if up else (outputs, inputs, kernel, kernel)
        bound = math.prod(shape[1:]) ** -0.5  # PyTorch's fan-in: of a transposed convolution its outputs
        for name, size in (("weight", shape), ("bias", (outputs,))):
            drawn = torch.rand(size, generator=generator, device="cpu")
            self.register_buffer(name, bound * (2 * drawn - 1))

    def forward(self, x: Tensor) -> Tensor:
        convolve = F.conv_transpose2d if self.up else F.conv2d
        return convolve(x, self.weight.to(x.dtype), self.bias.to(x.dtype), self.stride, self.padding)


class Pyramid(nn.Module):
    """Four equally fine maps of a transformer, brought to four scales: 4 and 2 times as fine, as they are, and half.

    Args:
        inputs: channels of the four maps.
        outputs: channels of the four scales.
        seed: seed of the frozen random convolutions.

    Example:
        >>> pyramid = fs.nets.Pyramid((8, 8, 8, 8), (4, 8, 16, 32), seed=0)
        >>> scales = pyramid([torch.randn(1, 8, 4, 4)] * 4)
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        narrow = [RandomConv2d(a, b, 1, draw) for a, b in zip(inputs, outputs, strict=True)]
        first, second, _, last = outputs
        scale = [
            RandomConv2d(first, first, 4, draw, stride=4, up=True),
            RandomConv2d(second, second, 2, draw, stride=2, up=True),
            nn.Identity(),
            RandomConv2d(last, last, 3, draw, stride=2),
        ]
        self.levels = nn.ModuleList(nn.Sequential(*pair) for pair in zip(narrow, scale, strict=True))

    def forward(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Bring four maps (B, C, h, w) to four scales, the finest first."""
        return [level(f) for level, f in zip(self.levels, features, strict=True)]


def freeze(network: Any) -> nn.Module:
    return network.requires_grad_(False).eval()
