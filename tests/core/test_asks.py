"""Models asked for what they cannot do: every call that makes no sense is refused, or warned of, by name."""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli import main
from fewstep.cli.arguments import parse_seeds
from fewstep.core.conditional import Observation
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Guidance, guided
from fewstep.core.inputs import max_sigma, readable
from fewstep.core.plan import Plan
from fewstep.core.precondition import VE
from fewstep.distill.conditional import conditional, generative
from fewstep.nets.edm2 import EDM2Config, EDM2UNet
from fewstep.sample import generate
from tests.conftest import tiny_net

X = torch.zeros(2, 1, 8, 8)
LABEL = torch.tensor([0, 9])


@pytest.fixture
def unconditional() -> Denoiser:
    return Denoiser(tiny_net(label_dim=0)).eval()


@pytest.mark.parametrize(
    ("x", "complaint"),
    [
        (torch.zeros(2, 1, 8, 4), r"got float32 of shape \(2, 1, 8, 4\)"),
        (torch.zeros(1, 8, 8), r"x must be a floating-point tensor of shape \(B, 1, 8, 8\).*got float32"),
        (X.to(torch.uint8), "got uint8 .* encode images with denoiser.codec.encode"),
        (X.to(torch.complex64), "got complex64"),
        (X.numpy(), "got array"),
        (X.to("meta"), "x is on meta and the model on cpu"),
    ],
)
def test_images_of_another_kind_are_refused(denoiser, x, complaint):
    with pytest.raises(ValueError, match=complaint):
        denoiser(x, 1.0, LABEL)


@pytest.mark.parametrize("kind", [float, torch.tensor, lambda s: torch.tensor([1.0, s]), np.float64])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_noise_levels_that_are_none_are_refused(denoiser, kind, value):
    with pytest.raises(ValueError, match=rf"sigma must be positive and finite; got {value:g}"):
        denoiser(X, kind(value), LABEL)


@pytest.mark.parametrize("sigma", ["1", None, torch.ones(3), torch.ones(2, 1), [1.0, 2.0, 3.0], {}])
def test_noise_levels_of_another_kind_are_refused(denoiser, sigma):
    with pytest.raises(ValueError, match=r"sigma must be a number or .* shape \(2,\)"):
        denoiser(X, sigma, LABEL)


def test_a_level_above_the_trained_range_is_warned_of_once():
    net = tiny_net()
    for model, top in (
        (Denoiser(net), 152.2),
        (Denoiser(net, precondition=VE()), 100),
        (Denoiser(net, levels=(2.5,)), 2.5),
    ):
        model.eval()
        model(X, math.sqrt(2) * top, LABEL)  # as churn does
        with pytest.warns(UserWarning, match=f"sigma={2 * top:g} is above {top:g}, up to which this model was trained"):
            model(X, torch.tensor([1.0, 2 * top]), LABEL)
        model(X, 3.0 * top, LABEL)
    trained = Denoiser(net).train()  # a noise distribution without a bound
    trained(X, 1000.0, LABEL)


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        (torch.tensor([0, 10]), "classes from 0 to 9, or None for no class; got 10"),
        (torch.tensor([0, -1]), "got -1"),
        (torch.tensor([0.0, 1.0]), r"got float32 of shape \(2,\)"),
        (torch.eye(10)[LABEL], r"got float32 of shape \(2, 10\); for one-hot labels pass label.argmax\(1\)"),
        (torch.tensor([True, False]), "got bool"),
        (LABEL.int(), "must be an int64 tensor .* got int32"),
        (torch.tensor([0]), r"int64 tensor of shape \(2,\) .*got int64 of shape \(1,\)"),
        (torch.tensor(3), r"got int64 of shape \(\)"),
        (3, "got 3"),
        ([0, 1], r"got \[0, 1\]"),
        (LABEL.to("meta"), "label is on meta and x on cpu"),
    ],
)
def test_labels_that_are_none_are_refused(denoiser, label, complaint):
    with pytest.raises(ValueError, match=complaint):
        denoiser(X, 1.0, label)


def test_a_label_has_no_effect_without_classes(unconditional):
    with pytest.warns(UserWarning, match="label has no effect: this model has no classes"):
        found = unconditional(X, 1.0, LABEL)
    assert torch.equal(found, unconditional(X, 1.0, LABEL))  # once
    assert torch.equal(found, unconditional(X, 1.0))


def test_training_on_labelled_data_without_classes_is_no_mistake(unconditional, stream):
    method = fs.distill.SiD(unconditional)
    adam = fs.Adam(1e-4)
    trainer = fs.Trainer(method, stream, {"fake_score": adam, "generator": adam}, batch_size=4)
    trainer.step()


