"""The networks that benchmarks run on: a published size with random weights, ours and the reference implementation's."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import reference
from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch, Method
from fewstep.io.export import upstream_state_dict
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.sizes import EDM2_SIZES, EDM_SIZES
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.runtime.distributed import device
from fewstep.runtime.precision import chosen_dtype
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer

CIFAR10 = "edm-cifar10-32x32-uncond-vp"
SIZES: dict[str, SongConfig | ADMConfig | EDM2Config] = {**EDM_SIZES, **EDM2_SIZES}
UNETS: dict[type, type[nn.Module]] = {SongConfig: SongUNet, ADMConfig: ADMUNet, EDM2Config: EDM2UNet}


def arguments(parser: argparse.ArgumentParser, *, batch: int, repeats: int = 5) -> None:
    parser.add_argument("--network", choices=list(SIZES), default=CIFAR10)
    parser.add_argument("--channels", type=int, help="width of the network; the published one if left out")
    parser.add_argument("--batch", type=int, default=batch, help="images at a time")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds after the one to warm up")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of ours")


def precision(given: argparse.Namespace) -> torch.dtype:
    return chosen_dtype(given.dtype)


def denoiser(given: argparse.Namespace, **options: Any) -> Denoiser:
    """The network of that name in that width, with options changed; none of its weights is zero."""
    torch.manual_seed(0)
    config = SIZES[given.network]
    if given.channels:
        options.setdefault("model_channels", given.channels)
    config = dataclasses.replace(config, **options)
    net = UNETS[type(config)](config)
    uncertainty = Uncertainty() if isinstance(config, EDM2Config) else None
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return Denoiser(net, dtype=precision(given), uncertainty=uncertainty).to(device()).eval()


def theirs(checkout: Path, ours: Denoiser, *, precondition: str = "EDMPrecond") -> nn.Module:
    """The reference implementation of the same network with the same weights."""
    net = reference.network(checkout, ours.net.config, precondition=precondition)
    net.load_state_dict(upstream_state_dict(ours))
    return net.to(device()).eval()


class Noise:
    """A stream of noise in place of images."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.shape, self.num_classes = denoiser.shape, denoiser.num_classes

    def batch(self, position: int, n: int) -> Batch:
        label = torch.zeros(n, dtype=torch.int64) if self.num_classes else None
        return Batch(torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(position)), label)


def trainer(method: Method, denoiser: Denoiser, batch: int, **options: Any) -> Trainer:
    """A Trainer of the method on noise, with Adam for every player."""
    adam = {phase.player: Adam(1e-5) for phase in method.phases}
    return Trainer(method, Noise(denoiser), adam, batch_size=batch, device=device(), **options)
