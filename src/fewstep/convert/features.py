"""Weights of feature networks as they are published, in every container that is in use, read without running anything.

The Inception network comes in four: NVIDIA's pickle of an object, its TorchScript twin, a state dict under the same
names, and the state dict of PyTorch's ports. They hold the same numbers, and give the same hash here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fewstep.convert.source import fetch
from fewstep.convert.torchscript import is_torchscript, read_torchscript
from fewstep.convert.unpickle import Record, read
from fewstep.convert.upstream import MAX_DEPTH, state_dict
from fewstep.files import sha256
from fewstep.metrics.networks.clip import CLIP
from fewstep.metrics.networks.dinov2 import DINOv2
from fewstep.metrics.networks.inception import Conv, Inception
from fewstep.metrics.networks.lpips import WIDTHS, alex_layers, vgg_layers
from fewstep.metrics.weights import ASSETS, Asset, fill, save_weights

NVIDIA = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


def read_published(asset: Asset, path: Path) -> dict[str, Tensor]:
    """The weights of an asset out of a published file, under our names, complete; ValueError says what is wrong."""
    tensors = published_tensors(path)
    state = SELECT[asset.name](tensors)
    if asset.name in NETWORKS:
        fill(NETWORKS[asset.name], state, str(path))
        return state
    shapes = PARTS[asset.name]
    if {name: tuple(tensor.shape) for name, tensor in state.items()} != shapes:
        wrong = [name for name, shape in shapes.items() if name not in state or tuple(state[name].shape) != shape]
        raise ValueError(
            f"{path} lacks {len(wrong)} tensors of {asset.name}, or has them in another shape: {wrong[:5]}"
        )
    return state


def published_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of real numbers by dotted name, in the order of the file."""
    if is_torchscript(path):
        found = dict(script_tensors(read_torchscript(path), "", MAX_DEPTH))
    else:
        content = read(path)
        if isinstance(content, Record):
            found = state_dict(content)
        elif isinstance(content, dict):
            found = {str(k): v for k, v in content.items() if isinstance(v, Tensor) and v.is_floating_point()}
        else:
            found = {}
    if not found:
        raise ValueError(f"{path} holds no weights; expected a state dict, a TorchScript archive or NVIDIA's pickle")
    return found


def script_tensors(record: Record, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth == 0:
        raise ValueError(f"modules are nested more than {MAX_DEPTH} deep at {prefix[:80]}; no network needs that")
    for name, value in record.state.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield f"{prefix}{name}", value
        elif isinstance(value, Record):
            yield from script_tensors(value, f"{prefix}{name}.", depth - 1)


def inception(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under PyTorch's names as they are; under NVIDIA's by the order of the convolutions, which is that of the graph."""
    if "fc.weight" in tensors:
        return dict(tensors)
    with torch.device("meta"):
        ours = [name for name, module in Inception().named_modules() if isinstance(module, Conv)]
    theirs = [name.removesuffix("weight") for name, tensor in tensors.items() if tensor.ndim == 4]
    if len(ours) != len(theirs) or "output.weight" not in tensors or "output.bias" not in tensors:
        raise ValueError(f"expected {len(ours)} convolutions and a layer `output`; the file has {len(theirs)} of them")
    state: dict[str, Tensor] = {"fc.weight": tensors["output.weight"], "fc.bias": tensors["output.bias"]}
    for our, their in zip(ours, theirs, strict=True):
        for suffix, name in NVIDIA.items():
            if f"{their}{suffix}" not in tensors:
                raise ValueError(f"the convolution {their} has no {suffix}; this is not the Inception network's file")
            tensor = tensors[f"{their}{suffix}"]
            state[f"{our}.{name}"] = tensor if suffix == "weight" else tensor.flatten()
        state[f"{our}.bn.weight"] = torch.ones_like(state[f"{our}.bn.bias"])
    return state


def clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("visual."): value for name, value in tensors.items() if name.startswith("visual.")}


def dinov2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name != "mask_token"}


def backbone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The convolutions; the classifier is not needed."""
    return {name: value for name, value in tensors.items() if name.startswith("features.")}


def linear(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`lin0.model.1.weight` (1, C, 1, 1) and so on, as `lin0` (C,)."""
    return {name.partition(".")[0]: value.flatten() for name, value in tensors.items() if name.startswith("lin")}


def convolutions(layers: list[torch.nn.Module]) -> dict[str, tuple[int, ...]]:
    state = torch.nn.Sequential(*layers).state_dict()
    return {f"features.{name}": tuple(tensor.shape) for name, tensor in state.items()}


SELECT = {
    "inception-2015-12-05": inception,
    "clip-vit-b-32": clip,
    "dinov2-vitl14": dinov2,
    "vgg16": backbone,
    "alexnet": backbone,
    "lpips-vgg": linear,
    "lpips-alex": linear,
}
NETWORKS = {"inception-2015-12-05": Inception, "clip-vit-b-32": CLIP, "dinov2-vitl14": DINOv2}
with torch.device("meta"):
    PARTS = {
        "vgg16": convolutions(vgg_layers()),
        "alexnet": convolutions(alex_layers()),
        **{f"lpips-{name}": {f"lin{i}": (n,) for i, n in enumerate(widths)} for name, widths in WIDTHS.items()},
    }


def find_asset(name: str) -> Asset:
    if name not in ASSETS:
        raise ValueError(f"no asset is called {name!r}; there are {', '.join(ASSETS)}")
    return ASSETS[name]


def fetch_asset(
    name: str,
    *,
    source: str | Path | None = None,
    sha256_prefix: str | None = None,
    offline: bool = False,
    folder: Path | None = None,
) -> Path:
    """Download or read the published weights of an asset, check their hash, and write them for `read_weights`.

    source: a file or address; the asset's first if left out. sha256_prefix: the hash, or its beginning, that the file
    must have; if left out, what is known of the file of this address or name, if anything is.
    """
    asset = find_asset(name)
    chosen = asset.sources[0].address if source is None else source
    expected = (sha256_prefix or known_hash(asset, chosen) or "").lower()
    path = fetch(chosen, offline=offline)
    digest = sha256(path)
    if not digest.startswith(expected):
        if "://" in str(chosen):
            path.unlink()  # of the cache, so that the next call downloads it again
        raise ValueError(
            f"{chosen} has the sha256 {digest}; expected {expected}: it is damaged or another file; fetch it again"
        )
    return save_weights(asset, read_published(asset, path), digest, folder)


def known_hash(asset: Asset, source: str | Path) -> str | None:
    """The hash of the asset's file of this address, or of this name where no two share it."""
    by_address = [s for s in asset.sources if s.address == str(source)]
    by_file = [s for s in asset.sources if s.file == str(source).rsplit("/", 1)[-1]]
    found = by_address or by_file
    return found[0].sha256 if len(found) == 1 else None
