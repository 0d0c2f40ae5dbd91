"""NCVSD: exact where scores are exact, equal to the paper's equations and to the reference's numbers, and learning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.cli.sampling import Sampling, sample
from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser, Observation, given_observation
from fewstep.core.denoiser import Denoiser
from fewstep.core.diagnostics import BINS
from fewstep.core.method import Batch, zero_nonfinite
from fewstep.core.noise import KarrasUniform, LogNormal, add_noise, combine_observations, expand, karras_sigmas
from fewstep.core.objectives import edm_weight
from fewstep.core.oracle import MixtureDenoiser
from fewstep.distill import NCVSD, SiD, ncvsd, vsd_loss
from fewstep.distill.conditional import conditional, generative, mean_images, pair_discriminator
from fewstep.distill.ncvsd import KarrasGrid
from fewstep.io import model_folder
from fewstep.io.convert import convert, load_snapshot, to_discriminator
from fewstep.nets.controlled import Controlled
from fewstep.nets.edm2 import Uncertainty
from fewstep.recipes import get
from fewstep.recipes.ncvsd import SIZES
from fewstep.train.ema import PowerFunction
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer
from tests import GOLDEN, toy
from tests.conftest import tiny_net
from tests.core.test_controlled import teacher_of

# Truth


def test_fuse_is_the_posterior_mean_of_two_observations():
    """Against the integral over x0 of a mixture in one dimension."""
    weights, means, stds = torch.tensor([[0.3, 0.7], [-0.8, 0.5], [0.2, 0.4]], dtype=torch.float64)
    teacher = MixtureDenoiser(weights, means[:, None], stds**2)
    grid = torch.linspace(-6, 6, 24_001, dtype=torch.float64)
    prior = (weights / stds * torch.exp(-((grid[:, None] - means) ** 2) / (2 * stds**2))).sum(1)
    for y, sigma, x, t in ((0.3, 0.5, -1.0, 0.9), (1.2, 0.05, 0.0, 2.0), (-3.0, 80.0, 0.4, 0.3), (0.2, 1.0, 9.0, 50.0)):
        seen = prior * torch.exp(-((y - grid) ** 2) / (2 * sigma**2) - (x - grid) ** 2 / (2 * t**2))
        expected = (seen * grid).sum() / seen.sum()
        both, level = combine_observations(grid.new_tensor([[y]]), sigma, grid.new_tensor([[x]]), t)
        assert teacher(both, level).item() == pytest.approx(expected.item(), abs=1e-9)


MEAN, STD = 0.3, 0.8


def exact(y, sigma):
    """Mean and deviation of p(x0 | y) for data N(MEAN, STD^2)."""
    share = STD**2 / (STD**2 + sigma**2)
    return share * y + (1 - share) * MEAN, share.sqrt() * sigma


def gradient(shift: float, stretch: float, n: int = 200_000):
    """d loss / d (shift, ln stretch) of draws mean + shift + stretch std z around the exact posterior, whose own score the
    fake score knows.
    """
    torch.manual_seed(0)
    moved = torch.tensor([shift, math.log(stretch)], dtype=torch.float64, requires_grad=True)
    sigma = KarrasGrid()(torch.empty(n)).double()[:, None]
    y = MEAN + STD * torch.randn(n, 1).double() + sigma * torch.randn(n, 1).double()
    mean, std = exact(y, sigma)
    x0 = mean + moved[0] + moved[1].exp() * std * torch.randn(n, 1).double()
    t = torch.full((n,), 0.7, dtype=torch.float64)
    x = add_noise(x0, t)
    with torch.no_grad():
        both, level = combine_observations(y, sigma.flatten(), x, t)
        real = exact(both, level[:, None])[0]
        variance = (moved[1].exp() * std) ** 2
        fake = (variance * x + 0.7**2 * (mean + moved[0])) / (variance + 0.7**2)
    loss = vsd_loss(x0, real, fake, edm_weight(t, 0.5))
    return torch.autograd.grad(loss.mean(), moved)[0]


def test_the_gradient_vanishes_at_the_exact_posterior_and_points_to_it_elsewhere():
    assert gradient(0.0, 1.0).abs().max() < 1e-12
    for amount in (0.2, -0.2):
        assert gradient(amount, 1.0)[0].sign().item() == math.copysign(1, amount)
        assert gradient(0.0, 1 + amount)[1].sign().item() == math.copysign(1, amount)


def test_observations_come_from_the_grid():
    torch.manual_seed(0)
    levels = karras_sigmas(1000)[:-1].float()
    drawn = KarrasGrid()(torch.empty(4_000))
    assert drawn.shape == (4_000,)
    nearest = levels[(drawn[:, None].log() - levels.log()).abs().argmin(1)]
    torch.testing.assert_close(drawn, nearest, rtol=1e-4, atol=0)
    assert drawn.max() > 79
    assert (drawn > levels[500]).float().mean().item() == pytest.approx(0.5, abs=0.03)


# Faithfulness


class Recorded:
    """A method's own path, with every draw given: sigma, t, and the noises in the order in which they are used."""

    def __init__(self, monkeypatch, method: NCVSD, sigma, t, noises: list, z) -> None:
        method.observed, method.noise = lambda x: sigma, lambda x: t
        queue = iter(noises)
        monkeypatch.setattr(ncvsd, "add_noise", lambda x, level: x + expand(level, x) * next(queue))
        draw = GenerativeDenoiser.draw
        monkeypatch.setattr(GenerativeDenoiser, "forward", lambda self, y, s, label=None: draw(self, y, s, z, label))


