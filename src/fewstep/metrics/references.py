"""What images are compared with: real images, or their statistics in a file that says what each array is for.

Also read are EDM's npz (mean and covariance for FID) and ADM's npz, where `mu` and `sigma` are of the whole data set,
for FID, and the images `arr_0` (or `images`) a sample of it, for precision, recall and KID.
`fewstep.io.reference_files` adds EDM2's pickles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.data import images as open_images
from fewstep.data.arrays import IMAGES, array_names, load_array
from fewstep.metrics.distribution import Covariance, LowRank
from fewstep.metrics.sources import ImageSet
from fewstep.runtime.files import new_file, parse_json, sha256

V = TypeVar("V")
FeatureKey = tuple[str, str]
"""Extractor and part, such as ("inception", "features")."""
STATISTICS, ABOUT = 64 * 2**20, 4 * 2**20
"""Bytes, as float64, of an array in a smaller file; those of its description."""
FORMAT = "fewstep reference 1"


class Lazy(Mapping[FeatureKey, V]):
    """Arrays by extractor and part, read when they are first asked for, and kept."""

    def __init__(self, readers: Mapping[FeatureKey, Callable[[], V]]) -> None:
        self.readers = {key: cache(reader) for key, reader in readers.items()}

    def __getitem__(self, key: FeatureKey) -> V:
        return self.readers[key]()

    def __iter__(self) -> Iterator[FeatureKey]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


@dataclass(frozen=True)
class ReferenceData:
    """The real side of a comparison: images, statistics of images, or both.

    Attributes:
        name: name of the data, for protocols.
        sha256: hash of the images or of the file.
        n: number of images behind the moments, None if the file does not say.
        moments: mean (D,) and covariance, float64, for Frechet distances.
        samples: features of single images (N, D), for kernel distances and neighbours.
        images: images, from which missing statistics are computed.
        extractors: the `extractors.identity` of what made the arrays, by the name of the extractor. None if the file does not
            say, as EDM's and ADM's: features of any precision are compared with those, and the protocol names it.

    Example:
        >>> reference = fs.metrics.ReferenceData.of(fs.images("digits"))
    """

    name: str
    sha256: str
    n: int | None
    moments: Mapping[FeatureKey, tuple[Tensor, Covariance]] = field(default_factory=dict)
    samples: Mapping[FeatureKey, Tensor] = field(default_factory=dict)
    images: ImageSet | None = None
    extractors: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, images: ImageSet) -> ReferenceData:
        """Return the reference of a set of images, whose statistics are computed when they are needed."""
        return cls(images.name, images.fingerprint, len(images), images=images)

    def describe(self) -> dict[str, Any]:
        """Return the reference's part of a protocol."""
        return {"name": self.name, "n": self.n, "sha256": self.sha256}

    def contents(self) -> str:
        """What the reference has, in words."""
        parts = [f"moments of {'/'.join(k)}" for k in self.moments] + [
            f"samples of {'/'.join(k)}" for k in self.samples
        ]
        return ", ".join(parts + (["images"] if self.images is not None else [])) or "nothing"


def save_reference(reference: ReferenceData, path: Path) -> None:
    """Write the arrays of a reference, each with its extractor.

    Args:
        reference: the statistics, from `make_reference`.
        path: the npz file to write.

    Example:
        >>> reference = fs.metrics.make_reference(fs.images("digits"), fs.metrics.Options(("fd_pixels",)))
        >>> fs.metrics.save_reference(reference, Path("digits.npz"))
    """
    arrays: dict[str, Any] = {}
    purpose: dict[str, str] = {}
    for (name, part), (mean, cov) in reference.moments.items():
        arrays[f"moments/{name}/{part}/mean"] = mean.numpy()
        if isinstance(cov, LowRank):  # smaller than the covariance itself
            arrays[f"moments/{name}/{part}/rows"] = cov.rows.numpy()
        else:
            arrays[f"moments/{name}/{part}/cov"] = cov.numpy()
        purpose[f"moments/{name}/{part}"] = "mean and unbiased covariance of all images: for Frechet distances (FID)"
    for (name, part), features in reference.samples.items():
        arrays[f"samples/{name}/{part}"] = features.numpy()
        purpose[f"samples/{name}/{part}"] = "features of single images: for kernel distances, precision and recall"
    if not arrays:
        raise ValueError(f"the reference {reference.name} has no statistics to write; compute them first")
    about = {
        "format": FORMAT,
        **reference.describe(),
        "arrays": purpose,
        "extractors": {name: reference.extractors.get(name) for name, _ in (*reference.moments, *reference.samples)},
    }
    with new_file(path) as partial, partial.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)


