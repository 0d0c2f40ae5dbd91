"""ADM: the U-Net of Dhariwal & Nichol (2021) in the form of EDM (Karras et al., 2022, Table 7).

The names of parameters are those of the published EDM networks (`enc.64x64_block0.conv0.weight` ...), so that their
weights map one to one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.network import Features
from fewstep.nets.blocks import UNetBlock, add_augment
from fewstep.nets.convolution import Conv2d
from fewstep.nets.layers import GroupNorm, Init, Linear, PositionalEmbedding, check_halvings, one_hot


@dataclass(frozen=True)
class ADMConfig:
    """Options of ADM; the defaults are ImageNet-64's (Karras et al., 2022, Table 7).

    Heads of attention have 64 channels; narrower blocks have no attention.

    Args:
        img_resolution: side of the image in pixels.
        in_channels: channels of the input.
        out_channels: channels of the output.
        label_dim: number of classes, 0 for none.
        augment_dim: size of the augmentation label, 0 for none.
        model_channels: width, times `channel_mult` at each resolution.
        channel_mult: factors of the width, the finest resolution first.
        channel_mult_emb: width of the embedding in units of model_channels.
        num_blocks: residual blocks per resolution.
        attn_resolutions: sides at which blocks have self-attention.
        dropout: probability of dropout in the blocks.
        label_dropout: probability of training without the class.

    Raises:
        ValueError: the resolution cannot be halved as often as there are levels.

    Example:
        >>> config = fs.nets.ADMConfig(64, label_dim=1000)
    """

    img_resolution: int
    in_channels: int = 3
    out_channels: int = 3
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.10
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_halvings(self.img_resolution, len(self.channel_mult) - 1)


class ADMUNet(nn.Module):
    """ADM, the U-Net of Dhariwal & Nichol (2021) in the form of EDM (Karras et al., 2022, Table 7).

    Args:
        config: its options, from which it can be built again.

    Example:
        >>> net = fs.nets.ADMUNet(fs.nets.ADMConfig(8, model_channels=32, channel_mult=(1, 2), num_blocks=1))
        >>> model = fs.Denoiser(net)
    """

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = c = config
        self.in_channels, self.resolution, self.num_classes = c.in_channels, c.img_resolution, c.label_dim
        emb_channels = c.model_channels * c.channel_mult_emb
        init = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
        init_zero = init.scaled(0)
        block = {"emb_channels": emb_channels, "dropout": c.dropout, "init": init, "init_zero": init_zero}

        self.map_noise = PositionalEmbedding(c.model_channels)
        self.map_augment = (
            Linear(c.augment_dim, c.model_channels, bias=False, init=init_zero) if c.augment_dim else None
        )
        self.map_layer0 = Linear(c.model_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)
        self.map_label = None
        if c.label_dim:
            unit = Init("kaiming_normal", weight=math.sqrt(c.label_dim))
            self.map_label = Linear(c.label_dim, emb_channels, bias=False, init=unit)

        self.enc = nn.ModuleDict()
        channels = c.model_channels * c.channel_mult[0]
        skips: list[int] = []
        for level, mult in enumerate(c.channel_mult):
            res = c.img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(c.in_channels, channels, 3, init=init)
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, down=True, **block)
            skips.append(channels)
            for i in range(c.num_blocks):
                out, attend = c.model_channels * mult, res in c.attn_resolutions
                self.enc[f"{res}x{res}_block{i}"] = UNetBlock(channels, out, attention=attend, **block)
                channels = out
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(c.channel_mult))):
            res = c.img_resolution >> level
            if level == len(c.channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, attention=True, **block)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, **block)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, up=True, **block)
            for i in range(c.num_blocks + 1):
                out, attend = c.model_channels * mult, res in c.attn_resolutions
                self.dec[f"{res}x{res}_block{i}"] = UNetBlock(channels + skips.pop(), out, attention=attend, **block)
                channels = out
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, c.out_channels, 3, init=init_zero)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Compute F(x; c_noise).

        Args:
            x: scaled images (B, C, H, W).
            c_noise: noise conditions (B,).
            label: class indices (B,); None for no class.
            augment: augmentation labels (B, n); None for none.

        Returns:
            The output (B, out_channels, H, W).
        """
        return self.decode(self.encode(x, c_noise, label, augment))

    def embed(self, c_noise: Tensor, label: Tensor | None, augment: Tensor | None) -> Tensor:
        """Return the embedding (B, emb_channels) of noise level, class and augmentation."""
        emb = self.map_noise(c_noise)
        emb = add_augment(emb, augment, self.map_augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            hidden = self.config.label_dropout if self.training else 0.0
            emb = emb + self.map_label(one_hot(label, self.num_classes, emb, dropout=hidden))
        return F.silu(emb)

    def encode(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Features:
        """Return the features of images: the first half of `forward`, with its arguments."""
        emb = self.embed(c_noise, label, augment)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        return Features(x, tuple(skips), emb)

    def decode(self, features: Features) -> Tensor:
        """Return the output of features: the second half of `forward`."""
        x, skips, emb = features
        stack = list(skips)
        for layer in self.dec.values():
            assert isinstance(layer, UNetBlock)
            if x.shape[1] != layer.in_channels:
                x = torch.cat([x, stack.pop()], dim=1)
            x = layer(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))
