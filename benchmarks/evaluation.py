"""What an evaluation costs, and whether its figures are those of other libraries.

`python -m benchmarks.evaluation PART` with PART one of: `frechet`, seconds of the distance of 2,048 dimensions and its
deviation from an independent computation; `images`, images per second of reading PNG files and measuring them on the
true Inception network (random weights) against the network alone; `memory`, the memory of all metrics of 50,000 images
of 32x32 beyond what the process had, on a cheap extractor with features of Inception's sizes; `libraries`, deviations
from torch-fidelity, torchmetrics and prdc, whichever are installed, on the same features, and of our Inception from
torch-fidelity's with the same weights. Ratios count: the two of `images` alternate, batch by batch.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fewstep.metrics.catalog import parse
from fewstep.metrics.distribution import Moments, ScoreSums, frechet_distance, kernel_distance
from fewstep.metrics.evaluate import Options, evaluate
from fewstep.metrics.extractors import Network, fast
from fewstep.metrics.neighbours import overlap
from fewstep.metrics.networks.inception import Inception
from fewstep.metrics.references import Reference
from fewstep.metrics.sources import Source, batches, first, from_path, prefetched
from fewstep.metrics.statistics import Pass, Saved

DIM, CLASSES, SPATIAL = 2048, 1008, 2023
BATCH = 16


def inception() -> Inception:
    torch.manual_seed(0)
    network = Inception().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


def independent(x: Tensor, y: Tensor) -> float:
    """With centred features X, Y the trace of the root is the sum of singular values of X Y^T / sqrt((n - 1) (m - 1))."""
    a, b = x - x.mean(0), y - y.mean(0)
    n, m = len(x) - 1, len(y) - 1
    root = torch.linalg.svdvals(a @ b.T).sum() / (n * m) ** 0.5
    return float((x.mean(0) - y.mean(0)).square().sum() + a.square().sum() / n + b.square().sum() / m - 2 * root)


def frechet() -> None:
    g = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -3, DIM, dtype=torch.float64)

    def features(n: int) -> Tensor:
        return torch.randn(n, DIM, generator=g, dtype=torch.float64) * scales + torch.rand(DIM, generator=g)

    sets = {"2,500": features(2500), "3,000": features(3000), "1,500": features(1500), "1,700": features(1700)}
    laws = {name: Moments.of(x).compute() for name, x in sets.items()}
    for a, b in (("2,500", "3,000"), ("1,500", "3,000"), ("1,500", "1,700")):
        began = time.perf_counter()
        found = frechet_distance(*laws[a], *laws[b])
        seconds = time.perf_counter() - began
        expected = independent(sets[a], sets[b])
        print(
            f"{a} and {b} images: {seconds:.2f} s, {found:.9f}, deviation {abs(found / expected - 1):.0e}", flush=True
        )


def images(folder: Path, n: int) -> None:
    """Whole evaluation and bare network by turns, a batch each; files are read ahead in a thread, as `evaluate` does."""
    network = Network("inception", fast(inception()), Tensor.float, resize="", sha256="00")
    source = first(from_path(folder), n)
    needs = [parse(name).need for name in ("fid", "kid", "is", "sfid")]
    current = Pass(source, needs, {"inception": network}, batch_size=BATCH, saved=Saved(None, {}))
    network(next(batches(source.make(0), BATCH)))  # the first call is slower
    made, measuring, alone = prefetched(batches(source.make(0), BATCH)), list[float](), list[float]()
    while True:
        began = time.perf_counter()
        batch = next(made, None)
        if batch is None:
            break
        current.add(batch)
        middle = time.perf_counter()
        network(batch)
        measuring.append(middle - began)
        alone.append(time.perf_counter() - middle)
    bare, whole = BATCH / median(alone), BATCH / median(measuring)
    print(f"network alone {bare:.2f} images/s, with reading and measuring {whole:.2f}: {whole / bare:.3f} (medians)")


class Cheap:
    """Pixels as features of Inception's sizes."""

    name, sha256, resize = "inception", "00", "none"

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        x = images.flatten(1).float() / 127.5 - 1
        return {"features": x[:, :DIM], "spatial": x[:, -SPATIAL:], "logits": x[:, :CLASSES]}