def test_the_losses_are_the_paper_s(monkeypatch):
    """In float64 from the equations alone: the networks' answers, then arithmetic; values, and gradients of parameters."""
    torch.manual_seed(0)
    teacher = teacher_of("edm2").double()
    teacher.dtype = torch.float64
    method = NCVSD(teacher, gan_weight=0.7, gan_start=3, loss_scale=0.1).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.05 * torch.randn_like(p) + (0.3 if p.shape in ((1,), (4,)) else 0))
    image, n, z, e1, e2 = torch.randn(5, 3, 1, 8, 8, dtype=torch.float64)
    label = torch.tensor([1, 5, 9])
    sigma, t = torch.tensor([0.1, 1.0, 40.0]).double(), torch.tensor([0.3, 0.05, 8.0]).double()
    batch = Batch(image, label)

    def wide(v):
        return v[:, None, None, None]

    y = image + wide(sigma) * n
    given = Observation(y, sigma)
    weight = (t**2 + 0.25) / (0.5 * t) ** 2
    raised = 1.414 * sigma
    pixels = 64

    def x_g():
        noisier = y + wide((1.414**2 - 1) ** 0.5 * sigma) * z
        return given_observation(method.generator, noisier, raised, label, None, given)

    def u_of(player, level):
        return Denoiser.log_variance(player, level)

    def compare(loss, expected, player):
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        mine, theirs = (
            torch.autograd.grad(v.sum(), list(player.parameters()), retain_graph=True, allow_unused=True)
            for v in (loss, expected)
        )
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9 * max(1, b.abs().max().item()))

    Recorded(monkeypatch, method, sigma, t, [n, e1], z)
    loss, _ = method.fake_score_loss(batch)
    fakes = x_g().detach()
    s = method.fake_score(fakes + wide(t) * e1, t, label, given=given)
    u = u_of(method.fake_score, t)
    compare(loss, 0.1 * (wide(weight / u.exp()) * (s - fakes) ** 2 + wide(u)).sum((1, 2, 3)), method.fake_score)

    Recorded(monkeypatch, method, sigma, t, [n, e1, e2], z)
    loss, logs = method.discriminator_loss(batch)
    d_r = method.discriminator(image + wide(t) * e1, t, label, given=given)[:, 0]
    d_f = method.discriminator(fakes + wide(t) * e2, t, label, given=given)[:, 0]
    expected = 0.1 * pixels * 0.5 * (d_f.exp().log1p() + (-d_r).exp().log1p())
    compare(loss, expected, method.discriminator)
    assert logs["margin"].item() == pytest.approx((d_r - d_f).mean().item())

    x0 = x_g()
    x_t = x0 + wide(t) * e1
    level = (1 / sigma**2 + 1 / t**2) ** -0.5
    merged = wide(level**2) * (y / wide(sigma**2) + x_t / wide(t**2))
    s_0 = method.teacher(merged, level, label).detach()
    s = method.fake_score(x_t, t, label, given=given).detach()
    u = u_of(method.generator, raised)
    vsd = (wide(weight / u.exp()) * (x0 - (x0 + s_0 - s).detach()) ** 2 + wide(u)).sum((1, 2, 3))
    gan = (-method.discriminator(x_t, t, label, given=given)[:, 0]).exp().log1p()
    Recorded(monkeypatch, method, sigma, t, [n, e1], z)
    loss, logs = method.vsd_loss(batch)
    compare(loss, 0.1 * vsd, method.generator)
    assert logs["gap"].shape == (2, BINS)
    Recorded(monkeypatch, method, sigma, t, [n, e1], z)
    loss, logs = method.generator_loss(batch)
    compare(loss, 0.1 * (vsd + 0.7 * pixels * gan), method.generator)
    assert set(logs) == {"gap", "vsd", "gan"}


