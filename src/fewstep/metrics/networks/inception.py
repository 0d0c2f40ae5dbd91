"""The Inception network of 2015-12-05 (Szegedy et al., 2015), on whose features FID, KID and the Inception Score rest.

The network of TensorFlow's first release, 1,008 outputs, which differs from later Inception-v3 in four ways: images are
resized by TensorFlow 1's bilinear rule, average pools do not count their padding, the last block pools by maximum, and
pixels are (x - 128) / 128. Parameters have the names that PyTorch's implementations agree on.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIZE = 299
CLASSES = 1008

average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
reduce = partial(F.max_pool2d, kernel_size=3, stride=2)


def tf1_resize(x: Tensor, size: int = SIZE) -> Tensor:
    """TensorFlow 1's bilinear resize of (B, C, H, W) to size x size: source = target * in / out, borders clamped."""
    for dim in (2, 3):
        n = x.shape[dim]
        source = torch.arange(size, device=x.device, dtype=torch.float64) * (n / size)
        low = source.long()
        share = (source - low).to(x.dtype).view(-1, *[1] * (3 - dim))
        a, b = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(n - 1))
        x = a + (b - a) * share
    return x


class Conv(nn.Module):
    """Convolution without bias, batch norm (eps 1e-3), ReLU; one convolution with bias once `fuse` was called."""

    def __init__(
        self, cin: int, cout: int, kernel: int | tuple[int, int], *, stride: int = 1, padding: int | tuple[int, int] = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(cout, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)

    def fuse(self) -> None:
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()


Wide = partial(Conv, kernel=(1, 7), padding=(0, 3))
Tall = partial(Conv, kernel=(7, 1), padding=(3, 0))


class BlockA(nn.Module):
    def __init__(self, cin: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(cin, 64, 1)
        self.branch5x5_1 = Conv(cin, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(cin, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(cin, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average(x))], 1)


class BlockB(nn.Module):
    def __init__(self, cin: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(cin, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(cin, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, reduce(x)], 1)


class BlockC(nn.Module):
    def __init__(self, cin: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(cin, 192, 1)
        self.branch7x7_1 = Conv(cin, width, 1)
        self.branch7x7_2 = Wide(width, width)
        self.branch7x7_3 = Tall(width, 192)
        self.branch7x7dbl_1 = Conv(cin, width, 1)
        self.branch7x7dbl_2 = Tall(width, width)
        self.branch7x7dbl_3 = Wide(width, width)
        self.branch7x7dbl_4 = Tall(width, width)
        self.branch7x7dbl_5 = Wide(width, 192)
        self.branch_pool = Conv(cin, 192, 1)

    def branches(self, x: Tensor) -> list[Tensor]:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), seven, double, self.branch_pool(average(x))]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.branches(x), 1)


class BlockD(nn.Module):
    def __init__(self, cin: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(cin, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(cin, 192, 1)
        self.branch7x7x3_2 = Wide(192, 192)
        self.branch7x7x3_3 = Tall(192, 192)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), reduce(x)], 1)


class BlockE(nn.Module):
    def __init__(self, cin: int, *, by_maximum: bool) -> None:
        super().__init__()
        self.branch1x1 = Conv(cin, 320, 1)
        self.branch3x3_1 = Conv(cin, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(cin, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(cin, 192, 1)
        self.pool = maximum if by_maximum else average

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(self.pool(x))]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """RGB (B, 3, H, W) in [0, 255], float -> features (B, 2048), spatial (B, 2023), logits (B, 1008).

    spatial: the first 7 channels of a 1x1 branch on the 17x17 grid (sFID; Nash et al., 2021). logits: without the bias
    of the last layer, as the Inception Score takes them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, by_maximum=False)
        self.Mixed_7c = BlockE(2048, by_maximum=True)
        # no nn.Linear: the Inception Score leaves the bias out, and the product is in float32 whatever the convolutions are
        self.fc = nn.ParameterDict({"weight": torch.randn(CLASSES, 2048) / 2048**0.5, "bias": torch.zeros(CLASSES)})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = (tf1_resize(images) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x.contiguous(memory_format=torch.channels_last))))
        x = reduce(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(reduce(x))))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        branches = self.Mixed_6d.branches(self.Mixed_6c(self.Mixed_6b(x)))
        spatial = branches[0][:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(torch.cat(branches, 1)))))
        features = x.mean((2, 3), dtype=images.dtype)
        return {"features": features, "spatial": spatial, "logits": features @ self.fc["weight"].T}

    def fuse(self) -> Inception:
        """Fold the batch norms into the convolutions, in place: the same function, faster."""
        for module in self.modules():
            if isinstance(module, Conv):
                module.fuse()
        return self
