"""Losses against numbers written out by hand, and the stable target field against brute force and the exact posterior."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

from fewstep.core.denoiser import Denoiser
from fewstep.core.diagnostics import LEVELS
from fewstep.core.method import Batch, zero_nonfinite
from fewstep.core.noise import LogNormal, LogUniform, add_noise
from fewstep.core.objectives import (
    DenoisingLoss,
    Pretraining,
    Rule,
    StableTarget,
    VPTime,
    clean,
    edm_weight,
    exact_denoiser,
    inverse_variance,
    posterior_mean,
)
from fewstep.core.oracle import EmpiricalDenoiser, MixtureDenoiser
from fewstep.core.precondition import VP
from fewstep.data import ImageStream
from fewstep.data.augment import AugmentPipe
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.magnitude import MPConv
from fewstep.train.optim import Adam
from fewstep.train.trainer import Trainer
from tests.conftest import tiny_net


def fixed(sigma):
    return lambda x: torch.full((len(x),), sigma)


def batch_of(n, channels=1, size=8, classes=10):
    g = torch.Generator().manual_seed(n)
    return Batch(torch.randn(n, channels, size, size, generator=g) * 0.5, torch.arange(n) % classes)


# --- noise levels and weights


def test_noise_levels_follow_their_laws():
    torch.manual_seed(0)
    x = torch.empty(20_000, 1)
    t = VP().time(VPTime()(x))
    assert 1e-5 < t.min() < 1e-3
    assert t.max().item() == pytest.approx(1, abs=1e-3)
    assert t.mean().item() == pytest.approx(0.5, abs=0.01)
    u = (LogUniform()(x) / 0.02).log() / math.log(5000)
    assert 0 <= u.min() < 1e-3
    assert u.var().item() == pytest.approx(1 / 12, rel=0.02)
    assert LogNormal(-0.4, 1.0)(x).log().mean().item() == pytest.approx(-0.4, abs=0.03)


@pytest.mark.parametrize(("weight", "expected"), [(edm_weight, (0.25 + 4) / 1.0), (inverse_variance, 0.25)])
def test_loss_is_the_weighted_error_of_each_image(denoiser, weight, expected):
    batch = batch_of(3)
    torch.manual_seed(1)
    loss, _ = DenoisingLoss(fixed(2.0), weight=weight)(denoiser, batch)
    torch.manual_seed(1)
    x = add_noise(batch.image, 2.0)
    error = (denoiser(x, 2.0, batch.label) - batch.image).square().sum((1, 2, 3))
    assert torch.allclose(loss, expected * error, rtol=1e-5)


def test_uncertainty_weighs_the_loss_and_learns_the_error():
    torch.manual_seed(0)
    denoiser = Denoiser(tiny_net(), uncertainty=Uncertainty(8))
    batch, objective = batch_of(4), DenoisingLoss(fixed(0.5))
    plain = Denoiser(denoiser.net)
    torch.manual_seed(1)
    loss, logs = objective(denoiser, batch)
    torch.manual_seed(1)
    error, _ = objective(plain, batch)
    u = denoiser.log_variance(torch.tensor(0.5))
    assert torch.allclose(loss, error / u.exp() + 64 * u, rtol=1e-5)
    error = error.detach()
    sums, counts = logs["error"]
    assert sums[LEVELS.index("0.5")].item() == pytest.approx(error.sum().item(), rel=1e-6)
    assert counts[LEVELS.index("0.5")] == counts.sum() == 4
    # the minimum in u is ln of the mean weighted error per pixel
    best = (error.mean() / 64).log()
    around = [(error.mean() / math.exp(b) + 64 * b).item() for b in (best - 0.1, best, best + 0.1)]
    assert around[1] == min(around)


def test_a_network_without_classes_ignores_those_of_the_data():
    denoiser = Denoiser(tiny_net(label_dim=0))
    seen = []

    def spy(x, sigma, batch):
        seen.append(batch.label)
        return batch.image

    DenoisingLoss(target=spy)(denoiser, batch_of(4))
    assert seen == [None]


def test_the_network_is_told_the_augmentation():
    torch.manual_seed(0)
    net = tiny_net(augment_dim=9)
    told = []
    net.get_submodule("map_augment").register_forward_hook(lambda layer, args, output: told.append(args[0]))
    DenoisingLoss(augment=AugmentPipe(1.0))(Denoiser(net), batch_of(4))
    assert told[0].shape == (4, 9)
    assert told[0].count_nonzero() > 20


ADM = ADMConfig(8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1,), num_blocks=1)


@pytest.mark.parametrize("net", [tiny_net, lambda: ADMUNet(ADM)])
def test_a_network_that_cannot_be_told_the_augmentation_is_refused(net):
    """It would make augmented images."""
    with pytest.raises(
        ValueError, match=r"labels of 0 columns; got 9. Build it with augment_dim=9 or train it without"
    ):
        DenoisingLoss(augment=AugmentPipe())(Denoiser(net()), batch_of(4))


# --- the stable target field


def brute_force(x, sigma, batch, others):
    """In float64, one pair at a time."""
    result = []
    for i, s in enumerate(sigma.double()):
        total, norm = torch.zeros(x[0].shape, dtype=torch.float64), 0.0
        terms = []
        for part in (batch, others):
            for k, image in enumerate(part.image.double()):
                if part.label is None or part.label[k] == batch.label[i]:
                    terms.append((-(x[i].double() - image).square().sum() / (2 * s**2), image))
        top = max(logit for logit, _ in terms)
        for logit, image in terms:
            total, norm = total + (logit - top).exp() * image, norm + (logit - top).exp()
        result.append(total / norm)
    return torch.stack(result)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 1.0, 4.0, 80.0])
@pytest.mark.parametrize("classes", [True, False])
def test_targets_are_those_of_brute_force(stream, sigma, classes):
    torch.manual_seed(0)
    batch, others = stream.batch(0, 4), stream.sample(60, torch.device("cpu"))
    if not classes:
        batch, others = Batch(batch.image), Batch(others.image)
    sigma = torch.full((4,), sigma) * torch.tensor([1.0, 1.1, 0.9, 1.2])
    x = add_noise(batch.image, sigma)
    target = posterior_mean(x, sigma, batch, others)
    assert target.dtype == x.dtype
    assert (target - brute_force(x, sigma, batch, others)).abs().max() < 1e-6


def test_it_is_the_exact_denoiser_of_the_references(stream):
    torch.manual_seed(0)
    batch, others = stream.batch(0, 6), stream.sample(50, torch.device("cpu"))
    points, classes = torch.cat([batch.image, others.image]), torch.cat([batch.label, others.label])
    x, sigma = add_noise(batch.image, 1.5), torch.full((6,), 1.5)
    exact = EmpiricalDenoiser(points.double(), classes)(x, sigma, batch.label)
    assert torch.allclose(posterior_mean(x, sigma, batch, others), exact, atol=1e-6)


def test_one_reference_is_the_clean_image(stream):
    batch = stream.batch(0, 1)
    x, sigma = add_noise(batch.image, 3.0), torch.tensor([3.0])
    assert torch.equal(StableTarget(stream, 1)(x, sigma, batch), clean(x, sigma, batch))
    with pytest.raises(ValueError, match="n=1 for 2 images"):
        StableTarget(stream, 1)(x.repeat(2, 1, 1, 1), sigma, stream.batch(0, 2))


def test_unbiased_for_every_number_of_references_and_of_falling_variance():
    """Each class is a trial: an image of a mixture on a line, and n - 1 more for its references."""
    torch.manual_seed(0)
    law = MixtureDenoiser(torch.ones(3), torch.tensor([[-1.0], [0.2], [1.0]]), torch.tensor([0.01, 0.04, 0.01]))
    trials, sigma, variances = torch.arange(250), torch.full((250,), 0.8), []
    for n in (1, 2, 4, 16):
        xs, targets = [], []
        for _ in range(16):
            batch = Batch(law.sample(250).view(250, 1, 1, 1), trials)
            others = Batch(law.sample(250 * (n - 1)).view(-1, 1, 1, 1), trials.repeat(n - 1))
            xs.append(add_noise(batch.image, sigma))
            targets.append(posterior_mean(xs[-1], sigma, batch, others))
        x = torch.cat(xs).view(-1, 1)
        residual = (torch.cat(targets).view(-1, 1) - law(x, 0.8)).flatten()
        variances.append(residual.var().item())
        for part in (residual[x[:, 0] < -0.5], residual[x[:, 0].abs() <= 0.5], residual[x[:, 0] > 0.5]):
            assert part.mean().abs() < 4 * part.std() / len(part) ** 0.5
    assert variances[0] > 1.5 * variances[1] > 2.2 * variances[2] > 3 * variances[3]


def test_only_references_of_the_same_class_and_augmentation_count():
    torch.manual_seed(0)
    batch = Batch(torch.tensor([1.0]).view(1, 1, 1, 1), torch.tensor([2]), torch.tensor([[1.0, 0.0]]))
    labels = torch.tensor([2, 2, 1, 2])
    augment = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.5]])
    others = Batch(torch.tensor([3.0, 100.0, 100.0, 100.0]).view(4, 1, 1, 1), labels, augment)
    target = posterior_mean(torch.zeros(1, 1, 1, 1), torch.tensor([1e4]), batch, others)
    assert target.item() == pytest.approx(2.0, abs=1e-6)


def test_augmented_images_get_references_that_were_moved_alike(stream):
    """An image that was only mirrored has company; one that was rotated by an angle has none, and its target is itself."""
    torch.manual_seed(0)
    pipe = AugmentPipe(0.5)
    batch = pipe(stream.batch(0, 64)._replace(label=None))
    sigma = torch.full((64,), 5.0)
    x = add_noise(batch.image, sigma)
    target = StableTarget(stream, 512, augment=pipe)(x, sigma, batch._replace(label=None))
    assert batch.augment is not None
    moved = batch.augment[:, 2:].abs().sum(1) > 0
    gap = (target - batch.image).flatten(1).norm(dim=1)
    assert 0 < moved.sum() < 64
    assert gap[moved].max() < 1e-5
    assert gap[~moved].min() > 1


def test_the_published_rule_counts_every_reference(stream):
    """Of all classes, the others with augmentations of their own: every image has company, and its target is the exact
    posterior mean of them all.
    """
    pipe = AugmentPipe(0.5)
    torch.manual_seed(0)
    batch = pipe(stream.batch(0, 16))
    target = StableTarget(stream, 256, augment=pipe, rule="published")
    sigma = torch.full((16,), 5.0)
    x = add_noise(batch.image, sigma)
    torch.manual_seed(1)
    found = target(x, sigma, batch)
    torch.manual_seed(1)
    others = pipe(stream.sample(240, torch.device("cpu")))
    exact = EmpiricalDenoiser(torch.cat([batch.image, others.image]).double())
    assert torch.allclose(found, exact(x, sigma), atol=1e-6)
    assert (found - batch.image).flatten(1).norm(dim=1).min() > 1
    torch.manual_seed(1)
    own, more = target.references(batch)
    assert own.label is None and own.augment is None and more is not None and more.label is None
    references, label = exact_denoiser(own, more)
    assert label is None
    weights = references.weights(x, sigma)
    assert weights.shape == (16, 256) and references.points.shape == (256, 1, 8, 8)
    assert torch.allclose(weights.sum(1), torch.ones(16, dtype=torch.float64))
    assert torch.equal(references.points[:16].float(), batch.image)  # the image itself, as it was augmented
    assert (1 / weights.square().sum(1)).min() > 2


def test_the_published_rule_is_biased_where_there_are_classes():
    """Two classes on a line: the target does not know the class, that of the other rule does."""
    torch.manual_seed(0)
    law = MixtureDenoiser(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.full((2,), 0.01), torch.arange(2))

    class Draws:
        def sample(self, n, device):
            label = torch.arange(n) % 2
            return Batch(law.sample(n, label=label).view(n, 1, 1, 1), label)

    batch, sigma = Draws().sample(2000, None), torch.full((2000,), 1.0)
    x = add_noise(batch.image, sigma)
    exact: dict[Rule, torch.Tensor] = {
        "matched": law(x.view(-1, 1), 1.0, batch.label),
        "published": law(x.view(-1, 1), 1.0),
    }
    for rule, truth in exact.items():
        found = StableTarget(Draws(), 4000, rule=rule)(x, sigma, batch).view(-1, 1)
        assert (found - truth).square().mean() < 1e-3
    assert (exact["published"] - exact["matched"]).square().mean() > 0.3


# --- in the Trainer


def stable_trainer(denoiser, stream, **options):
    pipe = AugmentPipe(0.5)
    objective = DenoisingLoss(target=StableTarget(stream, 24, augment=pipe), augment=pipe)
    torch.manual_seed(3)
    method = Pretraining(Denoiser(tiny_net(augment_dim=9)), objective)
    return Trainer(method, stream, {"denoiser": Adam(1e-3)}, batch_size=8, **options)


def test_resume_with_stable_target_and_augmentation_is_the_same_run(denoiser, stream):
    whole, first, second = (stable_trainer(denoiser, stream, micro_batch=4) for _ in range(3))
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    torch.randn(5)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step()
    a, b = whole.method.state_dict(), second.method.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def stable_ranks(rank, path, stream, queue):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    trainer = stable_trainer(None, stream, micro_batch=2)
    for _ in range(3):
        trainer.step()
    if rank == 0:
        queue.put({k: v.numpy() for k, v in trainer.method.state_dict().items()})
    dist.barrier()
    dist.destroy_process_group()


def test_stable_target_on_two_ranks_is_that_on_one(stream, tmp_path):
    one = stable_trainer(None, stream, micro_batch=2)
    for _ in range(3):
        one.step()
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=stable_ranks, args=(r, tmp_path / "store", stream, queue)) for r in range(2)]
    for job in jobs:
        job.start()
    two = queue.get(timeout=60)
    for job in jobs:
        job.join()
    for name, value in one.method.state_dict().items():
        assert torch.allclose(value, torch.from_numpy(two[name]), atol=1e-6), name


def test_every_micro_batch_draws_its_own_references(data):
    """From the random stream of the run: anew in each, the same again on a second pass."""

    class Recorded(ImageStream):
        def sample(self, n, device):
            drawn = super().sample(n, device)
            seen.append(drawn.image)
            return drawn

    passes = []
    for _ in range(2):
        seen = []
        trainer = stable_trainer(None, Recorded(data), micro_batch=2)
        trainer.step()
        trainer.step()
        passes.append(seen)
        torch.randn(3)
    assert [len(images) for images in passes[0]] == 8 * [24 - 2]
    assert len({images.sum().item() for images in passes[0]}) == 8
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))


def test_samples_are_independent_draws_of_the_random_stream(data):
    stream = ImageStream(data, flip=True)
    torch.manual_seed(0)
    first = stream.sample(300, torch.device("cpu"))
    torch.manual_seed(0)
    again = stream.sample(300, torch.device("cpu"))
    assert torch.equal(first.image, again.image)
    assert first.label is not None and again.label is not None and torch.equal(first.label, again.label)
    assert not torch.equal(stream.sample(300, torch.device("cpu")).image, first.image)
    assert len(torch.unique(first.image.flatten(1), dim=0)) > 200
    plain = ImageStream(data)
    torch.manual_seed(0)
    same = (plain.sample(300, torch.device("cpu")).image == first.image).flatten(1).all(1)
    assert 100 < same.sum() < 200  # the others are mirrored


def test_edm2_keeps_the_length_of_its_weights_and_drops_broken_gradients(stream):
    torch.manual_seed(0)
    config = EDM2Config(8, 1, 10, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    denoiser = Denoiser(EDM2UNet(config), uncertainty=Uncertainty(8))
    frozen = denoiser.net.out_conv.weight.requires_grad_(False)
    before = frozen.clone()
    objective = DenoisingLoss(LogNormal(-0.4, 1.0))
    trainer = Trainer(
        Pretraining(denoiser, objective, clean=zero_nonfinite), stream, {"denoiser": Adam(1e-2)}, batch_size=8
    )
    logs = trainer.step()
    assert "denoising_loss/error" in logs
    seen = []
    trainer.settings["denoiser"] = Adam(0)  # what a step begins with is then what it leaves
    trainer.step()
    for layer in denoiser.modules():
        if isinstance(layer, MPConv) and layer is not denoiser.net.out_conv:
            seen.append(layer)
            assert torch.allclose(layer.weight.flatten(1).square().mean(1), torch.ones(len(layer.weight)), atol=1e-5)
    assert len(seen) > 5
    assert torch.equal(frozen, before)
    grads = [torch.tensor([1.0, math.nan, math.inf, -math.inf])]
    assert zero_nonfinite(grads) == 1
    assert grads[0].tolist() == [1.0, 0.0, 0.0, 0.0]