def test_the_losses_are_the_reference_s(monkeypatch):
    with np.load(GOLDEN / "ncvsd.npz") as file:
        a = {k: torch.from_numpy(file[k]) for k in file.files}
    teacher, student, score = (convert(GOLDEN / f"ncvsd-{name}.pkl")[0] for name in ("teacher", "student", "score"))
    d = to_discriminator(load_snapshot(GOLDEN / "ncvsd-discriminator.pkl"))
    method = NCVSD(teacher, generator=student, fake_score=score, discriminator=d)  # pyright: ignore[reportArgumentType] - of these classes by their files
    n = (a["y"] - a["x_real"]) / a["sigma"][:, None, None, None]
    batch = Batch(a["x_real"], a["labels"])
    close = {"rtol": 1e-4, "atol": 0}

    Recorded(monkeypatch, method, a["sigma"], a["t"], [n, a["dsm_eps"]], a["dsm_z"])
    loss, _ = method.fake_score_loss(batch)
    torch.testing.assert_close(loss, a["dsm_loss"], **close)

    Recorded(monkeypatch, method, a["sigma"], a["t"], [n, a["disc_eps_real"], a["disc_eps_fake"]], a["disc_z"])
    loss, _ = method.discriminator_loss(batch)
    torch.testing.assert_close(loss, (a["disc_fake_loss"] + a["disc_real_loss"]) / 2 * 768, **close)

    Recorded(monkeypatch, method, a["sigma"], a["t"], [n, a["vsd_eps"]], a["vsd_z"])
    loss, _ = method.vsd_loss(batch)
    torch.testing.assert_close(loss, a["vsd_loss"], **close)
    slopes = torch.autograd.grad(loss.mean(), list(method.generator.parameters()))
    norm = torch.stack([g.norm() for g in slopes]).norm()
    assert norm.item() == pytest.approx(a["vsd_grad_norm"].item(), rel=1e-4)

    Recorded(monkeypatch, method, a["sigma"], a["t"], [n, a["vsd_eps"]], a["vsd_z"])
    loss, _ = method.generator_loss(batch)
    torch.testing.assert_close(loss, a["vsd_loss"] + 768 * a["gan_loss"], **close)


def test_the_phases_are_the_paper_s(denoiser):
    method = NCVSD(denoiser, gan_start=1000)
    moves = [(p.player, p.name, p.start, p.stop) for p in method.phases]
    assert moves == [
        ("fake_score", "fake_score_loss", 0, math.inf),
        ("discriminator", "discriminator_loss", 0, math.inf),
        ("generator", "vsd_loss", 0, 1000),
        ("generator", "generator_loss", 1000, math.inf),
    ]
    assert all(p.clean is zero_nonfinite for p in method.phases)
    alone = NCVSD(denoiser, gan_weight=0)
    assert [(p.player, p.name, p.start) for p in alone.phases] == [
        ("fake_score", "fake_score_loss", 0),
        ("generator", "vsd_loss", 0),
    ]
    assert {name for name, _ in alone.named_children()} == {"teacher", "fake_score", "generator"}
    assert [p.name for p in NCVSD(denoiser).phases if p.due(0, 0)][2:] == ["generator_loss"]
    assert (method.generator.gamma, method.generator.sigma_init, method.product) == (0.414, 80.0, "generator")


