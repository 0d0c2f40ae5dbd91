"""Reads the published weights of feature networks, whatever container they come in. Nothing in a file is executed.

The Inception network is published in four: NVIDIA's pickle of an object, the same as TorchScript, a state dict under
NVIDIA's names, and the state dict of PyTorch's ports. They hold the same numbers, and give the same hash here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fewstep.io.convert.modules import MAX_DEPTH, check_apart, state_dict
from fewstep.io.unpickle import Record, read
from fewstep.io.unpickle.torchscript import is_torchscript, read_torchscript
from fewstep.metrics.networks.clip import CLIP
from fewstep.metrics.networks.dinov2 import DINOv2
from fewstep.metrics.networks.inception import Conv, Inception
from fewstep.metrics.networks.lpips import WIDTHS, alex_layers
from fewstep.metrics.weights import (
    Asset,
    fill,
)
from fewstep.nets.backbones import VGG16BN, DeiT, EfficientNetLite0, vgg16_layers
from fewstep.runtime.files import read_tensors

NVIDIA = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


def read_published(asset: Asset, path: Path) -> dict[str, Tensor]:
    """The weights of an asset from a published file.

    Args:
        asset: the feature network, or the part of LPIPS.
        path: the published file.

    Returns:
        All tensors of the asset under our names.

    Raises:
        ValueError: the file is damaged, or tensors are missing, unexpected or of another shape.
    """
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
    """Every tensor of real numbers in a published file, by dotted name, in the order of the file."""
    if path.suffix == ".safetensors":
        found = {name: tensor for name, tensor in read_tensors(path)[0].items() if tensor.is_floating_point()}
    elif is_torchscript(path):
        found = dict(script_tensors(read_torchscript(path), "", MAX_DEPTH, set()))
    else:
        content = read(path)
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            content = content["model"]
        if isinstance(content, Record):
            found = state_dict(content)
        elif isinstance(content, dict):
            found = {str(k): v for k, v in content.items() if isinstance(v, Tensor) and v.is_floating_point()}
        else:
            found = {}
    if not found:
        raise ValueError(f"{path} holds no weights; expected a state dict, a TorchScript archive or NVIDIA's pickle")
    try:
        return check_apart(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def script_tensors(record: Record, prefix: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a TorchScript module. A file can name a module many times, so each is walked once."""
    if depth == 0:
        raise ValueError(f"modules are nested more than {MAX_DEPTH} deep at {prefix[:80]}; no network needs that")
    for name, value in record.state.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield f"{prefix}{name}", value
        elif isinstance(value, Record) and id(value) not in seen:
            seen.add(id(value))
            yield from script_tensors(value, f"{prefix}{name}.", depth - 1, seen)


def inception(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """PyTorch's names are kept. NVIDIA's are matched by the order of the convolutions, which is that of the graph."""
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
    """The image tower; the text tower is not needed."""
    return {name.removeprefix("visual."): value for name, value in tensors.items() if name.startswith("visual.")}


def dinov2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All but the token for masked patches, which only training needs."""
    return {name: value for name, value in tensors.items() if name != "mask_token"}


def backbone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The convolutions; the classifier is not needed."""
    return {name: value for name, value in tensors.items() if name.startswith("features.")}


def without(*heads: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Selects all modules but `heads`, those behind the last feature map."""
    return lambda tensors: {name: value for name, value in tensors.items() if name.partition(".")[0] not in heads}


def linear(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of LPIPS: `lin0.model.1.weight` (1, C, 1, 1) and so on, as `lin0` (C,)."""
    return {name.partition(".")[0]: value.flatten() for name, value in tensors.items() if name.startswith("lin")}


def convolution_shapes(layers: list[torch.nn.Module]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a backbone."""
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
    "vgg16_bn": without("pre_logits", "head", "classifier"),
    "tf_efficientnet_lite0": without("conv_head", "bn2", "classifier"),
    "deit_base_distilled_patch16_224": without("norm", "head", "head_dist"),
}
NETWORKS = {
    "inception-2015-12-05": Inception,
    "clip-vit-b-32": CLIP,
    "dinov2-vitl14": DINOv2,
    "vgg16_bn": VGG16BN,
    "tf_efficientnet_lite0": EfficientNetLite0,
    "deit_base_distilled_patch16_224": DeiT,
}
with torch.device("meta"):
    PARTS = {
        "vgg16": convolution_shapes(vgg16_layers()),
        "alexnet": convolution_shapes(alex_layers()),
        **{f"lpips-{name}": {f"lin{i}": (n,) for i, n in enumerate(widths)} for name, widths in WIDTHS.items()},
    }
