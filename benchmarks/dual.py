"""What a dual evaluation (value and directional derivative, forward mode) costs against a plain one.

`python -m benchmarks.dual` measures the DDPM++ of CIFAR-10 (EDM): CPU times alternate in one process, and the ratio is
that of their medians; peak memory is that of a process of its own for each kind, with and without what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from fewstep.denoiser import Denoiser
from fewstep.nets.song import SongConfig, SongUNet


def evaluations(batch: int, channels: int = 128) -> dict[str, Callable[[], object]]:
    """A plain and a dual evaluation of one network at one point."""
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


def timed(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def resident(kind: str) -> float:
    """Resident memory of this process in MiB: VmRSS, now, or VmHWM, the largest since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory(kind: str, batch: int) -> tuple[float, float]:
    """MiB before and at the peak of one evaluation, in a fresh process (Linux)."""
    command = [sys.executable, "-m", "benchmarks.dual", "--memory", kind, "--batch", str(batch)]
    # what is freed returns to the system at once, so that the holes of the C library's heap are not counted
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    before, after = json.loads(result.stdout)
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory", choices=["plain", "dual"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    functions = evaluations(options.batch)
    if options.memory:
        evaluations(1, 32)[options.memory]()  # what PyTorch loads once is not counted
        forget_peak()
        before = resident("VmRSS")
        functions[options.memory]()
        print(json.dumps([before, resident("VmHWM")]))
        return
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(options.repeats + 1):
        for name, function in functions.items():
            times[name].append(timed(function))
    medians = {name: median(values[1:]) for name, values in times.items()}
    print(f"DDPM++ of CIFAR-10, batch {options.batch}, float32, {torch.get_num_threads()} thread(s)")
    print(
        f"time    plain {medians['plain']:.3f} s  dual {medians['dual']:.3f} s  ratio {medians['dual'] / medians['plain']:.2f}"
    )
    (base, plain), (dual_base, dual) = memory("plain", options.batch), memory("dual", options.batch)
    print(f"memory  plain {plain:.0f} MiB  dual {dual:.0f} MiB  ratio {dual / plain:.2f}")
    above = (dual - dual_base) / (plain - base)
    print(
        f"        above the loaded network: plain {plain - base:.0f} MiB  dual {dual - dual_base:.0f} MiB  ratio {above:.2f}"
    )


if __name__ == "__main__":
    main()