def test_gradients_reach_the_player_that_moves_alone(denoiser):
    torch.manual_seed(0)
    batch = Batch(torch.randn(4, 1, 8, 8), torch.arange(4))
    method = NCVSD(denoiser)
    with torch.no_grad():
        for p in [*method.fake_score.parameters(), *method.generator.parameters()]:
            p.add_(0.05 * torch.randn_like(p).abs())
    method.requires_grad_(False)
    for phase in method.phases:
        player = method.get_submodule(phase.player).requires_grad_(True)
        loss, _ = phase.loss(batch)
        assert loss.shape == (4,)
        loss.sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in player.parameters())
        others = [p for name, m in method.named_children() if name != phase.player for p in m.parameters()]
        assert all(p.grad is None for p in others)
        method.zero_grad()
        player.requires_grad_(False)


def test_a_fused_fake_score_starts_at_no_gap(stream, denoiser):
    """It is the real score, as long as it has not learned how the draws differ from data."""
    torch.manual_seed(0)
    batch = stream.batch(0, 4)
    for fused in (True, False):
        _, _, _, logs = NCVSD(denoiser, fused=fused).distil(batch)
        assert (logs["gap"][0].sum() == 0) == fused


# Learning


def test_the_trainer_keeps_merge_weights_in_range_and_lengths_of_the_generator(stream):
    method = NCVSD(teacher_of("edm2"))
    adam = Adam(0.02, betas=(0.9, 0.99))
    trainer = Trainer(method, stream, dict.fromkeys(("fake_score", "discriminator", "generator"), adam), batch_size=4)
    logs = [trainer.step() for _ in range(3)][-1]
    trainer.settings = dict.fromkeys(trainer.settings, Adam(0))  # what a step begins with is then what it leaves
    trainer.step()
    for player in (method.generator, method.fake_score):
        dec = player.net.dec
        shares = torch.cat([dec.additional_x_weight, dec.additional_skips_weight])
        assert shares.min() >= 0
        assert shares.max() > 0.01
        weight = dec.out_conv.weight.flatten(1)
        torch.testing.assert_close(weight.square().mean(1), torch.ones(len(weight)))
    free = method.discriminator.net.out_conv.weight
    assert (free.square().mean() - 1).abs() > 1e-3
    assert {"generator_loss/gap", "discriminator_loss/accuracy_real", "fake_score_loss/error"} <= set(logs)


def test_toy():
    """Draws of the ring in four steps, at 1.3 times the distance of the teacher; another seed comes to 1.0."""
    teacher = toy.teacher()  # first, as it draws random numbers when it is made
    torch.manual_seed(0)
    method = NCVSD(teacher, gamma=2.0, noise=LogNormal(-0.2, 1.0), levels=(80.0, 16.8, 2.24, 0.13))
    rates = {"fake_score": 4e-3, "discriminator": 1e-3, "generator": 1e-3}
    toy.assert_learned(toy.distilled(method, rates, steps=480, half_life=19_200, betas=(0.5, 0.99)))


# Bad input


def test_what_is_no_teacher_is_refused(denoiser):
    with pytest.raises(ValueError, match=r"made for sigma = 2\.5\. Give the teacher"):
        NCVSD(SiD(denoiser).generator)
    with pytest.raises(ValueError, match=r"made for sigma = 80\. Give the teacher"):
        NCVSD(generative(denoiser))
    with pytest.raises(ValueError, match="this one, a fake score, needs an observation"):
        NCVSD(conditional(denoiser))


