"""Checkpoints: how long a save stops the training, what it costs beside writing the same bytes, and what ranks hold.

The state is that of a SiD run of the network. A save copies it; a thread writes the copy, hashes and syncs it meanwhile.
`--ranks 2` compares the strategies instead: the memory of a save on each rank, and what it writes. The state is that of a
training of the network on images of 8x8, of one step.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import networks
from benchmarks.measure import Table
from benchmarks.teacher import pretraining
from fewstep.distill import SiD
from fewstep.runtime.distributed import barrier, process_group, rank
from fewstep.train.checkpoint import Checkpoints
from fewstep.train.sharding import STRATEGIES

EVERY = 600.0
"""Seconds between two checkpoints of the published recipes."""


def arguments(parser: argparse.ArgumentParser) -> None:
    networks.arguments(parser, batch=4, repeats=5)
    parser.add_argument("--ranks", type=int, default=1, help="processes")
    parser.add_argument("--of-a-rank", choices=list(STRATEGIES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; a temporary one if left out")


def run(given: argparse.Namespace) -> Iterator[Table]:
    if given.of_a_rank is not None:
        of_a_rank(given)
        return
    if given.ranks > 1:
        rows = [row for strategy in STRATEGIES for row in ranked(given, strategy)]
        for row in rows:
            others = [r for r in rows if r["strategy"] == "replicate" and r["rank"] == row["rank"]]
            row["peak, of replicate's"] = row["peak, MiB"] / others[0]["peak, MiB"]
        yield Table(f"A save on {given.ranks} ranks, {given.network}", rows)
        return
    denoiser = networks.denoiser(given)
    trainer = networks.trainer(SiD(denoiser), denoiser, given.batch)
    trainer.step()
    stopped, whole, plain, tensors = [], [], [], trainer.state_dict()["tensors"]
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        checkpoints = Checkpoints(Path(folder), keep=1)
        for nimg in range(given.repeats + 1):
            began = time.perf_counter()
            state = trainer.state_dict()
            checkpoints.save(state | {"nimg": nimg}, seconds=0.0)
            stopped.append(time.perf_counter() - began)
            checkpoints.finish()
            whole.append(time.perf_counter() - began)
            (path,) = Path(folder).glob("[0-9]*")
            plain.append(written(path, Path(folder, "copy")))
        checkpoints.close()
    size = sum(t.nbytes for t in tensors.values())
    blocks, writes = median(stopped[1:]), median(whole[1:])
    row = {
        "": f"{size / 2**20:,.0f} MiB in {len(tensors):,} tensors",
        "training stops, s": blocks,
        "until it is on disk, s": writes,
        "of writing and syncing the same bytes": median(w / p for w, p in zip(whole[1:], plain[1:], strict=True)),
        "of a save that training waits for": f"{100 * blocks / writes:.1f} %",
        "of the time, every 10 minutes": f"{100 * blocks / EVERY:.3f} %",
        "if the writing thread slows it for all its time": f"{100 * writes / EVERY:.2f} %",
    }
    yield Table("Checkpoints, seconds of the wall", [row])


def written(folder: Path, copy: Path) -> float:
    """The seconds in which the files of a checkpoint are written and synced elsewhere."""
    contents = [file.read_bytes() for file in sorted(folder.iterdir())]
    began = time.perf_counter()
    with copy.open("wb") as file:
        for content in contents:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    taken = time.perf_counter() - began
    copy.unlink()
    return taken


def ranked(given: argparse.Namespace, strategy: str) -> list[dict[str, Any]]:
    """A row for each rank of as many processes."""
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        command = ["torch.distributed.run", "--standalone", f"--nproc_per_node={given.ranks}", "-m", "benchmarks"]
        command += ["checkpoint", "--of-a-rank", strategy, "--network", given.network, "--batch", str(given.batch)]
        command += ["--folder", folder] + (["--channels", str(given.channels)] if given.channels else [])
        subprocess.run([sys.executable, "-m", *command], check=True)
        return [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]


def of_a_rank(given: argparse.Namespace) -> None:
    """Measure one save of this rank, with a group of processes; Linux counts the peak of its memory."""
    with process_group():
        denoiser = networks.denoiser(given, img_resolution=8)
        parts = {"denoiser": STRATEGIES[given.of_a_rank]()}
        trainer = networks.trainer(pretraining(denoiser), denoiser, given.batch, strategies=parts)
        trainer.step()
        checkpoints = Checkpoints(given.folder / "checkpoints")
        barrier()
        ctypes.CDLL(None).malloc_trim(0)  # what is free already is no part of the state
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        began = time.perf_counter()
        checkpoints.save(trainer.state_dict(), seconds=0.0)
        checkpoints.close()
        seconds = time.perf_counter() - began
        peak = memory("VmHWM")
        barrier()
        (shard,) = given.folder.glob(f"checkpoints/*/shard-{rank() + 1:05d}-*")
        row = {
            "strategy": given.of_a_rank,
            "rank": rank(),
            "parameters": sum(p.numel() for p in denoiser.parameters()),
            "before, MiB": before,
            "peak, MiB": peak,
            "more, MiB": peak - before,
            "written, MiB": shard.stat().st_size / 2**20,
            "seconds": seconds,
        }
        (given.folder / f"{rank()}.json").write_text(json.dumps(row))


def memory(name: str) -> float:
    """An entry of this process's status, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(lines[name].split()[0]) / 1024
