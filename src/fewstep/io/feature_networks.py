"""Feature networks of metrics and discriminators, by name: their weights are fetched once and converted."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from fewstep.io.convert.download import fetch
from fewstep.io.convert.feature_weights import NETWORKS, read_published
from fewstep.metrics.weights import ASSETS, Asset, assets_folder, fill, how_to_get, read_weights, save_weights
from fewstep.runtime import outputs
from fewstep.runtime.display import public
from fewstep.runtime.files import read_tensors, sha256, writable


def find_asset(name: str) -> Asset:
    """The asset of a name. Raises ValueError for an unknown one."""
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
    """Fetch the published weights of an asset, check their hash, convert them, and keep them for `open_network`.

    Args:
        name: of the asset, as `fewstep assets list` shows it.
        source: file or http(s) address; None for the first published address.
        sha256_prefix: the hash that the file must have, or its beginning; None for the known hash of this address or file
            name, if there is one.
        offline: raise ValueError instead of downloading.
        folder: where to keep the weights; None for the folder of the assets.

    Returns:
        The file with the converted weights.

    Raises:
        ValueError: the asset is unknown, the hash is wrong, or the file does not hold its weights.
        OSError: the download fails.
    """
    asset = find_asset(name)
    chosen = asset.sources[0].address if source is None else source
    expected = (sha256_prefix or known_hash(asset, chosen) or "").lower()
    outputs.file(writable((folder or assets_folder()) / asset.file), apart=[chosen], overwrite=True)
    path = fetch(chosen, offline=offline)
    digest = sha256(path)
    if not digest.startswith(expected):
        if "://" in str(chosen):
            path.unlink()  # of the cache, so that the next call downloads it again
        raise ValueError(
            f"{public(chosen)} has the sha256 {digest}; expected {expected}: it is damaged or another file; fetch it again"
        )
    return save_weights(asset, read_published(asset, path), digest, folder)


def known_hash(asset: Asset, source: str | Path) -> str | None:
    """The published SHA-256 of a source: by its address, or by a file name that only one source has."""
    by_address = [s for s in asset.sources if s.address == public(source)]
    by_file = [s for s in asset.sources if s.file == public(source).rsplit("/", 1)[-1]]
    found = by_address or by_file
    return found[0].sha256 if len(found) == 1 else None


def open_network(name: str, weights: Path | Literal["hub"]) -> tuple[torch.nn.Module, str]:
    """A feature network with its weights.

    Args:
        name: of the network, as `fewstep assets list` shows it.
        weights: the published file, or the one that `fewstep assets fetch` keeps; a folder with NAME.safetensors; or "hub"
            for the folder of the assets, to which a missing file is fetched.

    Returns:
        The network, and the SHA-256 of the published file of its weights.

    Raises:
        ValueError: the file is missing and cannot be fetched, or its tensors are not those of the network.

    Example:
        >>> network, digest = open_network("vgg16_bn", "hub")
    """
    asset = find_asset(name)
    if weights == "hub":
        if not (assets_folder() / asset.file).is_file():
            try:
                fetch_asset(name)
            except (OSError, ValueError) as error:
                missing = f"the weights of {name} are not in {assets_folder()}, and could not be fetched"
                raise ValueError(f"{missing}: {error}; {how_to_get(asset)}") from error
        state, about = read_weights(asset)
        return fill(NETWORKS[name], state, asset.file), about["source_sha256"]
    path = weights / asset.file if weights.is_dir() else weights
    if not path.is_file():
        raise ValueError(
            f"the weights of {name} are needed, and there is no file {path}; download {asset.sources[0].address} to it, or "
            f"{how_to_get(asset)}"
        )
    if path.name == asset.file and "asset" in read_tensors(path)[1]:
        state, about = read_weights(asset, path.parent)
        return fill(NETWORKS[name], state, str(path)), about["source_sha256"]
    state = {key: tensor.float() for key, tensor in read_published(asset, path).items()}
    return fill(NETWORKS[name], state, str(path)), sha256(path)