def test_players_of_another_shape_or_number_of_classes_are_refused(denoiser):
    other = convert(GOLDEN / "ncvsd-teacher.pkl")[0]
    says = r"of shape \(1, 8, 8\) in 10 classes; the .* \(3, 16, 16\) in 6"
    with pytest.raises(ValueError, match=says):
        NCVSD(denoiser, generator=generative(other))
    with pytest.raises(ValueError, match=says):
        NCVSD(denoiser, fake_score=conditional(other))


@pytest.mark.parametrize("options", [{"gamma": 1.4}, {"sigma_init": 20.0}, {"levels": (10.0, 5.0)}, {"centred": True}])
def test_options_of_a_generator_that_is_given_are_its_own(options, denoiser):
    with pytest.raises(
        ValueError, match=f"the given generator has its own {next(iter(options))}; leave the option out"
    ):
        NCVSD(denoiser, generator=generative(denoiser), **options)
    with pytest.raises(ValueError, match="is not fused; leave fused out"):
        NCVSD(denoiser, fake_score=conditional(denoiser), fused=True)


def test_players_that_are_given_stay_as_they_are(denoiser):
    one, two, three = generative(denoiser), conditional(denoiser), pair_discriminator(denoiser)
    method = NCVSD(denoiser, generator=one, fake_score=two, discriminator=three)
    for mine, given in ((method.generator, one), (method.fake_score, two), (method.discriminator, three)):
        assert mine is not given
        assert not {p.data_ptr() for p in mine.parameters()} & {p.data_ptr() for p in given.parameters()}
    assert method.warm_started == ("fake_score", "discriminator", "generator")
    assert NCVSD(denoiser, discriminator=three, gan_weight=0).warm_started == ()


def test_players_that_are_given_hide_no_class(denoiser):
    score = ConditionalDenoiser(Controlled(tiny_net(label_dropout=0.5)))
    configs = [m.config for m in NCVSD(denoiser, fake_score=score).fake_score.modules() if hasattr(m, "config")]
    assert len(configs) > 1 and not any(config.label_dropout for config in configs)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("observed", [KarrasGrid(sigma_min=0.25), KarrasUniform(sigma_min=0.25)])
def test_the_lowest_level_is_that_of_the_observations(observed, denoiser):
    assert NCVSD(denoiser, observed=observed).generator.sigma_end == 0.25


def test_the_discriminator_of_another_network_sees_its_images(denoiser):
    assert isinstance(teacher_of("edm2").uncertainty, Uncertainty)
    assert NCVSD(denoiser, discriminator=pair_discriminator(teacher_of("edm2"))).teacher.uncertainty is None


# Recipes


@pytest.fixture
def folders(denoiser, tmp_path):
    """Model folders of an EDM and of an EDM2 teacher of digits."""
    return [model_folder.save(t, tmp_path / str(i)) for i, t in enumerate((denoiser, teacher_of("edm2")))]


@pytest.mark.parametrize("gan_weight", [0.0, 1.0])
def test_the_digits_recipe_runs_and_its_student_samples(folders, tmp_path, gan_weight):
    recipe = get("digits:ncvsd", teacher=folders[0], gan_weight=gan_weight, until=16, batch_size=8)
    product = fit(recipe.run(), tmp_path / "run")
    assert isinstance(product, GenerativeDenoiser)
    loaded = model_folder.load(tmp_path / "run")
    assert isinstance(loaded, GenerativeDenoiser)
    assert (loaded.levels, loaded.sigma_end) == (product.levels, 0.25)
    assert loaded.mean is not None
    assert torch.equal(loaded.mean, mean_images(model_folder.load(folders[0]), 80.0))
    assert model_folder.card(tmp_path / "run").method == "NCVSD"
    again = fit(recipe.run(), tmp_path / "run")
    assert all(map(torch.equal, again.state_dict().values(), product.state_dict().values()))
    sample(tmp_path / "run", seeds="0-3", grid=tmp_path / "grid.png", sampling=Sampling(ts="10,22,39"))
    assert (tmp_path / "grid.png").is_file()


