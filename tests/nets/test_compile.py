"""Compiled blocks are the same functions: values, gradients, runs, checkpoints; what cannot be compiled is not, or says so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.distill import GDD
from fewstep.distill.gdd import EncoderFeatures
from fewstep.io import model_folder
from fewstep.nets import execution
from fewstep.nets.blocks import UNetBlock
from fewstep.nets.discriminators import ProjectedDiscriminator
from fewstep.nets.edm2 import EDM2Config, EDM2UNet
from fewstep.nets.execution import Block, compile_blocks, recompute_blocks
from fewstep.train import loop
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer
from tests.conftest import tiny_net

pytestmark = [
    # torch hides this warning of its own tracer from users, but not from a filter that raises
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.skipif(not execution.COMPILES, reason="needs PyTorch 2.13"),
]


def ddpmpp():
    """Seven blocks of four kinds: before attention, with it, and after it, where images lie otherwise in memory, two widths."""
    return tiny_net(channel_mult=(1,), num_blocks=2, attn_resolutions=())


def edm2():
    """Seven blocks of four kinds: those of encoder and decoder differ."""
    return EDM2UNet(EDM2Config(8, 1, 10, 64, channel_mult=(1,), num_blocks=2, attn_resolutions=()))


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Traced and differentiated as for the real compiler, which takes long, and run by PyTorch's own kernels."""
    monkeypatch.setattr(execution, "BACKEND", "aot_eager")
    counters.clear()
    yield
    torch.compiler.reset()


def pair(net) -> tuple[Denoiser, Denoiser]:
    """A denoiser with random weights, plain and compiled."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    plain = Denoiser(net).eval()
    fast = copy.deepcopy(plain)
    compile_blocks(fast)
    return plain, fast


def answer(denoiser: Denoiser, n: int) -> list[torch.Tensor]:
    """The answer for `n` images, and its gradients in the images and all weights."""
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n)).requires_grad_()
    denoiser.zero_grad()
    out = denoiser(x, torch.linspace(0.1, 5, n), torch.arange(n))
    out.square().sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, *(p.grad for p in denoiser.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("make", "kinds"), [(ddpmpp, 4), (edm2, 4)])
def test_values_and_gradients_and_one_graph_for_all_blocks_of_a_shape(make, kinds):
    plain, fast = pair(make())
    for n in (3, 2):  # a batch of another size needs no other graph
        for a, b in zip(answer(plain, n), answer(fast, n), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
    assert counters["stats"]["unique_graphs"] == kinds
    assert not counters["graph_break"]


def test_a_forward_derivative_takes_plain_blocks():
    plain, fast = pair(ddpmpp())
    x, v = torch.randn(2, 2, 1, 8, 8)
    found, expected = (torch.func.jvp(lambda x, d=d: d(x, 1.0), (x,), (v,))[1] for d in (fast, plain))
    assert torch.equal(found, expected) and found.abs().max() > 0
    assert not counters["stats"]["unique_graphs"]


def test_a_second_derivative_is_refused():
    block = UNetBlock(8, 8, 4)
    compile_blocks(block)
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    out = block(x, torch.randn(2, 4)).sum()
    with pytest.raises(RuntimeError, match="create_graph=False"):
        torch.autograd.grad(out, x, create_graph=True)


def test_feature_networks_stay_plain():
    """R1 takes second derivatives of them."""
    teacher = Denoiser(tiny_net())
    judge = ProjectedDiscriminator([EncoderFeatures(teacher, 0.2)], num_classes=10, width=8)
    method = GDD(teacher, judge)
    compile_blocks(method)
    compiled = {
        name.split(".")[0] for name, m in method.named_modules() if isinstance(m, Block) and m.compiled is not None
    }
    assert compiled == {"generator"}


def test_a_run_follows_the_plain_one_and_resumes_bit_for_bit(stream):
    denoiser = pair(ddpmpp())[0]

    def trainer(compiled: bool) -> Trainer:
        method = Pretraining(copy.deepcopy(denoiser), DenoisingLoss())
        if compiled:
            compile_blocks(method)
        return Trainer(method, stream, {"denoiser": Adam(1e-3)}, batch_size=4)

    plain, one, two, three = (trainer(compiled) for compiled in (False, True, True, True))
    for _ in range(4):
        a, b = (t.step()["denoising_loss"].item() for t in (plain, one))
        assert a == pytest.approx(b, rel=1e-4)
    for _ in range(2):
        two.step()
    assert two.state_dict()["tensors"].keys() == plain.state_dict()["tensors"].keys()
    three.load_state_dict(two.state_dict())
    for _ in range(2):
        three.step()
    for a, b in zip(one.method.parameters(), three.method.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(m.compiled for m in one.product.modules() if isinstance(m, Block))  # the average, which is sampled


def test_commands_compile_on_request_alone(denoiser, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "compile_blocks", asked.append)
    monkeypatch.setattr(execution, "compile_blocks", asked.append)
    monkeypatch.chdir(tmp_path)
    model_folder.save(denoiser, "model")
    guided = ["--guidance", "1.5", "--guide", "model"]
    for extra in ([], ["--compile"]):
        assert asked == []
        assert main(["train", "digits:teacher", "--until", "128", "--out", f"run{len(extra)}", *extra]) == 0
        assert (
            main(
                ["sample", "model", "--seeds", "0-1", "--steps", "2", *guided, "--npz", "x.npz", "--overwrite", *extra]
            )
            == 0
        )
    assert [type(m) for m in asked] == [Pretraining, Denoiser, Denoiser]


def test_the_compiler_itself_and_what_it_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "BACKEND", "inductor")
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no pool of processes for one function
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    plain = UNetBlock(32, 16, 4, attention=True, num_heads=1).eval()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.1 * torch.randn_like(p))
    fast = copy.deepcopy(plain)
    compile_blocks(fast)
    recompute_blocks(fast, "light")  # what compiled code gives is its own: it may write into it again
    x, emb = torch.randn(4, 32, 4, 4), torch.randn(4, 4)
    values, gradients = [], []
    for block in (plain, fast):
        at = x.clone().requires_grad_()
        values.append(block(at, emb))
        values[-1].square().sum().backward()
        gradients.append([t.grad for t in (at, *block.parameters()) if t.grad is not None])
    assert torch.allclose(values[0], values[1], rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert any((tmp_path / "inductor").rglob("*.cpp"))
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
