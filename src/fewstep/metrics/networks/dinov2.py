"""DINOv2 ViT-L/14 (Oquab et al., 2023), for FD-DINOv2 (Stein et al., 2023; EDM2, Karras et al., 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets.backbones import TransformerBlock

SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
OFFSET = 0.1
"""Added to the size of the patch grid when the position embedding is interpolated; part of the published features."""


def cubic(images: Tensor, size: int = SIZE) -> Tensor:
    """uint8 or float (B, C, H, W) -> float (B, C, size, size): bicubic with antialiasing, neither clipped nor rounded."""
    return F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)


class DINOv2(nn.Module):
    """RGB (B, 3, H, W) in [0, 255], float, H and W multiples of 14 -> features (B, 1024), the normalised class token."""

    def __init__(
        self, *, trained_size: int = 518, patch: int = 14, width: int = 1024, heads: int = 16, depth: int = 24
    ) -> None:
        super().__init__()
        self.grid = trained_size // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, scaled=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, height: int, width: int) -> Tensor:
        """The position embedding (1, 1 + height * width, D) for a grid of patches.

        As published: scaled by (grid + 0.1) / trained grid, bicubic, without antialiasing; scaling to the size itself
        gives other features.
        """
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        plane = rest.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        scale = ((height + OFFSET) / self.grid, (width + OFFSET) / self.grid)
        plane = F.interpolate(plane, scale_factor=scale, mode="bicubic")
        return torch.cat([first, plane.flatten(2).transpose(1, 2)], 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        mean, std = (images.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        grid = self.patch_embed["proj"]((images / 255 - mean) / std)
        x = torch.cat([self.cls_token.expand(len(grid), -1, -1), grid.flatten(2).transpose(1, 2)], 1)
        x = x + self.positions(*grid.shape[2:])
        for block in self.blocks:
            x = block(x)
        return {"features": self.norm(x[:, 0])}
