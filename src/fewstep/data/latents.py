"""Latents as training data: their means and deviations under a VAE, stored once, drawn anew each time they are seen."""

from __future__ import annotations

import hashlib
import io
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.data.codec import StabilityVAE
from fewstep.data.files import Zip, parse_labels
from fewstep.data.sources import array_header
from fewstep.data.stream import locate
from fewstep.method import Batch


class LatentData:
    """The moments of latents in a zip as EDM2 has them: `.npy` files float32 (2 C, H, W), means then deviations, and
    classes in `dataset.json`.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if path.suffix.lower() != ".zip" or not path.is_file():
            raise ValueError(f"{path}: expected a zip of latents (.npy); it is missing or something else")
        self._zip = Zip(path)
        self._names = sorted(name for name in self._zip.zip.namelist() if name.endswith(".npy"))
        if not self._names:
            raise ValueError(f"{path}: expected latents (.npy); found none. Images are encoded with the VAE first")
        self.name = path.stem
        self.moments_shape = self._moments(0).shape
        channels, *size = self.moments_shape
        if channels % 2 or len(size) != 2:
            raise ValueError(
                f"{path}/{self._names[0]}: expected means and deviations (2 C, H, W); got {self.moments_shape}"
            )
        self.shape = (channels // 2, *size)
        found = None
        if "dataset.json" in self._zip:
            found = parse_labels(self._zip.read("dataset.json"), self._names, f"{path}/dataset.json")
        self.labels = None if found is None else np.array(found.index, dtype=np.int64)
        self.num_classes = 0 if found is None else found.num_classes

    def __len__(self) -> int:
        return len(self._names)

    def gather(self, index: NDArray[np.integer]) -> NDArray[np.float32]:
        """The moments at `index` (n,): float32 (n, 2 C, H, W)."""
        return np.stack([self._moments(int(i)) for i in index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, sizes, check sums and labels."""
        digest = hashlib.sha256("\n".join(repr((n, *self._zip.signature(n))) for n in self._names).encode())
        if self.labels is not None:
            digest.update(f"{self.num_classes}".encode() + self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def _moments(self, i: int) -> NDArray[np.float32]:
        where = f"{self._zip.path}/{self._names[i]}"
        file = io.BytesIO(self._zip.read(self._names[i]))
        shape, dtype = array_header(file, where)
        expected = shape if i == 0 else self.moments_shape
        data = file.read()
        if dtype != np.float32 or shape != expected or len(data) != 4 * np.prod(shape, dtype=object):
            raise ValueError(f"{where}: expected float32 {expected}, whole; got {dtype} {shape} in {len(data)} bytes")
        return np.frombuffer(data, dtype=np.float32).reshape(shape)


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
