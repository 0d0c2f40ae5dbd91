"""GDD: its losses are the paper's, its freeze rule has the published counts, its penalty is exact."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch
from fewstep.core.precondition import VP
from fewstep.distill import GDD, SiD
from fewstep.distill.gdd import INNATE, EncoderFeatures, Role, freeze_layers, generator_of
from fewstep.distill.players import one_step
from fewstep.io.card import Card
from fewstep.io.convert import convert
from fewstep.io.model_folder import load, save
from fewstep.nets.adm import ADMUNet
from fewstep.nets.discriminators import ProjectedDiscriminator, SpectralConv2d
from fewstep.nets.edm2 import EDM2Config, EDM2UNet
from fewstep.nets.features import Classifier
from fewstep.nets.sizes import EDM_SIZES
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.recipes import gdd as recipe
from fewstep.recipes import get
from fewstep.runtime.precision import fast_dtype
from fewstep.train.ema import HalfLife
from fewstep.train.identity import describe
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer
from tests import GOLDEN, toy
from tests.conftest import tiny_net
from tests.nets.test_discriminators import SHA256, FakeNetwork
from tests.recipes.test_recipes import pack


@pytest.fixture
def backbones(monkeypatch):
    """Fake networks in the place of the published ones; the list of those that were asked for."""
    calls = []

    def open_network(name, weights):
        calls.append((name, weights))
        return FakeNetwork(name).eval().requires_grad_(False), SHA256

    monkeypatch.setattr("fewstep.io.feature_networks.open_network", open_network)
    return calls


def projected(denoiser, *, classes=10, seed=0) -> Any:
    """A discriminator on two feature networks."""
    torch.manual_seed(seed)
    networks = [EncoderFeatures(denoiser, 0.2), Classifier((1, 8, 8), 10, width=8)]
    return ProjectedDiscriminator(networks, num_classes=classes, width=8)


def gdd(denoiser, **options) -> Any:
    return GDD(denoiser, projected(denoiser), **options)


def double(method) -> Any:
    method.double()
    method.generator.dtype = torch.float64
    for module in method.discriminator.modules():
        if isinstance(module, Denoiser):
            module.dtype = torch.float64
    return method


def a_batch(n=6):
    torch.manual_seed(3)
    return Batch(torch.randn(n, 1, 8, 8, dtype=torch.float64), torch.arange(n))


def made(method, batch):
    """The generator's images for the draws after seed 5, written out: 80 z under the boundary preconditioning."""
    torch.manual_seed(5)
    z = torch.randn(batch.image.shape, dtype=torch.float64)
    sigma, eps, data = 80.0, 0.002, 0.5
    skip = data**2 / ((sigma - eps) ** 2 + data**2)
    out = (sigma - eps) * data / math.sqrt(sigma**2 + data**2)
    noise = torch.full((len(z),), math.log(sigma) / 4, dtype=torch.float64)
    net = method.generator.net
    return skip * 80 * z + out * net.decode(net.encode(80 * z / math.sqrt(sigma**2 + data**2), noise, batch.label))


def test_losses_and_gradients_are_the_paper_s(denoiser):
    """In float64: sums over feature networks of means over logits, the published order and constants."""
    method = double(gdd(denoiser, loss_scale=64.0))
    batch = a_batch()
    params = list(method.generator.parameters())

    x0 = made(method, batch)
    fake = method.discriminator(x0, batch.label)
    expected = 64 * torch.stack([(1 + (-s).exp()).log().mean(1) for s in fake]).sum(0)
    torch.manual_seed(5)
    loss, _ = method.generator_loss(batch)
    assert torch.allclose(loss, expected, rtol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(loss.sum(), params), torch.autograd.grad(expected.sum(), params), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-12)

    heads = list(method.discriminator.heads.parameters())
    real = method.discriminator(batch.image, batch.label)
    fake = method.discriminator(made(method, batch).detach(), batch.label)
    each = [(1 + f.exp()).log().mean(1) + (1 + (-r).exp()).log().mean(1) for r, f in zip(real, fake, strict=True)]
    expected = 64 * torch.stack(each).sum(0)
    torch.manual_seed(5)
    loss, logs = method.discriminator_loss(batch)
    assert torch.allclose(loss, expected, rtol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(loss.sum(), heads), torch.autograd.grad(expected.sum(), heads), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-12)
    logits = torch.cat(real, dim=1)
    assert logs["sign_real"].item() == pytest.approx(
        ((logits > 0).double().mean() - (logits < 0).double().mean()).item()
    )
    assert logs["accuracy_real"].item() == pytest.approx((logits > 0).double().mean().item())


