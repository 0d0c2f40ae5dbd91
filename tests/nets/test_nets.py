"""The networks: numbers of the reference implementations, sizes and names, and one function in every mode of computing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import guided
from fewstep.core.precondition import EDM, IDDPM, VE, VP
from fewstep.io.model_folder import NETWORKS
from fewstep.nets.adm import ADMConfig
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.magnitude import MPConv, mp_cat, mp_sum, normalize
from fewstep.nets.sizes import EDM2_SIZES, EDM_SIZES, edm2
from fewstep.nets.song import SongConfig, ncsnpp

SONG: dict[str, Any] = {
    "label_dim": 4,
    "augment_dim": 9,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_blocks": 2,
    "attn_resolutions": (8,),
}
ADM = ADMConfig(
    16, label_dim=4, augment_dim=9, model_channels=64, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,)
)
EDM2 = EDM2Config(16, 4, label_dim=4, model_channels=64, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,))
CONFIGS = {
    "ddpmpp": SongConfig(16, **SONG),
    "ncsnpp": ncsnpp(16, **SONG),
    "skip": ncsnpp(16, **SONG, encoder_type="skip", decoder_type="skip"),
    "adm": ADM,
    "edm2": EDM2,
}
LABEL = torch.tensor([1, 3])
SIGMA = torch.tensor([0.3, 2.0])
AUGMENT = 0.1 * torch.sin(0.7 * torch.arange(9) + torch.arange(2)[:, None])


def build(config) -> Any:
    return NETWORKS[type(config)](config).eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def image(config) -> Tensor:
    shape = (2, 4 if isinstance(config, EDM2Config) else 3, 16, 16)
    return torch.cos(0.05 * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape).float()


def fill(key: str, k: int, tensor: Tensor) -> Tensor:
    """Deterministic weights for the tensor called `key`, the k-th in alphabetical order."""
    if key.endswith("resample_filter"):
        return tensor
    if tensor.ndim == 0:
        return torch.full_like(tensor, 0.7)
    n = tensor.numel()
    s = torch.sin(0.37 * torch.arange(n, dtype=torch.float64) + 1.3 * k + 0.2).reshape(tensor.shape)
    if tensor.ndim >= 2:
        return s * math.sqrt(2 / (n / len(tensor)))
    if key.endswith("freqs"):
        return 2 * s
    if key.endswith("phases"):
        return 3 * s
    return 1 + 0.1 * s if key.endswith(".weight") else 0.1 * s


def filled(config, precondition=None) -> Denoiser:
    """A denoiser with the weights of `fill`; the order is that of the upstream names."""
    head = Uncertainty() if isinstance(config, EDM2Config) else None
    denoiser = Denoiser(build(config), precondition=precondition, uncertainty=head).eval()
    prefix = {"net": "unet"} if head else {"net": "model"}
    rename = {
        k: k.replace("net.", prefix["net"] + ".", 1).replace("uncertainty.", "logvar_") for k in denoiser.state_dict()
    }
    # the table of levels of iDDPM sorts behind all else: "u" after "model."
    order = {key: k for k, key in enumerate(sorted(rename.values()))}
    state = {k: fill(rename[k], order[rename[k]], v) for k, v in denoiser.state_dict().items()}
    denoiser.load_state_dict(state)
    return denoiser


def check(y: Tensor, mean: float, std: float, first: list[float], last: list[float]) -> None:
    flat = y.double().flatten()
    seen = [flat.mean().item(), flat.std(correction=0).item(), *flat[:3].tolist(), *flat[-2:].tolist()]
    expected = [mean, std, *first, *last]
    assert seen[: 2 + len(first)] == pytest.approx(expected[: 2 + len(first)], abs=1e-4)
    assert not last or seen[5:] == pytest.approx(last, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "precondition", "augment", "keys", "params", "mean", "std", "first", "last"),
    [
        ("ddpmpp", EDM(), True, 199, 1033955, 0.150706, 0.355887, [0.814952, 0.841877, 0.856356], [-0.069323, -0.064681]),
        ("ddpmpp", EDM(), False, 199, 1033955, 0.150690, 0.355891, [0.814952, 0.841879, 0.856358], [-0.069314, -0.064676]),
        ("ddpmpp", VP(), True, 199, 1033955, -0.410848, 0.938247, [0.903836, 0.869878, 0.847015], [0.604440, 0.531338]),
        ("ddpmpp", VE(), True, 199, 1033955, 0.438319, 0.726522, [1.095836, 1.127132, 1.142596], [-0.136653, -0.124993]),
        ("ddpmpp", IDDPM(), True, 199, 1034822, -0.400685, 0.922897, [0.902735, 0.867866, 0.845253], [0.589845, 0.525472]),
        ("ncsnpp", EDM(), True, 203, 1039395, -0.276254, 0.440635, [0.672055, 0.623663, 0.613349], [-0.051091, 0.017572]),
        ("skip", EDM(), True, 208, 1040486, -0.106266, 0.345614, [0.677916, 0.630115, 0.649233], [-0.062745, 0.014942]),
        ("adm", EDM(), True, 150, 3294979, 0.425338, 0.716211, [0.316007, 0.191857, 0.163259], [1.905822, 1.362696]),
    ],
)  # fmt: skip
def test_denoisers_equal_the_reference(name, precondition, augment, keys, params, mean, std, first, last):
    config = CONFIGS[name]
    if isinstance(precondition, IDDPM):
        config = replace(config, out_channels=6)
    denoiser = filled(config, precondition)
    assert (len(denoiser.state_dict()), count(denoiser)) == (keys, params)
    with torch.no_grad():
        check(denoiser(image(config), SIGMA, LABEL, augment=AUGMENT if augment else None), mean, std, first, last)


@pytest.mark.parametrize(
    ("name", "mean", "std", "first"),
    [
        ("ddpmpp", 0.374783, 0.281856, [0.318774, 0.427119, 0.491459]),
        ("ncsnpp", -0.716227, 0.333378, [-0.326659, -0.559235, -0.601953]),
        ("skip", -0.290903, 0.332817, [-0.297670, -0.556365, -0.473408]),
        ("adm", 0.930193, 1.745551, [-1.578279, -2.021864, -2.138430]),
        ("edm2", -0.142544, 0.231529, [0.107614, 0.157511, 0.215831]),
    ],
)
def test_networks_equal_the_reference(name, mean, std, first):
    net = filled(CONFIGS[name]).net
    augment = None if name == "edm2" else AUGMENT
    with torch.no_grad():
        check(net(image(CONFIGS[name]), torch.tensor([0.1, -0.2]), LABEL, augment), mean, std, first, [])


def test_edm2_denoiser_equals_the_reference():
    denoiser = filled(EDM2)
    assert (len(denoiser.state_dict()), count(denoiser)) == (63, 2889419)
    with torch.no_grad():
        y = denoiser(image(EDM2), SIGMA, LABEL)
        check(y, -0.042944, 0.386838, [0.770755, 0.787398, 0.801703], [-0.089716, -0.070784])
        assert denoiser.log_variance(SIGMA).tolist() == pytest.approx([-0.0468720, -0.0762723], abs=1e-6)


COUNTS = {
    "edm-cifar10-32x32-cond-vp": (55_735_299, 419, 427),
    "edm-cifar10-32x32-cond-ve": (56_400_643, 423, 434),
    "edm-cifar10-32x32-uncond-vp": (55_733_891, 417, 425),
    "edm-cifar10-32x32-uncond-ve": (56_397_827, 421, 432),
    "edm-ffhq-64x64-uncond-vp": (61_805_571, 541, 553),
    "edm-ffhq-64x64-uncond-ve": (62_761_091, 547, 563),
    "edm-imagenet-64x64-cond-adm": (295_899_267, 541, 553),
    "edm2-img512-xxs": (31_309_029, 199, 203),
    "edm2-img512-xs": (124_713_253, 199, 203),
    "edm2-img512-s": (280_212_837, 199, 203),
    "edm2-img512-m": (497_807_781, 199, 203),
    "edm2-img512-l": (777_498_085, 199, 203),
    "edm2-img512-xl": (1_119_283_749, 199, 203),
    "edm2-img512-xxl": (1_523_164_773, 199, 203),
    "edm2-img64-xs": (124_710_949, 199, 203),
    "edm2-img64-s": (280_209_381, 199, 203),
    "edm2-img64-m": (497_803_173, 199, 203),
    "edm2-img64-l": (777_492_325, 199, 203),
    "edm2-img64-xl": (1_119_276_837, 199, 203),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    config = (EDM_SIZES | EDM2_SIZES)[name]
    with torch.device("meta"):
        denoiser = Denoiser(build(config), uncertainty=Uncertainty() if name in EDM2_SIZES else None)
    assert (count(denoiser), len(list(denoiser.parameters())), len(denoiser.state_dict())) == COUNTS[name]
    assert denoiser.num_classes == (0 if "uncond" in name else 10 if "cifar10" in name else 1000)


def test_all_published_networks_are_there():
    assert len([name for name in EDM_SIZES if name.startswith("edm-")]) == 9
    assert len([name for name in EDM_SIZES if name.startswith("baseline-")]) == 3
    with pytest.raises(ValueError, match="sizes xxs, xs, s"):
        edm2("xxxl")


def test_parameter_names_in_their_order():
    adm, mp = build(ADM), build(EDM2)
    assert [name for name, _ in adm.named_children()] == [
        "map_noise", "map_augment", "map_layer0", "map_layer1", "map_label", "enc", "dec", "out_norm", "out_conv",
    ]  # fmt: skip
    assert list(adm.enc) == ["16x16_conv", "16x16_block0", "8x8_down", "8x8_block0"]
    assert list(adm.dec) == [
        "8x8_in0", "8x8_in1", "8x8_block0", "8x8_block1", "16x16_up", "16x16_block0", "16x16_block1",
    ]  # fmt: skip
    assert (list(adm.enc), list(adm.dec)) == (list(mp.enc), list(mp.dec))
    keys = list(mp.state_dict())
    assert keys[:8] == [
        "out_gain", "emb_fourier.freqs", "emb_fourier.phases", "emb_noise.weight", "emb_label.weight",
        "enc.16x16_conv.weight", "enc.16x16_block0.emb_gain", "enc.16x16_block0.conv_res0.weight",
    ]  # fmt: skip
    assert [k.removeprefix("dec.8x8_block0.") for k in keys if k.startswith("dec.8x8_block0.")] == [
        "emb_gain", "conv_res0.weight", "emb_linear.weight", "conv_res1.weight", "conv_skip.weight",
        "attn_qkv.weight", "attn_proj.weight",
    ]  # fmt: skip
    assert mp.dec["8x8_block0"].conv_res0.weight.shape == (128, 256, 3, 3)


# --- one function: small networks, whose weights are all random


TINY = {
    "ddpmpp": SongConfig(8, label_dim=3, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)),
    "ncsnpp": ncsnpp(8, label_dim=3, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)),
    "adm": ADMConfig(8, label_dim=3, model_channels=64, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,)),
    "edm2": EDM2Config(8, 3, 3, model_channels=64, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,)),
}


def tiny(name: str, *, dtype: torch.dtype = torch.float32, **options) -> Denoiser:
    torch.manual_seed(0)
    head = Uncertainty(16) if name == "edm2" else None
    denoiser = Denoiser(build(replace(TINY[name], **options)), uncertainty=head, dtype=dtype).eval()
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn_like(p) if p.ndim else 0.7)
    return denoiser


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An image, its noise level, and a tangent for each."""
    x, v = torch.randn(2, 2, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0.4, 1.5], dtype=dtype), v, torch.tensor([0.3, -0.8], dtype=dtype)


