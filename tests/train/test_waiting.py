"""Training steps and samplers wait for the device at no point, and mix tensors of no two devices.

Seen on the device meta, which computes nothing: there no value can be read, and nothing on the CPU be combined with it.
"""

from __future__ import annotations

import traceback
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fewstep import samplers
from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch, Method
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.core.precondition import IDDPM
from fewstep.data.augment import WIDTHS, AugmentPipe
from fewstep.distill import DMD2, GDD, NCVSD, SiD, SiDA
from fewstep.distill.gdd import EncoderFeatures
from fewstep.nets.discriminators import ProjectedDiscriminator
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.features import Classifier
from fewstep.train.ema import HalfLife, PowerFunction
from fewstep.train.trainer import Trainer
from tests.conftest import tiny_net

META = torch.device("meta")
PIPE = AugmentPipe(0.5, **dict.fromkeys(WIDTHS, 1.0))


class Descent:
    """In the place of Adam, whose fused kernels are for real devices."""

    loss_scale = None

    def __call__(self, params):
        return torch.optim.SGD(params, 0.1)

    def rate(self, nimg):
        return 0.1


class Random:
    """In the place of what a thread reads and copies."""

    def __init__(self, data, n, stride, device):
        self.n, self.device = n, device

    def batch(self, position):
        labels = torch.zeros(self.n, dtype=torch.int64, device=self.device)
        return Batch(torch.randn(self.n, 3, 8, 8, device=self.device), labels)


class Copies(TorchFunctionMode):
    """Records what copies numbers or tensors from the CPU, for which a GPU makes the CPU wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result.is_cpu:
            made = func in (torch.tensor, torch.as_tensor, Tensor.new_tensor)
            if made or (func is Tensor.to and args[0].is_cpu and not (kwargs or {}).get("non_blocking")):
                self.found.append(traceback.extract_stack()[-2])
        return result


def song(*, levels: int = 1, **options) -> Denoiser:
    small = {"channel_mult": (1, 2)[:levels], "attn_resolutions": (16 >> levels,), "augment_dim": PIPE.label_dim}
    net = tiny_net(in_channels=3, out_channels=3, dropout=0.1, label_dropout=0.1, **small)
    return Denoiser(net, **options)


def edm2(levels: int = 1) -> Denoiser:
    small = {"channel_mult": (1, 2)[:levels], "attn_resolutions": (16 >> levels,), "num_blocks": 1}
    return Denoiser(EDM2UNet(EDM2Config(8, 3, 10, model_channels=16, **small)), uncertainty=Uncertainty())


def gdd(teacher: Denoiser) -> GDD:
    networks = [EncoderFeatures(teacher, 0.2), Classifier((3, 8, 8), 10, width=8)]
    return GDD(teacher, ProjectedDiscriminator(networks, num_classes=10, width=8), r1_every=1)


METHODS = {  # networks that halve and double images are those of pretraining
    "pretraining": lambda: Pretraining(song(levels=2), DenoisingLoss(augment=PIPE)),
    "pretraining, discrete levels": lambda: Pretraining(
        song(precondition=IDDPM(steps=20)), DenoisingLoss(augment=PIPE)
    ),
    "pretraining, EDM2": lambda: Pretraining(edm2(levels=2), DenoisingLoss()),
    "SiD": lambda: SiD(song()),
    "SiD, EDM2": lambda: SiD(edm2()),
    "SiDA": lambda: SiDA(song(), gates=(0, 0)),
    "SiDA, four steps, EDM2": lambda: SiDA(edm2(), levels=(2.5, 1.875, 1.25, 0.625), gates=(0, 0)),
    "DMD2": lambda: DMD2(song(), levels=(80.0, 5.0), ratio=1),
    "NCVSD": lambda: NCVSD(song()),
    "NCVSD, EDM2": lambda: NCVSD(edm2()),
    "GDD": lambda: gdd(song()),
    "GDD, bfloat16": lambda: gdd(song(dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_nothing(name, monkeypatch):
    """What is constant is copied in the first steps."""
    monkeypatch.setattr("fewstep.train.trainer.ReadAhead", Random)
    method: Method = METHODS[name]()
    optimizers = dict.fromkeys((phase.player for phase in method.phases), Descent())
    averages = HalfLife(), PowerFunction(0.1)
    batch_size = 4 if name == "pretraining" else 2  # of several micro-batches once
    options = {"batch_size": batch_size, "micro_batch": 2, "ema": averages, "device": META}
    trainer = Trainer(method, None, optimizers, **options)  # pyright: ignore[reportArgumentType] - data is not looked at
    for _ in range(2):
        trainer.step()
    with Copies() as copies:
        logs = trainer.step()
    assert copies.found == []
    assert all(value.device == META for value in logs.values())
    assert {phase.name for phase in method.phases if phase.due(2, 2 * batch_size)} <= set(logs)


@pytest.mark.parametrize(
    "sampler",
    [
        *(samplers.euler, samplers.heun, samplers.churn, samplers.ancestral, samplers.dpmpp_2m, samplers.dpmpp_2m_sde),
        *(samplers.euler_maruyama, samplers.stochastic_heun, samplers.ito_taylor, samplers.taylor2),
        *(samplers.multistep, samplers.posterior),
    ],
)
def test_samplers_wait_for_nothing(sampler):
    """Noise levels are on the CPU, where samplers look at them."""
    denoiser = song().to(META).eval()
    label = torch.zeros(2, dtype=torch.int64, device=META)
    x = torch.randn(2, 3, 8, 8, device=META, dtype=torch.float64)
    with torch.no_grad(), Copies() as copies:
        x0 = samplers.last(sampler(partial(denoiser, label=label), x, denoiser.sigmas(4)))
    assert (x0.shape, x0.device, copies.found) == (x.shape, META, [])
