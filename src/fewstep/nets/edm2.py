"""EDM2: the magnitude-preserving U-Net of Karras et al. (2024), config G of "Analyzing and Improving the Training Dynamics".

Every layer keeps the expected magnitude of its activations: weights are normalised where they are used, sums,
concatenations and nonlinearities are rescaled. The stored weights may have any length, which only changes the effective
learning rate; the Trainer resets it before each training step by `MPConv.project_`, so that `forward` writes nothing.

The names of parameters are those of the published EDM2 networks below `unet.`, so that their weights map one to one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.network import Features, SamplingDefaults
from fewstep.nets.convolution import conv2d
from fewstep.nets.execution import Block
from fewstep.nets.layers import attention, check_halvings, check_taps, dropout, one_hot
from fewstep.nets.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize

MOST_NORMALIZATIONS = 16
"""Of a weight, each of which takes time; known files have two."""
LARGEST_BOUND = 65504.0
"""Of activations: the largest number of float16, beyond which PyTorch refuses to clamp."""


@dataclass(frozen=True)
class EDM2Config:
    """Options of EDM2; the defaults are EDM2-S (Karras et al., 2024a, Table 6).

    Args:
        img_resolution: side of the image or latent in pixels.
        img_channels: its channels.
        label_dim: number of classes, 0 for none.
        model_channels: width, times `channel_mult` at each resolution.
        channel_mult: factors of the width, the finest resolution first.
        channel_mult_noise: width of the noise embedding in units of model_channels; None for the first of `channel_mult`.
        channel_mult_emb: width of the embedding in these units; None for the largest of `channel_mult`.
        num_blocks: residual blocks per resolution.
        attn_resolutions: sides at which blocks have self-attention; blocks narrower than a head have none.
        label_balance: share t of the class in the embedding.
        concat_balance: share t of the skip connection.
        res_balance: share t of the residual branch.
        attn_balance: share t of attention.
        channels_per_head: width of a head of attention.
        dropout: probability of dropout in the blocks.
        clip_act: bound of the activations, None for none.
        resample_filter: taps of the filter that halves and doubles images.
        normalizations: how often weights are normalised at each use. Published networks with more than one exist; the results
            differ only by the eps of `normalize`.

    Raises:
        ValueError: a share, a bound or the number of normalizations is out of range, or the resolution or the filter does not
            fit the halvings.

    Example:
        >>> config = fs.nets.EDM2Config(64, label_dim=1000)
    """

    img_resolution: int
    img_channels: int = 4
    label_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    channels_per_head: int = 64
    dropout: float = 0.0
    clip_act: float | None = 256.0
    resample_filter: tuple[float, ...] = (1, 1)
    normalizations: int = 1

    def __post_init__(self) -> None:
        check_halvings(self.img_resolution, len(self.channel_mult) - 1)
        check_taps(self.resample_filter)
        shares = (self.label_balance, self.concat_balance, self.res_balance, self.attn_balance)
        if not all(0 <= share <= 1 for share in shares) or not 1 <= self.normalizations <= MOST_NORMALIZATIONS:
            raise ValueError(
                f"an EDM2 network has shares from 0 to 1 and 1 to {MOST_NORMALIZATIONS} normalizations; got {shares} and "
                f"{self.normalizations}"
            )
        if self.clip_act is not None and not 0 < self.clip_act <= LARGEST_BOUND:
            raise ValueError(
                f"clip_act bounds activations, which float16 must hold: above 0 and at most {LARGEST_BOUND:g}, or None; got "
                f"{self.clip_act:g}"
            )

    @property
    def noise_channels(self) -> int:
        return self.model_channels * (self.channel_mult_noise or self.channel_mult[0])

    @property
    def emb_channels(self) -> int:
        return self.model_channels * (self.channel_mult_emb or max(self.channel_mult))


def resample(x: Tensor, taps: tuple[float, ...], *, up: bool) -> Tensor:
    """Images of twice or half the resolution, by a separable filter of an even number of taps."""
    if taps == (1, 1):
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if up else F.avg_pool2d(x, 2)
    row, padding, channels = x.new_tensor(taps) / sum(taps), (len(taps) - 1) // 2, x.shape[1]
    kernel = row.outer(row).expand(channels, 1, -1, -1)
    if up:
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
    return conv2d(x, kernel, stride=2, padding=padding, groups=channels)


class MPBlock(Block):
    """The residual block of config G, of the encoder or of the decoder.

    With h = conv_res1(dropout(mp_silu(conv_res0(mp_silu(x)) (1 + emb_gain emb_linear(emb))))) it is mp_sum(x, h), then,
    with attention, mp_sum(x, attn_proj(attention(x))). An encoder block first normalises each pixel of x.
    """

    def __init__(
        self,
        config: EDM2Config,
        in_channels: int,
        out_channels: int,
        *,
        encoder: bool,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.encoder, self.up, self.down = config, encoder, up, down
        self.num_heads = out_channels // config.channels_per_head if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = MPConv(out_channels if encoder else in_channels, out_channels, (3, 3))
        self.emb_linear = MPConv(config.emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        if self.num_heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, (1, 1))
            self.attn_proj = MPConv(out_channels, out_channels, (1, 1))

    def compute(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.down or self.up:
            x = resample(x, self.config.resample_filter, up=self.up)
        if self.encoder:
            x = normalize(self.shortcut(x), 1)
        h = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        h = mp_silu(h * scale[:, :, None, None].to(h.dtype))
        h = self.conv_res1(dropout(h, self.config.dropout, self.training))
        if not self.encoder:
            x = self.shortcut(x)
        x = mp_sum(x, h, self.config.res_balance)
        if self.num_heads:
            x = mp_sum(x, self.attn_proj(self.attend(x)), self.config.attn_balance)
        bound = self.config.clip_act
        return x if bound is None else x.clamp(-bound, bound)

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.conv_skip is None else self.conv_skip(x)

    def attend(self, x: Tensor) -> Tensor:
        """Cosine attention over the pixels. The channels of `attn_qkv` are ordered head, channel, then q, k, v."""
        batch, channels, height, width = x.shape
        qkv = self.attn_qkv(x).reshape(batch, self.num_heads, channels // self.num_heads, 3, height * width)
        q, k, v = normalize(qkv, 2).transpose(2, 4).unbind(3)
        return attention(q, k, v).transpose(2, 3).reshape(x.shape)


class MPEmbedding(nn.Module):
    """The embedding of noise level and class; a network, or a half of one, inherits it."""

    def __init__(self, config: EDM2Config) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.label_dim
        self.emb_fourier = MPFourier(config.noise_channels)
        self.emb_noise = MPConv(config.noise_channels, config.emb_channels)
        self.emb_label = MPConv(config.label_dim, config.emb_channels) if config.label_dim else None

    def embed(self, c_noise: Tensor, label: Tensor | None, augment: Tensor | None = None) -> Tensor:
        """The embedding (B, emb_channels); no class is the zero vector, not the absence of the sum."""
        if augment is not None:
            raise ValueError("EDM2's network takes no augmentation labels; train it without augmentation")
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            vector = one_hot(label, self.num_classes, emb) * math.sqrt(self.num_classes)
            emb = mp_sum(emb, self.emb_label(vector), self.config.label_balance)
        return mp_silu(emb)


def encoder(config: EDM2Config) -> nn.ModuleDict:
    """The layers of the encoder; each output is a skip connection."""
    layers = nn.ModuleDict()
    channels = config.model_channels * config.channel_mult[0]
    for level, mult in enumerate(config.channel_mult):
        res = config.img_resolution >> level
        if level == 0:
            layers[f"{res}x{res}_conv"] = MPConv(config.img_channels + 1, channels, (3, 3))
        else:
            layers[f"{res}x{res}_down"] = MPBlock(config, channels, channels, encoder=True, down=True)
        for i in range(config.num_blocks):
            out, attend = config.model_channels * mult, res in config.attn_resolutions
            layers[f"{res}x{res}_block{i}"] = MPBlock(config, channels, out, encoder=True, attention=attend)
            channels = out
    return layers


def decoder(config: EDM2Config) -> nn.ModuleDict:
    """The layers of the decoder; each whose name contains `block` takes a skip connection, the last one first."""
    widths = [config.model_channels * mult for mult in config.channel_mult]
    skips = [widths[0]]
    for level, width in enumerate(widths):
        skips += [widths[level - 1]] * (level > 0) + [width] * config.num_blocks
    layers = nn.ModuleDict()
    channels = widths[-1]
    for level, width in reversed(list(enumerate(widths))):
        res = config.img_resolution >> level
        if level == len(widths) - 1:
            layers[f"{res}x{res}_in0"] = MPBlock(config, channels, channels, encoder=False, attention=True)
            layers[f"{res}x{res}_in1"] = MPBlock(config, channels, channels, encoder=False)
        else:
            layers[f"{res}x{res}_up"] = MPBlock(config, channels, channels, encoder=False, up=True)
        for i in range(config.num_blocks + 1):
            attend = res in config.attn_resolutions
            layers[f"{res}x{res}_block{i}"] = MPBlock(
                config, channels + skips.pop(), width, encoder=False, attention=attend
            )
            channels = width
    return layers


def run_encoder(layers: nn.ModuleDict, x: Tensor, emb: Tensor) -> Features:
    """Features of the image, to which a channel of ones is appended in the place of biases."""
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    skips: list[Tensor] = []
    for layer in layers.values():
        x = layer(x, emb) if isinstance(layer, MPBlock) else layer(x)
        skips.append(x)
    return Features(x, tuple(skips), emb)


def run_decoder(layers: nn.ModuleDict, features: Features, concat_balance: float) -> Tensor:
    """Return the output of the last layer of the decoder."""
    x, skips, emb = features
    stack = list(skips)
    for name, layer in layers.items():
        if "block" in name:
            x = mp_cat(x, stack.pop(), concat_balance)
        x = layer(x, emb)
    return x


class EDM2UNet(MPEmbedding):
    """EDM2's U-Net, config G (Karras et al., 2024a).

    Args:
        config: its options, from which it can be built again.

    Example:
        >>> net = fs.nets.EDM2UNet(fs.nets.EDM2Config(8, 3, model_channels=16, channel_mult=(1, 2), num_blocks=1))
        >>> model = fs.Denoiser(net, uncertainty=fs.nets.Uncertainty())
    """

    sampling = SamplingDefaults(steps=32, noise_dtype=torch.float32, idle_noise=False)

    def __init__(self, config: EDM2Config) -> None:
        super().__init__(config)
        self.in_channels, self.resolution = config.img_channels, config.img_resolution
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.enc = encoder(config)
        self.dec = decoder(config)
        self.out_conv = MPConv(config.model_channels * config.channel_mult[0], config.img_channels, (3, 3))
        for module in self.modules():
            if isinstance(module, MPConv):
                module.normalizations = config.normalizations

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Compute F(x; c_noise); a new network returns zeros.

        Args:
            x: scaled images (B, C, H, W).
            c_noise: noise conditions (B,).
            label: class indices (B,); None for no class.
            augment: must be None, as EDM2's network takes no augmentation labels.

        Returns:
            The output (B, C, H, W).
        """
        return self.decode(self.encode(x, c_noise, label, augment))

    def encode(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Features:
        """Return the features of images: the first half of `forward`, with its arguments."""
        return run_encoder(self.enc, x, self.embed(c_noise, label, augment))

    def decode(self, features: Features) -> Tensor:
        """Return the output of features: the second half of `forward`."""
        return self.out_conv(run_decoder(self.dec, features, self.config.concat_balance), gain=self.out_gain)


class Uncertainty(nn.Module):
    """EDM2's log-variance head u(sigma), which weights the denoising loss (Karras et al., 2024a, Eq. 21).

    Args:
        channels: number of Fourier features.
        normalizations: how often the weights are normalised at each use, as in `EDM2Config`.

    Example:
        >>> model = fs.Denoiser(net, uncertainty=fs.nets.Uncertainty())
    """

    def __init__(self, channels: int = 128, normalizations: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.fourier = MPFourier(channels)
        self.linear = MPConv(channels, 1)
        self.linear.normalizations = normalizations

    def forward(self, c_noise: Tensor) -> Tensor:
        """Return the log-variances (B,) at noise conditions (B,)."""
        return self.linear(self.fourier(c_noise)).flatten()
