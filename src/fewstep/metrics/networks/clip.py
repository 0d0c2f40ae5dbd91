"""The image tower of CLIP ViT-B/32 (Radford et al., 2021), for CLIP-FID (Kynkaanniemi et al., 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def cubic_pixels(images: Tensor, size: int = SIZE) -> Tensor:
    """Resize as CLIP does, by Pillow's bicubic filter: uint8 (B, C, H, W) -> float (B, C, size, size), whole numbers.

    The shorter side becomes `size`, the middle of the longer one is kept; Pillow filters rows, rounds, filters columns,
    rounds.
    """
    height, width = images.shape[2:]
    shorter = min(height, width)
    target = tuple(size if n == shorter else int(size * n / shorter) for n in (height, width))
    x = images.float()
    for step in ((height, target[1]), target):
        if x.shape[2:] != step:
            x = F.interpolate(x, step, mode="bicubic", antialias=True, align_corners=False)
            x = x.add(0.5).floor().clamp(0, 255)
    top, left = (round((n - size) / 2) for n in target)
    return x[:, :, top : top + size, left : left + size]


class ClipBlock(nn.Module):
    """A pre-norm transformer block with the sigmoid approximation of GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(ClipBlock(width, heads) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class CLIP(nn.Module):
    """RGB (B, 3, 224, 224) in [0, 255], float -> features (B, 512), the image embedding before normalisation."""

    def __init__(
        self, *, size: int = SIZE, patch: int = 32, width: int = 768, heads: int = 12, depth: int = 12, out: int = 512
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, depth)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, out))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        mean, std = (images.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        patches = self.conv1((images / 255 - mean) / std).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        return {"features": self.ln_post(self.transformer(x)[:, 0]) @ self.proj}
