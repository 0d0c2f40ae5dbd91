import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.noise import KarrasUniform, LogNormal, add_noise, combine_observations, expand, karras_sigmas


def test_karras_sigmas_are_those_of_edm():
    published = [80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822, 1.92334]
    published += [1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002, 0]
    assert karras_sigmas(18).tolist() == pytest.approx(published, rel=1e-4)
    assert karras_sigmas(1).tolist() == [80, 0]


@pytest.mark.parametrize("bad", [{"n": 0}, {"sigma_min": 80.0}, {"sigma_min": 0.0}, {"rho": 0.0}])
def test_karras_sigmas_refuse(bad):
    with pytest.raises(ValueError, match=r"need|positive"):
        karras_sigmas(**{"n": 4, **bad})


def test_expand_shapes_and_errors():
    x = torch.zeros(3, 2, 4, 4, dtype=torch.float64)
    given: list[Any] = [
        2.0,
        np.float32(2),
        np.full(3, 2.0),
        torch.tensor(2.0),
        torch.tensor([2.0]),
        torch.full((3,), 2.0),
    ]
    for sigma in given:
        assert torch.equal(expand(sigma, x), torch.full((3, 1, 1, 1), 2.0, dtype=x.dtype))
        assert expand(sigma, x).dtype == x.dtype
    with pytest.raises(ValueError, match=r"\(3,\) to match x; got shape \(2,\)"):
        expand(torch.ones(2), x)
    with pytest.raises(ValueError, match="got shape"):
        expand(torch.ones(3, 1), x)


def posterior_mean(y, sy, x, sx):
    """E[x0 | y, x] for a prior of two points, by enumeration."""
    points = torch.tensor([-1.0, 0.7], dtype=torch.float64)
    weight = (-((y - points) ** 2) / (2 * sy**2) - (x - points) ** 2 / (2 * sx**2)).softmax(0)
    return (weight * points).sum()


@given(y=st.floats(-2, 2), x=st.floats(-2, 2), sy=st.floats(0.05, 20), sx=st.floats(0.05, 20))
def test_fuse_is_sufficient_for_the_clean_image(y, x, sy, sx):
    image, level = combine_observations(torch.tensor([y]).double(), sy, torch.tensor([x]).double(), sx)
    one = posterior_mean(image, level, torch.zeros(1).double(), math.inf)
    assert torch.allclose(one, posterior_mean(torch.tensor(y).double(), sy, torch.tensor(x).double(), sx), atol=1e-9)


def test_fuse_limits():
    y, x = torch.tensor([1.0]), torch.tensor([3.0])
    assert [v.item() for v in combine_observations(y, math.inf, x, 0.5)] == [3.0, 0.5]
    assert [v.item() for v in combine_observations(y, 0.5, x, math.inf)] == pytest.approx([1.0, 0.5])
    assert [v.item() for v in combine_observations(y, 0.0, x, 2.0)] == [1.0, 0.0]


def test_noise_distributions():
    torch.manual_seed(0)
    x = torch.zeros(20_000, 1)
    logs = LogNormal(-1.2, 1.2)(x).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert logs.std().item() == pytest.approx(1.2, abs=0.03)
    sigma = KarrasUniform(t_max=0.8)(x)
    assert sigma.min() >= 0.002
    assert sigma.max().item() == pytest.approx(24.41, rel=0.01)
    assert sigma.median().item() == pytest.approx(0.965, rel=0.1)  # the level at t = 0.4


def test_add_noise_has_the_level():
    torch.manual_seed(0)
    x = add_noise(torch.zeros(2, 50_000), torch.tensor([0.5, 3.0]))
    assert x.std(1).tolist() == pytest.approx([0.5, 3.0], rel=0.02)
