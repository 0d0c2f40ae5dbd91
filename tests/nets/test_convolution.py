"""Convolutions with fixed weights: the derivatives of PyTorch's, without keeping their input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fewstep.core.denoiser import Denoiser
from fewstep.nets.convolution import conv2d
from tests.conftest import tiny_net

GEOMETRIES = [{"padding": 1}, {"stride": 2}, {"stride": 2, "padding": 1, "groups": 2}]


def drawn(dtype: torch.dtype, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images, weights and biases of four channels."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 4, 7, 7), torch.randn(4, 4 // groups, 3, 3), torch.randn(4)
    layout = torch.channels_last if dtype.itemsize < 4 else torch.contiguous_format
    return x.to(dtype, memory_format=layout).requires_grad_(), weight.to(dtype, memory_format=layout), bias.to(dtype)


@pytest.mark.parametrize("moving", [(), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_are_pytorch_s_bit_for_bit(geometry, dtype, moving):
    x, weight, bias = drawn(dtype, geometry.get("groups", 1))
    weight.requires_grad_("weight" in moving)
    bias.requires_grad_("bias" in moving)
    wanted = [t for t in (x, weight, bias) if t.requires_grad]
    ours, theirs = conv2d(x, weight, bias, **geometry), F.conv2d(x, weight, bias, **geometry)
    dy = torch.randn_like(theirs)
    assert torch.equal(ours, theirs)
    for mine, expected in zip(*(torch.autograd.grad(y, wanted, dy) for y in (ours, theirs)), strict=True):
        assert torch.equal(mine, expected) and mine.stride() == expected.stride()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_second_derivatives(geometry):
    x, weight, bias = drawn(torch.float64, geometry.get("groups", 1))
    x = x[:1].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: conv2d(x, weight, bias, **geometry).sin(), (x,))


def test_an_image_without_a_batch():
    x, weight, bias = drawn(torch.float32)
    ours, theirs = (torch.autograd.grad(f(x[0], weight, bias).sum(), x)[0] for f in (conv2d, F.conv2d))
    assert torch.equal(ours, theirs) and ours.any()


def test_transformations():
    """A gradient for each image, as `torch.func` takes it."""
    x, weight, bias = drawn(torch.float64)

    def gradient(convolve):
        return torch.func.vmap(torch.func.grad(lambda x: convolve(x[None], weight, bias, padding=1).sin().sum()))(x)

    torch.testing.assert_close(gradient(conv2d), gradient(F.conv2d))


def test_a_fixed_network_keeps_no_input_of_a_convolution():
    """What waits for a backward pass through a network that does not move, against one that does."""
    denoiser = Denoiser(tiny_net(dropout=0.0))
    waiting: dict[bool, int] = {}
    for moves in (True, False):
        denoiser.requires_grad_(moves)
        kept: dict[int, int] = {}

        def pack(tensor, kept=kept):
            if not isinstance(tensor, torch.nn.Parameter):
                kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        x = torch.randn(4, 1, 8, 8).requires_grad_()
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            x0 = denoiser(x, 1.0, torch.arange(4))
        [slope] = torch.autograd.grad(x0.sum(), x)
        assert slope.abs().max() > 0
        waiting[moves] = sum(kept.values())
    assert waiting[False] < 0.75 * waiting[True]
