"""LPIPS 0.1: a distance between images in the features of VGG-16 or AlexNet, weighted per channel (Zhang et al., 2018)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.nets.backbones import VGG16_WIDTHS, vgg16_layers

Backbone = Literal["vgg", "alex"]
WIDTHS: dict[str, tuple[int, ...]] = {"vgg": VGG16_WIDTHS, "alex": (64, 192, 384, 256, 256)}
LAST = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
"""Of the five groups of layers whose features are compared: the index of the last ReLU."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def alex_layers() -> list[nn.Module]:
    """The convolutions of AlexNet (Krizhevsky, 2014)."""
    convolutions = (nn.Conv2d(3, 64, 11, 4, 2), nn.Conv2d(64, 192, 5, padding=2))
    convolutions += tuple(nn.Conv2d(a, b, 3, padding=1) for a, b in ((192, 384), (384, 256), (256, 256)))
    layers: list[nn.Module] = []
    for i, convolution in enumerate(convolutions):
        layers += [nn.MaxPool2d(3, 2)] if i in (1, 2) else []
        layers += [convolution, nn.ReLU()]
    return layers


class LPIPS(nn.Module):
    """Distance (B,) of two batches of images (B, 3, H, W) in [-1, 1]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.last = LAST[backbone]
        self.features = nn.Sequential(*(vgg16_layers() if backbone == "vgg" else alex_layers()))
        for i, width in enumerate(WIDTHS[backbone]):
            self.register_parameter(f"lin{i}", nn.Parameter(torch.zeros(width)))

    def stack(self, x: Tensor) -> list[Tensor]:
        """The five features, each normalised over its channels."""
        shift, scale = (x.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        x, found = (x - shift) / scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.last:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        distance = torch.zeros((), device=a.device, dtype=a.dtype)
        for i, (u, v) in enumerate(zip(self.stack(a), self.stack(b), strict=True)):
            weight = self.get_parameter(f"lin{i}")[:, None, None]
            distance = distance + ((u - v).square() * weight).sum(1).mean((1, 2))
        return distance
