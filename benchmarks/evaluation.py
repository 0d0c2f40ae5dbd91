"""What an evaluation costs, and whether its figures are those of other libraries.

`python -m benchmarks evaluation PART` with PART one of: `frechet`, seconds of the distance of 2,048 dimensions and its
deviation from an independent computation; `images`, images per second of reading PNG files and measuring them on the
true Inception network (random weights) against the network alone; `pipeline`, statistics of the features of PNG files for
the Frechet distance, by EDM's fid.py with our network in plain PyTorch (--reference EDM) and by ours, in float32 and in
bfloat16 if the hardware has it, with the distances between them; `memory`, the memory
of all metrics of 50,000 images of 32x32 beyond what the process had, on a cheap extractor with features of Inception's
sizes; `libraries`, deviations from torch-fidelity, torchmetrics and prdc, whichever are installed, on the same features,
and of our Inception from torch-fidelity's with the same weights.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from benchmarks import reference
from benchmarks.measure import Table, compared
from fewstep.metrics.catalog import parse
from fewstep.metrics.distribution import Moments, ScoreSums, frechet_distance, kernel_distance
from fewstep.metrics.evaluation import Options, evaluate
from fewstep.metrics.extractors import FeatureNetwork, fast, precision
from fewstep.metrics.neighbours import overlap
from fewstep.metrics.networks.inception import Inception
from fewstep.metrics.references import ReferenceData
from fewstep.metrics.sources import ImageSource, batches, first, from_path, prefetched
from fewstep.metrics.statistics import Pass
from fewstep.runtime.distributed import device
from fewstep.runtime.precision import fast_dtype

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


def frechet() -> Table:
    g = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -3, DIM, dtype=torch.float64)

    def features(n: int) -> Tensor:
        return torch.randn(n, DIM, generator=g, dtype=torch.float64) * scales + torch.rand(DIM, generator=g)

    sets = {"2,500": features(2500), "3,000": features(3000), "1,500": features(1500), "1,700": features(1700)}
    laws = {name: Moments.of(x).compute() for name, x in sets.items()}
    rows = []
    for a, b in (("2,500", "3,000"), ("1,500", "3,000"), ("1,500", "1,700")):
        began = time.perf_counter()
        found = frechet_distance(*laws[a], *laws[b])
        taken = time.perf_counter() - began
        expected = independent(sets[a], sets[b])
        rows.append(
            {"images": f"{a} and {b}", "seconds": taken, "distance": found, "deviation": abs(found / expected - 1)}
        )
    return Table(f"The Frechet distance of {DIM:,} dimensions", rows)


def images(folder: Path, n: int) -> Table:
    """Whole evaluation and bare network by turns, a batch each; files are read ahead in a thread, as `evaluate` does."""
    network = FeatureNetwork("inception", fast(inception()), Tensor.float, resize="", sha256="00")
    source = first(from_path(folder), n)
    needs = [parse(name).need for name in ("fid", "kid", "is", "sfid")]
    current = Pass(source, needs, {"inception": network}, batch_size=BATCH)
    network(next(batches(source.make(), BATCH)))  # the first call is slower
    made, measuring, alone = prefetched(batches(source.make(), BATCH)), list[float](), list[float]()
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
    rows = [
        {"": "the network alone", "images/s": bare, "ratio": 1.0},
        {"": "reading and measuring, too", "images/s": whole, "ratio": whole / bare},
    ]
    return Table("An evaluation of fid, kid, is and sfid", rows)


def pipeline(folder: Path, n: int, checkout: Path | None, repeats: int) -> Iterator[Table]:
    """Mean and covariance of the features of PNG files; the reference gets our network, unfused, as its download."""
    parts: dict[str, Callable[[], Any]] = {}
    if checkout is not None:
        plain = inception()
        fid: Any = reference.module(checkout, "fid")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        fid.dnnlib.util.open_url = lambda *args, **options: nullcontext()  # in place of the download
        fid.pickle = SimpleNamespace(load=lambda file: SimpleNamespace(to=lambda device: detector))

        def detector(images: Tensor, return_features: bool) -> Tensor:
            with torch.no_grad():
                return plain(images.float())["features"]

        parts["reference"] = lambda: fid.calculate_inception_stats(
            str(folder), num_workers=0, prefetch_factor=None, device=device()
        )

    def ours(network: FeatureNetwork) -> tuple[Tensor, Tensor]:
        need = parse("fid").need
        current = Pass(from_path(folder), [need], {"inception": network}, batch_size=64)
        return current.finish()[need]

    for dtype in dict.fromkeys((torch.float32, fast_dtype())):
        network = FeatureNetwork("inception", fast(inception()), Tensor.float, resize="", sha256="00", dtype=dtype)
        parts[f"fewstep, {precision(network)}"] = partial(ours, network)
    laws = {name: tuple(map(torch.as_tensor, part())) for name, part in parts.items()}
    distances = []
    for a, b in combinations(laws, 2):
        found = frechet_distance(*laws[a], *laws[b])
        of_variance = found / float(torch.trace(laws[a][1]))
        distances.append({"": f"{a} and {b}", "Frechet distance": found, "of the variance": of_variance})
    yield Table("Between the statistics", distances)
    yield compared(f"Statistics of {n} PNG files", parts, repeats, images=n)


class Cheap:
    """Pixels as features of Inception's sizes."""

    name, sha256, resize = "inception", "00", "none"

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        x = images.flatten(1).float() / 127.5 - 1
        return {"features": x[:, :DIM], "spatial": x[:, -SPATIAL:], "logits": x[:, :CLASSES]}