def test_the_published_presets():
    """The table of the reference's presets."""
    assert [(name, size) for name, rows in SIZES.items() for size in rows] == [
        *[(name, size) for name in ("imagenet64", "imagenet512") for size in "sml"],
        ("ffhq256", "xs"),
    ]
    assert {size: row.lr for size, row in SIZES["imagenet512"].items()} == {"s": 0.01, "m": 0.009, "l": 0.008}
    assert [SIZES["imagenet64"]["l"].micro_batch, SIZES["imagenet512"]["l"].micro_batch] == [16, 8]
    assert SIZES["ffhq256"]["xs"] == (128, 0.012, 16)
    for name, noise, decay, rampup, start, scale, snapshot, batch, until in (
        ("imagenet64", (-0.8, 1.6), 35_000, 10e6, 16.778e6, 1.0, 2**20, 2048, 64 * 2**20),
        ("imagenet512", (-0.4, 1.0), 70_000, 10e6, 16.778e6, 1.0, 2**20, 2048, 64 * 2**20),
        ("ffhq256", (-0.8, 1.6), 35_000, 1e6, 1.049e6, 0.1, 2**16, 128, 4 * 2**20),
    ):
        recipe = get(f"{name}:ncvsd")
        assert (recipe.p_mean, recipe.p_std, recipe.decay, recipe.rampup, recipe.gan_start) == (
            *noise,
            decay,
            rampup,
            start,
        )
        assert (recipe.scale, recipe.snapshot, recipe.batch_size, recipe.until) == (scale, snapshot, batch, until)


def test_a_published_recipe(folders, monkeypatch):
    """On a small EDM2 in the place of EDM2-S."""
    monkeypatch.setitem(SIZES, "imagenet64", {"s": SIZES["imagenet64"]["s"]._replace(channels=16)})
    run = get("imagenet64:ncvsd", teacher=folders[1], data="digits", shape=(1, 8, 8)).run()
    assert isinstance(run.method, NCVSD)
    rates = {name: (adam.lr, adam.betas, adam.reference, adam.rampup) for name, adam in run.optimizers.items()}
    common = ((0.9, 0.99), 35_000 * 2048, 10_000_000)
    assert rates == {
        "fake_score": (0.01, *common),
        "discriminator": (0.0001, *common),
        "generator": (0.0001, *common),
    }
    assert (run.batch_size, run.micro_batch, run.until) == (2048, 64, 64 * 2**20)
    assert [p.start for p in run.method.phases] == [0, 0, 0, 16_778_000]
    assert run.method.generator.levels == pytest.approx((11.7185,), rel=1e-5)
    assert run.method.noise == LogNormal(-0.8, 1.6)
    assert run.method.gan_weight == run.method.loss_scale == 1
    assert run.ema == (PowerFunction(0.10), PowerFunction(0.05))
    assert isinstance(run.method.generator.uncertainty, Uncertainty)
    assert run.method.generator.mean is None


def test_recipes_of_edm2_refuse_other_teachers(folders):
    for name in ("imagenet64", "imagenet512", "ffhq256"):
        for folder, what in zip(folders, ("SongUNet of 8", "EDM2UNet of 16"), strict=True):
            with pytest.raises(ValueError, match=f"this recipe is for EDM2-.*; this is a {what}"):
                get(f"{name}:ncvsd", teacher=folder, data="digits").run()


def test_recipes_of_edm2_refuse_students(tmp_path):
    student = model_folder.save(generative(teacher_of("edm2")), tmp_path / "student")
    with pytest.raises(ValueError, match=r"made for sigma = 80\. Give the teacher"):
        get("imagenet64:ncvsd", teacher=student, data="digits").run()


def test_data_that_do_not_fit_the_teacher_are_refused(tmp_path):
    teacher = convert(GOLDEN / "ncvsd-teacher.pkl")[0]
    with pytest.raises(ValueError, match=r"the teacher takes images of shape \(3, 16, 16\); digits has \(1, 8, 8\)"):
        get("digits:ncvsd", teacher=model_folder.save(teacher, tmp_path / "m"), until=16, batch_size=8).run()
