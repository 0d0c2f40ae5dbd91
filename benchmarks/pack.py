"""Packing images against a loop with Pillow, in one process, that does the same.

`python -m benchmarks.pack IMAGES.zip` alternates the two, and prints images per second, their ratio, and whether every run
of `fewstep data pack` wrote the same bytes. Both decode every image to RGB, write uncompressed PNGs and the classes.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
import zipfile
from pathlib import Path
from statistics import median

from PIL import Image


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, help="processes; one for each core if left out")
    options = parser.parse_args()
    # here, as the processes that decode import this file
    from fewstep.data.prepare import pack
    from fewstep.files import sha256

    seconds: dict[str, list[float]] = {"Pillow loop": [], "fewstep data pack": []}
    hashes = set()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            began = time.perf_counter()
            n = pillow_loop(options.source, Path(folder) / "loop.zip")
            seconds["Pillow loop"].append(time.perf_counter() - began)
            began = time.perf_counter()
            pack(options.source, Path(folder) / "pack.zip", workers=options.workers)
            seconds["fewstep data pack"].append(time.perf_counter() - began)
            hashes.add(sha256(Path(folder) / "pack.zip"))
    medians = {name: median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:18} {n / value:8,.0f} images/s")
    print(
        f"ratio {medians['Pillow loop'] / medians['fewstep data pack']:.2f}, {len(hashes)} hash(es) of {options.repeats} runs"
    )


if __name__ == "__main__":
    main()