def peak() -> float:
    """Of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(n: int, metrics: str) -> Table:
    """Images are drawn one by one, so that only the evaluation's own memory and the reference's features are counted."""
    draw = np.random.RandomState(0)
    before, began = peak(), time.perf_counter()
    moments = {
        ("inception", part): (torch.zeros(size).double(), torch.eye(size).double())
        for part, size in (("features", DIM), ("spatial", SPATIAL))
    }
    samples = {("inception", "features"): torch.rand(n, DIM) * 2 - 1}
    made = ImageSource(n, lambda: (draw.randint(0, 256, (3, 32, 32), np.uint8) for _ in range(n)))
    options = Options(metrics.split(","), {"inception": Cheap()}, BATCH)
    results = evaluate(made, ReferenceData("drawn", "00", n, moments, samples), options)
    found = {r.key: r.value for r in results}
    cost = {"GiB": peak() - before, "beyond GiB": before, "seconds": time.perf_counter() - began}
    return Table(f"{n:,} images against {n:,}", [{"metrics": metrics, **cost, **found}])


def libraries() -> Table:
    rows: list[dict[str, Any]] = []
    draw = np.random.RandomState(0)
    a, b = (torch.from_numpy(draw.standard_normal((n, 64)) * s).float() for n, s in ((2300, 1.0), (2100, 0.9)))
    b += 0.2
    logits = torch.from_numpy(draw.standard_normal((2300, CLASSES)) * 3).float()

    def show(name: str, ours: float, theirs: float) -> None:
        rows.append({"": name, "ours": ours, "theirs": float(theirs), "deviation": abs(ours - float(theirs))})

    found = overlap(b, a, (3, 5))
    scores = ScoreSums(len(logits), CLASSES)
    scores.update(logits, torch.arange(len(logits)))
    for part in (fidelity, prdc, torchmetrics):
        try:
            part(show, a, b, logits, found, scores)
        except ImportError as error:
            rows.append({"": f"left out: {error}"})
    return Table("Figures beside those of other libraries", rows)


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
    network, pairs = FeatureNetwork("inception", fast(ours), Tensor.float, resize="", sha256=None), []
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


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", choices=("frechet", "images", "pipeline", "memory", "libraries"))
    parser.add_argument("--num", type=int, default=None, help="images; 50,000 for `memory`, else 128")
    parser.add_argument("--metrics", default="fid,sfid,kid,is,pr,dc", help="of `memory`")
    parser.add_argument("--repeats", type=int, default=3, help="of `pipeline`")
    parser.add_argument("--reference", type=Path, help="checkout of EDM, for `pipeline`")


def run(given: argparse.Namespace) -> Iterator[Table]:
    n = given.num or (50_000 if given.part == "memory" else 128)
    if given.part == "frechet":
        yield frechet()
    elif given.part == "memory":
        yield memory(n, given.metrics)
    elif given.part == "libraries":
        yield libraries()
    else:
        with tempfile.TemporaryDirectory() as folder:
            pictures(Path(folder), n)
            if given.part == "images":
                yield images(Path(folder), n)
            else:
                yield from pipeline(Path(folder), n, given.reference, given.repeats)
