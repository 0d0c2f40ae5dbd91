"""Images per second over batch size, resolution, number of parameters and ranks, of sampling and of training steps.

`python -m benchmarks scaling --over batch,resolution,parameters,ranks`. Ranks are processes of this machine, each with
its share of the threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks import networks
from benchmarks.measure import Table, alternate
from benchmarks.teacher import pretraining
from fewstep.core.denoiser import Denoiser
from fewstep.runtime.distributed import process_group, rank, world_size

OVER = ("batch", "resolution", "parameters", "ranks")


def arguments(parser: argparse.ArgumentParser) -> None:
    networks.arguments(parser, batch=8, repeats=3)
    parser.add_argument("--over", default="batch,resolution,parameters", help=", ".join(OVER))
    parser.add_argument("--batches", default="1,2,4,8,16", help="sizes of batches")
    parser.add_argument("--sides", default="16,32,64", help="resolutions")
    parser.add_argument("--widths", default="32,64,128", help="channels")
    parser.add_argument("--ranks", default="1,2", help="processes")
    parser.add_argument("--of-a-rank", action="store_true", help=argparse.SUPPRESS)


def both(denoiser: Denoiser, batch: int) -> dict[str, Callable[[], Any]]:
    """An evaluation and a training step."""
    x = torch.randn(batch, *denoiser.shape, device=next(denoiser.parameters()).device)

    @torch.inference_mode()
    def evaluate() -> None:
        denoiser.eval()(x, 1.0)

    return {"evaluation": evaluate, "training step": networks.trainer(pretraining(denoiser), denoiser, batch).step}


def row(head: str, value: int, denoiser: Denoiser, batch: int, repeats: int) -> dict[str, Any]:
    times = alternate(both(denoiser, batch), repeats)
    rates = {f"{name}, images/s": batch / median(values) for name, values in times.items()}
    return {head: value, "parameters": sum(p.numel() for p in denoiser.net.parameters()), "batch": batch, **rates}


def run(given: argparse.Namespace) -> Iterator[Table]:
    if given.of_a_rank:
        of_a_rank(given)
        return
    chosen = given.over.split(",")
    if unknown := sorted(set(chosen) - set(OVER)):
        raise SystemExit(f"there is no scaling over {', '.join(unknown)}; there are {', '.join(OVER)}")
    make = partial(networks.denoiser, given)
    curves: dict[str, tuple[str, str, Callable[[int], tuple[Denoiser, int]]]] = {
        "batch": ("images at a time", given.batches, lambda n: (make(), n)),
        "resolution": ("pixels of a side", given.sides, lambda n: (make(img_resolution=n), given.batch)),
        "parameters": ("channels", given.widths, lambda n: (make(model_channels=n), given.batch)),
    }
    for name in chosen:
        if name == "ranks":
            yield Table("Over ranks", [ranked(given, int(n)) for n in given.ranks.split(",")])
            continue
        head, values, build = curves[name]
        rows = [row(head, int(n), *build(int(n)), given.repeats) for n in values.split(",")]
        yield Table(f"Over {name}, {given.network}", rows)


def ranked(given: argparse.Namespace, n: int) -> dict[str, Any]:
    """A training step of one batch that `n` processes share."""
    command = ["torch.distributed.run", "--standalone", f"--nproc_per_node={n}", "-m", "benchmarks", "scaling"]
    options = ["--of-a-rank", "--network", given.network, "--batch", str(given.batch), "--repeats", str(given.repeats)]
    options += ["--channels", str(given.channels)] if given.channels else []
    call = [sys.executable, "-m", *command, *options]
    printed = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"ranks": n, "batch": given.batch} | json.loads(printed.strip().splitlines()[-1])


def of_a_rank(given: argparse.Namespace) -> None:
    with process_group():
        if not torch.cuda.is_available():
            torch.set_num_threads(max(1, torch.get_num_threads() // world_size()))
        denoiser = networks.denoiser(given)
        step = networks.trainer(pretraining(denoiser), denoiser, given.batch).step
        times = alternate({"": step}, given.repeats)[""]
        if rank() == 0:
            print(json.dumps({"training step, images/s": given.batch / median(times)}))
