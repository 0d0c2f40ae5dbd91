"""Everything that reads a file, with undamaged files of its kind, written by the library and by the tools it reads from."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from fewstep import compare
from fewstep.cli.arguments import with_config
from fewstep.core.codec import Pixels
from fewstep.core.conditional import GenerativeDenoiser
from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.core.precondition import IDDPM, VE, VP
from fewstep.data import ImageData, ImageStream, images
from fewstep.data.check import check
from fewstep.data.latents import LatentData
from fewstep.data.pack import pack
from fewstep.data.sources import open_source
from fewstep.data.stats import stats
from fewstep.inverse.problem import check_measurements
from fewstep.inverse.tasks import TASKS, read_array, task_operator
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.io.convert import convert, load_snapshot
from fewstep.io.convert.feature_weights import read_published
from fewstep.io.reference_files import open_reference
from fewstep.io.unpickle import read
from fewstep.io.unpickle.torchscript import read_torchscript
from fewstep.metrics import protocol
from fewstep.metrics.networks.lpips import WIDTHS
from fewstep.metrics.references import ReferenceData, save_reference
from fewstep.metrics.sources import from_path, open_pairs
from fewstep.metrics.weights import ASSETS, read_weights, save_weights
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.controlled import Controlled
from fewstep.nets.edm2 import EDM2Config, EDM2UNet
from fewstep.report.page import write_report
from fewstep.sample import generate
from fewstep.train.ema import PowerFunction
from fewstep.train.evaluation import Evaluation
from fewstep.train.log import Lines
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.posthoc import reconstruct
from fewstep.train.settings import Run
from tests import GOLDEN
from tests.conftest import tiny_net
from tests.fuzz.damage import archive, tar

SHAPE = (1, 8, 8)
CONFIG = {
    "shape": [1, 8, 8],
    "num_classes": 0,
    "levels": [1.0],
    "network": {"kind": "x"},
    "precondition": {"kind": "x"},
}


@dataclass
class Reader:
    """What reads the files of a folder. targets: the files that are damaged, one at a time; all if there are none.

    share: of the inputs, relative to that of others. outputs: files that are written, where something else may lie.
    """

    name: str
    call: Callable[[Path], Any]
    files: dict[str, bytes] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    share: float = 1.0
    outputs: tuple[str, ...] = ()


def collect(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def png(size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 40).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def saved(write: Callable[[Any], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def all_images(path: Path) -> None:
    gather(images(path))


def gather(data: ImageData | LatentData) -> None:
    data.gather(np.arange(len(data)))


def entries(path: Path) -> None:
    for _ in open_source(path).entries():
        pass


def reference(path: Path) -> None:
    opened = open_reference(path)
    for part in (opened.moments, opened.samples):
        for key in part:
            part[key]
    if opened.images is not None:
        opened.images[0]


def measured(path: Path) -> None:
    source = from_path(path)
    for _ in source.make():
        pass


def pairs(folder: Path) -> None:
    one, other = open_pairs(folder / "a", folder / "b.zip")
    for i in range(len(one)):
        assert one[i].shape == other[i].shape


def task(name: str, **options: Path) -> None:
    task_operator(name, SHAPE, mask=options.get("mask"), kernel=options.get("kernel"))


def sampled(denoiser: Denoiser) -> None:
    """One image of whatever loads, in two steps; latents need a VAE, which is not here."""
    if isinstance(denoiser.codec, Pixels):
        next(generate(denoiser, [0], plan=denoiser.plan(None if denoiser.levels else 2), batch_size=1))


def imported(path: Path, **options: Any) -> None:
    denoiser, _ = convert(path, **options)
    sampled(denoiser)


def loaded(folder: Path) -> None:
    sampled(model_folder.load(folder))


def inherited(folder: Path) -> None:
    """The card of a student, as it is written at the first snapshot."""
    about = model_folder.card(folder)
    for card in (about, about.student("x")):
        card.markdown(CONFIG)


def measurement(path: Path) -> None:
    check_measurements(TASKS["box_inpainting"](SHAPE), [path], [read_array(path)])


def compared(folder: Path) -> None:
    results = {name: protocol.read_results(folder / name) for name in ("a.json", "b.json")}
    protocol.compare(results)
    protocol.markdown([*results.values()])


def few_digits() -> ImageData:
    return ImageData(images("digits").gather(np.arange(20)), np.arange(20) % 10, name="few", num_classes=10)


def run(folder: Path, until: int = 16) -> None:
    """A run of two steps, or what is left of it."""
    torch.manual_seed(0)
    denoiser = Denoiser(tiny_net(attn_resolutions=(), model_channels=4))
    adam = {"denoiser": Adam(1e-3)}
    averages = (PowerFunction(0.05), PowerFunction(0.1))
    often = Evaluation(8, n=4)
    method, stream = Pretraining(denoiser, DenoisingLoss()), ImageStream(few_digits())
    fit(
        Run(method, stream, adam, 8, until, ema=averages, snapshots=2, checkpoint_seconds=0.0, evaluation=often), folder
    )


def one(name: str, call: Callable[[Path], Any], data: bytes, file: str) -> Reader:
    """A reader of one file."""
    return Reader(name, lambda folder: call(folder / file), {file: data})


def models(folder: Path) -> Iterator[Reader]:
    torch.manual_seed(0)
    magnitude_preserving = EDM2UNet(EDM2Config(8, 1, 10, 8, (1, 2), num_blocks=1, attn_resolutions=()))
    small = tiny_net()
    vp: Any = VP()
    kinds = {
        "DDPM++": Denoiser(small),
        "iDDPM": Denoiser(ADMUNet(ADMConfig(8, 1, 2, 3, 0, 8, (1, 2), num_blocks=1)), precondition=IDDPM(steps=20)),
        "VE, student": Denoiser(small, precondition=VE(), levels=(2.5, 0.5)),
        "VP": Denoiser(small, precondition=vp),
        "EDM2": Denoiser(magnitude_preserving),
        "NCVSD": GenerativeDenoiser(Controlled(magnitude_preserving)),
    }
    for name, denoiser in kinds.items():
        model_folder.save(denoiser, folder / name, Card(name="tiny", data={"name": "x", "n": 9, "sha256": "0" * 64}))
        files = collect(folder / name)
        yield Reader(f"model folder, {name}", loaded, files, ("config.json", "model.safetensors"), share=2.0)
    yield Reader("card", inherited, collect(folder / "DDPM++"), ("config.json",))
    asset = ASSETS["lpips-vgg"]
    state = {f"lin{i}": torch.ones(n) for i, n in enumerate(WIDTHS["vgg"])}
    weights = save_weights(asset, state, "0" * 64, folder).read_bytes()
    yield Reader("feature weights", lambda p: read_weights(asset, p), {asset.file: weights})
    published = {f"lin{i}.model.1.weight": torch.ones(1, n, 1, 1) for i, n in enumerate(WIDTHS["vgg"])}
    stored = saved(lambda f: torch.save(published, f))
    yield one("published weights", partial(read_published, asset), stored, "x.pt")
    tensors = safetensors.torch.save(published)
    yield one("published weights, safetensors", partial(read_published, asset), tensors, "x.safetensors")


def data_sets() -> Iterator[Reader]:
    labels = json.dumps({"labels": [["a.png", 0], ["b.png", 1]], "class_names": ["a", "b"]}).encode()
    photos = {"a.png": png(), "b.png": png(), "dataset.json": labels}
    yield Reader("image folder", all_images, photos)
    yield one("image zip", all_images, archive(photos), "x.zip")
    yield one("deflated zip", all_images, archive(photos, zipfile.ZIP_DEFLATED), "x.zip")
    yield Reader("LSUN", entries, {"data.mdb": (GOLDEN / "lsun.mdb").read_bytes()})
    kinds = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
    drawn = {f"a.{kind.lower()}": png((24, 24), kind, "RGB" if kind == "JPEG" else "L") for kind in kinds}
    yield Reader("data check", check, {**drawn, **photos}, tuple(drawn))
    crop = partial(pack, transform="center-crop", resolution="8x8", skip_bad=True, workers=1)
    inputs = {f"in/{name}": data for name, data in drawn.items()}
    yield Reader("data pack", lambda p: crop(p / "in", p / "out.zip"), inputs, outputs=("out.zip",))
    yield Reader("data stats", lambda p: stats(images(p)), {"a.png": png(), "b.png": png()})
    arrays = {f"{i}.npy": saved(lambda f: np.save(f, np.ones((4, 8, 8), np.uint8))) for i in range(2)}
    yield Reader("images of four channels", all_images, arrays)

    latents = {f"{i}.npy": saved(lambda f: np.save(f, np.ones((8, 4, 4), np.float32))) for i in range(2)}
    content = archive({**latents, "dataset.json": b'{"labels": [["0.npy", 0], ["1.npy", 1]]}'})
    yield one("latents", lambda p: gather(LatentData(p)), content, "x.zip")

    array = np.zeros((3, 8, 8, 3), np.uint8)
    several = {"images": array, "labels": np.arange(3)}
    yield one("npz of images", entries, saved(lambda f: np.savez(f, **several)), "x.npz")
    yield one("npy of images", entries, saved(lambda f: np.save(f, array)), "x.npy")
    yield one("tar", entries, tar(photos, "w"), "x.tar")
    yield one("tar.gz", entries, tar(photos, "w:gz"), "x.tar.gz")
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1], b"batch_label": b"1"}
    meta = pickle.dumps({b"label_names": [b"class %d" % i for i in range(10)]}, 2)
    batches = {f"cifar-10-batches-py/data_batch_{i}": pickle.dumps(batch, 2) for i in range(1, 6)}
    cifar = {**batches, "cifar-10-batches-py/batches.meta": meta}
    yield one("CIFAR-10", entries, tar(cifar, "w:gz"), "cifar-10-python.tar.gz")
    yield one("CIFAR-10, not compressed", entries, tar(cifar, "w"), "cifar-10-python.tar")
    idx = gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(2 * 784))
    classes = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 2]))
    mnist = {"train-images-idx3-ubyte.gz": idx, "train-labels-idx1-ubyte.gz": classes}
    yield Reader("MNIST", lambda p: entries(p / "train-images-idx3-ubyte.gz"), mnist)


def statistics(folder: Path) -> Iterator[Reader]:
    moments = {("inception", "features"): (torch.zeros(4).double(), torch.eye(4).double())}
    own = ReferenceData("own", "0" * 64, 100, moments, {("inception", "features"): torch.zeros(9, 4)})
    save_reference(own, folder / "own.npz")
    yield one("reference", reference, (folder / "own.npz").read_bytes(), "x.npz")
    edm: Any = {"mu": np.zeros(4), "sigma": np.eye(4)}
    yield one("EDM reference", reference, saved(lambda f: np.savez(f, **edm)), "x.npz")
    adm: Any = {**edm, "arr_0": np.zeros((3, 8, 8, 3), np.uint8)}
    yield one("ADM reference", reference, saved(lambda f: np.savez_compressed(f, **adm)), "x.npz")
    yield one("EDM2 reference", reference, pickle.dumps({"fid": edm, "num_images": 9}), "x.pkl")
    yield one("images to measure, npz", measured, saved(lambda f: np.savez(f, arr_0=adm["arr_0"])), "x.npz")
    photos = {"a.png": png(), "b.png": png()}
    yield Reader("images to measure, folder", lambda p: measured(p / "x"), {f"x/{k}": v for k, v in photos.items()})
    yield Reader("pairs", pairs, {**{f"a/{k}": v for k, v in photos.items()}, "b.zip": archive(photos)})


def pickles() -> Iterator[Reader]:
    nested = {"a": [1, 2.5, "x", None, (True, b"y")], "array": np.arange(6.0).reshape(2, 3)}
    for version in range(6):
        yield one(f"pickle {version}", read, pickle.dumps(nested if version > 1 else {"a": [1, 2.5]}, version), "x.pkl")
    yield one("torch.save", read, saved(lambda f: torch.save({"w": torch.ones(3, 3), "n": 1}, f)), "x.pt")
    legacy = saved(lambda f: torch.save({"w": torch.ones(3)}, f, _use_new_zipfile_serialization=False))
    yield one("old torch.save", read, legacy, "x.pt")
    script = saved(lambda f: torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), f))
    yield one("TorchScript", read_torchscript, script, "x.pt")
    smallest = min(GOLDEN.glob("*.pkl"), key=lambda p: p.stat().st_size)
    yield one("snapshot", load_snapshot, smallest.read_bytes(), "x.pkl")
    yield one("hooks", imported, (GOLDEN / "snap-sida-edm2.pkl").read_bytes(), "x.pkl")
    yield one("state", imported, (GOLDEN / "snap-edm-state.pt").read_bytes(), "training-state-000001.pt")
    yield one("convert", partial(imported, kind="teacher"), (GOLDEN / "edm-ddpmpp-cond.pkl").read_bytes(), "x.pkl")


def records(folder: Path) -> Iterator[Reader]:
    row = {
        "model": "m",
        "nfe": 1,
        "fd_pixels": 0.5,
        "n": 9,
        "seeds": "0-8",
        "grid": "a.png",
        "protocol": {"weights": "1"},
    }
    line = {"nimg": 1, "seconds": 1.0, "loss": 1.0, "loss/gap": 1.0, "loss/gap@0.1": 1.0}
    page = {
        "results.json": json.dumps([row, row | {"nfe": 2}]).encode(),
        "run/run.json": json.dumps({"name": "run", "identity": {"seed": 0, "method": {"kind": "SiD"}}}).encode(),
        "run/log.jsonl": "".join(json.dumps(line | {"nimg": i}) + "\n" for i in range(1, 5)).encode(),
        "a.png": png(),
        "run/samples/1.png": png(),
    }
    yield Reader("report", write_report, page, outputs=("report.html",))
    yield Reader("rows of a comparison", compare.known_rows, {"results.json": page["results.json"]})
    yield one("log", lambda p: Lines(p, 9), page["run/log.jsonl"], "log.jsonl")
    result = {"metric": "fid", "value": 1.0, "n": 9, "protocol": {"seeds": "0-8", "settings": {"k": 3}}}
    yield Reader(
        "results", compared, {"a.json": json.dumps([result]).encode(), "b.json": json.dumps([result]).encode()}
    )
    yield one("configuration", lambda p: with_config(["--config", str(p)]), b"lr: 1\nout: x\n", "x.yaml")
    run(folder / "run", 8)
    files = {name: data for name, data in collect(folder / "run").items() if not name.endswith("README.md")}
    state = tuple(name for name in files if "snapshots" not in name and "averages" not in name)
    yield Reader("run that is over", partial(run, until=8), files, state)
    yield Reader(
        "run that goes on", run, files, state, share=0.2, outputs=("log.jsonl", "run.json", "snapshots", "best")
    )
    kept = {name: data for name, data in files.items() if name.startswith(("snapshots", "averages"))}
    yield Reader("snapshots", lambda p: reconstruct(p, [0.07]), kept)


def measurements() -> Iterator[Reader]:
    yield one("mask", lambda p: task("box_inpainting", mask=p), png(), "x.png")
    kernel = saved(lambda f: np.save(f, np.ones((3, 3)) / 9))
    yield one("kernel", lambda p: task("gaussian_deblur", kernel=p), kernel, "x.npy")
    yield one("measurement", measurement, saved(lambda f: np.save(f, np.ones(SHAPE, np.float32))), "x.npy")


def readers(folder: Path) -> list[Reader]:
    """Everything; what the library writes is made in `folder`."""
    return [*models(folder), *data_sets(), *statistics(folder), *pickles(), *records(folder), *measurements()]
