"""Latents as training data: their means and standard deviations under a VAE are stored, and latents are drawn for each batch."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.core.method import Batch
from fewstep.data.classes import read_labels
from fewstep.data.codec import StabilityVAE
from fewstep.data.files import Zip, parse_array
from fewstep.data.images import ImageData
from fewstep.data.pack import write_labels, zip_entry
from fewstep.data.stream import locate
from fewstep.runtime.distributed import gather, rank, world_size
from fewstep.runtime.files import new_file
from fewstep.runtime.progress import track


class LatentData:
    """A data set of latents in the format of EDM2.

    Args:
        path: a zip of `.npy` files float32 (2 C, H, W), means then standard deviations, with classes in `dataset.json`.

    Raises:
        ValueError: it is not such a zip.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if path.suffix.lower() != ".zip" or not path.is_file():
            raise ValueError(f"{path}: expected a zip of latents (.npy files); there is no such zip")
        self._zip = Zip(path)
        self.names = self._zip.names
        if not self.names or not self.names[0].lower().endswith(".npy"):
            raise ValueError(
                f"{path}: expected latents (.npy files); found none; encode images first: fewstep data latents IMAGES.zip OUT.zip"
            )
        self.name = path.stem
        self.moments_shape = self._moments(0).shape
        channels, *size = self.moments_shape
        if channels % 2 or len(size) != 2:
            raise ValueError(
                f"{path}/{self.names[0]}: expected means and deviations (2 C, H, W); got {self.moments_shape}"
            )
        self.shape = (channels // 2, *size)
        found = read_labels(self._zip) if "dataset.json" in self._zip else None  # its folders are no classes
        self.labels = None if found is None else np.array(found.indices, dtype=np.int64)
        self.num_classes = 0 if found is None else found.num_classes

    def __len__(self) -> int:
        return len(self.names)

    def gather(self, index: NDArray[np.integer]) -> NDArray[np.float32]:
        """The moments at `index` (n,): float32 (n, 2 C, H, W)."""
        return np.stack([self._moments(int(i)) for i in index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, sizes, check sums and labels."""
        digest = hashlib.sha256("\n".join(repr((n, *self._zip.signature(n))) for n in self.names).encode())
        if self.labels is not None:
            digest.update(f"{self.num_classes}".encode() + self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def _moments(self, i: int) -> NDArray[np.float32]:
        where = f"{self._zip.path}/{self.names[i]}"
        array = parse_array(self._zip.read(self.names[i]), where)
        expected = array.shape if i == 0 else self.moments_shape
        if array.dtype != np.float32 or array.shape != expected:
            raise ValueError(f"{where}: expected float32 {expected}; got {array.dtype} {array.shape}")
        return array


def check_latents(path: Path) -> list[tuple[str, str]]:
    """Names of the files of a zip of latents that cannot be trained on, with the reasons."""
    data, problems = LatentData(path), []
    for i, name in enumerate(data.names):
        try:
            moments = data.gather(np.array([i]))
            if not np.isfinite(moments).all() or (moments[:, data.shape[0] :] < 0).any():
                raise ValueError(f"{path}/{name}: expected finite means and deviations >= 0; some are not")
        except ValueError as error:
            problems.append((name, str(error)))
    return problems


class Encoder(Protocol):
    """Images to the moments of their latents; see `StabilityVAE`."""

    def moments(self, image: Tensor, /) -> Tensor: ...


def encode_images(
    data: ImageData, dest: str | Path, codec: Encoder, *, batch_size: int = 8, device: torch.device | None = None
) -> int:
    """Write the means and standard deviations of the latents of all images to a zip that `LatentData` opens and EDM2 reads.

    Ranks share the work, and the first one writes. Nothing is random: the same images give the same bytes. On any failure
    `dest` stays as it was.

    Args:
        data: RGB images whose sides are multiples of 8.
        dest: the zip to write.
        codec: the encoder.
        batch_size: images at a time, in memory and in the encoder.
        device: where the encoder is.

    Returns:
        The number of images.

    Raises:
        ValueError: an argument or an image cannot be used.
    """
    dest = Path(dest)
    if dest.suffix.lower() != ".zip":
        raise ValueError(f"the destination must be a .zip; got {dest}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    channels, height, width = data.shape
    if channels != 3 or height % 8 or width % 8:
        raise ValueError(
            f"{data.name}: the VAE encodes RGB images whose sides are multiples of 8; got {channels} x {height} x {width}. "
            "First: fewstep data pack SOURCE OUT.zip --resolution 512x512 --transform center-crop-dhariwal"
        )
    names = [f"{i // 1000:05d}/img-mean-std-{i:08d}.npy" for i in range(len(data))]
    starts = range(0, len(data), batch_size * world_size())

    def moments(start: int) -> NDArray[np.float32]:
        index = np.arange(min(start, len(data)), min(start + batch_size, len(data)))
        images = torch.from_numpy(data.gather(index)) if len(index) else torch.empty(0)
        return codec.moments(images.to(device)).float().cpu().numpy() if len(index) else np.empty(0, np.float32)

    def encoded() -> Iterator[NDArray[np.float32]]:
        for start in track(starts, total=len(starts), description=f"encoding {data.name}", unit="batches"):
            for part in gather(moments(start + rank() * batch_size)):
                yield from part

    if rank() != 0:
        deque(encoded(), maxlen=0)
        return len(data)
    with new_file(dest) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in zip(names, encoded(), strict=True):
            np.save(buffer := io.BytesIO(), array)
            archive.writestr(zip_entry(name), buffer.getvalue())
        labels = [None] * len(data) if data.labels is None else data.labels.tolist()
        write_labels(archive, names, labels, data.class_names)
    return len(data)


class LatentStream:
    """As `ImageStream`, of latents in the units of a denoiser; the noise of a latent is a function of its position."""

    flip = False

    def __init__(self, data: LatentData, codec: StabilityVAE, *, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"the seed of a stream must not be negative; got {seed}")
        if data.shape[0] != len(codec.raw_mean):
            raise ValueError(f"{data.name}: expected latents of {len(codec.raw_mean)} channels; got {data.shape}")
        self.data, self.codec, self.seed = data, codec, seed

    def batch(self, position: int, n: int) -> Batch:
        """The latents at positions position ... position + n - 1, (n, C, H, W) float32, on the CPU; a pure function."""
        index, _ = locate(len(self.data), self.seed, position, n)
        keys = [
            np.random.SeedSequence([self.seed, p]).generate_state(1, np.uint64) for p in range(position, position + n)
        ]
        generators = [torch.Generator().manual_seed(int(key[0])) for key in keys]

        def noise(x: Tensor) -> Tensor:
            return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])

        labels = None if self.data.labels is None else torch.from_numpy(self.data.labels[index])
        return Batch(self.codec.whiten(torch.from_numpy(self.data.gather(index)), noise), labels)

    def sample(self, n: int, device: torch.device) -> Batch:
        """`n` latents drawn independently of each other, with replacement, by torch's random stream."""
        index = torch.randint(len(self.data), (n,)).numpy()
        labels = None if self.data.labels is None else torch.from_numpy(self.data.labels[index]).to(device)
        return Batch(self.codec.whiten(torch.from_numpy(self.data.gather(index)).to(device)), labels)