def test_the_generator_s_gradient_is_the_logits_slope(denoiser):
    """d L_G / d x0 = -sum over networks of mean_k sigmoid(-s_k) d s_k / d x0, one logit at a time."""
    method = double(gdd(denoiser))
    x0 = a_batch().image.requires_grad_()
    label = torch.arange(6)
    loss = sum(F.softplus(-s).mean() for s in method.discriminator(x0, label))
    assert isinstance(loss, Tensor)
    [slope] = torch.autograd.grad(loss * 6, x0)
    expected = torch.zeros_like(x0)
    for s in method.discriminator(x0, label):
        for i, k in np.ndindex(*s.shape):
            [each] = torch.autograd.grad(s[i, k], x0, retain_graph=True)
            expected -= each * torch.sigmoid(-s[i, k].detach()) / s.shape[1]
    assert torch.allclose(slope, expected, rtol=1e-6, atol=1e-12)


def test_penalty_is_the_slope_of_all_logits(denoiser):
    """16 gamma / 2 |d sum s / d image|^2, by central differences of the images as they are."""
    method = double(gdd(denoiser))
    batch = a_batch(3)
    loss, _ = method.r1_penalty(batch)
    step, slope = 1e-5, torch.zeros_like(batch.image)

    def everything(image):
        return sum(s.sum() for s in method.discriminator(image, batch.label))

    with torch.no_grad():
        for index in np.ndindex(*batch.image.shape):
            x = batch.image.clone()
            x[index] += step
            up = everything(x)
            x[index] -= 2 * step
            slope[index] = (up - everything(x)) / (2 * step)
    expected = 16 * 1e-4 / 2 * slope.square().flatten(1).sum(1)
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert loss.min() > 0
    gradients = torch.autograd.grad(loss.sum(), list(method.discriminator.heads.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in gradients)


def test_phases_are_the_paper_s(denoiser, stream):
    method = gdd(denoiser)
    assert [(p.name, p.player, p.every) for p in method.phases] == [
        ("generator_loss", "generator", 1),
        ("discriminator_loss", "discriminator", 1),
        ("r1_penalty", "discriminator", 16),
    ]
    assert [step for step in range(40) if method.phases[2].due(step, 8 * step)] == [16, 32]
    assert (method.generator.levels, method.generator.precondition.eps) == ((80.0,), 0.002)


COUNTS = {  # total, frozen by GDD-I; shares with qkv, and with skip as well
    "edm-cifar10-32x32-uncond-ve": (56_395_523, 47_597_568, 86.5, 90.5),
    "edm-ffhq-64x64-uncond-ve": (62_758_787, 52_614_144, 85.7, 89.7),
    "edm-imagenet-64x64-cond-adm": (295_899_267, 233_065_920, 87.0, 90.2),
}


@pytest.mark.parametrize("name", COUNTS)
def test_gdd_i_freezes_the_published_layers(name):
    config: Any = replace(EDM_SIZES[name], augment_dim=0)
    with torch.device("meta"):
        net = ADMUNet(config) if "adm" in name else SongUNet(config)
    total, frozen, *shares = COUNTS[name]
    assert sum(p.numel() for p in net.parameters()) == total
    assert freeze_layers(net, INNATE) == frozen
    assert sum(p.numel() for p in net.parameters() if not p.requires_grad) == frozen
    names = {k for k, p in net.named_parameters() if not p.requires_grad}

    def ruled(k):  # the rule of the reference, by substrings of names
        return any(w in k for w in ("block", "up", "down", "in")) and any(w in k for w in ("conv", "proj"))

    assert names == {k for k, _ in net.named_parameters() if ruled(k)}
    levels: tuple[tuple[Role, ...], ...] = ((*INNATE, "qkv"), (*INNATE, "qkv", "skip"))
    for roles, share in zip(levels, shares, strict=True):
        assert round(100 * freeze_layers(net, roles) / total, 1) == share


def test_frozen_layers_and_features_never_move(denoiser, stream):
    method = gdd(denoiser, freeze=INNATE)
    trainer = Trainer(method, stream, {"generator": Adam(1e-3), "discriminator": Adam(1e-3)}, batch_size=8)
    before = copy.deepcopy(method.state_dict())
    for _ in range(2):
        trainer.step()
    moved = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    params = dict(method.generator.named_parameters())
    frozen = {f"generator.{k}" for k in params if any(f".{role}." in k for role in INNATE)}
    frozen -= {k for k in frozen if "_conv." in k}
    assert frozen and not moved & frozen
    assert {f"generator.{k}" for k in params} - frozen - moved == set()
    assert {k.split(".")[1] for k in moved if k.startswith("discriminator")} == {"heads"}
    norms = [k for k in moved if k.endswith(".u")]
    assert len(norms) == sum(isinstance(m, SpectralConv2d) for m in method.discriminator.modules())


def test_the_generator_is_the_teacher_without_dropout_and_augmentation():
    torch.manual_seed(0)
    teacher = Denoiser(tiny_net(augment_dim=9, dropout=0.3))
    before = copy.deepcopy(teacher.state_dict())
    generator = generator_of(teacher, 80.0, 0.002)
    config = generator.net.config
    assert (config.dropout, config.augment_dim, generator.net.map_augment) == (0, 0, None)
    weights = generator.net.state_dict()
    assert all(torch.equal(v, before[f"net.{k}"]) for k, v in weights.items())
    assert len(weights) == len(before) - 1
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(generator(x, 0.002, torch.arange(2)), x, atol=1e-6)
    assert not any(m.dropout for m in generator.modules() if hasattr(m, "dropout"))


def test_one_step_of_the_reference(tmp_path):
    """The imported generator, in the place of a teacher and by the method's own step, to 1e-4."""
    generator, _ = convert(GOLDEN / "gdd-generator.pkl")
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "gdd-generator.npz").items()}
    assert generator.levels == (80.0,)
    rebuilt = generator_of(Denoiser(generator.net), 80.0, 0.002)
    z = golden["z"].float()
    draw, torch.randn_like = torch.randn_like, lambda x: z
    try:
        with torch.no_grad():
            images = [one_step(g, Batch(z), 80.0) for g in (generator, rebuilt)]
    finally:
        torch.randn_like = draw
    for image in images:
        assert torch.allclose(image.double(), golden["one_step"].double(), rtol=1e-4, atol=1e-4)
    save(rebuilt, tmp_path / "again")
    again = load(tmp_path / "again")
    assert (again.levels, again.precondition) == (generator.levels, generator.precondition)
    assert all(torch.equal(v, generator.state_dict()[k]) for k, v in again.state_dict().items())


