"""What a dual evaluation (value and directional derivative, forward mode) costs against a plain one.

Peak memory is that of a process of its own for each kind, with and without what it held before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from statistics import median

import torch

from benchmarks.measure import Table, alternate, forget_peak, in_fresh_process, ratio, resident
from fewstep.core.denoiser import Denoiser
from fewstep.nets.song import SongConfig, SongUNet


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peak", choices=["plain", "dual"], help=argparse.SUPPRESS)


def evaluations(batch: int, channels: int = 128) -> dict[str, Callable[[], object]]:
    """A plain and a dual evaluation of CIFAR-10's DDPM++ at one point, in float32."""
    torch.manual_seed(0)
    config = SongConfig(32, channel_mult=(2, 2, 2), model_channels=channels, label_dim=10)
    denoiser = Denoiser(SongUNet(config)).eval().requires_grad_(False)
    x, v = torch.randn(2, batch, 3, 32, 32)
    sigma = torch.tensor(1.0)

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return denoiser(x, sigma)

    def dual() -> object:
        with torch.no_grad():
            return torch.func.jvp(lambda u: denoiser(u, sigma), (x,), (v,))

    return {"plain": plain, "dual": dual}


def run(given: argparse.Namespace) -> Iterator[Table]:
    functions = evaluations(given.batch)
    if given.peak:
        evaluations(1, 32)[given.peak]()  # what PyTorch loads once is not counted
        forget_peak()
        before = resident("VmRSS")
        functions[given.peak]()
        print(json.dumps([before, resident("VmHWM")]))
        return
    times = alternate(functions, given.repeats)
    table = Table(f"DDPM++ of CIFAR-10, batch {given.batch}, float32, {torch.get_num_threads()} thread(s)")
    held = {kind: in_fresh_process("dual", "--peak", kind, "--batch", str(given.batch)) for kind in functions}
    first, above = held["plain"][1], held["plain"][1] - held["plain"][0]
    for kind, values in times.items():
        before, most = held[kind]
        row = {"": kind, "seconds": median(values), "ratio": ratio(values, times["plain"])}
        row |= {"peak, MiB": most, "ratio of peaks": most / first, "above the network": (most - before) / above}
        table.rows.append(row)
    yield table
