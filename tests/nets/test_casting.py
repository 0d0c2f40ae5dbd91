"""Networks below float32: the same functions, with weights that are cast once and activations that lie as is fastest."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.nets.casting import CACHE, cast
from fewstep.nets.convolution import Conv2d
from fewstep.nets.layers import FEW, GroupNorm, Linear, attention, dropout
from fewstep.nets.magnitude import MPConv
from fewstep.nets.song import SongUNet
from fewstep.runtime import precision
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer
from tests.conftest import tiny_net

LOW = torch.bfloat16


def test_a_frozen_parameter_is_cast_once_and_again_after_every_kind_of_write():
    layer = Linear(3, 2).requires_grad_(False)
    x = torch.zeros(1, 3, dtype=LOW)
    first = cast(layer.weight, x)
    assert cast(layer.weight, x) is first
    assert torch.equal(first, layer.weight.to(LOW))
    writes = {
        "in place": lambda: layer.weight.add_(1),
        "load": lambda: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}),
        "average": lambda: torch._foreach_lerp_([layer.weight], [torch.ones(2, 3)], 0.5),
        "other storage": lambda: setattr(layer.weight, "data", torch.full((2, 3), 7.0)),
    }
    for name, write in writes.items():
        write()
        assert torch.equal(cast(layer.weight, x), layer.weight.to(LOW)), name


def test_the_optimizer_s_step_makes_the_copy_void():
    layer = Linear(3, 2)
    x = torch.ones(1, 3, dtype=LOW)
    optimizer = Adam(1.0)(layer.parameters())
    before = cast(layer.requires_grad_(False).weight, x)
    layer.requires_grad_(True)(x).sum().backward()
    optimizer.step()
    after = cast(layer.requires_grad_(False).weight, x)
    assert not torch.equal(before, after)
    assert torch.equal(after, layer.weight.to(LOW))


def test_a_step_in_float32_makes_the_copy_void():
    """Fused optimizers do not count up the version of what they write."""
    layer = Linear(3, 2)
    low, x = torch.ones(1, 3, dtype=LOW), torch.ones(1, 3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1.0, fused=True)
    cast(layer.requires_grad_(False).weight, low)
    layer.requires_grad_(True)(x).sum().backward()
    optimizer.step()
    assert torch.equal(cast(layer.requires_grad_(False).weight, low), layer.weight.to(LOW))


def test_inference_mode_casts_once_and_a_step_later_again():
    layer = Linear(3, 2)
    x = torch.ones(1, 3, dtype=LOW)
    optimizer = Adam(1.0)(layer.parameters())
    for _ in range(2):
        with torch.inference_mode():
            assert cast(layer.weight, x) is cast(layer.weight, x)
            assert torch.equal(cast(layer.weight, x), layer.weight.to(LOW))
        layer(x).sum().backward()
        with torch.inference_mode():  # no copy is made of what is about to move
            assert torch.equal(cast(layer.weight, x), layer.weight.to(LOW))
        optimizer.step()
        with torch.inference_mode():
            assert torch.equal(cast(layer.weight, x), layer.weight.to(LOW))
        optimizer.zero_grad()


def test_what_moves_is_cast_with_gradients_each_time():
    layer = Linear(3, 2)
    x = torch.ones(1, 3, dtype=LOW)
    layer.requires_grad_(False)(x)  # leaves a copy
    layer.requires_grad_(True)(x).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_a_copy_that_sampling_made_serves_in_training():
    layer = Conv2d(3, 4, 3).requires_grad_(False)
    x = torch.randn(1, 3, 8, 8, dtype=LOW)
    with torch.inference_mode():
        layer(x)
    y = x.clone().requires_grad_()
    layer(y).sum().backward()
    assert y.grad is not None


def test_weights_of_edm2_are_normalised_once_and_again_after_a_write(monkeypatch):
    made, scaled = [], MPConv.scaled
    monkeypatch.setattr(MPConv, "scaled", lambda self, w: made.append(0) or scaled(self, w))
    layer, x = MPConv(4, 6, (3, 3)).requires_grad_(False), torch.randn(2, 4, 5, 5).to(LOW)
    for n, write in enumerate((lambda: None, lambda: layer.weight[0].mul_(3).add_(1), layer.project_), start=1):
        write()
        expected = F.conv2d(x, scaled(layer, layer.weight).to(LOW), padding=1)
        assert torch.equal(layer(x), expected) and torch.equal(layer(x), expected) and len(made) == n
    layer.requires_grad_(True)(x).sum().backward()
    assert layer.weight.grad is not None and len(made) == 4


def test_copies_are_dropped_with_their_layers_and_not_inherited():
    layer = Linear(3, 2).requires_grad_(False)
    x = torch.zeros(1, 3, dtype=LOW)
    layer(x)
    other, n = copy.deepcopy(layer), len(CACHE)
    assert other.weight not in CACHE
    del layer
    assert len(CACHE) < n


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [8, 32])
def test_group_norm_below_float32(side, layout):
    torch.manual_seed(0)
    layer = GroupNorm(64)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = (torch.randn(2, 64, side, side) * 3 + 1).to(LOW, memory_format=layout)
    found, expected = layer(x), F.group_norm(x.double(), 16, layer.weight.double(), layer.bias.double())
    assert found.dtype == LOW and found.is_contiguous(memory_format=layout)
    assert (found - expected).abs().max() < 2**-7 * expected.abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [8, 32])
def test_derivatives_of_group_norm_below_float32(side, layout):
    """Those of float64 within the rounding of what is low; of the weights in float32, and the second ones, too."""
    torch.manual_seed(0)
    layer = GroupNorm(32)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x, dy, v = (torch.randn(2, 32, side, side).to(LOW, memory_format=layout) for _ in range(3))

    def derivatives(norm: GroupNorm, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        inputs = [(t * 3 + 1).to(dtype).requires_grad_() for t in (x, dy)]
        at = (inputs[0], norm.weight, norm.bias)
        first = torch.autograd.grad(norm(inputs[0]), at, inputs[1], create_graph=True)
        second = torch.autograd.grad(first, (*inputs, norm.weight), [v.to(dtype), norm.weight, norm.bias])
        return *first, *second

    found, expected = derivatives(layer, LOW), derivatives(copy.deepcopy(layer).double(), torch.float64)
    assert found[0].is_contiguous(memory_format=layout)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < (3e-3 if a.dtype == LOW else 1e-5) * b.norm()


@pytest.mark.parametrize("tokens", [FEW, FEW + 1])
def test_attention_below_float32(tokens):
    """On both sides of the number of tokens from which it is fused, it is that of float64 within its rounding."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 1, tokens, 8).to(LOW).requires_grad_() for _ in range(4)]

    def derivatives(q, k, v, dy) -> tuple[torch.Tensor, ...]:
        y = attention(q, k, v)
        return y, *torch.autograd.grad(y, (q, k, v), dy)

    exact = [t.detach().double().requires_grad_() for t in inputs]
    for found, expected in zip(derivatives(*inputs), derivatives(*exact), strict=True):
        assert found.dtype == LOW and (found - expected).norm() < 0.01 * expected.norm()


