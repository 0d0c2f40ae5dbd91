"""Mutated files through every reader: `python -m tests.fuzz --n 20000 --seed 0`, or `make fuzz`.

Each reader is given files of its kind with random damage. It may return, or raise ValueError, or OSError where the file
system is at fault; anything else, code that runs, a write outside of the folder, a process, a socket, more than a GiB of
memory or twenty seconds of computing is a failure, and the file that caused it is kept.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewstep import checkpoint
from fewstep.checkpoint import Card
from fewstep.cli.arguments import with_config
from fewstep.convert import load_snapshot, read
from fewstep.convert.references import open_reference
from fewstep.convert.torchscript import read_torchscript
from fewstep.data import images
from fewstep.data.latents import LatentData
from fewstep.data.prepare import check
from fewstep.data.sources import open_source
from fewstep.metrics.protocol import read_results
from fewstep.metrics.references import Reference, save_reference
from fewstep.report.page import write_report
from fewstep.train.log import Lines
from tests.conftest import tiny_net

SECONDS, MEBIBYTES = 20, 1024
ALLOWED = (ValueError, OSError)
GOLDEN = Path(__file__).parent / "golden"
LIBRARIES = (sys.base_prefix, sys.prefix, "<frozen")
STRANGE: tuple[Any, ...] = (None, True, -1, 0, 2**63, 1e308, "", "../../x", "\x00", [], {}, [[[]]], {"kind": "os"})


@dataclass
class Reader:
    """What reads the files of a folder. targets: the files that are damaged, one at a time."""

    name: str
    call: Callable[[Path], Any]
    files: dict[str, bytes] = field(default_factory=dict)
    targets: tuple[str, ...] = ()


def collect(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def png(size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 40).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def tar(members: dict[str, bytes], mode: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def saved(write: Callable[[Any], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def all_images(path: Path) -> None:
    data = images(path)
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


def readers(folder: Path) -> Iterator[Reader]:
    """A whole world of files, written by the library and by the tools whose files it reads."""
    from fewstep.denoiser import Denoiser

    checkpoint.save(Denoiser(tiny_net()), folder / "model", Card(name="tiny"))
    model = collect(folder / "model")
    yield Reader("model folder", checkpoint.load, model, ("config.json", "model.safetensors"))
    yield Reader("card", checkpoint.card, model, ("config.json",))

    labels = json.dumps({"labels": [["a.png", 0], ["b.png", 1]]}).encode()
    photos = {"a.png": png(), "b.png": png(), "dataset.json": labels}
    yield Reader("image folder", all_images, photos)
    yield Reader("image zip", lambda p: all_images(p / "x.zip"), {"x.zip": archive(photos)})
    yield Reader("deflated zip", lambda p: all_images(p / "x.zip"), {"x.zip": archive(photos, zipfile.ZIP_DEFLATED)})
    kinds = {"a.jpg": png(kind="JPEG"), "b.webp": png(kind="WEBP"), "c.bmp": png(kind="BMP"), "d.gif": png(kind="GIF")}
    yield Reader("check", check, {**kinds, **photos}, tuple(kinds))

    latents = {f"{i}.npy": saved(lambda f: np.save(f, np.ones((8, 4, 4), np.float32))) for i in range(2)}
    latent_zip = {"x.zip": archive({**latents, "dataset.json": b'{"labels": [["0.npy", 0], ["1.npy", 1]]}'})}
    yield Reader("latents", lambda p: LatentData(p / "x.zip").gather(np.arange(2)), latent_zip)

    array = np.zeros((3, 8, 8, 3), np.uint8)
    yield Reader("npz of images", lambda p: entries(p / "x.npz"), {"x.npz": saved(lambda f: np.savez(f, images=array))})
    yield Reader("tar", lambda p: entries(p / "x.tar"), {"x.tar": tar(photos, "w")})
    yield Reader("tar.gz", lambda p: entries(p / "x.tar.gz"), {"x.tar.gz": tar(photos, "w:gz")})
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1], b"batch_label": b"1"}
    meta = pickle.dumps({b"label_names": [b"class %d" % i for i in range(10)]}, 2)
    batches = {f"cifar-10-batches-py/data_batch_{i}": pickle.dumps(batch, 2) for i in range(1, 6)}
    cifar = tar({**batches, "cifar-10-batches-py/batches.meta": meta}, "w:gz")
    yield Reader("CIFAR-10", lambda p: entries(p / "cifar-10-python.tar.gz"), {"cifar-10-python.tar.gz": cifar})
    idx = gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(2 * 784))
    classes = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 2]))
    mnist = {"train-images-idx3-ubyte.gz": idx, "train-labels-idx1-ubyte.gz": classes}
    yield Reader("MNIST", lambda p: entries(p / "train-images-idx3-ubyte.gz"), mnist)

    moments = {("inception", "features"): (torch.zeros(4).double(), torch.eye(4).double())}
    own = Reference("own", "0" * 64, 100, moments, {("inception", "features"): torch.zeros(9, 4)})
    save_reference(own, folder / "own.npz")
    yield Reader("reference", lambda p: reference(p / "x.npz"), {"x.npz": (folder / "own.npz").read_bytes()})
    statistics = {"mu": np.zeros(4), "sigma": np.eye(4)}
    edm = saved(lambda f: np.savez(f, **statistics))  # pyright: ignore[reportArgumentType]
    yield Reader("EDM reference", lambda p: reference(p / "x.npz"), {"x.npz": edm})
    edm2 = pickle.dumps({"fid": {"mu": np.zeros(4), "sigma": np.eye(4)}})
    yield Reader("EDM2 reference", lambda p: reference(p / "x.pkl"), {"x.pkl": edm2})

    nested = {"a": [1, 2.5, "x", None, (True, b"y")], "array": np.arange(6.0).reshape(2, 3)}
    for protocol in range(2, 6):
        yield Reader(f"pickle {protocol}", lambda p: read(p / "x.pkl"), {"x.pkl": pickle.dumps(nested, protocol)})
    tensors = saved(lambda f: torch.save({"w": torch.ones(3, 3), "n": 1}, f))
    yield Reader("torch.save", lambda p: read(p / "x.pt"), {"x.pt": tensors})
    legacy = saved(lambda f: torch.save({"w": torch.ones(3)}, f, _use_new_zipfile_serialization=False))
    yield Reader("old torch.save", lambda p: read(p / "x.pt"), {"x.pt": legacy})
    script = saved(lambda f: torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), f))
    yield Reader("TorchScript", lambda p: read_torchscript(p / "x.pt"), {"x.pt": script})
    smallest = min(GOLDEN.glob("*.pkl"), key=lambda p: p.stat().st_size)
    yield Reader("snapshot", lambda p: load_snapshot(p / "x.pkl"), {"x.pkl": smallest.read_bytes()})

    row = {"model": "m", "nfe": 1, "fd_pixels": 0.5, "n": 9, "seeds": "0-8", "grid": "a.png", "protocol": {"a": 1}}
    line = {"nimg": 1, "seconds": 1.0, "loss": 1.0, "loss/gap": 1.0, "loss/gap@0.1": 1.0}
    run = {
        "results.json": json.dumps([row, row | {"nfe": 2}]).encode(),
        "run/run.json": json.dumps({"name": "run", "identity": {"seed": 0, "method": {"kind": "SiD"}}}).encode(),
        "run/log.jsonl": "".join(json.dumps(line | {"nimg": i}) + "\n" for i in range(1, 5)).encode(),
        "a.png": png(),
        "run/samples/1.png": png(),
    }
    yield Reader("report", write_report, run)
    yield Reader("log", lambda p: Lines(p / "log.jsonl", 9), {"log.jsonl": run["run/log.jsonl"]})
    result = [{"metric": "fid", "value": 1.0, "n": 9, "protocol": {"seeds": "0-8"}}]
    yield Reader("results", lambda p: read_results(p / "x.json"), {"x.json": json.dumps(result).encode()})
    yield Reader(
        "configuration", lambda p: with_config(["--config", str(p / "x.yaml")]), {"x.yaml": b"lr: 1\nout: x\n"}
    )


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four random injuries."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        n = len(result)
        at = rng.randrange(n + 1)
        match rng.randrange(8):
            case 0 if n:
                result[at % n] ^= 1 << rng.randrange(8)
            case 1 if n:
                result[at % n] = rng.choice((0, 1, 127, 128, 255))
            case 2:
                del result[at:]
            case 3:
                del result[at : at + rng.randint(1, 64)]
            case 4:
                result[at:at] = rng.randbytes(rng.randint(1, 64))
            case 5 if n:
                start = rng.randrange(n)
                result[at:at] = result[start : start + rng.randint(1, 256)]
            case 6:
                result[at : at + 8] = rng.choice((2**64 - 1, 2**63, 2**32 - 1, 2**31, 10**9)).to_bytes(8, "little")
            case 7:
                result[at : at + 4] = bytes(4)
    return bytes(result)


def restructured(data: bytes, rng: random.Random) -> bytes:
    """Valid JSON with something strange in it: in a place drawn at random, or instead of all."""
    value = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            places.append((node, key))
            walk(child)

    walk(value)
    if not places:
        return json.dumps(rng.choice(STRANGE)).encode()
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(STRANGE)
    return json.dumps(value).encode()


class Slow(BaseException):
    """Beyond `ALLOWED`, so that no reader mistakes it for its own."""


class Watch:
    """Notes what a reader must not do: run code, start processes, open sockets, write outside of its folder."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "exec" and args[0].co_filename.startswith(LIBRARIES):
            return  # the library imports a module of its own the first time that it needs it
        if event in ("exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen") or (
            event.startswith(("socket.", "ctypes.dlopen"))
        ):
            self.seen.append(f"{event} {args!r:.200}")
        elif event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            path, flags = Path(os.fsdecode(args[0])), args[2] or 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not path.resolve().is_relative_to(self.folder) and str(path) != os.devnull:
                self.seen.append(f"writes {path}")


