"""`fewstep assets`: the weights of feature networks."""

from __future__ import annotations

from tyro.conf import Positional


def assets_list() -> None:
    """List the weights of feature networks: purpose, licence, and file or URL."""
    from fewstep.metrics.weights import ASSETS, assets_folder

    folder = assets_folder()
    print(f"in {folder}:")
    for asset in ASSETS.values():
        there = (folder / asset.file).is_file()
        place = asset.file if there else f"missing; {asset.sources[0].address}"
        print(f"{asset.name:31} {asset.purpose:26} {asset.license:23} {place}")


def assets_fetch(
    name: Positional[str],
    *,
    source: str | None = None,
    sha256: str | None = None,
) -> None:
    """Download or read the published weights of one network, check them, and keep them as safetensors.

    Args:
        name: name in fewstep assets list.
        source: file or URL to use instead of the published one.
        sha256: expected hash of the file, or its beginning. If unset: the hash that is on record.
    """
    from fewstep.io.feature_networks import fetch_asset
    from fewstep.metrics.weights import ASSETS, read_weights

    path = fetch_asset(name, source=source, sha256_prefix=sha256)
    about = read_weights(ASSETS[name])[1]
    print(f"{path}: weights {about['sha256']}, from a file {about['source_sha256']}")


def assets_check(name: Positional[str | None] = None) -> None:
    """Verify the hashes of the weights of one network, or of all downloaded ones.

    Args:
        name: name in fewstep assets list. If unset: all downloaded ones.
    """
    from fewstep.io.feature_networks import find_asset
    from fewstep.metrics.weights import ASSETS, assets_folder, read_weights

    there = [asset for asset in ASSETS.values() if (assets_folder() / asset.file).is_file()]
    for asset in there if name is None else [find_asset(name)]:
        print(f"{asset.name}: weights {read_weights(asset)[1]['sha256']}, as they should be")
    if name is None and not there:
        print(f"there are no weights in {assets_folder()}; fewstep assets fetch gets them")
