"""Checkpoints: how long a save stops the training, and what it costs, beside one that training waits for.

The state is that of a SiD run of the network. A save copies it; a thread writes the copy, hashes and syncs it meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks import networks
from benchmarks.measure import Table
from fewstep.distill import SiD
from fewstep.train.checkpoints import Checkpoints

EVERY = 600.0
"""Seconds between two checkpoints of the published recipes."""


def arguments(parser: argparse.ArgumentParser) -> None:
    networks.arguments(parser, batch=4, repeats=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; a temporary one if left out")


def run(given: argparse.Namespace) -> Iterator[Table]:
    denoiser = networks.denoiser(given)
    trainer = networks.trainer(SiD(denoiser), denoiser, given.batch)
    trainer.step()
    stopped, whole, tensors = [], [], trainer.state_dict()["tensors"]
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        checkpoints = Checkpoints(Path(folder), keep=1)
        for nimg in range(given.repeats + 1):
            began = time.perf_counter()
            state = trainer.state_dict()
            checkpoints.save(state | {"nimg": nimg}, seconds=0.0)
            stopped.append(time.perf_counter() - began)
            checkpoints.finish()
            whole.append(time.perf_counter() - began)
        checkpoints.close()
    size = sum(t.nbytes for t in tensors.values())
    blocks, writes = median(stopped[1:]), median(whole[1:])
    row = {
        "": f"{size / 2**20:,.0f} MiB in {len(tensors):,} tensors",
        "training stops, s": blocks,
        "until it is on disk, s": writes,
        "of a save that training waits for": f"{100 * blocks / writes:.1f} %",
        "of the time, every 10 minutes": f"{100 * blocks / EVERY:.3f} %",
        "if the writing thread slows it for all its time": f"{100 * writes / EVERY:.2f} %",
    }
    yield Table("Checkpoints, seconds of the wall", [row])
