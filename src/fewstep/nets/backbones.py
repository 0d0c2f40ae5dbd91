"""Three ImageNet networks, up to the feature maps that GDD's discriminator looks at (Zheng & Yang, 2024).

They are the networks of PyTorch Image Models (timm) under the same parameter names, so that its published files fit, without
their classifiers. Each returns four maps, the finest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG16_WIDTHS = (64, 128, 256, 512, 512)
LITE0_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Kernel, stride, expansion, width and number of blocks of each stage of EfficientNet-B0, whose layout lite0 keeps."""


def vgg16_layers(*, norm: bool = False) -> list[nn.Module]:
    """The convolutions of VGG-16 (Simonyan & Zisserman, 2014) up to conv5_3, with batch norm or without."""
    layers: list[nn.Module] = []
    for group, (before, width) in enumerate(pairwise((3, *VGG16_WIDTHS))):
        layers += [nn.MaxPool2d(2)] if group else []
        for i in range(2 if group < 2 else 3):
            layers.append(nn.Conv2d(width if i else before, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers.append(nn.ReLU(inplace=True))
    return layers


class VGG16BN(nn.Module):
    """VGG-16 with batch norm: the last activation of each group of convolutions but the first."""

    channels = VGG16_WIDTHS[1:]

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*vgg16_layers(norm=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        """RGB (B, 3, H, W), normalised; returns maps of the sides H/2, H/4, H/8 and H/16."""
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [*found[1:], x]


class SameConv2d(nn.Conv2d):
    """A convolution without bias under TensorFlow's rule SAME: ceil(n / stride) outputs, the odd zero at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.stride[0] > 1:
            kernel, stride = self.kernel_size[0], self.stride[0]
            zeros = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in reversed(input.shape[2:])]
            input = F.pad(input, [side for n in zeros for side in (n // 2, n - n // 2)])
        return super().forward(input)


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al., 2018): widened, filtered by channel, narrowed; each with batch norm.

    ReLU6 follows all but the last. Without expansion the block begins with the filter.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * inputs
        layers = {"conv_dw": SameConv2d(width, width, kernel, stride, groups=width)}
        if expansion > 1:
            layers = {"conv_pw": SameConv2d(inputs, width, 1, 1), **layers}
        layers["conv_pwl" if expansion > 1 else "conv_pw"] = SameConv2d(width, outputs, 1, 1)
        self.names = tuple((name, f"bn{i}") for i, name in enumerate(layers, 1))
        for (convolution, norm), layer in zip(self.names, layers.values(), strict=True):
            self.add_module(convolution, layer)
            self.add_module(norm, nn.BatchNorm2d(layer.out_channels, eps=1e-3))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, (convolution, norm) in enumerate(self.names, 1):
            y = self.get_submodule(norm)(self.get_submodule(convolution)(y))
            if i < len(self.names):
                y = F.relu6(y, inplace=True)
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0: EfficientNet-B0 (Tan & Le, 2019) with ReLU6 and without squeeze-and-excitation.

    Its maps are the outputs of the stages after which the side halves, and of the last one.
    """

    channels = (24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2)
        self.bn1 = nn.BatchNorm2d(32, eps=1e-3)
        self.blocks = nn.ModuleList()
        inputs = 32
        for kernel, stride, expansion, width, n in LITE0_STAGES:
            plan = [(inputs, stride), *[(width, 1)] * (n - 1)]
            self.blocks.append(nn.Sequential(*(InvertedResidual(c, width, kernel, s, expansion) for c, s in plan)))
            inputs = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """RGB (B, 3, H, W), normalised; returns maps of the sides H/4, H/8, H/16 and H/32."""
        x = F.relu6(self.bn1(self.conv_stem(x)), inplace=True)
        found = []
        for stage in self.blocks:
            x = stage(x)
            found.append(x)
        return [found[i] for i in (1, 2, 4, 6)]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TransformerBlock(nn.Module):
    """A block of a vision transformer (Dosovitskiy et al., 2020); scaled: with DINOv2's scale of each branch."""

    def __init__(self, width: int, heads: int, *, scaled: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls2 = LayerScale(width) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class DeiT(nn.Module):
    """DeiT-B with a distillation token (Touvron et al., 2021): the patches after each quarter of its blocks."""

    def __init__(self, *, size: int = 224, patch: int = 16, width: int = 768, heads: int = 12, depth: int = 12) -> None:
        super().__init__()
        self.channels = (width,) * 4
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """RGB (B, 3, size, size), normalised; returns four maps (B, width, size / patch, size / patch)."""
        grid = self.patch_embed["proj"](x)
        tokens = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.dist_token)]
        x = torch.cat([*tokens, grid.flatten(2).transpose(1, 2)], 1) + self.pos_embed
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x[:, 2:].transpose(1, 2).unflatten(2, grid.shape[2:]))
        return found[len(found) // 4 - 1 :: len(found) // 4]
