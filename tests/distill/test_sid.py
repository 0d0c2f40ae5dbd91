"""SiD against exact scores: the generator's gradient vanishes where fake equals real, and equals the paper's elsewhere.

And the data and recipes that it shares with SiDA and SiD2A.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch
from fewstep.core.noise import KarrasUniform, LogNormal, add_noise, expand
from fewstep.data import ImageStream
from fewstep.data.codec import StabilityVAE
from fewstep.data.labels import LabelData, LabelStream
from fewstep.distill import DMD2, GDD, SiD, SiDA, sid_loss
from fewstep.distill.conditional import conditional
from fewstep.io.card import Card
from fewstep.io.configuration import to_dict
from fewstep.io.model_folder import card, save
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.edm2 import EDM2UNet, Uncertainty
from fewstep.nets.sizes import EDM_SIZES, edm2
from fewstep.nets.song import SongUNet
from fewstep.recipes import get
from fewstep.recipes.sid import SiD as SiDRecipe
from fewstep.recipes.sid_edm2 import SIZES as EDM2_SIZES
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.settings import Run
from tests.conftest import tiny_net


def gaussian(mean: float, std: float):
    """The exact denoiser of N(mean, std^2) in every pixel."""

    def denoise(x, sigma):
        level = expand(sigma, x)
        return (std**2 * x + level**2 * mean) / (std**2 + level**2)

    return denoise


def generator_gradient(real, fake, alpha, n=200_000):
    """d loss / d (mean, log std) of the images mean + std z, whose exact score is `fake`."""
    torch.manual_seed(0)
    mean, log_std = torch.zeros(2, dtype=torch.float64, requires_grad=True).unbind()
    x0 = mean + log_std.exp() * torch.randn(n, 1, dtype=torch.float64)
    sigma = torch.full((n,), 0.7, dtype=torch.float64)
    x = add_noise(x0, sigma)
    loss = sid_loss(x0, real(x, sigma), fake(x, sigma), alpha).mean()
    return torch.autograd.grad(loss, [mean, log_std])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_gradient_vanishes_where_fake_is_real(alpha):
    same = gaussian(0.0, 1.0)
    assert [g.abs().item() for g in generator_gradient(same, same, alpha)] == [0.0, 0.0]


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (-0.5, 1.0)])
def test_gradient_points_to_the_real_mean(mean, std):
    slope, _ = generator_gradient(gaussian(mean, std), gaussian(0.0, 1.0), 1.0)
    assert slope.sign().item() == -math.copysign(1, mean)


def test_loss_is_the_paper_s_formula():
    torch.manual_seed(1)
    x0, real, fake = (torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for alpha in (1.0, 1.2):
        expected = []
        for i in range(3):
            w = (x0[i] - real[i]).abs().mean().detach()
            gap = real[i] - fake[i]
            expected.append((1 - alpha) * gap.square().sum() / w + (gap * (fake[i] - x0[i])).sum() / w)
        loss = sid_loss(x0, real, fake, alpha)
        assert torch.allclose(loss, torch.stack(expected), rtol=1e-6)
    detached = sid_loss(x0, real.detach(), fake.detach(), 1.2).sum()
    [slope] = torch.autograd.grad(detached, x0)
    w = (x0 - real).abs().flatten(1).mean(1)
    dmd = -(real - fake) / w[:, None, None, None]  # Yin et al., 2024: distribution matching, for any alpha
    assert torch.allclose(slope, dmd.detach(), rtol=1e-6)


def test_gradients_flow_through_both_scores_to_the_generator_alone(denoiser):
    torch.manual_seed(0)
    method = SiD(denoiser, alpha=1.0)
    with torch.no_grad():
        for p in method.fake_score.parameters():
            p.mul_(1.1)
    method.fake_score.requires_grad_(False)
    batch = Batch(torch.zeros(4, 1, 8, 8), torch.arange(4))
    loss, logs = method.generator_loss(batch)
    assert loss.shape == (4,)
    assert logs["gap"][0].sum() > 0
    loss.sum().backward()
    assert all(p.grad is not None for p in method.generator.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.generator.parameters())
    assert all(p.grad is None for p in [*method.teacher.parameters(), *method.fake_score.parameters()])
    method.fake_score_loss(batch)  # nothing to differentiate here: the images are given
    assert method.generator.levels == (2.5,)
    assert method.teacher.levels is None


def test_a_student_is_no_teacher(denoiser):
    with pytest.raises(ValueError, match=r"made for sigma = 2\.5\. Give the teacher"):
        SiD(SiD(denoiser).generator)
    for method in (SiD, SiDA, DMD2, lambda teacher: GDD(teacher, nn.Identity())):
        with pytest.raises(ValueError, match="this one, a fake score, needs an observation"):
            method(conditional(denoiser))


@pytest.mark.parametrize("kind", [SiD, SiDA, DMD2])
def test_no_player_hides_classes_from_itself(kind):
    """Of a teacher that learned with and without classes, for guidance; the others judge an image by its class."""
    torch.manual_seed(0)
    teacher = Denoiser(tiny_net(label_dropout=1.0))
    torch.nn.init.normal_(teacher.net.map_label.weight)
    torch.nn.init.normal_(teacher.net.dec["8x8_aux_conv"].weight)
    x, label = torch.randn(10, 1, 8, 8), torch.arange(10)
    expected = teacher.eval()(x, 2.5, label)
    assert not torch.equal(teacher.train()(x, 2.5, label), expected)
    method = kind(teacher)
    score = method.fake_score if kind is not DMD2 else method.fake_score.score
    for player in (method.generator, score):
        assert torch.equal(player.train()(x, 2.5, label), expected)
    assert teacher.net.config.label_dropout == 1


def test_toy_generator_takes_the_shape_of_the_data():
    """A generator mean + std z against exact scores of data and of itself ends on the data's mean and deviation."""
    torch.manual_seed(0)
    target = gaussian(0.3, 0.5)
    mean, log_std = nn.Parameter(torch.tensor(-0.6)), nn.Parameter(torch.tensor(-1.6))
    optimizer = torch.optim.Adam([mean, log_std], lr=0.02)
    for _ in range(400):
        x0 = mean + log_std.exp() * torch.randn(256, 1)
        sigma = torch.rand(256) * 2 + 0.05
        x = add_noise(x0, sigma)
        fake = gaussian(mean.detach().item(), log_std.detach().exp().item())
        loss = sid_loss(x0, target(x, sigma), fake(x, sigma), 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mean.item() == pytest.approx(0.3, abs=0.05)
    assert log_std.exp().item() == pytest.approx(0.5, abs=0.05)


def test_teacher_without_copying_is_untouched(denoiser):
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    method = SiD(denoiser, generator=Denoiser(tiny_net()))
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert denoiser.levels is None


# Data, and the recipes of the family


def classes(batch: Batch) -> list[int]:
    assert batch.label is not None
    return batch.label.tolist()


def test_labels_alone_are_enough(denoiser, tmp_path):
    """Data-free: every class equally often, in an order of the seed; the run trains, resumes, and its card says so."""
    stream = LabelStream(LabelData(denoiser.shape, 10), seed=3)
    first = stream.batch(0, 20)
    assert first.image.shape == (20, 1, 8, 8)
    assert first.image.abs().sum() == 0
    labels = classes(first)
    assert sorted(labels) == sorted([*range(10)] * 2)
    assert labels[5:] == classes(stream.batch(5, 15))
    assert labels != classes(LabelStream(stream.data, seed=4).batch(0, 20))
    assert LabelStream(LabelData(denoiser.shape, 0)).batch(0, 2).label is None
    with pytest.raises(ValueError, match="must not be negative"):
        LabelStream(stream.data, seed=-1)

    def run():
        adam = {"fake_score": Adam(1e-4), "generator": Adam(1e-4)}
        return Run(SiD(denoiser), stream, adam, batch_size=4, until=8, snapshots=1)

    student = fit(run(), tmp_path / "run")
    assert student.levels == (2.5,)
    assert torch.equal(next(fit(run(), tmp_path / "run").parameters()), next(student.parameters()))
    assert card(tmp_path / "run").data["name"] == "no images"


def test_data_that_do_not_fit_are_refused_before_training(denoiser, data):
    def run(method, stream):
        return Run(method, stream, dict.fromkeys(("fake_score", "generator"), Adam(1e-4)), batch_size=4, until=8)

    with pytest.raises(ValueError, match="SiDA learns from images, and this data has only labels"):
        run(SiDA(denoiser), LabelStream(LabelData(denoiser.shape, 10)))
    with pytest.raises(ValueError, match=r"teacher takes images of shape \(1, 8, 8\); no images has \(3, 8, 8\)"):
        run(SiD(denoiser), LabelStream(LabelData((3, 8, 8), 10)))
    with pytest.raises(ValueError, match="teacher has 10 classes; no images has none"):
        run(SiD(denoiser), LabelStream(LabelData(denoiser.shape, 0)))
    with pytest.raises(ValueError, match="teacher has 5 classes; digits has 10"):
        run(SiD(Denoiser(tiny_net(label_dim=5))), ImageStream(data))
    assert run(SiD(Denoiser(tiny_net(label_dim=0))), ImageStream(data)).until == 8  # labels may be left unused


SIZES = {"cifar10": "cifar10-32x32-cond-vp", "ffhq": "ffhq-64x64-uncond-vp", "afhqv2": "afhqv2-64x64-uncond-vp"}
SIZES |= {"imagenet64": "imagenet-64x64-cond-adm"}


@pytest.fixture
def published(monkeypatch):
    """Recipes of published teachers, whose networks have no memory: `build(name, ...) -> Run`."""

    def build(name, width="s", **options):
        with torch.device("meta"):
            if name.startswith("imagenet512"):
                net = EDM2UNet(dataclasses.replace(edm2(width, img_channels=4, label_dim=1000), num_blocks=1))
                model = Denoiser(net, uncertainty=Uncertainty(), codec=StabilityVAE())
            else:
                config = EDM_SIZES[f"edm-{SIZES[name.split(':')[0]]}"]
                config = dataclasses.replace(config, dropout=0.2, model_channels=32, num_blocks=1)
                model = Denoiser(ADMUNet(config) if isinstance(config, ADMConfig) else SongUNet(config))
            student = copy.deepcopy(model)
            student.levels = (2.5,)
            monkeypatch.setattr(fs, "load", lambda path: copy.deepcopy(student if path == Path("student") else model))
            monkeypatch.setattr(fs, "card", lambda path: Card(name="teacher", license="its own"))
            monkeypatch.setattr(
                "fewstep.io.model_folder.read_config", lambda path: {"network": to_dict(model.net.config)}
            )
            data = LabelStream(LabelData(model.shape, model.num_classes))
            monkeypatch.setattr(SiDRecipe, "stream", lambda *_: data)
            monkeypatch.setattr(SiD, "needs_images", False)
            monkeypatch.setattr(SiDA, "needs_images", False)
            where = {"student": Path("student")} if name.endswith("sid2a") else {}
            return get(name, teacher=Path("teacher"), data="data", **{**where, **options}).run()

    return build


EDM_TABLE = {
    # alpha, lr, batch, micro-batch, beta1, eps, dropout, augment, half-life, duration in millions
    "cifar10:sid": (1.2, 1e-5, 256, 16, 0, 1e-8, 0.13, 0.12, 0.5, 800),
    "ffhq:sid": (1.2, 1e-5, 512, 32, 0.9, 1e-6, 0.05, 0.15, 0.5, 500),
    "afhqv2:sid": (1.0, 5e-6, 512, 32, 0, 1e-6, 0.05, 0.15, 0.5, 500),
    "imagenet64:sid": (1.2, 4e-6, 8192, 16, 0, 1e-6, 0.10, None, 2.0, 1000),
    "cifar10:sida": (1.0, 1e-5, 256, 32, 0, 1e-8, 0.13, 0.12, 0.5, 300),
    "ffhq:sida": (1.0, 1e-5, 512, 64, 0, 1e-6, 0.05, 0.15, 0.5, 200),
    "afhqv2:sida": (1.0, 5e-6, 512, 64, 0, 1e-6, 0.05, 0.15, 0.5, 200),
    "imagenet64:sida": (1.0, 4e-6, 8192, 32, 0, 1e-6, 0.10, None, 2.0, 300),
    "cifar10:sid2a": (1.0, 1e-5, 256, 32, 0, 1e-8, 0.13, 0.12, 0.5, 100),
    "ffhq:sid2a": (1.0, 1e-5, 512, 64, 0, 1e-6, 0.05, 0.15, 0.5, 100),
    "afhqv2:sid2a": (1.0, 5e-6, 512, 64, 0, 1e-6, 0.05, 0.15, 0.5, 100),
    "imagenet64:sid2a": (1.0, 4e-6, 8192, 32, 0, 1e-6, 0.10, None, 2.0, 100),
}


@pytest.mark.parametrize("name", EDM_TABLE)
def test_the_tables_of_the_papers(published, name):
    """Zhou et al. (2024, 2025), the published scripts: Sec. 6.1 and 6.2 of their settings."""
    run = published(name)
    method, adam = run.method, run.optimizers["generator"]
    pipe = method.objective.augment
    dropout = {
        m.dropout for player in (method.generator, method.fake_score) for m in player.modules() if hasattr(m, "dropout")
    }
    found = (method.alpha, adam.lr, run.batch_size, run.micro_batch, adam.betas[0], adam.eps)
    found += (dropout.pop(), pipe and pipe.p, run.ema.nimg / 1e6, run.until / 1e6)
    assert found == EDM_TABLE[name]
    assert not dropout
    assert run.optimizers["fake_score"].betas == (0.0, 0.999)
    assert run.optimizers["fake_score"].lr == adam.lr
    assert (method.objective.noise, method.noise, method.levels) == (LogNormal(-1.2, 1.2), KarrasUniform(0.8), (2.5,))
    assert (method.loss_scale, run.ema.rampup) == (100, 0.05)
    assert run.until / run.snapshots == 2.5e6
    if isinstance(method, SiDA):
        assert (method.disc_weight, method.gan_weight, method.gates) == (1, 0.01, (100_000, 200_000))
        assert (method.clip, method.average) == (1.0, "micro_batch")
    else:
        assert "sid:" not in name or isinstance(method, SiD)
    kind = {"sid": "SiD, alpha", "sida": "SiDA, alpha", "sid2a": "SiD2A, alpha"}[name.split(":")[1]]
    assert run.card.method.startswith(kind)
    assert run.card.license == "its own"


@pytest.mark.parametrize(("name", "method"), [("cifar10", "sid2a"), ("ffhq", "sid"), ("afhqv2", "sida")])
def test_a_teacher_without_augmentation_has_students_without(published, monkeypatch, name, method):
    config = EDM_SIZES[f"edm-{SIZES[name]}"]
    small = dataclasses.replace(config, augment_dim=0, channel_mult=(1,), num_blocks=1)
    monkeypatch.setitem(EDM_SIZES, "edm-plain", small)
    monkeypatch.setitem(SIZES, name, "plain")
    with pytest.raises(ValueError, match="was trained without augmentation, .*: --augment 0"):
        published(f"{name}:{method}")
    assert published(f"{name}:{method}", augment=0.0).method.objective.augment is None


def test_options_of_sid_and_sida(published):
    """Under the names of the original programs."""
    options = {"glr": 2e-6, "g_beta1": 0.5, "init_sigma": 5.0, "tmax": 900, "lsg": 7.0, "ema": 9_000}
    run = published("ffhq:sid", **options)
    method, generator, score = run.method, run.optimizers["generator"], run.optimizers["fake_score"]
    assert ((generator.lr, generator.betas), (score.lr, score.betas)) == ((2e-6, (0.5, 0.999)), (1e-5, (0.0, 0.999)))
    assert (method.levels, method.noise, method.loss_scale) == ((5.0,), KarrasUniform(t_max=0.9), 7.0)
    assert run.ema == fs.HalfLife(9_000)
    for name in ("ffhq:sida", "imagenet512:sida"):
        method = published(name, lsd=3.0, lsg_gan=0.5).method
        assert (method.disc_weight, method.gan_weight) == (3.0, 0.5)
    assert published("imagenet512:sid2a", width="m", size="m", lsg=100.0).method.loss_scale == 100.0
    assert not hasattr(get("ffhq:sid"), "lsd")
    with pytest.raises(ValueError, match="--tmax must be above 0 and at most 1000; got 1001"):
        published("ffhq:sid", tmax=1001)


def test_cifar10_without_classes_is_trained_less(published, monkeypatch):
    monkeypatch.setitem(SIZES, "cifar10", "cifar10-32x32-uncond-vp")
    assert published("cifar10:sid").until == 500_000_000


EDM2_TABLE = {
    # micro-batch, duration of SiD and SiDA, of SiD2A, in millions
    "xs": (64, 200, 30),
    "s": (64, 200, 80),
    "m": (32, 200, 200),
    "l": (32, 200, 55),
    "xl": (16, 200, 50),
    "xxl": (2, 100, 30),
}


@pytest.mark.parametrize("method_name", ["sid", "sida", "sid2a"])
@pytest.mark.parametrize("size", ["xs", "s", "m"])
def test_the_table_of_edm2_students(published, size, method_name):
    """Sec. 6.3 of the published settings."""
    run = published(f"imagenet512:{method_name}", width=size, size=size)
    method, adam = run.method, run.optimizers["generator"]
    micro_batch, until, sid2a = EDM2_TABLE[size]
    assert (run.micro_batch, run.until) == (micro_batch, (sid2a if method_name == "sid2a" else until) * 1e6)
    assert (run.batch_size, adam.lr, adam.eps, adam.betas) == (2048, 5e-5, 1e-6, (0.0, 0.999))
    assert (method.alpha, method.objective.noise, run.ema.nimg) == (1.0, LogNormal(-0.4, 1.0), 2_000_000)
    weighed = method_name == "sid" or size != "s"
    assert (method.fake_score.uncertainty is not None) == weighed
    assert method.loss_scale == (50 if (method_name, size) == ("sid2a", "m") else 100)
    assert method.generator.net.config.dropout == (0.1 if size == "m" else 0.0)
    if method_name != "sid":
        assert (method.disc_weight, method.clip, method.gan_weight) == (100, None, 0.01)


def test_all_sizes_of_edm2_have_their_row():
    assert {size: (r.micro_batch, r.until / 1e6, r.sid2a / 1e6) for size, r in EDM2_SIZES.items()} == EDM2_TABLE


def test_steps_and_sizes_of_edm2(published):
    assert published("imagenet512:sid", steps=4).method.generator.levels == (2.5, 1.875, 1.25, 0.625)
    with pytest.raises(ValueError, match="192 channels, EDM2-XS has 128; set --size to the size of the teacher"):
        published("imagenet512:sida", width="s", size="xs")


def test_sid2a_refuses_a_teacher_in_the_place_of_a_student(published):
    with pytest.raises(
        ValueError, match=r"teacher is a denoiser of all noise levels, not a student\. Give a student that SiD trained"
    ):
        published("cifar10:sid2a", student=Path("teacher"))


def test_a_teacher_of_other_images_is_refused(denoiser, tmp_path):
    save(denoiser, tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"a model of images of shape \(3, 32, 32\); got \(1, 8, 8\)"):
        get("cifar10:sid", teacher=tmp_path / "teacher", until=1).run()


def test_recipes_of_the_digits_train(denoiser, tmp_path):
    save(denoiser, tmp_path / "teacher")
    settings = {"teacher": tmp_path / "teacher", "batch_size": 4, "until": 8}
    fit(get("digits:sida", warmup=4, **settings).run(), tmp_path / "sida")
    student = fit(get("digits:sid2a", student=tmp_path / "sida", warmup=4, **settings).run(), tmp_path / "sid2a")
    assert student.levels == (2.5,)
    run = get("digits:dmd2", levels=(80.0, 2.5), **settings).run()
    assert fit(run, tmp_path / "dmd2").levels == (80.0, 2.5)
    assert card(tmp_path / "sid2a").method == "SiD2A, alpha 1.2"
