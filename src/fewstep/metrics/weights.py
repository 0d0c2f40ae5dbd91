"""The weights of feature networks: what is known of each, where they lie, and how they are read: safetensors alone.

`fewstep.io.convert.feature_weights` makes these files out of the published ones. The hash of the numbers, whatever file they came
in, is the extractor's identity in protocols and references.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.runtime.environment import cache_folder
from fewstep.runtime.files import new_file, read_tensors, write_tensors


@dataclass(frozen=True)
class PublishedFile:
    """One published file. sha256: what the file of that name has, or how it begins; None if nobody states it."""

    file: str
    address: str
    sha256: str | None = None


@dataclass(frozen=True)
class Asset:
    """Weights of one network. purpose: the metrics that need it. sources: equivalent files, the preferred first."""

    name: str
    purpose: str
    license: str
    sources: tuple[PublishedFile, ...]

    @property
    def file(self) -> str:
        return f"{self.name}.safetensors"


PORT = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TIMM = "https://huggingface.co/timm"
LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
INCEPTION = Asset(
    "inception-2015-12-05",
    "fid, sfid, kid, is, pr, dc",
    "Apache-2.0 (TensorFlow)",
    (
        PublishedFile(
            "weights-inception-2015-12-05-6726825d.pth",
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            PORT,
        ),
        PublishedFile(
            "pt_inception-2015-12-05-6726825d.pth",
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            PORT,
        ),
        PublishedFile(
            "inception-2015-12-05.pkl",
            "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/metrics/inception-2015-12-05.pkl",
        ),
        PublishedFile(
            "inception-2015-12-05.pt",
            "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
            "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        ),
        PublishedFile(
            "inception-2015-12-05.pt",
            "https://openaipublic.blob.core.windows.net/consistency/inception/inception-2015-12-05.pt",
        ),
    ),
)
CLIP_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
CLIP = Asset(
    "clip-vit-b-32",
    "clip_fid",
    "MIT (OpenAI)",
    (
        PublishedFile(
            "ViT-B-32.pt",
            f"https://openaipublic.azureedge.net/clip/models/{CLIP_SHA256}/ViT-B-32.pt",
            CLIP_SHA256,
        ),
    ),
)
DINOV2 = Asset(
    "dinov2-vitl14",
    "fd_dinov2",
    "Apache-2.0 (Meta)",
    (
        PublishedFile(
            "dinov2_vitl14_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        ),
    ),
)
VGG = Asset(
    "vgg16",
    "lpips_vgg",
    "BSD-3 (torchvision)",
    (
        PublishedFile(
            "vgg16-397923af.pth",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
    ),
)
ALEX = Asset(
    "alexnet",
    "lpips_alex",
    "BSD-3 (torchvision)",
    (
        PublishedFile(
            "alexnet-owt-7be5be79.pth",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        ),
    ),
)
LPIPS_VGG = Asset(
    "lpips-vgg",
    "lpips_vgg",
    "BSD-2 (Zhang et al.)",
    (PublishedFile("vgg.pth", f"{LPIPS}/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),),
)
LPIPS_ALEX = Asset(
    "lpips-alex",
    "lpips_alex",
    "BSD-2 (Zhang et al.)",
    (
        PublishedFile(
            "alex.pth", f"{LPIPS}/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
        ),
    ),
)
VGG16_BN = Asset(
    "vgg16_bn",
    "gdd on CIFAR-10",
    "BSD-3 (torchvision)",
    (
        PublishedFile("model.safetensors", f"{TIMM}/vgg16_bn.tv_in1k/resolve/main/model.safetensors"),
        PublishedFile("vgg16_bn-6c64b313.pth", "https://download.pytorch.org/models/vgg16_bn-6c64b313.pth", "6c64b313"),
    ),
)
EFFICIENTNET = Asset(
    "tf_efficientnet_lite0",
    "gdd",
    "Apache-2.0 (TensorFlow)",
    (
        PublishedFile("model.safetensors", f"{TIMM}/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors"),
        PublishedFile(
            "tf_efficientnet_lite0-0aa007d2.pth",
            "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/tf_efficientnet_lite0-0aa007d2.pth",
            "0aa007d2",
        ),
    ),
)
DEIT = Asset(
    "deit_base_distilled_patch16_224",
    "gdd but on CIFAR-10",
    "Apache-2.0 (Meta)",
    (
        PublishedFile(
            "model.safetensors", f"{TIMM}/deit_base_distilled_patch16_224.fb_in1k/resolve/main/model.safetensors"
        ),
        PublishedFile(
            "deit_base_distilled_patch16_224-df68dfff.pth",
            "https://dl.fbaipublicfiles.com/deit/deit_base_distilled_patch16_224-df68dfff.pth",
            "df68dfff",
        ),
    ),
)
ASSETS = {
    asset.name: asset
    for asset in (INCEPTION, CLIP, DINOV2, VGG, ALEX, LPIPS_VGG, LPIPS_ALEX, VGG16_BN, EFFICIENTNET, DEIT)
}


def assets_folder() -> Path:
    """$FEWSTEP_ASSETS, else `assets` in the cache folder."""
    chosen = os.environ.get("FEWSTEP_ASSETS")
    return Path(chosen) if chosen else cache_folder() / "assets"


def content_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and numbers (as float32), in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def save_weights(asset: Asset, state: Mapping[str, Tensor], source_sha256: str, folder: Path | None = None) -> Path:
    """Write the weights of an asset, float32, with their hash and that of the file they came from."""
    path = (folder or assets_folder()) / asset.file
    floats = {name: tensor.detach().float().contiguous() for name, tensor in state.items()}
    metadata = {"asset": asset.name, "sha256": content_hash(floats), "source_sha256": source_sha256}
    with new_file(path) as partial:
        write_tensors(partial, floats, metadata=metadata)
    return path


def read_weights(asset: Asset, folder: Path | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of an asset, and the metadata of their file. ValueError if they are missing, damaged or another's."""
    folder = folder or assets_folder()
    path = folder / asset.file
    if not path.is_file():
        raise ValueError(f"{asset.purpose} need the weights {path}, which are missing; {how_to_get(asset)}")
    try:
        state, metadata = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{error}; remove it, then {how_to_get(asset)}") from error
    if metadata.get("asset") != asset.name:
        raise ValueError(
            f"{path} holds {metadata.get('asset')!r}, not {asset.name}; remove it, then {how_to_get(asset)}"
        )
    if (found := content_hash(state)) != metadata.get("sha256"):
        raise ValueError(
            f"{path} has the hash {found}, and says {metadata.get('sha256')}: it is damaged; remove it, then "
            f"{how_to_get(asset)}"
        )
    return state, metadata