def test_group_norm_below_float32_takes_part_in_transformations():
    layer = GroupNorm(32)
    x = torch.randn(2, 1, 32, 32, 32).to(LOW)
    gradient = torch.func.grad(lambda x: layer(x).float().pow(3).sum())
    one_by_one = torch.stack([gradient(image) for image in x])
    assert (torch.vmap(gradient)(x) - one_by_one).abs().max() <= 2**-7 * one_by_one.abs().max()


def test_dropout_by_16_bits_is_exact_at_its_edge():
    """p = 1 - 2^-16 keeps one value in 65,536, about 64 here: those whose bits are the largest number there is."""
    torch.manual_seed(0)
    kept = dropout(torch.ones(2**22), 1 - 2**-16, True).count_nonzero()
    assert 24 < kept < 104  # five deviations


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_is_unbiased_and_the_same_for_the_gradient(layout):
    torch.manual_seed(0)
    x = torch.ones(7, 33, 31, 29).contiguous(memory_format=layout).requires_grad_()
    y = dropout(x, 0.13, True)
    share = (y > 0).double().mean().item()
    assert abs(share - 0.87) < 5 * (0.13 * 0.87 / x.numel()) ** 0.5
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.87])
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y)
    neighbours = (y[:, :, 1:] > 0) == (y[:, :, :-1] > 0)
    assert abs(neighbours.double().mean().item() - (0.87**2 + 0.13**2)) < 5e-3
    assert torch.equal(dropout(x, 0.13, False), x)


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_dropout_of_any_shape(shape):
    assert dropout(torch.ones(shape), 1e-9, True).shape == shape


