"""Recomputed blocks: the same numbers from less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch
from fewstep.distill import GDD, NCVSD, SiDA
from fewstep.distill.gdd import EncoderFeatures
from fewstep.nets import execution
from fewstep.nets.blocks import UNetBlock
from fewstep.nets.discriminators import ProjectedDiscriminator
from fewstep.nets.edm2 import EDM2Config, EDM2UNet
from fewstep.nets.execution import Block, Recomputation, compile_blocks, recompute_blocks
from fewstep.train import loop
from tests.conftest import tiny_net

# the tests count what is saved by a hook, which PyTorch 2.15 passes over within `light` as before, and says so
pytestmark = pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")


def pair(net, what: Recomputation) -> tuple[Denoiser, Denoiser]:
    """A denoiser with random weights and dropout, whose graph is kept, and one whose blocks are recomputed."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    kept = Denoiser(net).train()
    recomputed = copy.deepcopy(kept)
    recompute_blocks(recomputed, what)
    return kept, recomputed


def gradients_of(denoiser: Denoiser) -> tuple[list[torch.Tensor], int]:
    """The answer, its gradients in images and weights, and the bytes that wait for the backward pass, beside the weights."""
    waiting = {}
    weights = {p.data_ptr() for p in denoiser.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            waiting[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(1)
    x = torch.randn(4, 1, 8, 8).requires_grad_()
    denoiser.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = denoiser(x, torch.linspace(0.1, 5, 4), torch.arange(4))
    torch.randn(1)  # what is drawn in between does not matter
    out.square().sum().backward()
    gradients = [p.grad for p in (x, *denoiser.parameters()) if p.grad is not None]
    return [out.detach(), *gradients], sum(waiting.values())


SONG = {"channel_mult": (1, 2), "num_blocks": 2, "attn_resolutions": (4,), "dropout": 0.2}
NETWORKS = {
    "song": lambda: tiny_net(**SONG),
    "edm2": lambda: EDM2UNet(EDM2Config(8, 1, 10, model_channels=16, channels_per_head=16, **SONG)),
}


@pytest.mark.parametrize(("what", "share"), [(1, 0.4), ("light", 0.8)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_gradients_bit_for_bit_from_less_memory(name, what, share):
    kept, recomputed = pair(NETWORKS[name](), what)
    (expected, before), (found, after) = gradients_of(kept), gradients_of(recomputed)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert after < share * before


def test_light_recomputation_computes_no_convolution_nor_product_again():
    counts = []
    for denoiser in pair(NETWORKS["song"](), "light"):
        with FlopCounterMode(display=False) as counter:
            gradients_of(denoiser)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_only_large_blocks_and_only_for_gradients(monkeypatch):
    sides = []
    compute = UNetBlock.compute
    monkeypatch.setattr(UNetBlock, "compute", lambda b, x, emb: sides.append(x.shape[-1]) or compute(b, x, emb))
    kept, recomputed = pair(NETWORKS["song"](), 8)
    gradients_of(kept)
    once = sorted(sides)
    sides.clear()
    gradients_of(recomputed)
    assert sorted(sides) == sorted([*once, *(side for side in once if side >= 8)])
    assert 0 < once.count(8) < len(once)
    sides.clear()
    with torch.inference_mode():
        recomputed(torch.randn(1, 1, 8, 8), 1.0)
    assert len(sides) == len(once)
    with pytest.raises(ValueError, match="a side of at least 1 pixel on; got 0"):
        recompute_blocks(recomputed, 0)


def test_a_forward_derivative_keeps_what_it_needs():
    kept, recomputed = pair(NETWORKS["song"](), 1)
    x, v = torch.randn(2, 2, 1, 8, 8)
    expected, found = (torch.func.jvp(lambda x, d=d: d.eval()(x, 1.0), (x,), (v,))[1] for d in (kept, recomputed))
    assert torch.equal(expected, found) and found.abs().max() > 0


# torch hides this warning of its own tracer from users, but not from a filter that raises
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.skipif(not execution.COMPILES, reason="needs PyTorch 2.13")
@pytest.mark.parametrize("what", [1, "light"])
def test_compiled_blocks_are_recomputed_too(what, monkeypatch):
    monkeypatch.setattr(execution, "BACKEND", "aot_eager")
    kept, recomputed = pair(tiny_net(channel_mult=(1,), num_blocks=1, attn_resolutions=()), what)
    compile_blocks(recomputed)
    try:
        (expected, before), (found, after) = gradients_of(kept), gradients_of(recomputed)
    finally:
        torch.compiler.reset()
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    assert after < 0.4 * before


def gdd(teacher: Denoiser) -> GDD:
    return GDD(teacher, ProjectedDiscriminator([EncoderFeatures(teacher, 0.2)], width=8), r1_every=1)


@pytest.mark.parametrize("what", [1, "light"])
@pytest.mark.parametrize("make", [lambda teacher: SiDA(teacher, gates=(0, 0)), NCVSD, gdd])
def test_every_player_of_a_method(make, what):
    kept = make(pair(NETWORKS["song"](), 1)[0])
    recomputed = copy.deepcopy(kept)
    recompute_blocks(recomputed, what)
    batch = Batch(torch.randn(4, 1, 8, 8), torch.arange(4))
    for phase in range(len(kept.phases)):
        results = []
        for method in (kept, recomputed):
            torch.manual_seed(5)
            loss, _ = getattr(method, kept.phases[phase].name)(batch)
            loss.mean().backward()
            results.append([p.grad for p in method.parameters()])
        for a, b in zip(*results, strict=True):
            assert a is b is None or torch.equal(a, b)
    players = [m for m in recomputed.modules() if isinstance(m, Block)]
    assert all(block.recomputed == what for block in players) and len(players) > 20


def test_the_command_asks_for_it_on_request_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "recompute_blocks", lambda method, what: asked.append(what))
    command = ["train", "digits:teacher", "--until", "128", "--out"]
    assert main([*command, str(tmp_path / "plain")]) == 0 and asked == []
    assert main([*command, str(tmp_path / "small"), "--recompute", "8"]) == 0 and asked == [8]
    assert main([*command, str(tmp_path / "light"), "--recompute", "light"]) == 0 and asked == [8, "light"]
