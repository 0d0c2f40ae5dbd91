"""Denoisers with an observation: equal to their teacher at the start, exact afterwards, and the published students' own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fewstep.cli.sampling import Sampling
from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser, Observation
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Guidance
from fewstep.core.noise import SeededNoise, combine_observations, expand, indexed_sigmas, karras_sigmas
from fewstep.core.oracle import GaussianDenoiser
from fewstep.core.plan import Plan
from fewstep.distill.conditional import conditional, generative, mean_images, pair_discriminator
from fewstep.io import model_folder
from fewstep.io.convert import convert, load_snapshot, to_denoiser, to_discriminator
from fewstep.io.convert.snapshot import parse_snapshot
from fewstep.io.export import upstream_state_dict
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.controlled import Controlled
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.magnitude import MPConv
from fewstep.nets.sizes import edm2
from fewstep.nets.song import SongUNet, ncsnpp
from fewstep.sample import count_evaluations, describe, generate
from fewstep.samplers import last, multistep, posterior
from tests import GOLDEN
from tests.conftest import tiny_net

LEVELS = torch.tensor([0.01, 0.5, 3.0, 60.0])


def teacher_of(family: str) -> Denoiser:
    torch.manual_seed(0)
    small = {"channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,), "dropout": 0.1}
    if family == "edm2":
        net = EDM2UNet(EDM2Config(8, 1, 10, model_channels=16, channels_per_head=16, **small))
    elif family == "adm":
        net = ADMUNet(ADMConfig(8, 1, 1, 10, model_channels=16, label_dropout=0.1, **small))
    elif family == "ncsnpp":
        net = SongUNet(ncsnpp(8, in_channels=1, out_channels=1, label_dim=10, model_channels=8, **small))
    else:
        net = tiny_net(augment_dim=9, **small)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p) if p.ndim else 1)  # EDM2's gains are 0 at first
    return Denoiser(net, uncertainty=Uncertainty(16) if family == "edm2" else None).eval()


def world() -> tuple[torch.Tensor, torch.Tensor, Observation]:
    """Images, labels and observations."""
    torch.manual_seed(1)
    x, y = torch.randn(2, 4, 1, 8, 8)
    return x, torch.tensor([0, 3, 3, 9]), Observation(y, LEVELS.flip(0))


@pytest.mark.parametrize("family", ["edm2", "adm", "ncsnpp", "ddpmpp"])
def test_the_start_is_the_teacher(family):
    teacher = teacher_of(family)
    x, label, given = world()
    player = conditional(teacher)
    expected = teacher(x, LEVELS, label)
    answer = player(x, LEVELS, label, given=given)
    assert torch.equal(answer, expected)
    assert torch.equal(player.train()(x, LEVELS, label, given=given), expected)  # no dropout
    together = conditional(teacher, fused=True)(x, LEVELS, label, given=given)
    assert torch.equal(together, teacher(*combine_observations(*given, x, LEVELS), label))

    answer.square().sum().backward()
    dec = player.net.dec
    assert all(w.grad.abs().min() > 0 for w in (dec.additional_x_weight, dec.additional_skips_weight))
    assert all(p.grad is None or not p.grad.any() for p in player.net.ctrl.parameters())

    draws = generative(teacher)
    z = torch.randn_like(x)
    raised = 1.414 * LEVELS.flip(0)
    noisier = given.y + expand((raised**2 - LEVELS.flip(0) ** 2).sqrt(), x) * z
    assert torch.equal(draws.draw(*given, z, label), teacher(noisier, raised, label))


def test_the_teacher_is_not_moved_and_a_head_is_new(denoiser):
    teacher = teacher_of("edm2")
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    player = conditional(teacher)
    with torch.no_grad():
        for p in player.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert isinstance(player.uncertainty, Uncertainty)
    assert not torch.equal(player.uncertainty.fourier.freqs, before["uncertainty.fourier.freqs"])
    assert denoiser.uncertainty is None and isinstance(conditional(denoiser).uncertainty, Uncertainty)


def test_merge_weights_move_from_one_image_to_the_other():
    """At 1 the decoder sees the observation alone, outside of [0, 1] as at its ends; `project_` brings them back."""
    teacher = teacher_of("edm2")
    x, label, given = world()
    player = conditional(teacher)
    dec = player.net.dec

    def answer(weight: float, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            dec.additional_x_weight.fill_(weight)
            dec.additional_skips_weight.fill_(weight)
            return player(x, LEVELS, label, given=given) - player.precondition(expand(LEVELS, x)).skip * x

    assert torch.allclose(answer(1.0, x), answer(1.0, x + 1), atol=1e-5)
    assert torch.equal(answer(1.0, x), answer(1.7, x))
    assert torch.equal(answer(0.0, x), answer(-0.3, x))
    assert not torch.allclose(answer(0.5, x), answer(0.5, x + 1), atol=1e-2)
    player.net.project_()
    assert dec.additional_x_weight.item() == 0.5
    answer(-0.3, x)
    player.net.project_()
    assert not dec.additional_x_weight.any()
    assert not dec.additional_skips_weight.any()


@pytest.mark.parametrize(
    ("size", "before", "after"), [("xs", 112.7, 146.2), ("s", 280.2, 368.2), ("m", 497.8, 653.5), ("l", 777.5, 1020.1)]
)
def test_the_published_sizes(size, before, after):
    """In millions: of FFHQ-256's teacher (xs) and of ImageNet's, and of the networks made from them (Table of the spec)."""
    config = edm2(size) if size != "xs" else EDM2Config(256, 3, 0, model_channels=128)
    with torch.device("meta"):
        net = EDM2UNet(config)
        count = [sum(p.numel() for p in m.parameters()) for m in (net, Controlled(net), Uncertainty())]
    assert [round((n + count[2]) / 1e6, 1) for n in count[:2]] == [before, after]
    assert Controlled(net).dec.additional_skips_weight.shape == (16,)


def test_merge_weights_of_edm_s_networks_count_tenfold():
    net = Controlled(tiny_net())
    with torch.no_grad():
        net.dec.additional_skips_weight.fill_(0.05)
        net.dec.additional_x_weight.fill_(0.2)
        a, b = net.enc.encode(*(v := (torch.randn(2, 1, 8, 8), torch.zeros(2)))), net.ctrl.encode(-v[0], v[1])
        merged = net.merge(a, b)
    torch.testing.assert_close(merged.skips[1], (a.skips[1] + b.skips[1]) / math.sqrt(2))
    assert torch.equal(merged.bottleneck, b.bottleneck)
    net.project_()
    assert net.dec.additional_x_weight.item() == pytest.approx(0.1)


def test_the_discriminator_trains_without_projection():
    d = pair_discriminator(teacher_of("edm2"))
    assert not any(layer.forced for layer in d.modules() if isinstance(layer, MPConv))
    assert all(layer.forced for layer in teacher_of("edm2").modules() if isinstance(layer, MPConv))
    x, label, given = world()
    assert d(x, LEVELS, label, given=given).shape == (4, 1)
    assert pair_discriminator(teacher_of("adm"))(x, LEVELS, label, given=given).shape == (4, 1)


# The published networks


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "ncvsd.npz") as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


@torch.no_grad()
def test_imported_networks_give_the_reference_s_numbers(golden):
    given, label = Observation(golden["y"], golden["sigma"]), golden["labels"]
    score, _ = convert(GOLDEN / "ncvsd-score.pkl")
    found = score(golden["x_t"], golden["t"], label, given=given)  # pyright: ignore[reportCallIssue] - the file says which class
    torch.testing.assert_close(found, golden["score_denoised"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score.log_variance(golden["t"]), golden["score_logvar"], rtol=1e-5, atol=1e-5)

    student, provenance = convert(GOLDEN / "ncvsd-student.pkl")
    assert isinstance(student, GenerativeDenoiser)
    assert (student.gamma, student.sigma_init, student.levels) == (0.414, 80.0, (80.0,))
    assert provenance.class_names == ("GenerativeDenoiser", "UNetEncoder")
    assert "inherit" in provenance.license
    found = student.draw(*given, golden["student_z"], label)
    torch.testing.assert_close(found, golden["student_out"], rtol=1e-5, atol=1e-5)
    assert torch.equal(student(*given, label, noise=lambda x: golden["student_z"]), found)

    d = to_discriminator(load_snapshot(GOLDEN / "ncvsd-discriminator.pkl"))
    logits = d(golden["x_t"], golden["t"], label, given=given)
    torch.testing.assert_close(logits[:, 0], golden["disc_logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["student", "score", "discriminator"])
def test_there_and_back_every_bit_and_name_is_kept(name):
    found = load_snapshot(GOLDEN / f"ncvsd-{name}.pkl")
    back = upstream_state_dict(to_discriminator(found) if name == "discriminator" else to_denoiser(found))
    assert list(back) == list(found.state)
    assert all(torch.equal(back[k], v) for k, v in found.state.items())


def test_a_discriminator_is_no_denoiser():
    with pytest.raises(ValueError, match=r"NCVSD's discriminator, which is not a denoiser"):
        convert(GOLDEN / "ncvsd-discriminator.pkl")
    with pytest.raises(ValueError, match="holds a PrecondCondition, not NCVSD's discriminator"):
        to_discriminator(load_snapshot(GOLDEN / "ncvsd-score.pkl"))


def test_what_the_upstream_format_has_no_place_for_is_refused():
    with pytest.raises(ValueError, match="the upstream format cannot hold a fused fake score"):
        upstream_state_dict(conditional(teacher_of("edm2"), fused=True))
    found = load_snapshot(GOLDEN / "ncvsd-score.pkl")
    with pytest.raises(ValueError, match="a fake score, which makes no images; leave the levels out"):
        to_denoiser(found, levels=(2.5,))
    found.attributes["sigma_data"] = float("inf")
    with pytest.raises(ValueError, match="no usable sigma_data"):
        to_denoiser(found)


def test_a_student_without_its_parts_is_refused():
    from fewstep.io.unpickle import read

    content = read(GOLDEN / "ncvsd-student.pkl")
    assert isinstance(content, dict)
    content["ema"].state["_modules"]["model"].state["_modules"].pop("enc")
    with pytest.raises(ValueError, match="holds a GenerativeDenoiser; the preconditionings"):
        parse_snapshot(content)
    found = load_snapshot(GOLDEN / "ncvsd-student.pkl")
    del found.attributes["gamma"]
    with pytest.raises(ValueError, match="no usable gamma"):
        to_denoiser(found)


# Model folders


@pytest.mark.parametrize("family", ["edm2", "ddpmpp"])
def test_save_and_load_is_the_identity(family, tmp_path):
    teacher = teacher_of(family)
    x, label, given = world()
    z = torch.randn_like(x)
    for original in (
        generative(teacher, gamma=0.3, sigma_init=50.0, sigma_end=0.1, levels=(20.0, 1.0)),
        generative(teacher, gamma=0.3, sigma_init=50.0, sigma_end=0.1, levels=(20.0, 1.0), centred=True),
        conditional(teacher),
        conditional(teacher, fused=True),
    ):
        model_folder.save(original, tmp_path / "m")
        loaded = model_folder.load(tmp_path / "m")
        assert type(loaded) is type(original)
        assert loaded.net.config == original.net.config
        assert loaded.net.config.dropout == 0
        if isinstance(loaded, GenerativeDenoiser):
            assert isinstance(original, GenerativeDenoiser)
            assert (loaded.gamma, loaded.sigma_init, loaded.sigma_end, loaded.levels) == (0.3, 50.0, 0.1, (20.0, 1.0))
            assert torch.equal(loaded.draw(*given, z, label), original.draw(*given, z, label))
            assert loaded.means == (0 if original.mean is None else 10)
            if original.means:
                torch.testing.assert_close(loaded.mean, original.mean, rtol=0, atol=0)
        else:
            assert isinstance(loaded, ConditionalDenoiser)
            assert loaded.fused == original.fused
            assert all(map(torch.equal, loaded.state_dict().values(), original.state_dict().values()))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"kind": "Other"}, "expected one of Denoiser, ConditionalDenoiser, GenerativeDenoiser"),
        ("GenerativeDenoiser", "expected one of Denoiser"),
        (
            {"kind": "GenerativeDenoiser", "gamma": 0.4, "sigma_end": 0.1},
            "has the options gamma, sigma_init, sigma_end, means; got",
        ),
        ({"kind": "GenerativeDenoiser", "gamma": "4", "sigma_init": 80, "sigma_end": 0.1}, "has the options gamma"),
        ({"kind": "ConditionalDenoiser", "fused": 1}, "has the options fused; got"),
        ({"kind": "GenerativeDenoiser", "gamma": 0.4, "sigma_init": 80, "sigma_end": 0.1, "means": 3}, "got means=3"),
        ({"kind": "GenerativeDenoiser", "gamma": 0.4, "sigma_init": 80, "sigma_end": 0.1, "means": 10}, "missing mean"),
        ({"kind": "GenerativeDenoiser", "gamma": -1.0, "sigma_init": 80, "sigma_end": 0.1}, "needs gamma > 0"),
        ({"kind": "Denoiser"}, "missing net.map_label.weight"),
    ],
)
def test_broken_model_folders_are_refused(about, message, tmp_path):
    folder = model_folder.save(generative(teacher_of("ddpmpp")), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"denoiser": about}))
    with pytest.raises(ValueError, match=message):
        model_folder.load(folder)


# Sampling


def test_the_index_lists():
    published = {0: 80.0, 10: 16.7799, 12: 11.7185, 14: 8.02648, 22: 1.38237, 30: 0.131197}
    for i, t in published.items():
        first, level, zero = indexed_sigmas([i, 39], sigma_init=50.0).tolist()
        assert (first, zero) == (50.0, 0.0)
        assert level == pytest.approx(t, rel=1e-5)
    assert torch.equal(indexed_sigmas([10, 22, 39])[1:3], karras_sigmas(40)[[10, 22]])
    for bad in ([39], [10, 22], [22, 10, 39], [-1, 39], [10, 40], [10, 10, 39], []):
        with pytest.raises(ValueError, match="end in 39"):
            indexed_sigmas(bad)


def exact_draw(mean: float, std: float, noise=torch.randn_like):
    """The posterior sampler of N(mean, std^2) in every pixel."""

    def draw(y, sigma):
        level = expand(sigma, y)
        share = std**2 / (std**2 + level**2)
        return share * y + (1 - share) * mean + share.sqrt() * level * noise(y)

    return draw


@pytest.mark.parametrize("levels", [[80.0], [80.0, 2.0], [60.0, 60.0, 5.0, 0.3]])
def test_with_an_exact_generator_every_number_of_steps_draws_the_data(levels):
    torch.manual_seed(0)
    n, sigmas = 60_000, torch.tensor([80.0, *levels, 0.0], dtype=torch.float64)
    x0 = last(posterior(exact_draw(0.5, 1.5), 80 * torch.randn(n, 1, dtype=torch.float64), sigmas))
    assert x0.mean().item() == pytest.approx(0.5, abs=6 / math.sqrt(n))
    assert x0.std().item() == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize(("mean", "off"), [(0.0, -2.0 * 0.25 / 6.5), (2.0, 0.0)])
def test_one_step_from_a_level_near_the_images_needs_their_mean(mean, off):
    """Of N(2, 0.5^2), from level 2.5: about 0 the draws are off by the mean's share s^2 / (s^2 + t^2); about the mean their
    deviation alone is, by (s^2 / (s^2 + t^2))^2 / 2.
    """
    torch.manual_seed(0)
    n, sigmas = 60_000, torch.tensor([1e6, 2.5, 0.0], dtype=torch.float64)
    draws = exact_draw(2.0, 0.5)
    x0 = last(posterior(draws, 1e6 * torch.randn(n, 1, dtype=torch.float64), sigmas, mean=mean))
    assert x0.mean().item() - 2 == pytest.approx(off, abs=3 / math.sqrt(n))
    assert x0.std().item() == pytest.approx(0.5 * (1 - (0.25 / 6.5) ** 2 / 2), rel=0.01)


def test_without_further_levels_an_observation_is_denoised_at_once():
    y = torch.tensor([[1.0], [-2.0]])
    (x0,) = posterior(lambda x, sigma: x + sigma, y, torch.tensor([0.7, 0.0]))
    assert torch.equal(x0, y + 0.7)


def test_the_posterior_sampler_by_hand():
    """Two steps, with the fusion written out."""
    draws = iter(torch.randn(8, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    given = torch.randn(3, 1, dtype=torch.float64)
    kept = []

    def denoise(y, sigma):
        assert sigma.ndim == 0
        kept.append((y, sigma))
        return 0.3 * y

    def noise(x):
        kept.append(next(draws))
        return kept[-1]

    states = list(posterior(denoise, given, torch.tensor([8.0, 5.0, 0.7, 0.0]).double(), noise=noise))
    z, (y1, s1), eps, (y2, s2) = kept
    precision = 1 / 8.0**2 + 1 / 5.0**2
    torch.testing.assert_close(y1, (given / 8.0**2 + 5 * z / 5.0**2) / precision)
    assert s1.item() == pytest.approx(precision**-0.5)
    x = 0.3 * y1 + 0.7 * eps
    precision = 1 / 8.0**2 + 1 / 0.7**2
    torch.testing.assert_close(y2, (given / 8.0**2 + x / 0.7**2) / precision)
    assert s2.item() == pytest.approx(precision**-0.5)
    torch.testing.assert_close(torch.stack(states), torch.stack([5 * z, x, 0.3 * y2]))


def student() -> GenerativeDenoiser:
    return generative(teacher_of("ddpmpp"), levels=(20.0, 1.0)).eval()


def test_an_image_depends_on_its_seed_alone():
    model = student()
    for plan in (model.plan(), model.plan(3), Plan(multistep, torch.tensor([80.0, 0.0]))):
        one = list(generate(model, range(5), plan=plan))
        other = [image for seed in range(5) for image in generate(model, [seed], plan=plan, batch_size=1)]
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(one[0], one[1])


@pytest.mark.parametrize("label", [None, 3, torch.tensor([7, 7, 0])])
def test_a_student_starts_about_the_mean_images_of_its_classes(label):
    model = generative(teacher_of("ddpmpp"), levels=(20.0, 1.0), centred=True).eval()
    means = model.mean
    assert means is not None
    means.copy_(torch.linspace(-20, 20, 10)[:, None, None, None].expand_as(means))
    made = list(generate(model, range(3), label=label, batch_size=2))
    plan = model.plan()
    for seed, image in enumerate(made):
        noise = SeededNoise([seed])
        z, classes = noise.draw(model.shape, torch.float32), noise.classes(10)
        if label is not None:
            classes = torch.as_tensor(label).expand(3)[[seed]]
        draw = model.bind(classes, noise)
        with torch.inference_mode():
            x0 = last(posterior(draw, 80 * z.double(), plan.sigmas, noise=noise, mean=means[classes]))
        assert np.array_equal(model.codec.decode(x0)[0].permute(1, 2, 0).numpy(), image)


def test_mean_images_are_what_a_denoiser_makes_of_noise_alone(denoiser):
    means = mean_images(denoiser, 80.0)
    assert means.shape == (10, *denoiser.shape)
    z = torch.randn(32, *denoiser.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(means[4], denoiser(80 * z, 80.0, torch.full((32,), 4)).mean(0))
    dropping = Denoiser(tiny_net(dropout=0.5)).train()
    assert torch.equal(mean_images(dropping, 80.0), mean_images(dropping.eval(), 80.0))
    unconditional, state = Denoiser(tiny_net(label_dim=0)).eval(), torch.get_rng_state()
    alone = mean_images(unconditional, 80.0)
    assert alone.shape == (1, *denoiser.shape)
    assert torch.equal(torch.get_rng_state(), state)  # what a training draws does not depend on it


def test_centred_students_without_classes_and_without_a_label():
    model = generative(teacher_of("ddpmpp"), centred=True)
    means = model.mean
    assert means is not None
    torch.testing.assert_close(model.centre(None), means.mean(0, keepdim=True))
    torch.testing.assert_close(model.centre(torch.tensor([9, 1])), means[[9, 1]], rtol=0, atol=0)
    assert generative(teacher_of("ddpmpp")).centre(torch.tensor([9])) is None
    with pytest.raises(ValueError, match="one mean image, or one for each of 10 classes; got means=4"):
        GenerativeDenoiser(Controlled(teacher_of("ddpmpp").net), means=4)
    with pytest.raises(ValueError, match="the upstream format cannot hold"):
        upstream_state_dict(model)


def test_a_student_samples_by_its_levels_unless_told_otherwise():
    model = student()
    own = model.plan()
    assert (own.sampler, own.sigmas.tolist(), count_evaluations(own)) == ("posterior", [80.0, 20.0, 1.0, 0.0], 2)
    told = describe(own)
    assert (told["steps"], told["start"], told["levels"], told["sigma_max"], told["sigma_min"]) == (
        2,
        80,
        [20, 1],
        20,
        1,
    )
    assert describe(Plan(posterior, torch.tensor([80.0, 0.0])))["levels"] == [80]
    assert torch.equal(model.plan(2).sigmas, own.sigmas)
    assert torch.equal(model.plan(4).sigmas, indexed_sigmas([0, 10, 20, 30, 39]))
    assert count_evaluations(model.plan(39)) == 39
    shallow = generative(teacher_of("ddpmpp"), sigma_end=0.1)
    grid = karras_sigmas(40, sigma_min=0.1)
    assert torch.equal(shallow.plan(4).sigmas[1:-1], grid[[0, 10, 20, 30]])
    for sampling, nfe, sigmas in (
        (Sampling(), 2, own.sigmas),
        (Sampling(steps=4), 4, indexed_sigmas([0, 10, 20, 30, 39])),
        (Sampling(ts="10,22,39"), 2, indexed_sigmas([10, 22, 39])),
        (Sampling(levels="5,0.5,0.1", sampler="posterior"), 3, torch.tensor([80.0, 5.0, 0.5, 0.1, 0.0])),
        (Sampling(levels="5,0.5", sampler="multistep"), 2, torch.tensor([5.0, 0.5, 0.0])),
    ):
        plan = sampling.plan(model)
        assert count_evaluations(plan) == nfe
        assert torch.allclose(plan.sigmas, sigmas.double(), rtol=1e-7)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(ts="10,22"), "end in 39"),
        (Sampling(ts="ten"), "--ts needs indices of noise levels, .*; got .ten"),
        (Sampling(ts="10,39", steps=1), "takes one of steps, levels and ts"),
        (Sampling(levels="5", S_churn=1.0), "no option of other samplers"),
        (Sampling(sampler="heun"), "heun needs a model that predicts the mean"),
        (Sampling(steps=40), "takes 1 to 39 steps"),
    ],
)
def test_options_that_do_not_fit_a_student(sampling, message):
    with pytest.raises(ValueError, match=message):
        sampling.plan(student())


def test_options_of_students_do_not_fit_others(denoiser):
    for sampling in (Sampling(ts="10,39"), Sampling(sampler="posterior")):
        with pytest.raises(ValueError, match="for models that draw from the posterior"):
            sampling.plan(denoiser)
    with pytest.raises(ValueError, match="guidance needs a model that predicts the mean"):
        list(generate(student(), [0], plan=Plan(posterior, torch.tensor([80.0, 0.0]), guidance=Guidance(1.5))))


def test_calls_that_cannot_be_answered():
    player = conditional(teacher_of("ddpmpp"))
    x, label, _ = world()
    with pytest.raises(ValueError, match="call it with given=Observation"):
        player(x, LEVELS, label)
    with pytest.raises(ValueError, match=r"must have the shape of x, \(4, 1, 8, 8\); got \(4, 1, 4, 4\)"):
        player(x, LEVELS, label, given=Observation(x[..., :4, :4], 1.0))
    for gamma, sigma_init, levels in (
        (0.0, 80.0, (80.0,)),
        (0.4, -1.0, (80.0,)),
        (0.4, 0.001, (80.0,)),
        (0.4, 80.0, ()),
    ):
        with pytest.raises(ValueError, match="needs gamma > 0"):
            generative(teacher_of("ddpmpp"), gamma=gamma, sigma_init=sigma_init, levels=levels)


def test_fuse_is_the_conditional_mean_of_an_exact_denoiser():
    """E[x0 | x, y] of a Gaussian, from both observations at once."""
    oracle = GaussianDenoiser(torch.tensor([0.4], dtype=torch.float64), 0.8**2)
    x, y = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)[:, None]
    precision = 1 / 0.8**2 + 1 / 1.5**2 + 1 / 0.6**2
    expected = (0.4 / 0.8**2 + y / 1.5**2 + x / 0.6**2) / precision
    torch.testing.assert_close(oracle(*combine_observations(y, 1.5, x, 0.6)), expected)