def try_one(reader: Reader, folder: Path, watch: Watch) -> str | None:
    """How a reader failed on the files in `folder`; None if it did not."""
    watch.seen.clear()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of computing: the machine may be busy
    watch.folder = folder.resolve()
    try:
        reader.call(folder)
    except ALLOWED:
        pass
    except (Exception, Slow) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        watch.folder = None
        signal.setitimer(signal.ITIMER_PROF, 0)
    return watch.seen[0] if watch.seen else None


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def too_slow(signum: int, frame: object) -> None:
    raise Slow(f"took more than {SECONDS} seconds")


def fuzz(n: int, seed: int, only: str | None = None) -> list[tuple[str, str, Path]]:
    """Failures of `n` damaged inputs, spread over all readers: reader, what happened, the folder that caused it."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, too_slow)
    rng = random.Random(seed)
    work = Path(tempfile.mkdtemp(prefix="fewstep-fuzz-"))
    world = [r for r in readers(work) if only is None or only in r.name]
    watch = Watch()
    failures: list[tuple[str, str, Path]] = []
    outcome: Counter[str] = Counter()
    for reader in world:  # undamaged first: they must be read, and what is imported lazily comes in
        folder = lay(work / "whole", reader.files)
        reader.call(folder)
    most = peak()
    began = time.monotonic()
    for i in range(n):
        reader = world[i % len(world)]
        target = rng.choice(reader.targets or tuple(reader.files))
        data = reader.files[target]
        as_json = target.endswith(".json") and rng.random() < 0.6
        files = {**reader.files, target: restructured(data, rng) if as_json else damaged(data, rng)}
        folder = lay(work / "case", files)
        failure = try_one(reader, folder, watch)
        if failure is None and peak() - most > MEBIBYTES:
            failure = f"took {peak() - most:,.0f} MiB"
        most = max(most, peak())
        outcome[reader.name] += failure is not None
        if failure is not None:
            kept = work / f"failure-{len(failures):04d}"
            shutil.copytree(folder, kept)
            failures.append((f"{reader.name}, {target}", failure, kept))
        if i and i % 2000 == 0:
            print(f"{i:,} of {n:,} inputs, {len(failures)} failures, {i / (time.monotonic() - began):.0f}/s")
    print(f"{n:,} inputs to {len(world)} readers, {len(failures)} failures, peak memory {peak():,.0f} MiB")
    if not failures:
        shutil.rmtree(work)
    return failures


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000, help="damaged inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="readers whose name contains this")
    options = parser.parse_args()
    failures = fuzz(options.n, options.seed, options.only)
    kinds: dict[tuple[str, str], Path] = {}
    for where, what, kept in failures:
        kinds.setdefault((where, what.split(":")[0]), kept)
    for where, what, kept in failures:
        if kinds[where, what.split(":")[0]] == kept:
            print(f"{where}: {what:.300}\n    {kept}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