ADAMS = {"generator": Adam(1e-3), "discriminator": Adam(1e-3)}


def trained(denoiser, stream, **options) -> Any:
    """GDD with everything that has a state: projections and spectral norms."""
    method = gdd(denoiser, r1_every=2)
    return Trainer(method, stream, ADAMS, **{"batch_size": 8, "micro_batch": 4, **options})


def test_resume_is_the_same_run(denoiser, stream):
    whole = trained(denoiser, stream)
    for _ in range(5):
        whole.step()
    first = trained(denoiser, stream)
    for _ in range(3):
        first.step()
    state = copy.deepcopy(first.state_dict())
    second = trained(denoiser, stream)
    with torch.no_grad():  # projections of another seed, to be replaced
        for buffer in second.method.discriminator.projections.buffers():
            buffer.normal_()
    second.load_state_dict(state)
    for _ in range(2):
        second.step()
    mine, theirs = whole.method.state_dict(), second.method.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in mine.items())


def two_ranks(rank, path, denoiser, stream, queue):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # before anything is drawn
    method_seed = projected(denoiser).projections.state_dict()
    trainer = trained(denoiser, stream)
    for _ in range(3):
        trainer.step()
    queue.put((rank, {k: v.numpy() for k, v in {**trainer.method.state_dict(), **method_seed}.items()}))
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_are_one(denoiser, stream, tmp_path):
    """The same projections and spectral norms, and the same heads up to rounding."""
    one = trained(denoiser, stream)
    for _ in range(3):
        one.step()
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=two_ranks, args=(r, tmp_path / "store", denoiser, stream, queue)) for r in range(2)]
    for job in jobs:
        job.start()
    found = dict(queue.get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join()
    for name, value in one.method.state_dict().items():
        theirs = [torch.from_numpy(found[r][name]) for r in range(2)]
        assert torch.equal(*theirs), name
        assert torch.allclose(value, theirs[0], atol=1e-5), name


def test_settings_belong_to_the_run(denoiser):
    plain = describe(gdd(denoiser))
    assert plain["sees"] == "encoder of the teacher at sigma 0.2 + classifier of 10 classes trained on the spot"
    for options in ({"freeze": INNATE},):
        other = describe(gdd(denoiser, **options))
        assert other != plain
        plain = other


def test_refuses_what_cannot_work(denoiser):
    judge = projected(denoiser)
    with pytest.raises(ValueError, match=r"made for sigma = 2\.5\. Give the teacher"):
        GDD(SiD(denoiser).generator, judge)
    with pytest.raises(ValueError, match="EDM's preconditioning; this one has VP's"):
        GDD(Denoiser(tiny_net(), precondition=cast(Any, VP())), judge)
    with pytest.raises(ValueError, match="has 10 classes, the teacher none"):
        GDD(Denoiser(tiny_net(label_dim=0)), judge)
    edm2 = EDM2UNet(EDM2Config(8, 1, 10, model_channels=16, channel_mult=(1,), num_blocks=1, attn_resolutions=()))
    with pytest.raises(ValueError, match=r"EDM2UNet has none of them .* freeze=\(\)"):
        GDD(Denoiser(edm2), judge, freeze=INNATE)


class Points(nn.Module):
    """A discriminator of the toy's points."""

    def __init__(self, width=128):
        super().__init__()
        layers = [nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def forward(self, x, label=None):
        return [self.layers(4 * x.flatten(1))]


def test_toy_generator_covers_the_ring():
    teacher = toy.teacher()  # first, as it draws random numbers when it is made
    torch.manual_seed(0)
    method = GDD(teacher, Points(), r1=0.1, r1_every=4)
    product = toy.distilled(method, {"generator": 1e-3, "discriminator": 2e-3}, steps=300, half_life=12_000)
    toy.assert_learned(product)


PUBLISHED = {  # backbone, batch, rates, images, half-life
    "cifar10": ("vgg16_bn", 256, 1e-4, 1e-4, 5e6, 5e5),
    "afhqv2": ("deit_base_distilled_patch16_224", 256, 2e-5, 4e-5, 10e6, 5e5),
    "ffhq": ("deit_base_distilled_patch16_224", 256, 2e-5, 4e-5, 10e6, 5e5),
    "imagenet64": ("deit_base_distilled_patch16_224", 512, 8e-6, 4e-5, 10e6, 50e6),
}


@pytest.fixture
def places(tmp_path):
    """Small teachers and images of each resolution."""
    for size in (32, 64):
        torch.manual_seed(0)
        channels: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "label_dim": 2, "model_channels": 8}
        net = SongUNet(SongConfig(size, **channels, channel_mult=(1,), num_blocks=1, attn_resolutions=()))
        save(Denoiser(net), tmp_path / f"teacher{size}", Card(name="a teacher", license="CC"))
        pack(tmp_path / f"images{size}.zip", size)
    return tmp_path


def where(places, size=32):
    return {"teacher": places / f"teacher{size}", "data": places / f"images{size}.zip", "weights": "hub"}


@pytest.mark.parametrize("module", PUBLISHED)
def test_published_configurations(module, places, backbones):
    backbone, batch, lr, disc_lr, until, half_life = PUBLISHED[module]
    size = 32 if module == "cifar10" else 64
    for name, freeze in (("gdd", ()), ("gddi", INNATE)):
        run = get(f"{module}:{name}", **where(places, size)).run()
        assert [name for name, _ in backbones[-2:]] == [backbone, "tf_efficientnet_lite0"]
        assert (run.batch_size, run.until, run.seed, run.ema) == (batch, until, 42, HalfLife(half_life, 0.05))
        assert run.until / run.snapshots == 250_000
        assert run.micro_batch == batch // 4  # of one of 4 GPUs, over which batch norm takes its statistics
        generator, judge = run.optimizers["generator"], run.optimizers["discriminator"]
        assert (generator.lr, generator.betas, generator.eps) == (lr, (0.0, 0.99), 1e-8)
        assert (judge.lr, judge.betas) == (pytest.approx(disc_lr * 16 / 17), (0.0, pytest.approx(0.9905855, rel=1e-7)))
        method = run.method
        assert (method.freeze, method.r1, method.r1_every) == (freeze, 1e-4, 16)
        assert (method.loss_scale, method.discriminator.num_classes) == (batch / 4, 2)
        assert method.generator.dtype == fast_dtype()
        assert [network.dtype for network in method.discriminator.networks] == [fast_dtype()] * 2
        assert not run.data.flip
        assert run.card.license == "CC"
        seen = f"{backbone} (sha256 {SHA256}) + tf_efficientnet_lite0 (sha256 {SHA256})"
        assert run.card.method == f"{'GDD-I' if freeze else 'GDD'}, discriminator on {seen}"
        assert describe(method)["sees"] == seen  # in run.json


def test_options_of_gdd(places, backbones):
    """Under the names of the original program; its levels of --freeze."""
    levels = [(), INNATE, (*INNATE, "qkv"), (*INNATE, "qkv", "skip")]
    assert list(recipe.FREEZE) == levels
    run = get("cifar10:gdd", **where(places), freeze=2, backbone="deit", r1_gamma=0.5, ema=9_000).run()
    assert (run.method.freeze, run.method.r1, run.method.r1_every, run.ema) == (levels[2], 0.5, 16, HalfLife(9_000))
    assert run.card.method.startswith("GDD, freeze 2, discriminator on deit_base_distilled_patch16_224 (sha256 ")
    backbones.clear()
    assert get("cifar10:gddi", **where(places), freeze=0, backbone="lite").run().method.freeze == ()
    assert [name for name, _ in backbones] == ["tf_efficientnet_lite0"]


@pytest.mark.parametrize(
    ("dtype", "sight"), [("bfloat16", torch.bfloat16), ("float16", torch.float32), ("float32", torch.float32)]
)
def test_the_discriminator_sees_in_bfloat16_or_float32(dtype, sight, places, backbones):
    run = get("cifar10:gdd", **where(places), dtype=dtype).run()
    assert run.method.generator.dtype == getattr(torch, dtype)
    assert {network.dtype for network in run.method.discriminator.networks} == {sight}


def test_recipes_refuse_other_data(places, backbones, tmp_path, monkeypatch):
    teacher = places / "teacher32"

    def gdd(teacher, data, weights="hub"):
        return get("cifar10:gdd", teacher=teacher, data=data, weights=weights).run()

    with pytest.raises(ValueError, match=r"images of shape \(3, 32, 32\), .* has \(3, 64, 64\); give the images"):
        gdd(teacher, places / "images64.zip")
    for classes, words in ((1, "none"), (3, "3")):
        other = pack(places / f"other{classes}.zip", 32, classes=classes)
        with pytest.raises(ValueError, match=f"knows 2 classes, .* has {words}; give the images"):
            gdd(teacher, other)
    with pytest.raises(ValueError, match=r"a model of images of shape \(3, 32, 32\); got \(3, 64, 64\)"):
        gdd(places / "teacher64", places / "images64.zip")
    other = Denoiser(load(teacher).net, precondition=cast(Any, VP()))
    save(other, places / "vp")
    asked = len(backbones)
    with pytest.raises(ValueError, match=r"EDM's preconditioning; this one has VP's, .* trained with --precond edm"):
        gdd(places / "vp", places / "images32.zip")
    assert len(backbones) == asked  # before any feature network is opened
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"weights of vgg16_bn are needed, and there is no file .*nowhere"):
        gdd(teacher, places / "images32.zip", weights=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="the recipe cifar10-gdd needs weights"):
        get("cifar10:gdd", teacher=teacher, data=places / "images32.zip").run()