def test_values_are_looked_at_where_that_is_free():
    assert readable(torch.ones(2))
    assert readable(torch.nn.Parameter(torch.ones(2)))
    assert not readable(torch.ones(2, device="meta"))
    seen = []
    torch.vmap(lambda s: (seen.append(readable(s)), s)[1])(torch.ones(2))
    torch.func.jvp(lambda s: (seen.append(readable(s)), s)[1], (torch.ones(2),), (torch.ones(2),))
    torch.func.vmap(torch.func.grad(lambda s: (seen.append(readable(s)), s.sum())[1]))(torch.ones(2, 2))
    assert seen == [False, False, False]
    assert max_sigma(torch.ones(2, device="meta")) == 0
    assert max_sigma(torch.ones(0)) == 0


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's, of attention under vmap
def test_transforms_and_compilation_go_through(denoiser):
    def f(sigma):
        return denoiser(X, sigma, LABEL)

    sigma = torch.tensor([0.5, 2.0])
    expected = f(sigma)
    value, *_ = torch.func.jvp(f, (sigma,), (torch.ones(2),))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    each = torch.vmap(lambda x, s, c: denoiser(x[None], s[None], c[None])[0])(X, sigma, LABEL)
    torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-5)
    graph = torch.compile(denoiser, backend="eager", fullgraph=True)
    torch.testing.assert_close(graph(X, sigma, LABEL), expected)


def test_observations_are_checked_like_images(denoiser):
    player = conditional(denoiser).eval()
    for given, complaint in (
        (Observation(X, 0.0), "sigma_y must be positive and finite; got 0"),
        (Observation(X, math.nan), "sigma_y must be positive and finite; got nan"),
        (Observation(X[:1], 1.0), r"must have the shape of x, \(2, 1, 8, 8\); got \(1, 1, 8, 8\)"),
        (Observation(None, 1.0), "must have the shape of x.*got None"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=complaint):
            player(X, 1.0, LABEL, given=given)
    draws = generative(denoiser).eval()
    with pytest.raises(ValueError, match="sigma must be positive and finite; got -2"):
        draws(X, -2.0, LABEL)
    with pytest.raises(ValueError, match=r"z must be .* got float32 of shape \(2, 1, 8, 4\)"):
        draws.draw(X, 1.0, X[..., :4], LABEL)


@pytest.mark.parametrize("scale", [-0.5, math.nan, math.inf, "2", None])
def test_guidance_outside_of_its_range_is_refused(denoiser, scale):
    with pytest.raises(ValueError, match=rf"finite scale of at least 0 .*; got {scale!r}"):
        Guidance(scale)
    with pytest.raises(ValueError, match="finite scale of at least 0"):
        guided(denoiser, denoiser, scale)


@pytest.mark.parametrize("interval", [(2.0, 1.0), (-1.0, 2.0), (math.nan, 2.0), (1.0, 1.0), 3.0, (1.0,), "ab"])
def test_an_interval_that_is_none_is_refused(denoiser, interval):
    with pytest.raises(ValueError, match=r"guidance needs an interval"):
        Guidance(2.0, interval=interval)
    with pytest.raises(ValueError, match=r"guidance needs an interval"):
        guided(denoiser, denoiser, 2.0, interval=interval)


def test_only_a_model_that_learned_without_its_class_guides_itself(denoiser, unconditional, tmp_path, capsys):
    """EDM's and EDM2's published networks never saw an image without its class."""
    edm2 = EDM2UNet(EDM2Config(8, 1, 10, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=()))
    learned = Denoiser(tiny_net(label_dropout=0.1)).eval()
    assert learned.supports_unconditional and unconditional.supports_unconditional
    for model in (denoiser, Denoiser(edm2).eval()):
        assert not model.supports_unconditional
        plan = Plan(*plan_of(model), guidance=Guidance(2.0))
        with pytest.raises(ValueError, match="guidance 2 by the model itself needs one .*label_dropout 0"):
            generate(model, [0], plan=plan)
        for guide in (unconditional, copy.deepcopy(model)):  # EDM2's way, and autoguidance
            made = list(generate(model, [0], plan=Plan(*plan_of(model), guidance=Guidance(2.0, guide))))
            assert len(made) == 1
    assert len(list(generate(learned, [0], plan=Plan(*plan_of(learned), guidance=Guidance(2.0))))) == 1
    fs.save(denoiser, tmp_path / "model")
    assert main(["sample", str(tmp_path / "model"), "--guidance", "2", "--grid", str(tmp_path / "grid.png")]) == 2
    assert "--guide FOLDER" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "model"), "--guidance", "-2", "--grid", str(tmp_path / "grid.png")]) == 2
    assert "finite scale of at least 0" in capsys.readouterr().err
    assert not (tmp_path / "grid.png").exists()


def plan_of(model: Denoiser):
    plan = model.plan(None if model.levels else 2)
    return plan.sampler, plan.sigmas


