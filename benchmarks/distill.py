"""What a step of SiDA costs against one of SiD: the price of the game between real and generated images.

`python -m benchmarks.distill` alternates steps of both methods by the Trainer on one network, a narrower DDPM++ of CIFAR-10,
in one process, and prints CPU times and the ratio of their medians; also for DMD2 and for scores that are recomputed.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from fewstep.denoiser import Denoiser
from fewstep.distill import DMD2, SiD, SiDA
from fewstep.method import Batch, Method
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer


class Noise:
    """Noise in place of images."""

    def batch(self, position: int, n: int) -> Batch:
        return Batch(torch.randn(n, 3, 32, 32), torch.zeros(n, dtype=torch.int64))


def methods(channels: int) -> dict[str, Method]:
    torch.manual_seed(0)
    net = SongUNet(SongConfig(32, channel_mult=(2, 2, 2), model_channels=channels, label_dim=10, dropout=0.13))
    teacher = Denoiser(net)
    return {
        "SiD": SiD(teacher),
        "SiDA": SiDA(teacher, gates=(0, 0)),
        "SiDA, recomputed": SiDA(teacher, gates=(0, 0), recompute=True),
        "DMD2, generator every step": DMD2(teacher, ratio=1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    adam = {"fake_score": Adam(1e-5), "generator": Adam(1e-5)}
    trainers = {
        name: Trainer(method, Noise(), adam, batch_size=options.batch)
        for name, method in methods(options.channels).items()
    }
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(options.repeats + 1):  # the first is a warm-up
        for name, trainer in trainers.items():
            began = time.process_time()
            trainer.step()
            times[name].append(time.process_time() - began)
    medians = {name: median(values[1:]) for name, values in times.items()}
    print(
        f"DDPM++ of CIFAR-10, {options.channels} channels, batch {options.batch}, float32, "
        f"{torch.get_num_threads()} thread(s), median CPU time of {options.repeats} steps"
    )
    for name, value in medians.items():
        print(f"{name:28} {value:7.3f} s  ratio {value / medians['SiD']:.2f}")


if __name__ == "__main__":
    main()
