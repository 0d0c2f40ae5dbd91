"""Small worlds that the tests share."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.data import ImageData, ImageStream, digits
from fewstep.nets.song import SongConfig, SongUNet

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, some of which are compared bit for bit


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, unless their tests were asked for (`-m gpu`): CUDA does not survive forks, which some tests make, and
    figures are those of CPUs.
    """
    asked = str(config.getoption("markexpr"))
    if "gpu" not in asked or "not gpu" in asked:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        raise pytest.UsageError("these tests need a GPU, and there is none")


def tiny_net(**options) -> SongUNet:
    """A DDPM++ of a few thousand parameters for 8x8 grey images of ten classes."""
    defaults = {
        "in_channels": 1,
        "out_channels": 1,
        "label_dim": 10,
        "model_channels": 8,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attn_resolutions": (4,),
        "dropout": 0.0,
    }
    return SongUNet(SongConfig(8, **{**defaults, **options}))


@pytest.fixture
def denoiser() -> Denoiser:
    """A tiny denoiser with random weights, none of them zero."""
    torch.manual_seed(0)
    net = tiny_net()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return Denoiser(net).eval()


@pytest.fixture(scope="session")
def data() -> ImageData:
    return digits()


@pytest.fixture
def stream(data: ImageData) -> ImageStream:
    return ImageStream(data, seed=0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
