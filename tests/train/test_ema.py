"""Power-function averages: the reference implementation's numbers, and what is reconstructed against what was tracked."""

from __future__ import annotations

import copy
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.network import SamplingDefaults
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.data import ImageStream, digits
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.train.ema import Average, HalfLife, PowerFunction, power, profiles
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.posthoc import coefficients, inner_products, reconstruct, snapshots, whole_nimg
from fewstep.train.settings import Run
from tests import GOLDEN
from tests.conftest import tiny_net
from tests.train.test_run import assert_same, final


def test_numbers_of_the_reference_implementation():
    golden = np.load(GOLDEN / "edm2-phema.npz")
    for name in golden:
        if name.startswith("gamma_std_"):
            assert power(float(name.removeprefix("gamma_std_"))) == pytest.approx(float(golden[name]), rel=1e-8)
    found = coefficients(golden["in_nimg"], golden["in_std"], golden["out_nimg"], golden["out_std"])
    np.testing.assert_allclose(found, golden["coefs"], rtol=1e-6, atol=1e-12)
    beta = PowerFunction(0.05).decay(100_000 - 1024, 1024)
    assert beta == pytest.approx(float(golden["beta_t1e5_b1024_std0.05"]), rel=1e-10)
    assert PowerFunction(0.05).decay(2_048_000 - 2048, 2048) == pytest.approx(0.9821795, rel=1e-6)
    products = inner_products([8, 8, 16, 16], [0.05, 0.1, 0.05, 0.1], [16], [0.15])
    np.testing.assert_allclose(products[:, 0], [0.02019168, 0.01670215, 0.23779223, 0.19669696], rtol=1e-6)


def test_gamma_has_the_std_of_its_profile():
    tau = np.linspace(0, 1, 200_001)
    for std in (0.02, 0.1, 0.25):
        p = tau ** power(std)
        mean = (p * tau).sum() / p.sum()
        assert math.sqrt((p * (tau - mean) ** 2).sum() / p.sum()) == pytest.approx(std, rel=1e-3)
    for std in (0.0, 0.29, -1.0):
        with pytest.raises(ValueError, match="between 0 and 0.2887"):
            power(std)


def test_buffers_are_those_of_the_source():
    """An average of statistics, or of counts, is none of the network."""
    module = nn.BatchNorm1d(2)
    average = Average(module, copy.deepcopy(module), HalfLife(1e9, rampup=None))
    module(torch.randn(8, 2) + 3)
    average.update(8, 8)
    assert module.num_batches_tracked == 1
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(average.module.buffers(), module.buffers(), strict=True)
    )


def test_the_average_has_the_weights_of_its_profile():
    """A weight that counts the steps averages to the mean of the profile; the first update is a copy."""
    profile = PowerFunction(0.1)
    module = nn.Linear(1, 1, bias=False)
    average = Average(module, copy.deepcopy(module), profile)
    weight = average.module.get_parameter("weight")
    for step in range(2000):
        nn.init.constant_(module.weight, step + 1)
        average.update(step * 8, 8)
        if step == 0:
            assert weight.item() == 1
    mean = (profile.gamma + 1) / (profile.gamma + 2)
    assert weight.item() / 2000 == pytest.approx(mean, rel=1e-3)


STDS = (0.05, 0.1)


