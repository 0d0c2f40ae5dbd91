"""Feature extractors: uint8 images (B, C, H, W) -> features, with a name, a hash and a resize rule for protocols."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from fewstep.metrics import weights
from fewstep.metrics.networks.clip import CLIP, cubic_pixels
from fewstep.metrics.networks.dinov2 import SIZE as DINOV2_SIZE
from fewstep.metrics.networks.dinov2 import DINOv2, cubic
from fewstep.metrics.networks.inception import Inception
from fewstep.runtime.distributed import device
from fewstep.runtime.precision import lower, tf32
from fewstep.runtime.user_code import load_file

Features = Mapping[str, Tensor]
"""By part: "features" (B, D); of Inception also "spatial" and "logits"."""


class Extractor(Protocol):
    """The contract of a feature extractor: called with images uint8 (B, C, H, W), it returns features (B, D), or several by part.

    Attributes:
        name: its name in the names of metrics.
        sha256: hash of its weights or its source code; None without.
        resize: how images are brought to the size of the network, for protocols.

    Example:
        >>> extractor: fs.metrics.Extractor = fs.metrics.PixelFeatures()
        >>> features = extractor(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    """

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str | None: ...
    @property
    def resize(self) -> str: ...
    def __call__(self, images: Tensor, /) -> Tensor | Features: ...


class PixelFeatures:
    """The pixels themselves in [-1, 1], flattened, as features (B, D): for tiny images, where no network is needed.

    Example:
        >>> features = fs.metrics.PixelFeatures()(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    """

    name = "pixels"
    sha256 = None
    resize = "none; pixels in [-1, 1]"

    def __call__(self, images: Tensor) -> Tensor:
        return (images.float() / 127.5 - 1).flatten(1).to(torch.float64)


class FeatureNetwork:
    """A feature network behind the preparation of its input; grey images are repeated to three channels.

    Args:
        name: its name in the names of metrics.
        network: images as `prepare` returns them to features by part, {"features": (B, D), ...}.
        prepare: images uint8 (B, 3, H, W) to the input of the network.
        resize: how `prepare` resizes, for protocols.
        sha256: hash of the weights; None without.
        dtype: precision of the network's products and of what lies between two of them (see `precision.lower`): float32,
            bfloat16 or float16. Resizing, layer norms, residual sums, means over the image and the features are in float32.

    Example:
        >>> class Means(torch.nn.Module):
        ...     def forward(self, x):
        ...         return {"features": x.mean((2, 3))}
        >>> extractor = fs.metrics.FeatureNetwork("means", Means(), lambda x: x / 255, resize="none", sha256=None)
        >>> features = extractor(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        prepare: Callable[[Tensor], Tensor],
        *,
        resize: str,
        sha256: str | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.prepare, self.resize, self.sha256, self.dtype = name, prepare, resize, sha256, dtype
        self.network = network.to(device()).eval().requires_grad_(False)
        lower(self.network, dtype)

    def __call__(self, images: Tensor) -> Features:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"{self.name} takes uint8 images (B, C, H, W), grey or RGB; got {images.dtype} {tuple(images.shape)}"
            )
        with torch.no_grad(), tf32(False):
            rgb = images.to(device()).expand(-1, 3, -1, -1)
            return {part: values.float() for part, values in self.network(self.prepare(rgb)).items()}


def precision(extractor: Extractor) -> str:
    """The name of the dtype in which an extractor computes; float32 for all but networks."""
    dtype = extractor.dtype if isinstance(extractor, FeatureNetwork) else torch.float32
    return str(dtype).removeprefix("torch.")


def identity(extractor: Extractor) -> str | None:
    """The hash of an extractor, and its precision if that is not float32: "HASH in bfloat16"."""
    dtype = precision(extractor)
    return extractor.sha256 if dtype == "float32" else f"{extractor.sha256} in {dtype}"


class UserExtractor:
    """A function `(images) -> features` in a user's file, identified by the hash of the file."""

    def __init__(self, function: Callable[[Tensor], Tensor | Features], *, name: str, sha256: str) -> None:
        self.function, self.name, self.sha256 = function, name, sha256
        self.resize = "the function's own"

    def __call__(self, images: Tensor) -> Tensor | Features:
        with torch.no_grad():
            return self.function(images)


def inception(folder: Path | None = None, dtype: torch.dtype = torch.float32) -> FeatureNetwork:
    state, about = weights.read_weights(weights.INCEPTION, folder)
    network = weights.fill(Inception, state, weights.INCEPTION.file)
    assert isinstance(network, Inception)
    rule = "299x299, TensorFlow 1 bilinear (source = target * in / out), no antialiasing; (x - 128) / 128"
    return FeatureNetwork("inception", fast(network), Tensor.float, resize=rule, sha256=about["sha256"], dtype=dtype)


def fast(network: Inception) -> nn.Module:
    """The same function at its best speed: batch norms folded, channels last."""
    network.fuse()
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def clip(folder: Path | None = None, dtype: torch.dtype = torch.float32) -> FeatureNetwork:
    state, about = weights.read_weights(weights.CLIP, folder)
    rule = "224x224, Pillow's bicubic on uint8, shorter side and centre; CLIP's mean and deviation"
    network = weights.fill(CLIP, state, weights.CLIP.file)
    return FeatureNetwork("clip", network, cubic_pixels, resize=rule, sha256=about["sha256"], dtype=dtype)


def dinov2(folder: Path | None = None, dtype: torch.dtype = torch.float32) -> FeatureNetwork:
    state, about = weights.read_weights(weights.DINOV2, folder)
    rule = (
        f"{DINOV2_SIZE}x{DINOV2_SIZE}, bicubic with antialiasing in float, not rounded; ImageNet's mean and deviation"
    )
    network = weights.fill(DINOv2, state, weights.DINOV2.file)
    return FeatureNetwork("dinov2", network, cubic, resize=rule, sha256=about["sha256"], dtype=dtype)


def user(where: str) -> UserExtractor:
    """The function of `mine.py:features`; its name in metrics is that of the function."""
    path, colon, name = where.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ValueError(f"an extractor of your own is named as mine.py:features; got {where!r}")
    file = Path(path)
    function = load_file(file, name)
    return UserExtractor(
        cast("Callable[[Tensor], Tensor | Features]", function),
        name=name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


NETWORKS: dict[str, Callable[..., FeatureNetwork]] = {"inception": inception, "clip": clip, "dinov2": dinov2}


def extractor(name: str, dtype: torch.dtype = torch.float32) -> Extractor:
    """A built-in extractor by name, or one of your own as `mine.py:features`. dtype: of `NETWORKS`, see `FeatureNetwork`."""
    if ":" in name:
        return user(name)
    if name == PixelFeatures.name:
        return PixelFeatures()
    if name not in NETWORKS:
        raise ValueError(
            f"no extractor is called {name!r}; choose from pixels, {', '.join(NETWORKS)}, and mine.py:features"
        )
    return NETWORKS[name](dtype=dtype)