def test_recipes_refuse_students_before_anything_else(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "trained_classifier", lambda *_, **__: pytest.fail("a classifier is trained first"))
    student = save(SiD(denoiser).generator, tmp_path / "student")
    with pytest.raises(ValueError, match=r"made for sigma = 2\.5\. Give the teacher"):
        get("digits:gdd", teacher=student).run()


@pytest.mark.parametrize(
    ("name", "features"), [("digits:gdd", "both"), ("digits:gddi", "encoder"), ("digits:gdd", "classifier")]
)
def test_digits_distil(name, features, denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "CLASSIFIER_IMAGES", 256)
    save(denoiser, tmp_path / "teacher")
    settings = get(name, teacher=tmp_path / "teacher", features=features, batch_size=8, until=16)
    run = settings.run()
    student = fit(run, tmp_path / "student")
    assert student.levels == (80.0,)
    assert run.method.freeze == (INNATE if name.endswith("i") else ())
    words = {
        "classifier": "classifier of 10 classes trained on the spot",
        "encoder": "encoder of the teacher at sigma 0.2",
    }
    words["both"] = f"{words['classifier']} + {words['encoder']}"
    assert run.card.method.endswith(f"on {words[features]}")
    again = settings.run()
    assert again.identity() == run.identity()
    mine, theirs = (r.method.discriminator.networks.state_dict() for r in (run, again))
    assert all(
        torch.equal(v, theirs[k]) for k, v in mine.items()
    )  # what is trained on the spot is a function of the seed
    assert torch.equal(load(tmp_path / "student").net.state_dict()["map_layer0.weight"], student.net.map_layer0.weight)
