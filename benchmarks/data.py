"""Packing images, beside a loop with Pillow in one process that does the same, and loading them as batches.

`python -m benchmarks data IMAGES.zip` alternates the two packers, and tells whether every run of `fewstep data pack` wrote the
same bytes. Both decode every image to RGB, write uncompressed PNGs and the classes.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from benchmarks.measure import Table


def pillow_loop(source: Path, dest: Path) -> int:
    """Images written."""
    with zipfile.ZipFile(source) as images, zipfile.ZipFile(dest, "w") as archive:
        names = sorted(name for name in images.namelist() if name.endswith((".jpg", ".png")))
        classes = {folder: i for i, folder in enumerate(sorted({name.partition("/")[0] for name in names}))}
        labels = []
        for i, name in enumerate(names):
            image = Image.open(io.BytesIO(images.read(name))).convert("RGB")
            image.save(buffer := io.BytesIO(), "PNG", compress_level=0, optimize=False)
            target = f"{i // 1000:05d}/img{i:08d}.png"
            archive.writestr(target, buffer.getvalue())
            labels.append([target, classes[name.partition("/")[0]]])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return len(names)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, nargs="?", help="image zip; 20,000 JPEG images of noise of 32x32 if left out"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, help="processes; one for each core if left out")
    parser.add_argument("--batch", type=int, default=64, help="images at a time, in loading")


def noise(path: Path, n: int = 20_000) -> Path:
    """A zip of JPEG images in ten classes."""
    draw = random.Random(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(n):
            small = Image.frombytes("RGB", (8, 8), draw.randbytes(192))
            small.resize((32, 32)).save(buffer := io.BytesIO(), "JPEG")
            archive.writestr(f"class{i % 10}/{i:06d}.jpg", buffer.getvalue())
    return path


def run(given: argparse.Namespace) -> Iterator[Table]:
    # here, as the processes that decode import this file
    from benchmarks.measure import Table, clock
    from fewstep.data import ImageStream, images
    from fewstep.data.pack import pack
    from fewstep.runtime.files import sha256

    with tempfile.TemporaryDirectory() as folder:
        source = given.source or noise(Path(folder) / "source.zip")
        seconds: dict[str, list[float]] = {"Pillow loop": [], "fewstep data pack": []}
        hashes, n = set(), 0
        for _ in range(given.repeats):
            # of the wall, as several processes work
            began = time.perf_counter()
            n = pillow_loop(source, Path(folder) / "loop.zip")
            seconds["Pillow loop"].append(time.perf_counter() - began)
            began = time.perf_counter()
            pack(source, Path(folder) / "pack.zip", workers=given.workers)
            seconds["fewstep data pack"].append(time.perf_counter() - began)
            hashes.add(sha256(Path(folder) / "pack.zip"))
        slow = seconds["Pillow loop"]
        rows = [
            {"": name, "images/s": n / median(v), "speed-up": median(a / b for a, b in zip(slow, v, strict=True))}
            for name, v in seconds.items()
        ]
        yield Table(f"Packing {n:,} images; {len(hashes)} hash(es) of {given.repeats} runs", rows)
        rows = []
        for name, memory in (("decoded again each time", 0), ("kept after the first", 2**30)):
            stream = ImageStream(images(Path(folder) / "pack.zip", memory=memory))
            began = clock()
            for start in range(0, n, given.batch):
                stream.batch(start, min(given.batch, n - start))
            first = clock() - began
            began = clock()
            for start in range(n, 2 * n, given.batch):
                stream.batch(start, min(given.batch, 2 * n - start))
            rows.append({"": name, "first pass, images/s": n / first, "second pass": n / (clock() - began)})
        yield Table(f"Training batches of {given.batch} from that file", rows)