def how_to_get(asset: Asset) -> str:
    first = asset.sources[0]
    known = f"sha256 {first.sha256}" if first.sha256 else "its publisher states no hash"
    return (
        f"run: fewstep assets fetch {asset.name}; without network copy {first.file} ({known}) from {first.address} and "
        f"run: fewstep assets fetch {asset.name} --source FILE"
    )


def fill(build: Callable[[], nn.Module], state: Mapping[str, Tensor], where: str) -> nn.Module:
    """The network with these weights, frozen, in evaluation mode; ValueError naming what is missing or does not fit."""
    with torch.device("meta"):
        network = build()
    expected = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    if faults := [name for name in expected if name not in state or state[name].shape != expected[name].shape]:
        raise ValueError(
            f"{where} lacks {len(faults)} tensors of the network, or has them in another shape: {faults[:5]}"
        )
    if unknown := [name for name in state if name not in expected]:
        raise ValueError(f"{where} has {len(unknown)} tensors that are not the network's: {unknown[:5]}")
    if wrong := [name for name in state if not bool(state[name].isfinite().all())]:
        raise ValueError(f"{where} has NaN or infinity in {len(wrong)} tensors of the network: {wrong[:5]}")
    counters = {
        name: torch.zeros_like(tensor, device="cpu")
        for name, tensor in network.state_dict().items()
        if not tensor.is_floating_point()
    }
    network.load_state_dict({**state, **counters}, assign=True)
    return network.eval().requires_grad_(False)