def peak() -> float:
    """Of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(n: int, metrics: str) -> None:
    """Images are drawn one by one, so that only the evaluation's own memory and the reference's features are counted."""
    draw = np.random.RandomState(0)
    before, began = peak(), time.perf_counter()
    moments = {
        ("inception", part): (torch.zeros(size).double(), torch.eye(size).double())
        for part, size in (("features", DIM), ("spatial", SPATIAL))
    }
    samples = {("inception", "features"): torch.rand(n, DIM) * 2 - 1}
    made = Source(n, lambda start: (draw.randint(0, 256, (3, 32, 32), np.uint8) for _ in range(n)))
    options = Options(metrics.split(","), {"inception": Cheap()}, BATCH)
    results = evaluate(made, Reference("drawn", "00", n, moments, samples), options)
    print("  ".join(f"{r.key} {r.value:.5g}" for r in results))
    print(
        f"{n:,} images against {n:,}: {peak() - before:.2f} GiB beyond {before:.2f}, {time.perf_counter() - began:.0f} s"
    )


def libraries() -> None:
    draw = np.random.RandomState(0)
    a, b = (torch.from_numpy(draw.standard_normal((n, 64)) * s).float() for n, s in ((2300, 1.0), (2100, 0.9)))
    b += 0.2
    logits = torch.from_numpy(draw.standard_normal((2300, CLASSES)) * 3).float()

    def show(name: str, ours: float, theirs: float) -> None:
        print(f"{name}: {ours:.9g} and {float(theirs):.9g}, deviation {abs(ours - float(theirs)):.0e}", flush=True)

    found = overlap(b, a, (3, 5))
    scores = ScoreSums(len(logits), CLASSES)
    scores.update(logits, torch.arange(len(logits)))
    for part in (fidelity, prdc, torchmetrics):
        try:
            part(show, a, b, logits, found, scores)
        except ImportError as error:
            print(f"left out: {error}")


def fidelity(show: Callable[..., None], a: Tensor, b: Tensor, logits: Tensor, found: Any, scores: ScoreSums) -> None:
    """torch-fidelity: the first set is the generated one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # pyright: ignore
    from torch_fidelity.metric_isc import isc_features_to_metric  # pyright: ignore
    from torch_fidelity.metric_kid import kid_features_to_metric  # pyright: ignore
    from torch_fidelity.metric_prc import prc_features_to_metric  # pyright: ignore

    kid = kid_features_to_metric(a.double(), b.double(), verbose=False)
    isc = isc_features_to_metric(logits, shuffle=False)
    prc = prc_features_to_metric(a, b, verbose=False)
    for (name, theirs), ours in zip(kid.items(), kernel_distance(a, b), strict=True):
        show(f"torch-fidelity {name}", ours, theirs)
    for (name, theirs), ours in zip(isc.items(), scores.compute(), strict=True):
        show(f"torch-fidelity {name}", ours, theirs)
    for (name, theirs), ours in zip(prc.items(), (found[3].precision, found[3].recall), strict=False):
        show(f"torch-fidelity {name}", ours, theirs)

    ours = inception()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(ours.state_dict(), path)
        theirs = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    pictures = [torch.from_numpy(np.random.RandomState(i).randint(0, 256, (24, 3, 32, 32), np.uint8)) for i in (0, 1)]
    pictures[1] = pictures[1] // 2 + 40
    network, pairs = Network("inception", fast(ours), Tensor.float, resize="", sha256=None), []
    for picture in pictures:
        one, (two, others) = network(picture), theirs(picture)
        scale = float(two.abs().max())
        show("Inception's features, relative", 0.0, float((one["features"] - two).abs().max()) / scale)
        show("Inception's logits, relative", 0.0, float((one["logits"] - others).abs().max() / others.abs().max()))
        pairs.append((one["features"], two))
    distances = [
        frechet_distance(*Moments.of(x).compute(), *Moments.of(y).compute()) for x, y in zip(*pairs, strict=True)
    ]
    show("FID, our network and theirs", distances[0], distances[1])


def prdc(show: Callable[..., None], a: Tensor, b: Tensor, logits: Tensor, found: Any, scores: ScoreSums) -> None:
    from prdc import compute_prdc  # pyright: ignore

    for name, theirs in compute_prdc(b.double().numpy(), a.double().numpy(), 5).items():
        show(f"prdc {name}, k = 5", getattr(found[5], name), theirs)


def torchmetrics(
    show: Callable[..., None], a: Tensor, b: Tensor, logits: Tensor, found: Any, scores: ScoreSums
) -> None:
    from torchmetrics.image.fid import _compute_fid  # pyright: ignore

    laws = (*Moments.of(a).compute(), *Moments.of(b).compute())
    show("torchmetrics fid", frechet_distance(*laws), float(_compute_fid(*laws)))


def pictures(folder: Path, n: int) -> Path:
    """Noise of 32x32, as PNG files."""
    draw = np.random.RandomState(0)
    for i in range(n):
        Image.fromarray(draw.randint(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i:06d}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("frechet", "images", "memory", "libraries"))
    parser.add_argument("--num", type=int, default=None, help="images; 128 for `images`, 50,000 for `memory`")
    parser.add_argument("--metrics", default="fid,sfid,kid,is,pr,dc", help="of `memory`")
    given = parser.parse_args()
    if given.part == "frechet":
        frechet()
    elif given.part == "images":
        with tempfile.TemporaryDirectory() as folder:
            images(pictures(Path(folder), given.num or 128), given.num or 128)
    elif given.part == "memory":
        memory(given.num or 50_000, given.metrics)
    else:
        libraries()


if __name__ == "__main__":
    main()