@pytest.mark.parametrize("side", [8, 16])
def test_low_precision_is_float32_within_its_rounding_and_channels_last_unless_small(side):
    torch.manual_seed(0)
    denoiser = Denoiser(SongUNet(dataclasses.replace(tiny_net().config, img_resolution=side))).eval()
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn_like(p))
    low = copy.deepcopy(denoiser)
    low.dtype = LOW
    x, sigma = torch.randn(4, 1, side, side), torch.tensor([0.1, 1.0, 5.0, 40.0])
    with torch.no_grad():
        exact, found = denoiser(x, sigma), low(x, sigma)
        block = low.encode(x, sigma).features.skips[1]  # before attention, whose result lies channels-last anyway
    assert block.is_contiguous(memory_format=torch.channels_last) is (side == 16)
    assert block.is_contiguous() is (side == 8)
    assert (exact - found).norm() < 0.02 * exact.norm()
    for d in (denoiser, low):
        d.requires_grad_(True)
        d(x, sigma).square().sum().backward()
    a, b = (torch.cat([p.grad.flatten() for p in d.parameters() if p.grad is not None]) for d in (denoiser, low))
    assert F.cosine_similarity(a, b, dim=0) > 0.999


def trainer(stream, denoiser) -> Trainer:
    method = Pretraining(Denoiser(copy.deepcopy(denoiser.net), dtype=LOW), DenoisingLoss())
    return Trainer(method, stream, {"denoiser": Adam(1e-2)}, batch_size=8)


@pytest.mark.parametrize("small", [True, False])
def test_a_resumed_run_is_the_same_run(stream, denoiser, small, monkeypatch):
    if not small:
        monkeypatch.setattr(precision, "SMALL", 0)
    one, two = trainer(stream, denoiser), trainer(stream, denoiser)
    for _ in range(4):
        one.step()
    for _ in range(2):
        two.step()
    state = two.state_dict()
    state["tensors"] = {k: v.clone(memory_format=torch.contiguous_format) for k, v in state["tensors"].items()}
    three = trainer(stream, denoiser)
    three.load_state_dict(state)
    for _ in range(2):
        three.step()
    first = one.params["denoiser"][-2]
    assert all(p.is_contiguous() for p in one.params["denoiser"]) is small and first.abs().sum() > 0
    for a, b in zip(one.method.parameters(), three.method.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_trainer_follows_float32(stream, denoiser):
    low, exact = trainer(stream, denoiser), trainer(stream, denoiser)
    setattr(exact.player("denoiser"), "dtype", torch.float32)  # noqa: B010  # submodules are plain modules to the checker
    for _ in range(3):
        a, b = (t.step()["denoising_loss"].item() for t in (low, exact))
        assert a == pytest.approx(b, rel=0.03)


def test_float32_is_untouched():
    net = tiny_net()
    denoiser = Denoiser(net).eval()
    n = len(CACHE)
    with torch.no_grad():
        denoiser(torch.randn(2, 1, 8, 8), 1.0)
    assert len(CACHE) == n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_draws_the_same_however_activations_lie(dtype):
    """With one channel, or one in the weights, convolutions choose either order."""
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        results.append(dropout(torch.ones(2, 3, 4, 4, dtype=dtype).to(memory_format=layout), 0.5, True))
    assert torch.equal(*results)