def load_reference(path: Path) -> ReferenceData:
    """Open a reference of ours, EDM's or ADM's. Arrays are read when they are used; the file's hash is the reference's.

    Args:
        path: the npz file.

    Returns:
        The reference.

    Raises:
        ValueError: the file is not a reference, or is damaged.

    Example:
        >>> reference = fs.metrics.make_reference(fs.images("digits"), fs.metrics.Options(("fd_pixels",)))
        >>> fs.metrics.save_reference(reference, Path("digits.npz"))
        >>> fs.metrics.load_reference(Path("digits.npz")).n
        1797
    """
    try:
        names = array_names(path)
        about = description(load_array(path, "about")) if "about" in names else None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a reference, an npz of arrays ({error}); make one with: fewstep eval reference DATA {path}"
        ) from error
    if isinstance(about, dict) and about.get("format") == FORMAT:
        try:
            return own(path, names, about)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: its description does not fit its arrays ({error!r}); make it anew") from error
    digest = sha256(path)
    moments: dict[FeatureKey, Callable[[], tuple[Tensor, Tensor]]] = {}
    for part, mean, cov in (("features", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
        if {mean, cov} <= names:
            moments["inception", part] = gaussian(path, mean, cov)
    images = open_images(path) if names & {*IMAGES} else None
    if not moments and images is None:
        raise ValueError(
            f"{path}: expected mu and sigma (EDM), arr_0 (ADM), or a reference of ours; it has {sorted(names)}"
        )
    return ReferenceData(path.stem, digest, None, Lazy(moments), {}, images, {"inception": None})


def description(array: NDArray[Any]) -> Any:
    if array.nbytes > ABOUT or array.dtype.kind != "U" or array.ndim:
        raise ValueError(f"its description is {array.dtype} {array.shape}, which is no text or too long a one")
    return parse_json(str(array))


def own(path: Path, names: set[str], about: dict[str, Any]) -> ReferenceData:
    moments: dict[FeatureKey, Callable[[], tuple[Tensor, Covariance]]] = {}
    samples: dict[FeatureKey, Callable[[], Tensor]] = {}
    for entry in about["arrays"]:
        kind, extractor, part = entry.split("/")
        if kind == "moments":
            read, second = (low_rank, "rows") if f"{entry}/rows" in names else (gaussian, "cov")
            moments[extractor, part] = read(path, f"{entry}/mean", f"{entry}/{second}")
        elif kind == "samples" and entry in names:
            samples[extractor, part] = reader(path, entry)
    digest = str(about["sha256"])
    return ReferenceData(
        str(about["name"]), digest, about["n"], Lazy(moments), Lazy(samples), None, about["extractors"]
    )


def reader(path: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        array = numbers(path, name)
        if array.ndim != 2 or not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} must be finite features (N, D); it has the shape {array.shape}")
        return torch.from_numpy(array)

    return read


def gaussian(path: Path, mean: str, cov: str) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: check_moments(numbers(path, mean), numbers(path, cov), str(path))


def low_rank(path: Path, mean: str, rows: str) -> Callable[[], tuple[Tensor, LowRank]]:
    def read() -> tuple[Tensor, LowRank]:
        m, r = (np.asarray(numbers(path, name), dtype=np.float64) for name in (mean, rows))
        if m.ndim != 1 or r.ndim != 2 or r.shape[1] != len(m) or not (np.isfinite(m).all() and np.isfinite(r).all()):
            raise ValueError(
                f"{path}: expected a finite mean (D,) and a factor (n - 1, D) of the covariance; got {m.shape} and {r.shape}"
            )
        return torch.from_numpy(m), LowRank(torch.from_numpy(r))

    return read


def numbers(path: Path, name: str) -> NDArray[Any]:
    """An array of real numbers, as a copy, since what is mapped is read-only. Statistics hardly compress."""
    array = load_array(path, name)
    check_real(array, f"{path}: {name}")
    if 8 * array.size > max(STATISTICS, 8 * path.stat().st_size):
        raise ValueError(f"{path}: {name} has {array.size} numbers, in a file of {path.stat().st_size} bytes")
    return np.array(array)


def check_real(array: NDArray[Any], where: str) -> None:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{where} must be real numbers; it is {array.dtype}")


def check_moments(mean: Any, cov: Any, where: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance in float64, if they are of one dimension, finite and symmetric."""
    for array in (mean, cov):
        check_real(np.asarray(array), f"{where}: a mean or covariance")
    m, s = (np.asarray(a, dtype=np.float64) for a in (mean, cov))
    if m.ndim != 1 or s.shape != (len(m), len(m)):
        raise ValueError(f"{where}: expected a mean (D,) and a covariance (D, D); got {m.shape} and {s.shape}")
    if not (np.isfinite(m).all() and np.isfinite(s).all()) or not np.allclose(s, s.T, rtol=1e-5, atol=1e-8):
        raise ValueError(f"{where}: its mean or covariance is not finite, or the covariance is not symmetric")
    return torch.from_numpy(m), torch.from_numpy((s + s.T) / 2)