def error(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def jvp(f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The value and its derivative along `tangents`, in forward mode."""
    return torch.func.jvp(f, primals, tangents)[:2]


def directional(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, s: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """The derivative of f at (x, s) along (v, w), by central differences."""
    h = 1e-5
    return (f(x + h * v, s + h * w) - f(x - h * v, s - h * w)) / (2 * h)


each = pytest.mark.parametrize("name", TINY)


@each
def test_jvp_equals_finite_differences(name):
    denoiser = tiny(name, dtype=torch.float64).double()
    label = torch.tensor([0, 2])
    x, sigma, v, w = inputs(torch.float64)
    f = lambda x, s: denoiser(x, s, label)  # noqa: E731
    value, tangent = jvp(f, (x, sigma), (v, w))
    assert error(value, f(x, sigma)) < 1e-10
    assert error(tangent, directional(f, x, sigma, v, w)) < 1e-7


@each
def test_jvp_with_respect_to_weights(name):
    denoiser = tiny(name, dtype=torch.float64).double()
    x, sigma, _, _ = inputs(torch.float64)
    weights = dict(denoiser.named_parameters())
    step = {k: torch.sin(torch.arange(p.numel()).double()).reshape(p.shape) for k, p in weights.items()}

    def f(t: Tensor, _: Tensor) -> Tensor:
        return functional_call(denoiser, {k: p + t * step[k] for k, p in weights.items()}, (x, sigma))

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    with torch.no_grad():
        _, tangent = jvp(f, (zero, zero), (one, zero))
        assert error(tangent, directional(f, zero, zero, one, zero)) < 1e-6


@each
def test_jvp_leaves_the_gradient_of_its_tangent(name):
    denoiser = tiny(name)
    x, sigma, v, w = inputs()
    x.requires_grad_()
    _, tangent = jvp(denoiser, (x, sigma), (v, w))
    (g,) = torch.autograd.grad(tangent.square().sum(), x)
    assert g.norm() > 0
    assert g.isfinite().all()


@each
def test_forward_mode_takes_channels_last(name):
    denoiser = tiny(name)
    x, sigma, v, w = inputs()
    value, tangent = jvp(denoiser, (x, sigma), (v, w))
    denoiser.net.to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    value2, tangent2 = jvp(denoiser, (last, sigma), (v, w))
    assert error(denoiser(last, sigma), value) < 1e-5
    assert error(value2, value) < 1e-5
    assert error(tangent2, tangent) < 1e-4


@pytest.mark.parametrize("interval", [(0.0, math.inf), (0.2, 1.0)])
def test_jvp_through_guidance(interval):
    denoiser = tiny("adm", dtype=torch.float64).double()
    label = torch.tensor([0, 2])
    x, sigma, v, w = inputs(torch.float64)
    strong, weak = (lambda x, s: denoiser(x, s, label)), denoiser
    f = guided(strong, weak, 2.5, interval=interval)
    _, tangent = jvp(f, (x, sigma), (v, w))
    assert error(tangent, directional(f, x, sigma, v, w)) < 1e-7
    # sigma = (0.4, 1.5): each sample is guided by its own level
    mixed = weak(x, sigma) + 2.5 * (strong(x, sigma) - weak(x, sigma))
    expected = mixed if interval[1] == math.inf else torch.stack([mixed[0], strong(x, sigma)[1]])
    assert error(f(x, sigma), expected) < 1e-12


@pytest.mark.parametrize("name", ["adm", "edm2"])
def test_jvp_compiles(name):
    denoiser = tiny(name, channel_mult=(1,), attn_resolutions=())
    x, sigma, v, w = inputs()
    value, tangent = jvp(denoiser, (x, sigma), (v, w))
    # without a code generator, which takes minutes; what fails, fails in the tracing
    compiled = torch.compile(lambda x, s, v, w: jvp(denoiser, (x, s), (v, w)), backend="eager", fullgraph=True)
    compiled(x, sigma, v, w)
    value2, tangent2 = compiled(x, sigma, v, w)
    assert error(value2, value) < 1e-5
    assert error(tangent2, tangent) < 1e-4
    weight = denoiser.net.out_conv.weight
    (g,) = torch.autograd.grad(tangent.square().sum(), weight)
    (g2,) = torch.autograd.grad(tangent2.square().sum(), weight)
    assert error(g2, g) < 1e-4
    assert error(denoiser(x, sigma), value) < 1e-5  # nothing of the tracing is left behind
    torch.compiler.reset()


@each
def test_bfloat16_is_close(name):
    denoiser = tiny(name)
    x, sigma, v, w = inputs()
    with torch.no_grad():
        expected = denoiser(x, sigma)
        with torch.autocast("cpu", torch.bfloat16):
            assert error(denoiser(x, sigma), expected) < 0.02
        _, tangent = jvp(denoiser, (x, sigma), (v, w))
        denoiser.dtype = torch.bfloat16
        y = denoiser(x, sigma)
        assert y.dtype == torch.float32
        assert 0 < error(y, expected) < 0.02
        _, tangent2 = jvp(denoiser, (x, sigma), (v, w))
        assert error(tangent2, tangent) < 0.1


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_fused(name, dtype):
    denoiser = tiny(name, dtype=dtype)
    x, sigma, _, _ = inputs()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused = denoiser(x, sigma)
        fused.sum().backward()
    with sdpa_kernel(SDPBackend.MATH):
        assert error(fused, denoiser(x, sigma)) < (1e-5 if dtype == torch.float32 else 0.02)


@each
def test_encode_and_decode_make_forward(name):
    net = tiny(name).net
    x, _, _, _ = inputs()
    c_noise, label = torch.tensor([0.1, -0.2]), torch.tensor([0, 2])
    features = net.encode(x, c_noise, label)
    assert len(features.skips) == 4
    assert features.bottleneck.shape[2:] == (4, 4)
    assert torch.equal(net.decode(features), net(x, c_noise, label))


@each
def test_no_label_is_the_zero_vector(name):
    denoiser = tiny(name)
    x, sigma, _, _ = inputs()
    label = torch.tensor([0, 2])
    conditional, unconditional = denoiser(x, sigma, label), denoiser(x, sigma)
    with torch.no_grad():
        getattr(denoiser.net, "emb_label" if name == "edm2" else "map_label").weight.zero_()
    assert error(denoiser(x, sigma, label), unconditional) < 1e-6
    assert error(conditional, unconditional) > 1e-4


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_label_dropout_hides_labels_in_training_only(name):
    net = tiny(name, label_dropout=0.5).net
    emb = lambda label: net.embed(torch.zeros(64), label, None)  # noqa: E731
    none, all_of_it = emb(None)[0], emb(torch.ones(64, dtype=torch.int64))[0]
    torch.manual_seed(0)
    rows = net.train().embed(torch.zeros(64), torch.ones(64, dtype=torch.int64), None)
    hidden = (rows - none).abs().amax(1) < 1e-6
    assert 16 < hidden.sum() < 48
    assert (rows[~hidden] - all_of_it).abs().max() < 1e-6
    assert (all_of_it - none).abs().max() > 1e-3


def test_adm_starts_at_zero_with_unit_labels():
    net = build(ADMConfig(8, label_dim=10, model_channels=64, channel_mult=(1,), num_blocks=1, augment_dim=9))
    assert net(torch.randn(2, 3, 8, 8), torch.zeros(2)).count_nonzero() == 0
    assert net.map_label.weight.var().item() == pytest.approx(1, rel=0.1)
    assert net.map_augment.weight.count_nonzero() == 0
    bound = net.map_layer0.weight.abs().max().item()
    assert 0.95 / math.sqrt(64) < bound <= 1 / math.sqrt(64)


# --- magnitudes


def test_projection_leaves_the_function():
    denoiser = tiny("edm2")
    layers = [layer for layer in denoiser.modules() if isinstance(layer, MPConv)]
    x, sigma, _, _ = inputs()
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(torch.rand(len(layer.weight), *[1] * (layer.weight.ndim - 1)) + 0.5)
        before = denoiser(x, sigma, torch.tensor([0, 2])), denoiser.log_variance(sigma)
        gain = denoiser.net.out_gain.clone()
        for layer in layers:
            layer.project_()
        once = {k: v.clone() for k, v in denoiser.state_dict().items()}
        assert error(denoiser(x, sigma, torch.tensor([0, 2])), before[0]) < 1e-3
        assert error(denoiser.log_variance(sigma), before[1]) < 1e-3
        for layer in layers:
            assert torch.allclose(layer.weight.flatten(1).square().mean(1), torch.ones(len(layer.weight)))
            layer.project_()
    assert all(torch.allclose(v, once[k], rtol=1e-6) for k, v in denoiser.state_dict().items())
    assert torch.equal(denoiser.net.out_gain, gain)


def test_training_forward_writes_nothing():
    denoiser = tiny("edm2").train()
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    x, sigma, _, _ = inputs()
    # two passes and one backward, as adversarial losses have it
    (denoiser(x, sigma) + denoiser(x, 2 * sigma)).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())


def test_weights_are_functions_of_their_direction():
    """A weight's gradient is orthogonal to it: its length has no effect."""
    layer = MPConv(5, 7, (3, 3))
    layer(torch.randn(2, 5, 4, 4)).square().sum().backward()
    assert layer.weight.grad is not None
    along = (layer.weight * layer.weight.grad).flatten(1).sum(1)
    assert along.abs().max() < 1e-3 * layer.weight.grad.norm()


def test_magnitudes_are_preserved():
    torch.manual_seed(0)
    a, b = torch.randn(4, 100, 16, 16), torch.randn(4, 300, 16, 16)
    rms = lambda x: x.square().mean().sqrt().item()  # noqa: E731
    assert rms(mp_sum(a, torch.randn_like(a), 0.3)) == pytest.approx(1, abs=0.02)
    both = mp_cat(a, b, 0.2)
    assert rms(both) == pytest.approx(1, abs=0.02)
    ratio = both[:, 100:].square().sum().sqrt() / both[:, :100].square().sum().sqrt()
    assert ratio.item() == pytest.approx(0.2 / 0.8, abs=0.01)
    assert rms(MPConv(100, 50, (3, 3))(torch.randn(1, 100, 32, 32))[:, :, 1:-1, 1:-1]) == pytest.approx(1, abs=0.05)
    assert rms(normalize(7 * a, 1)) == pytest.approx(1, abs=1e-3)
    assert normalize(torch.zeros(2, 3), 1).count_nonzero() == 0


def test_a_new_edm2_network_returns_the_skip_connection():
    denoiser = Denoiser(EDM2UNet(TINY["edm2"]))
    x, sigma, _, _ = inputs()
    c = EDM()(sigma[:, None, None, None])
    assert torch.equal(denoiser(x, sigma), c.skip * x)


def test_the_log_variance_head():
    denoiser = tiny("edm2", dtype=torch.bfloat16)
    u = denoiser.log_variance(torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert (u.shape, u.dtype) == ((2,), torch.float32)
    assert denoiser.log_variance(torch.tensor(2.0)).item() == pytest.approx(u[1].item())
    assert denoiser.uncertainty is not None
    u.sum().backward()
    assert all(p.grad is not None for p in denoiser.uncertainty.parameters())
    with pytest.raises(ValueError, match="no log-variance head"):
        tiny("adm").log_variance(torch.tensor([1.0]))


def test_configurations_that_cannot_be():
    with pytest.raises(ValueError, match="halves the image 3 times; 20 pixels"):
        ADMConfig(20)
    with pytest.raises(ValueError, match="halves the image 3 times; 20 pixels"):
        EDM2Config(20)
    with pytest.raises(ValueError, match="no augmentation labels"):
        tiny("edm2")(torch.randn(1, 3, 8, 8), 1.0, augment=torch.zeros(1, 9))
