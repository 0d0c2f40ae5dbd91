"""Reference statistics of every kind by path: ours, EDM's and ADM's npz, EDM2's pickle, or images themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from fewstep.data import images
from fewstep.io.convert.download import fetch
from fewstep.io.unpickle import read
from fewstep.metrics.references import ReferenceData, check_moments, load_reference
from fewstep.metrics.sources import open_set
from fewstep.runtime.files import sha256

EDM2 = {"fid": "inception", "fd_dinov2": "dinov2"}


def open_reference(path: str | Path) -> ReferenceData:
    """The reference statistics that a path names.

    Args:
        path: a reference file of fewstep, EDM, ADM (npz) or EDM2 (pkl), by path or http(s) address; images of any source;
            or "digits", the built-in data set.

    Returns:
        The reference. Statistics of images are computed when a metric needs them.

    Raises:
        ValueError: the file holds no reference, or the images cannot be opened.

    Example:
        >>> reference = open_reference("https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz")
    """
    if "://" in str(path):
        return replace(open_reference(fetch(path)), name=PurePosixPath(urlsplit(str(path)).path).stem)
    if str(path) == "digits":
        return ReferenceData.of(images("digits"))
    path = Path(path)
    if path.suffix.lower() == ".npz":
        return load_reference(path)
    if path.suffix.lower() == ".pkl":
        return edm2_reference(path)
    return ReferenceData.of(open_set(path))


def edm2_reference(path: Path) -> ReferenceData:
    """EDM2's pickle {num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}}; nothing in it is executed."""
    content = read(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected EDM2's reference, a dict; it is a {type(content).__name__}")
    moments = {}
    for name, extractor in EDM2.items():
        if isinstance(entry := content.get(name), dict):
            moments[extractor, "features"] = check_moments(entry.get("mu"), entry.get("sigma"), f"{path}, {name}")
    if not moments:
        raise ValueError(
            f"{path}: expected fid or fd_dinov2 with mu and sigma; it has {[str(k)[:40] for k in content]}"
        )
    n = content.get("num_images")
    hashes = dict.fromkeys(extractor for extractor, _ in moments)
    return ReferenceData(path.stem, sha256(path), n if isinstance(n, int) else None, moments, extractors=hashes)