def test_students_are_not_guided(denoiser, unconditional):
    student = Denoiser(tiny_net(label_dropout=0.1), levels=(2.5,)).eval()
    with pytest.raises(ValueError, match="the model is a generator or a fake score"):
        generate(student, [0], plan=Plan(*plan_of(student), guidance=Guidance(2.0)))
    for guide in (student, conditional(denoiser)):
        with pytest.raises(ValueError, match="the guide is a generator or a fake score"):
            generate(denoiser, [0], plan=Plan(*plan_of(denoiser), guidance=Guidance(2.0, guide)))
    with pytest.raises(ValueError, match="guide is a model, such as fs.load"):
        Guidance(2.0, "runs/teacher")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("seeds", "complaint"),
    [
        (5, "seeds is a sequence of integers, such as range"),
        ("0-3", "seeds is a sequence of integers"),
        ([0, -1], r"from 0 to 2\^32 - 1 = 4294967295; got -1"),
        ([2**32], "got 4294967296"),
        (range(2**32 - 1, 2**32 + 1), "got 4294967296"),
        ([0.5], "got 0.5"),
        ([None], "got None"),
    ],
)
def test_seeds_that_are_none_are_refused_at_once(denoiser, seeds, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate(denoiser, seeds)


def test_arguments_of_generate_are_checked_at_once(denoiser, tmp_path):
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"label": 1.5}, "integers from 0 to 9; got 1.5"),
        ({"label": torch.eye(10)[:1]}, r"got shape \(1, 10\); for one-hot labels pass label.argmax"),
        ({"label": np.array([0], np.uint8), "batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"label": -1}, "the classes of this model are 0 to 9; got -1"),
        ({"label": "cat"}, "does not know the names of its classes; give a number from 0 to 9; got 'cat'"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"plan": "heun"}, "plan is a Plan, such as model.plan.*; got 'heun'"),
    )
    for options, complaint in wrong:
        with pytest.raises(ValueError, match=complaint):
            next(generate(denoiser, [0], **options))
    with pytest.raises(ValueError, match="denoiser is a model, such as fs.load"):
        generate(tmp_path, [0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="fake score of NCVSD, for training alone"):
        generate(conditional(denoiser), [0])
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1 step; got {steps}"):
            denoiser.plan(steps)


def test_what_is_fine_is_silent(denoiser):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoise = partial(denoiser, label=LABEL)
        *_, x0 = fs.samplers.heun(denoise, 80 * torch.randn(2, 1, 8, 8), fs.karras_sigmas(3))
        assert x0.isfinite().all()
        assert denoiser(X.half(), 1, LABEL).dtype == torch.float16
        assert denoiser(X[:0], 1.0, LABEL[:0]).shape == (0, 1, 8, 8)


def test_methods_and_runs_name_what_is_not_theirs(denoiser, stream, tmp_path):
    distil: Any = fs.distill.SiD
    for make, complaint in (
        (lambda: distil(tmp_path), "teacher is a model, such as fs.load.*; got a PosixPath"),
        (lambda: distil(denoiser, generator="runs/sid"), "generator is a model, such as fs.load.*; got a str"),
        (lambda: distil(denoiser, levels=2.5), r"levels is a tuple of decreasing noise levels.*; got 2.5"),
        (lambda: distil(denoiser, levels=(0.8, 2.5)), r"decreasing noise levels above 0.*got \(0.8, 2.5\)"),
    ):
        with pytest.raises(ValueError, match=complaint):
            make()
    method, adam = fs.distill.SiD(denoiser), fs.Adam(1e-4)
    good: dict[str, Any] = {
        "method": method,
        "data": stream,
        "optimizers": dict.fromkeys(("fake_score", "generator"), adam),
    }
    good |= {"batch_size": 4, "until": 8}
    fs.Run(**good)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"method": denoiser}, "method must be a Method, such as .*; got a Denoiser"),
        ({"data": "digits"}, "data must be a stream, such as .*; got a str"),
        ({"optimizers": {"generator": adam}}, "optimizers must name fake_score, generator; got generator"),
        ({"optimizers": {}}, "optimizers must name fake_score, generator; got none"),
        ({"batch_size": 4.0}, "batch_size must be an integer; got 4.0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"seed": -1}, "seed must not be negative; got -1"),
    )
    for changed, complaint in wrong:
        with pytest.raises(ValueError, match=complaint):
            fs.Run(**(good | changed))


def test_samplers_take_tensors_of_levels(denoiser):
    denoise = partial(denoiser, label=LABEL)
    wrong: tuple[Any, ...] = ([80.0, 0.0], 18, None)
    for sigmas in wrong:
        with pytest.raises(ValueError, match=r"noise levels are a tensor \(n \+ 1,\)"):
            list(fs.samplers.euler(denoise, X, sigmas))


def test_a_seed_comes_once_in_a_command():
    assert parse_seeds("1,0,2-4") == [1, 0, 2, 3, 4]
    with pytest.raises(ValueError, match="--seeds 0-3,7,2: seed 2 comes twice"):
        parse_seeds("0-3,7,2")
