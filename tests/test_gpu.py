"""A GPU does what a CPU does, and training never waits for it. These run by `make gpu` alone: see `conftest.py`."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.metrics.distribution import Moments, frechet_distance
from fewstep.nets import execution
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.execution import compile_blocks, recompute_blocks
from fewstep.runtime import precision
from fewstep.sample import generate
from fewstep.train.optim import Adam
from fewstep.train.read_ahead import ReadAhead
from fewstep.train.trainer import Trainer
from tests.conftest import tiny_net
from tests.train.test_waiting import METHODS, Random, edm2

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)
NETWORKS = {
    "song": lambda: Denoiser(tiny_net(in_channels=3, out_channels=3)),
    "adm": lambda: Denoiser(ADMUNet(ADMConfig(8, 3, 3, 10, model_channels=32, channel_mult=(1, 2), num_blocks=1))),
    "edm2": edm2,
}


def pair(name: str) -> tuple[Denoiser, Denoiser]:
    """A denoiser with random weights, on the CPU and on the GPU."""
    torch.manual_seed(0)
    denoiser = NETWORKS[name]().eval()
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return denoiser, copy.deepcopy(denoiser).to(GPU)


@precision.tf32(False)
def answers(denoiser: Denoiser) -> list[torch.Tensor]:
    """Images and the gradients of their squares, in the noise and in the weights that have one, on the CPU."""
    device = next(denoiser.parameters()).device
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    denoiser.zero_grad()
    x0 = denoiser(x, torch.linspace(0.1, 5, 4).to(device), torch.arange(4).to(device))
    x0.square().sum().backward()
    return [x0.detach().cpu(), *(p.grad.cpu() for p in (x, *denoiser.parameters()) if p.grad is not None)]


def distance(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest over images and gradients, each relative to its norm."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-3)) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree(name):
    on_cpu, on_gpu = pair(name)
    expected = answers(on_cpu)
    assert distance(answers(on_gpu), expected) < 1e-3
    on_gpu.dtype = torch.bfloat16
    assert distance(answers(on_gpu), expected) < 0.2


@pytest.mark.parametrize("what", [1, "light"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_blocks_have_the_same_gradients(dtype, what):
    kept = pair("song")[1]
    kept.dtype = dtype
    recomputed = copy.deepcopy(kept)
    recompute_blocks(recomputed, what)
    assert distance(answers(recomputed), answers(kept)) < 1e-3


# torch hides this warning of its own tracer from users, but not from a filter that raises
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.skipif(not execution.COMPILES, reason="needs PyTorch 2.13")
def test_compiled_blocks_agree():
    plain = pair("song")[1]
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    assert distance(answers(compiled), answers(plain)) < 1e-3


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("name", METHODS)
def test_a_step_never_waits(name, monkeypatch):
    """Every method trains; PyTorch itself raises where the CPU would wait, once what is constant was copied."""
    monkeypatch.setattr("fewstep.train.trainer.ReadAhead", Random)
    method = METHODS[name]()
    before = {k: v.clone() for k, v in method.get_submodule(method.product).state_dict().items()}
    optimizers = {phase.player: Adam(1e-3) for phase in method.phases}
    trainer = Trainer(method, None, optimizers, batch_size=4, micro_batch=2, device=GPU)  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        trainer.step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        logs = trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.is_cuda and value.isfinite().all() for value in logs.values())
    after = method.get_submodule(method.product).state_dict()
    assert any(not torch.equal(after[k].cpu(), v) for k, v in before.items())


def test_a_seed_is_the_cpus_image():
    on_cpu, on_gpu = pair("song")
    expected, found = (np.stack(list(generate(d, range(8), plan=d.plan(4)))) for d in (on_cpu, on_gpu))
    assert np.abs(expected.astype(int) - found).max() <= 1 and expected.std() > 0


def test_a_figure_is_that_of_numpy():
    rng = np.random.default_rng(0)
    sets = [rng.normal(shift, 1, (400, 20)) for shift in (0, 0.5)]
    moments = [Moments.of(torch.from_numpy(each)) for each in sets]
    assert all(each.outer.is_cuda for each in moments)
    exact = [torch.from_numpy(figure) for each in sets for figure in (each.mean(0), np.cov(each.T))]
    assert frechet_distance(*moments[0].compute(), *moments[1].compute()) == pytest.approx(
        frechet_distance(*exact), rel=1e-10
    )


def test_memory_is_pinned_on_the_way_to_a_gpu(stream):
    data = ReadAhead(stream, 4, 4, GPU)
    assert data.read(0).image.is_pinned() and data.batch(0).image.is_cuda
