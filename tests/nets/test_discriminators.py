"""The projected discriminator: what it sees, how it mixes, how it judges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewstep.distill.gdd import EncoderFeatures
from fewstep.nets.discriminators import (
    ClassVector,
    Head,
    ProjectedDiscriminator,
    Projection,
    SpectralConv2d,
)
from fewstep.nets.features import (
    DEIT,
    EFFICIENTNET,
    HALF,
    VGG,
    Backbone,
    Classifier,
    PretrainedFeatures,
    RandomConv2d,
)

LEVELS = {  # channels, sides at 224 pixels
    EFFICIENTNET.name: ((24, 40, 112, 320), (56, 28, 14, 7)),
    VGG.name: ((128, 256, 512, 512), (112, 56, 28, 14)),
    DEIT.name: ((768, 768, 768, 768), (14, 14, 14, 14)),
}
SHA256 = "ab" * 32


class FakeNetwork(nn.Module):
    """Answers as the backbones do, with features of the right shapes; remembers its input."""

    def __init__(self, name):
        super().__init__()
        self.channels, self.sides = LEVELS[name]
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        self.seen, self.was_training = x, self.norm.training
        return [
            F.adaptive_avg_pool2d(x.mean(1, keepdim=True), s).expand(-1, c, s, s)
            for c, s in zip(self.channels, self.sides, strict=True)
        ]


def pretrained(backbone: Backbone) -> Any:
    """The features of a backbone through a network that answers with the right shapes."""
    return PretrainedFeatures(backbone, FakeNetwork(backbone.name).eval().requires_grad_(False), SHA256)


def test_the_published_backbones():
    """Channels and sizes of the specification; frozen, in evaluation mode whatever the player does."""
    for backbone, channels, sides in (
        (EFFICIENTNET, (24, 40, 112, 320), (56, 28, 14, 7)),
        (VGG, (128, 256, 512, 512), (112, 56, 28, 14)),
        (DEIT, (96, 192, 384, 768), (56, 28, 14, 7)),
    ):
        network = pretrained(backbone).train()
        found = network(torch.zeros(2, 3, 32, 32))
        assert network.channels == channels
        assert [tuple(f.shape) for f in found] == [(2, c, s, s) for c, s in zip(channels, sides, strict=True)]
        assert network.name == f"{backbone.name} (sha256 {SHA256})"
        assert not network.net.was_training
        assert not any(p.requires_grad for p in network.parameters())


def test_the_input_of_a_backbone():
    """[-1, 1] -> [0, 1] -> normalised -> enlarged to 224 without aligned corners; grey as RGB; larger images as they are."""
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    network = pretrained(VGG)
    network(x)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = F.interpolate((x / 2 + 0.5 - mean) / std, (224, 224), mode="bilinear", align_corners=False)
    assert torch.allclose(network.net.seen, expected, atol=1e-5)
    network(torch.zeros(1, 1, 256, 256))
    assert network.net.seen.shape == (1, 3, 256, 256)
    vit = pretrained(DEIT)
    vit(torch.zeros(1, 3, 256, 256))
    assert vit.net.seen.shape == (1, 3, 224, 224)
    efficient = pretrained(EFFICIENTNET)
    efficient(x)
    assert torch.allclose(efficient.net.seen, F.interpolate(x, (224, 224), mode="bilinear"), atol=1e-5)
    with pytest.raises(ValueError, match="grey or RGB images; got 4 channels"):
        network(torch.zeros(1, 4, 8, 8))


class Small(nn.Module):
    """A convolutional network of two maps, with batch norm."""

    channels = (8, 16)

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.deep, self.norm1 = nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)

    def forward(self, x):
        fine = self.norm0(self.stem(x)).relu()
        return [fine, self.norm1(self.deep(fine)).relu()]


def test_discriminator_in_bfloat16():
    """Features have the precision, logits float32; both, the slope in the image and the penalty's gradient are near float32's."""
    torch.manual_seed(0)
    x = torch.rand(8, 3, 32, 32) * 2 - 1

    def judged(dtype) -> Any:
        torch.manual_seed(0)
        network = PretrainedFeatures(
            Backbone("small", HALF, HALF), Small().eval().requires_grad_(False), SHA256, size=32, dtype=dtype
        )
        judge: Any = ProjectedDiscriminator([network], num_classes=2, width=16)
        assert all(f.dtype == dtype for f in network(x))
        image = x.clone().requires_grad_()
        [logits] = judge(image, torch.arange(8) % 2)
        assert logits.dtype == torch.float32
        [slope] = torch.autograd.grad(logits.sum(), image, create_graph=True)
        weights = [p for p in judge.heads.parameters() if p.ndim == 4]
        penalty = torch.autograd.grad(slope.square().sum(), weights)
        assert all(p.dtype == torch.float32 for p in (*weights, *penalty))
        return logits.detach(), slope.detach(), torch.cat([g.flatten() for g in penalty])

    # batch norms cancel most of a slope, and with it of its digits
    for low, full, most in zip(judged(torch.bfloat16), judged(torch.float32), (0.03, 0.2, 0.1), strict=True):
        assert 1e-4 < (low - full).norm() / full.norm() < most


class Given(nn.Module):
    """A feature network of given channels and sides, without a thought."""

    def __init__(self, channels, sides):
        super().__init__()
        self.name, self.channels, self.sides = "given", channels, sides

    def forward(self, x, label=None):
        return [x.new_zeros(len(x), c, s, s) for c, s in zip(self.channels, self.sides, strict=True)]


@pytest.mark.parametrize(("name", "logits"), [(EFFICIENTNET.name, 64), (VGG.name, 484)])
def test_the_published_sizes(name, logits):
    """4 heads of 4x4 logits (11x11 for VGG, whose taps are twice as large), 10.33 M parameters to train."""
    with torch.device("meta"):
        judge: Any = ProjectedDiscriminator([Given(*LEVELS[name])]).to("meta")
        [found] = judge(torch.zeros(2, 3, 32, 32))
    assert found.shape == (2, logits)
    trained = sum(p.numel() for p in judge.parameters() if p.requires_grad)
    assert trained == pytest.approx(10.33e6, abs=5e3)
    assert judge.projections[0].channels == (64, 64, 128, 256)
    assert [across.weight.shape[0] for across in judge.projections[0].across] == [64, 128, 256, 512]


def test_projection_is_the_paper_s():
    """CCM, and CSM from the deepest level up, written out in float64."""
    torch.manual_seed(0)
    mix: Any = Projection((3, 5, 7), 4, torch.Generator().manual_seed(0)).double()
    features = [torch.randn(2, c, s, s, dtype=torch.float64) for c, s in ((3, 8), (5, 4), (7, 2))]

    def conv(layer, x):
        return torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]

    def double(x):  # bilinear with aligned corners: positions i (n - 1) / (2 n - 1)
        n = x.shape[-1]
        place = torch.arange(2 * n, dtype=torch.float64) * (n - 1) / (2 * n - 1)
        weights = (1 - (place[:, None] - torch.arange(n)).abs()).clamp_min(0)
        return weights @ x @ weights.T

    crossed = [conv(layer, f) for layer, f in zip(mix.across, features, strict=True)]
    deep = conv(mix.over[2], double(crossed[2]))
    middle = conv(mix.over[1], double(crossed[1] + deep))
    fine = conv(mix.over[0], double(crossed[0] + middle))
    for found, expected in zip(mix(features), (fine, middle, deep), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9)
    assert [tuple(f.shape[1:]) for f in mix(features)] == [(4, 16, 16), (4, 8, 8), (8, 4, 4)]


def test_projections_come_from_their_own_seed(denoiser):
    """The same on every rank, stored with the run, trained never."""

    def make(seed, world) -> Any:
        torch.manual_seed(world)
        return ProjectedDiscriminator([EncoderFeatures(denoiser, 0.2)], seed=seed, width=8)

    one, other, third = make(0, 1), make(0, 2), make(1, 1)
    state = one.projections.state_dict()
    assert len(state) == 8 and not list(one.projections.parameters())
    assert all(torch.equal(v, other.projections.state_dict()[k]) for k, v in state.items())
    assert not any(torch.equal(v, third.projections.state_dict()[k]) for k, v in state.items())
    assert {f"projections.{k}" for k in state} < set(one.state_dict())
    bound = one.projections[0].across[0].weight.abs().max()
    assert 0.9 * 8**-0.5 < bound < 8**-0.5  # fan-in 8


def test_random_convolutions_are_drawn_as_pytorch_draws():
    up = RandomConv2d(3, 50, 4, torch.Generator().manual_seed(0), stride=4, up=True)
    theirs = nn.ConvTranspose2d(3, 50, 4, stride=4)
    assert up.weight.shape == theirs.weight.shape
    assert up.weight.abs().max() == pytest.approx(theirs.weight.abs().max().item(), rel=0.02)
    assert up(torch.zeros(1, 3, 7, 7)).shape == theirs(torch.zeros(1, 3, 7, 7)).shape
    down = RandomConv2d(3, 5, 3, torch.Generator(), stride=2)
    assert down(torch.zeros(1, 3, 14, 14)).shape == (1, 5, 7, 7)


def test_spectral_norm():
    torch.manual_seed(0)
    layer = SpectralConv2d(3, 5, 4, stride=2, padding=1).double()
    layer.iterate(300)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    found = layer.train()(x)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())  # evaluating changes nothing
    weight = layer.weight.detach().clone().requires_grad_()
    exact = weight / torch.linalg.matrix_norm(weight.flatten(1), 2)
    expected = F.conv2d(x, exact, layer.bias, 2, 1)
    assert torch.allclose(found, expected, rtol=1e-9)
    [slope] = torch.autograd.grad(found.square().sum(), layer.weight)
    [truth] = torch.autograd.grad(expected.square().sum(), weight)
    assert torch.allclose(slope, truth, rtol=1e-6, atol=1e-9)


def test_power_iterations_follow_the_weights():
    torch.manual_seed(0)
    judge: Any = ProjectedDiscriminator([Classifier((1, 8, 8), 3, width=8)], width=8)
    layer = judge.heads[0][0].blocks[0][0]
    with torch.no_grad():
        layer.weight.normal_()
    for _ in range(100):
        judge.after_step()
    found = layer.u @ layer.weight.flatten(1) @ layer.v
    assert found.item() == pytest.approx(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item(), rel=1e-4)


def test_heads_take_the_statistics_of_the_batch_in_training_and_at_rest():
    torch.manual_seed(0)
    head: Any = Head((4, 6, 8), 0)
    x = 3 * torch.randn(5, 4, 16, 16) + 2
    assert torch.equal(head.train()(x), head.eval()(x))
    block = head.blocks[0]
    plain = block[0](x)
    normal = (plain - plain.mean((0, 2, 3), keepdim=True)) / (
        plain.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    assert torch.allclose(block(x), F.leaky_relu(normal, 0.2), atol=1e-5)


def test_class_conditional_heads():
    torch.manual_seed(0)
    head: Any = Head((4, 8), 3)
    vector = ClassVector(3, 64)
    head.vector = vector
    assert vector.table.weight.shape == (3, 320)
    x, label = torch.randn(4, 4, 16, 16), torch.tensor([0, 2, 1, 0])
    h = head.window(head.blocks(x))
    e = [2**0.5 * F.leaky_relu(vector.weight @ vector.table.weight[c] / 320**0.5 + vector.bias, 0.2) for c in label]
    expected = torch.stack([(e[i][:, None] * h[i].flatten(1)).sum(0) / 8 for i in range(4)])
    assert torch.allclose(head(x, label), expected, atol=1e-5)
    judge = ProjectedDiscriminator([Classifier((1, 8, 8), 3, width=8)], num_classes=3, width=8)
    with pytest.raises(ValueError, match="class-conditional; pass the label"):
        judge(torch.zeros(2, 1, 8, 8))


def test_features_of_the_teacher_s_encoder(denoiser):
    network = EncoderFeatures(denoiser, 0.2).train()
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    label = torch.tensor([3, 4])
    features = network(x, label)
    skips = denoiser.encode(x, 0.2, label).features.skips
    assert [tuple(f.shape[1:]) for f in features] == [(8, 8, 8), (16, 4, 4)]
    assert torch.equal(features[0], [s for s in skips if s.shape[-1] == 8][-1])
    assert torch.equal(features[1], skips[-1])
    assert network.channels == (8, 16)
    features[1].sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert not any(m.training for m in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    with pytest.raises(ValueError, match="noise levels above 0"):
        EncoderFeatures(denoiser, 0.0)


def test_a_classifier_to_train_on_the_spot():
    network = Classifier((1, 8, 8), 3, width=8)
    features = network(torch.zeros(2, 1, 8, 8))
    assert [tuple(f.shape[1:]) for f in features] == [(8, 8, 8), (16, 4, 4)]
    assert network.logits(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match="4 pixels a side and two classes"):
        Classifier((1, 2, 2), 3)


def test_feature_networks_of_ones_own_stay_in_evaluation_mode():
    network = Classifier((1, 8, 8), 3, width=8)
    judge = ProjectedDiscriminator([network], width=8).train()
    assert judge.heads.training
    assert not any(m.training for m in network.modules())


def test_no_discriminator_without_features():
    with pytest.raises(ValueError, match="needs at least one feature network: PretrainedFeatures"):
        ProjectedDiscriminator([])