def run(until=64, **options):
    torch.manual_seed(0)
    net = tiny_net()
    net.sampling = SamplingDefaults(steps=2)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType] - grids are not looked at
    method = Pretraining(Denoiser(net), DenoisingLoss())
    ema = tuple(PowerFunction(s) for s in (*STDS, 0.07))
    settings = {"ema": ema, "batch_size": 8, "checkpoint_seconds": 1e9, "snapshots": 1, **options}
    return Run(method, ImageStream(digits()), {"denoiser": Adam(2e-3)}, until=until, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run of 128 steps leaves, in which the weights walk at random; beside it an average that it did not store."""
    path = tmp_path_factory.mktemp("ema") / "run"
    torch.manual_seed(0)
    denoiser = Denoiser(tiny_net()).requires_grad_(False)
    tracked = [Average(denoiser, copy.deepcopy(denoiser), PowerFunction(s)) for s in (*STDS, 0.07)]
    places = (path / "snapshots", path / "averages" / "std-0.100", path.parent / "other")
    for step in range(128):
        for p in denoiser.parameters():
            p.add_(torch.randn_like(p))
        for average in tracked:
            average.update(step * 8, 8)
        for average, std, place in zip(tracked, (*STDS, 0.07), places, strict=True) if step % 32 == 31 else ():
            card = Card(nimg=step * 8 + 8, ema={"kind": "PowerFunction", "std": std})
            assert isinstance(average.module, Denoiser)
            model_folder.save(average.module, place / f"{step * 8 + 8:012d}", card)
    return path


def parameters(path):
    return torch.cat([p.flatten() for p in model_folder.load(path).parameters()])


def test_reconstruction_is_what_was_tracked(folder):
    near, same = reconstruct(folder, [0.07, 0.05])
    assert near == folder / "posthoc" / "000000001024-0.070"
    shorter, longer = parameters(folder), parameters(folder / "averages" / "std-0.100" / "000000001024")
    assert (parameters(same) - shorter).abs().max() < 1e-4
    # nearer to the tracked one than its two neighbours, by far
    expected = parameters(folder.parent / "other" / "000000001024")
    gap = (parameters(near) - expected).norm()
    assert gap < 0.2 * min((shorter - expected).norm(), (longer - expected).norm())
    card = model_folder.card(near)
    assert (card.nimg, card.ema["std"], card.ema["snapshots"]) == (1024, 0.07, 8)


def test_reconstruction_ends_at_a_snapshot(folder, tmp_path):
    (path,) = reconstruct(folder, [0.1], nimg=512, out=tmp_path / "out")
    assert path == tmp_path / "out" / "000000000512-0.100"
    expected = parameters(folder / "averages" / "std-0.100" / "000000000512")
    assert (parameters(path) - expected).abs().max() < 1e-4
    with pytest.raises(ValueError, match=r"one of \[256, 512, .* got nimg=100"):
        reconstruct(folder, [0.1], nimg=100)


def test_later_snapshots_do_not_count(folder, tmp_path):
    (whole,) = reconstruct(folder, [0.07], nimg=512, out=tmp_path / "whole")
    for path in [*folder.glob("snapshots/*"), *folder.glob("averages/*/*")]:
        if int(path.name) <= 512:
            shutil.copytree(path, tmp_path / "early" / path.relative_to(folder))
    (early,) = reconstruct(tmp_path / "early", [0.07])
    assert torch.equal(parameters(whole), parameters(early))
    assert model_folder.card(whole).ema["snapshots"] == 4


def test_snapshots_of_edm2(tmp_path):
    """A folder of foreign snapshots: the same network twice, whose every average is itself."""
    for kimg in (8388, 16777):
        for std in STDS:
            shutil.copy(GOLDEN / "edm2-cond.pkl", tmp_path / f"network-snapshot-{kimg:07d}-{std:.3f}.pkl")
    (path,) = reconstruct(tmp_path, [0.075])
    assert path.name == "000016777216-0.075"
    from fewstep.io.convert import load_snapshot, to_denoiser

    original = to_denoiser(load_snapshot(GOLDEN / "edm2-cond.pkl"))
    found = model_folder.load(path)
    for (name, a), b in zip(original.named_parameters(), found.parameters(), strict=True):
        assert torch.allclose(a.float(), b, rtol=1e-5, atol=1e-6), name
    assert torch.equal(original.net.emb_fourier.freqs, found.net.emb_fourier.freqs)
    assert whole_nimg(2_147_483) == 2**31
    assert whole_nimg(134_217) == 2**27
    with pytest.raises(ValueError, match="not a multiple of 1,024"):
        whole_nimg(42)


def test_what_cannot_be_reconstructed_is_refused(denoiser, tmp_path):
    with pytest.raises(ValueError, match="missing"):
        snapshots(tmp_path / "nowhere")
    model_folder.save(denoiser, tmp_path / "run" / "snapshots" / "000000000008", Card(nimg=8, ema={"kind": "HalfLife"}))
    with pytest.raises(ValueError, match="no averages by power functions"):
        reconstruct(tmp_path / "run", [0.1])
    for name in ("a", "b"):
        card = Card(nimg=8, ema={"kind": "PowerFunction", "std": 0.1})
        model_folder.save(denoiser, tmp_path / "twice" / "snapshots" / name, card)
    with pytest.raises(ValueError, match="several snapshots of the same"):
        reconstruct(tmp_path / "twice", [0.1])
    with pytest.raises(ValueError, match="several different ones"):
        profiles((HalfLife(), HalfLife()))


def test_a_run_with_several_averages_resumes_bit_for_bit(tmp_path):
    fit(run(), tmp_path / "whole")
    fit(run(until=32), tmp_path / "parts")
    again = run()
    assert isinstance(again.ema, tuple) and [p.decay(8, 8) for p in again.ema]  # what it caches is no setting
    fit(again, tmp_path / "parts")
    whole = final(tmp_path / "whole")
    assert any(k.startswith("average.std-0.070/") for k in whole)
    assert_same(whole, final(tmp_path / "parts"))
    folder = tmp_path / "parts"
    assert model_folder.card(folder).ema == {"kind": "PowerFunction", "std": 0.05}
    assert model_folder.card(folder / "averages" / "std-0.100" / "000000000064").ema["std"] == 0.1
    assert [(s.nimg, s.std) for s in snapshots(folder)][-3:] == [(64, 0.05), (64, 0.07), (64, 0.1)]
    with pytest.raises(ValueError, match=r"ema was .*, is"):
        fit(run(ema=HalfLife()), folder)
