"""DDPM++ and NCSN++: the U-Net of Song et al. (2021) in the form of EDM (Karras et al., 2022, Table 7).

The names of parameters are those of the published EDM networks (`enc.32x32_block0.conv0.weight` ...), so that their
weights map one to one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.network import Features
from fewstep.nets.blocks import UNetBlock, add_augment
from fewstep.nets.convolution import Conv2d
from fewstep.nets.layers import (
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    check_halvings,
    check_taps,
    one_hot,
)


@dataclass(frozen=True)
class SongConfig:
    """Options of DDPM++ and NCSN++; the defaults are DDPM++'s, `ncsnpp` has NCSN++'s (Karras et al., 2022, Table 7).

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
        embedding_type: embedding of the noise level.
        channel_mult_noise: width of the noise embedding in units of model_channels.
        encoder_type: "residual" and "skip" feed the downsampled input to every resolution.
        decoder_type: "skip" sums an output image over the resolutions.
        resample_filter: taps of the filter that halves and doubles images.

    Raises:
        ValueError: the resolution cannot be halved as often as there are levels, or the filter has an odd number of taps.

    Example:
        >>> config = fs.nets.SongConfig(32, label_dim=10)
    """

    img_resolution: int
    in_channels: int = 3
    out_channels: int = 3
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.10
    label_dropout: float = 0.0
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[float, ...] = (1, 1)

    def __post_init__(self) -> None:
        check_halvings(self.img_resolution, len(self.channel_mult) - 1)
        check_taps(self.resample_filter)


def ncsnpp(img_resolution: int, **options) -> SongConfig:
    """Return the configuration of NCSN++: Fourier embedding, residual inputs, a smoother filter (EDM's `--arch=ncsnpp`).

    Args:
        img_resolution: side of the image in pixels.
        **options: further fields of `SongConfig`.

    Returns:
        The configuration.

    Raises:
        ValueError: see `SongConfig`.

    Example:
        >>> net = fs.nets.SongUNet(fs.nets.ncsnpp(32, model_channels=8, num_blocks=1))
    """
    return SongConfig(
        img_resolution,
        **{
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "channel_mult_noise": 2,
            "resample_filter": (1, 3, 3, 1),
            **options,
        },
    )


class SongUNet(nn.Module):
    """DDPM++ or NCSN++, the U-Net of Song et al. (2021) in the form of EDM (Karras et al., 2022, Table 7).

    Args:
        config: its options, from which it can be built again.

    Example:
        >>> net = fs.nets.SongUNet(fs.nets.SongConfig(8, model_channels=8, channel_mult=(1, 2), num_blocks=1))
        >>> model = fs.Denoiser(net)
    """

    def __init__(self, config: SongConfig) -> None:
        super().__init__()
        self.config = c = config
        self.in_channels, self.resolution, self.num_classes = c.in_channels, c.img_resolution, c.label_dim
        emb_channels = c.model_channels * c.channel_mult_emb
        noise_channels = c.model_channels * c.channel_mult_noise
        init = Init("xavier_uniform")
        init_zero = init.scaled(1e-5)
        block = {
            "emb_channels": emb_channels,
            "num_heads": 1,
            "dropout": c.dropout,
            "skip_scale": math.sqrt(0.5),
            "eps": 1e-6,
            "resample_filter": c.resample_filter,
            "resample_proj": True,
            "adaptive_scale": False,
            "init": init,
            "init_zero": init_zero,
            "init_attn": init.scaled(math.sqrt(0.2)),
        }
        resample: dict[str, Any] = {"resample_filter": c.resample_filter}

        if c.embedding_type == "positional":
            self.map_noise = PositionalEmbedding(noise_channels, endpoint=True)
        else:
            self.map_noise = FourierEmbedding(noise_channels)
        self.map_label = Linear(c.label_dim, noise_channels, init=init) if c.label_dim else None
        self.map_augment = Linear(c.augment_dim, noise_channels, bias=False, init=init) if c.augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)

        # Encoder: a name ending in aux_* belongs to the chain of down-sampled inputs beside the main path.
        self.enc = nn.ModuleDict()
        channels, aux_channels = c.model_channels, c.in_channels
        skips: list[int] = []
        for level, mult in enumerate(c.channel_mult):
            res = c.img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(c.in_channels, channels, 3, init=init)
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, down=True, **block)
                if c.encoder_type == "skip":
                    self.enc[f"{res}x{res}_aux_down"] = Conv2d(aux_channels, aux_channels, 0, down=True, **resample)
                    self.enc[f"{res}x{res}_aux_skip"] = Conv2d(aux_channels, channels, 1, init=init)
                if c.encoder_type == "residual":
                    self.enc[f"{res}x{res}_aux_residual"] = Conv2d(
                        aux_channels, channels, 3, down=True, fused_resample=True, init=init, **resample
                    )
                    aux_channels = channels
            skips.append(channels)
            for i in range(c.num_blocks):
                out = c.model_channels * mult
                self.enc[f"{res}x{res}_block{i}"] = UNetBlock(
                    channels, out, attention=res in c.attn_resolutions, **block
                )
                channels = out
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(c.channel_mult))):
            res = c.img_resolution >> level
            deepest = level == len(c.channel_mult) - 1
            if deepest:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, attention=True, **block)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, **block)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, up=True, **block)
            for i in range(c.num_blocks + 1):
                attend = i == c.num_blocks and res in c.attn_resolutions
                out = c.model_channels * mult
                self.dec[f"{res}x{res}_block{i}"] = UNetBlock(channels + skips.pop(), out, attention=attend, **block)
                channels = out
            if c.decoder_type == "skip" or level == 0:
                if c.decoder_type == "skip" and not deepest:
                    self.dec[f"{res}x{res}_aux_up"] = Conv2d(c.out_channels, c.out_channels, 0, up=True, **resample)
                self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, eps=1e-6)
                self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, c.out_channels, 3, init=init_zero)

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
        cos, sin = self.map_noise(c_noise).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)
        if self.map_label is not None:
            hidden = self.config.label_dropout if self.training else 0.0
            vector = one_hot(label, self.num_classes, emb, dropout=hidden)
            emb = emb + self.map_label(vector * math.sqrt(self.num_classes))
        emb = add_augment(emb, augment, self.map_augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def encode(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Features:
        """Return the features of images: the first half of `forward`, with its arguments."""
        emb = self.embed(c_noise, label, augment)
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if "aux_down" in name:
                aux = layer(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + layer(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + layer(aux)) * math.sqrt(0.5)
            else:
                x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        return Features(x, tuple(skips), emb)

    def decode(self, features: Features) -> Tensor:
        """Return the output of features: the second half of `forward`."""
        x, skips, emb = features
        stack = list(skips)
        aux, normal = None, x
        for name, layer in self.dec.items():
            if "aux_up" in name:
                aux = layer(aux)
            elif "aux_norm" in name:
                normal = layer(x)
            elif "aux_conv" in name:
                image = layer(F.silu(normal))
                aux = image if aux is None else aux + image
            else:
                if x.shape[1] != layer.in_channels:
                    x = torch.cat([x, stack.pop()], dim=1)
                x = layer(x, emb)
        assert aux is not None
        return aux
