"""The published 2nd-SED sampler: its numbers, its order, the options of its commands."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.cli import main
from fewstep.cli.arguments import parse_seeds
from fewstep.cli.sampling import Sampling
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import SeededNoise, karras_sigmas
from fewstep.core.oracle import MixtureDenoiser
from fewstep.core.precondition import IDDPM
from fewstep.io.card import Card
from fewstep.io.model_folder import save
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.samplers import NAMED, counted, euler, heun, last, second_order_sde, taylor2
from fewstep.samplers.second_order_sde import brownian_pair

ONE = torch.ones(1, 1, 1, 1, dtype=torch.float64)


def bent(x: Tensor, sigma: Tensor) -> Tensor:
    return x * 0.25 / (0.25 + sigma**2) + 0.1 * torch.sin(x / (1 + sigma))


# Computed once by the published sampler, with D = `bent`, latents and noise all 1.
PUBLISHED = [
    (18, 7, "db", math.inf, 0.684779000031),
    (84, 3, "ddb", math.inf, 0.811721518152),
    (40, 3, "ddb", 5.0, 0.929310321728),
    (20, 3, "ddb", 0.5, 1.63004994819),
    (12, 7, "ddb", 0.0, 3.04921317155),
]


@pytest.mark.parametrize(("n", "rho", "randn_like", "S_max", "expected"), PUBLISHED)
def test_the_numbers_of_the_published_sampler(n, rho, randn_like, S_max, expected) -> None:
    sigmas = karras_sigmas(n, rho=rho)
    options = {"rho": rho, "randn_like": randn_like, "S_max": S_max}
    x = last(second_order_sde(bent, sigmas[0] * ONE, sigmas, **options, noise=torch.ones_like))
    assert x.item() == pytest.approx(expected, rel=1e-11)


def test_steps_above_the_threshold_are_dual_evaluations() -> None:
    denoise, sigmas = counted(bent), karras_sigmas(18)
    last(second_order_sde(denoise, 80 * ONE, sigmas, S_max=1.0, noise=torch.ones_like))
    above = int((sigmas >= 1).sum()) - 1  # the first step has none before it
    assert (denoise.nfe, denoise.jvp) == (18 - above, above) == (8, 10)


def test_drawn_pairs_have_the_moments_of_brownian_motion() -> None:
    x, dt = torch.zeros(200_000, dtype=torch.float64), 0.3
    generator = torch.Generator().manual_seed(0)
    noise = lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator)  # noqa: E731 - two words
    dW, dZ = brownian_pair(x, dt, "ddb", noise)
    moments = torch.stack([dW, dZ]).cov()
    torch.testing.assert_close(
        moments, torch.tensor([[dt, dt**2 / 2], [dt**2 / 2, dt**3 / 3]]).double(), rtol=0.02, atol=0
    )
    dW, dZ = brownian_pair(x, dt, "db", noise)
    assert torch.equal(dZ, dt / 2 * dW)
    assert dW.var().item() == pytest.approx(dt, rel=0.02)


def test_a_seed_draws_the_published_numbers() -> None:
    """One stream per image: in the precision of the state for db, in float32 for ddb, first the part that dZ is made of."""
    x = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    dW, _ = brownian_pair(x, 0.1, "db", SeededNoise([3, 5]))
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(dW[1], math.sqrt(0.1) * torch.randn(3, 8, 8, generator=generator, dtype=torch.float64))
    dW, dZ = brownian_pair(x, 0.1, "ddb", SeededNoise([3, 5]))
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(3, 8, 8, generator=generator).double() for _ in range(2))
    torch.testing.assert_close(dZ[1], math.sqrt(0.1**3 / 3) * first)
    torch.testing.assert_close(dW[1], math.sqrt(0.3) / 2 * first + math.sqrt(0.1) / 2 * second)


def test_the_published_steps_of_second_order_are_of_first_order() -> None:
    """Even without noise, and less accurate than those of first order; the correct scheme is of second order."""
    oracle = MixtureDenoiser(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[-1.0], [0.8]]).double(),
        torch.tensor([[[0.04]], [[0.09]]]).double(),
    )
    x = 80 * torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = last(heun(oracle, x, karras_sigmas(640, rho=3)))

    def errors(sampler: Any) -> list[float]:
        return [(last(sampler(oracle, x, karras_sigmas(n, rho=3))) - exact).abs().mean().item() for n in (40, 80, 160)]

    silent = partial(second_order_sde, rho=3, randn_like="ddb", noise=torch.zeros_like)
    first, second, correct = errors(silent), errors(partial(silent, S_max=0.0)), errors(taylor2)
    orders = [math.log2(e[0] / e[2]) / 2 for e in (first, second, correct)]
    assert orders == pytest.approx([1.0, 1.1, 2.0], abs=0.15)
    assert all(b > 5 * a > 25 * c for a, b, c in zip(first, second, correct, strict=True))
    assert errors(euler)[0] == pytest.approx(first[0], rel=0.2)


@pytest.mark.parametrize(
    ("options", "sigmas", "message"),
    [
        ({"rho": 2.5}, karras_sigmas(4, rho=2.5), "whole number of at least 2; got 2.5"),
        ({"rho": 1}, karras_sigmas(4, rho=1), "whole number of at least 2; got 1"),
        ({}, karras_sigmas(1), "at least 2 steps; got 1"),
        ({"rho": 3}, karras_sigmas(4), "Karras' schedule with rho=3"),
        ({"randn_like": "gauss"}, karras_sigmas(4), "randn_like must be one of db, ddb"),
    ],
)
def test_errors(options, sigmas, message) -> None:
    with pytest.raises(ValueError, match=message):
        last(second_order_sde(bent, 80 * ONE, sigmas, **options))


def test_networks_without_a_derivative(denoiser) -> None:
    rounding = Denoiser(denoiser.net, precondition=IDDPM())
    sigmas = torch.cat([rounding.precondition.round(karras_sigmas(4, sigma_min=0.1)[:-1]), torch.zeros(1).double()])
    with pytest.raises(ValueError, match="Karras' schedule"):
        last(second_order_sde(partial(rounding, label=None), torch.zeros(1, *rounding.shape).double(), sigmas))
    with pytest.raises(ValueError, match="rounds noise levels"):
        last(second_order_sde(rounding, torch.zeros(1, *rounding.shape).double(), karras_sigmas(4), S_max=1.0))


# The command line. The options are those of the published README's commands.


@pytest.mark.parametrize(
    "options",
    [
        "--seeds=0 --batch=1 --steps=18 --S_churn=80 --S_max=1 --randn_like=db",
        "--seeds=0-1 --batch=500 --steps=40 --randn_like=ddb --rho=3 --subdirs",
        "--seeds=0-1 --batch=250 --steps=84 --randn_like=ddb --rho=3 --subdirs",
        "--seeds=0-1 --batch=100 --steps=80 --rho=3 --subdirs --class=4 --S_max=5.0",
    ],
)
def test_published_commands_run(options, tmp_path) -> None:
    torch.manual_seed(0)
    net = SongUNet(SongConfig(8, 1, 1, label_dim=10, model_channels=8, channel_mult=(1,), num_blocks=1))
    save(Denoiser(net), tmp_path / "model", Card())
    command = ["sample", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--sampler", "second_order_sde"]
    ignored = pytest.warns(UserWarning, match="S_churn has no effect with second_order_sde")
    with ignored if "--S_churn" in options else nullcontext():
        assert main([*command, *options.split()]) == 0
    assert len(list((tmp_path / "out").rglob("*.png"))) == len(parse_seeds(options.split()[0].partition("=")[2]))


def refused(denoiser: Denoiser, **options: Any) -> str:
    with pytest.raises(ValueError, match="no effect|leave|needs") as raised:
        Sampling(**cast("Any", options)).plan(denoiser)
    return str(raised.value)


def test_options_that_a_sampler_ignores_are_refused(denoiser, tmp_path, capsys) -> None:
    said = refused(denoiser, sampler="dpmpp_2m", S_churn=3.0)
    assert (
        said
        == "S_churn has no effect with the sampler dpmpp_2m; samplers that take it: churn, second_order_sde, taylor2"
    )
    assert "randn_like has no effect with the sampler heun" in refused(denoiser, randn_like="db")
    assert "S_min has no effect with the sampler second_order_sde" in refused(
        denoiser, sampler="second_order_sde", S_min=0.1
    )
    assert "kappa has no effect with EDM's general sampler" in refused(denoiser, solver="heun", kappa=1.0)
    assert "S_noise has no effect without S_churn" in refused(denoiser, sampler="churn", S_noise=1.003)
    assert "S_max has no effect without S_churn" in refused(denoiser, disc="vp", S_max=50.0)
    assert "rho has no effect with the discretization ve" in refused(denoiser, disc="ve", rho=3.0)
    assert "leave steps, sigma_min, sigma_max and rho out" in refused(denoiser, levels="2.5", rho=3.0)
    denoiser.levels = (2.5,)
    assert "S_churn, rho would have no effect: this model generates from its own" in refused(
        denoiser, S_churn=40.0, rho=3.0
    )
    assert "general sampler needs a denoiser of all noise levels" in refused(denoiser, solver="heun")
    denoiser.levels = None
    assert Sampling(sampler="second_order_sde", S_max=1.0, rho=3.0).plan(denoiser).options == {"S_max": 1.0, "rho": 3.0}

    save(denoiser, tmp_path / "model", Card())
    for typed in ("--S_churn", "--S-churn"):
        command = ["sample", str(tmp_path / "model"), "--grid", str(tmp_path / "x.png"), "--sampler", "dpmpp_2m"]
        assert main([*command, f"{typed}=3"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "error: S_churn has no effect" in line
    assert not (tmp_path / "x.png").exists()
    assert np.isinf(Sampling.S_max)


def test_every_named_sampler_can_be_used_from_the_command_line(denoiser) -> None:
    for name in NAMED:
        if name != "posterior":
            plan = Sampling(sampler=name, steps=4).plan(denoiser)
            assert plan.name == name
