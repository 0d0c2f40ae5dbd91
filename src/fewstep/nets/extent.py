"""Bounds on the memory and time of a network that a file declares, checked before it is built.

A small file can declare a huge network: a million blocks, images of a gigapixel. The bounds are far above every published
network, which needs at most a five hundredth of the memory and a seventieth of the operations that its size allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

MEMORY, MEMORY_RATIO = 768 * 2**20, 100
"""Bytes of activations per image: for any network, and per byte of its tensors."""
OPERATIONS, OPERATIONS_RATIO = 2e11, 2e4
"""Floating-point operations per evaluation, likewise."""
WIDEST = 2**20
LONGEST = 64
"""Most entries of a tuple in a configuration: resolutions, taps of a filter."""


class Extent(NamedTuple):
    """Bytes and floating-point operations of one evaluation for one image, approximately."""

    memory: float
    operations: float


def extent(config: Any) -> Extent:
    """Estimate the extent of a U-Net from the convolutions and attention of its blocks."""
    channels = 2 * getattr(config, "img_channels", 0) or config.in_channels + config.out_channels
    area = config.img_resolution**2
    # Samplers keep a few images in double precision.
    memory, operations = 64.0 * channels * area, 18.0 * channels * config.model_channels * area
    largest = 0.0
    for level, mult in enumerate(config.channel_mult):
        resolution, width = config.img_resolution >> level, config.model_channels * mult
        pixels = resolution**2
        memory += 4 * (config.num_blocks + 1) * width * pixels  # skip connections
        largest = max(largest, 4 * width * pixels)
        operations += 18 * (5 * config.num_blocks + 3) * pixels * width**2
        if resolution in config.attn_resolutions:
            operations += 4 * (2 * config.num_blocks + 1) * pixels**2 * width
    return Extent(memory + 12 * largest, operations)


def check_extent(config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the configuration of a network that is far larger than the tensors of its file."""
    n_tensors, size = len(tensors), sum(tensor.nbytes for tensor in tensors.values())
    for name, value in vars(config).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) > LONGEST or any(isinstance(n, int) and not -WIDEST <= n <= WIDEST for n in numbers):
            raise ValueError(f"{name} is out of any range")
    if min(config.img_resolution, config.model_channels, *config.channel_mult) < 1 or config.num_blocks < 0:
        raise ValueError("a network has at least one pixel and channel, and no negative number of blocks")
    width = config.model_channels * max(config.channel_mult) * (config.channel_mult_emb or 1)
    if config.num_blocks * len(config.channel_mult) > n_tensors or width > WIDEST:
        raise ValueError(
            f"the file declares {config.num_blocks} blocks at each of {len(config.channel_mult)} resolutions, up to "
            f"{width} wide, and has {n_tensors} tensors"
        )
    memory, operations = extent(config)
    if memory > max(MEMORY, MEMORY_RATIO * size) or operations > max(OPERATIONS, OPERATIONS_RATIO * size):
        raise ValueError(
            f"the file declares a network that takes about {memory / 2**20:,.0f} MiB and {operations:.1e} operations for an "
            f"image of {config.img_resolution} pixels, and has {size / 2**20:,.1f} MiB of tensors"
        )
