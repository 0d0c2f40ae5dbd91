"""Augmentation: what each operation does to pixels and to the label, and that none leaks into the label zero."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from fewstep.core.method import Batch
from fewstep.data import augment
from fewstep.data.augment import (
    FIXED_POINT,
    WIDTHS,
    AugmentPipe,
    luma_rotation,
    recolour,
    resample,
    roll_mirrored,
    rotation,
    shift,
    stretch,
)
from tests import GOLDEN

NOTHING = AugmentPipe(1.0, **dict.fromkeys(WIDTHS, 0.0))


def only(name):
    return replace(NOTHING, **{name: 1.0})


def apply(pipe, x):
    """The images after the pipe, and their labels."""
    batch = pipe(Batch(x))
    assert batch.augment is not None
    return batch.image, batch.augment


def noise(n=8, channels=3, height=16, width=16):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(n))


def smooth(n, size=32):
    """Blobs off the centre, that the filters do not change."""
    g = torch.linspace(-1, 1, size)
    return torch.exp(-((g[None] - 0.3) ** 2 + (g[:, None] + 0.2) ** 2) * 6).expand(n, 3, size, size)


def repeated(matrix, n):
    return matrix.expand(n, 3, 3)


def test_labels_have_the_columns_of_the_operations():
    assert AugmentPipe().label_dim == 9  # EDM's
    everything = AugmentPipe(1.0, **dict.fromkeys(WIDTHS, 1.0))
    assert everything.label_dim == 19
    assert [f.name for f in fields(AugmentPipe)][1:] == list(WIDTHS)
    torch.manual_seed(0)
    for pipe in (AugmentPipe(), everything, NOTHING):
        image, label, augment = pipe(Batch(noise(), classes := torch.arange(8)))
        assert augment is not None and augment.shape == (8, pipe.label_dim)
        assert image.shape == (8, 3, 16, 16)
        assert label is classes


def test_nothing_is_done_under_the_label_zero():
    """Not leaking: whoever has a zero label is untouched, and everybody else is told."""
    torch.manual_seed(0)
    x = noise(400)
    pipe = AugmentPipe(0.12)
    images, labels = apply(pipe, x)
    untouched = (labels == 0).all(1)
    changed = (images - x).flatten(1).abs().amax(1)
    assert changed[untouched].max() < 1e-5
    assert changed[~untouched].min() > 1e-3
    # half is not mirrored; each of five others is off with probability 0.88, or 0.94 for the coin of yflip
    assert untouched.float().mean().item() == pytest.approx(0.5 * 0.94 * 0.88**4, abs=0.07)


def test_p_zero_is_nothing():
    x = noise()
    images, labels = apply(AugmentPipe(0.0), x)
    assert labels.count_nonzero() == 0
    assert (images - x).abs().max() < 1e-5


def test_identity_and_whole_pixels_survive_resampling():
    for x in (noise(), noise(4, 1, 12, 20)):
        assert (resample(x, repeated(torch.eye(3), len(x))) - x).abs().max() < 2e-5
    x = noise()
    moved = resample(x, shift(torch.tensor([[-3.0, -5.0]]).expand(8, 2)))
    across, down = torch.full((8,), 3.0), torch.full((8,), 5.0)
    assert (moved - roll_mirrored(roll_mirrored(x, across, 3), down, 2)).abs().max() < 2e-5


def test_each_image_stands_alone():
    x = noise()
    matrix = repeated(torch.eye(3), 8).clone()
    matrix[1:] = rotation(torch.linspace(-3, 3, 7)) @ stretch(torch.linspace(-2, 2, 7), torch.zeros(7))
    assert torch.equal(resample(x, matrix)[:1], resample(x[:1], matrix[:1]))


def test_flips_and_turns_are_exact():
    torch.manual_seed(0)
    x = noise(64)
    for name, dim in (("xflip", 2), ("yflip", 1)):
        images, labels = apply(only(name), x)
        for image, original, label in zip(images, x, labels, strict=True):
            assert torch.equal(image, original.flip(dim) if label[0] else original)
        assert 20 < labels.sum() < 44
    images, labels = apply(only("rotate_int"), x)
    turned = {(0, 0): 0, (1, 0): 1, (1, 1): 2, (0, 1): 3}
    for image, original, label in zip(images, x, labels.int().tolist(), strict=True):
        assert torch.equal(image, torch.rot90(original, turned[tuple(label)], (1, 2)))


def test_integer_shifts_mirror_at_the_edge():
    x = torch.arange(16.0).expand(2, 1, 16, 16)
    moved = roll_mirrored(x, torch.tensor([2.0, -2.0]), 3)
    assert moved[0, 0, 0].tolist() == [2, 1, *range(14)]
    assert moved[1, 0, 0].tolist() == [*range(2, 16), 14, 13]
    torch.manual_seed(0)
    _, labels = apply(only("translate_int"), noise(64, 1, 16, 16))
    assert labels.abs().max() <= 1
    assert torch.equal(labels * 2, (labels * 2).round())  # of 16 / 8 pixels


def test_magnitudes_are_told_as_they_are():
    torch.manual_seed(0)
    x = smooth(6)
    matrix, columns = only("scale").geometry(x)
    assert torch.allclose(matrix[:, 0, 0], 2 ** (-0.2 * columns[0][:, 0]))
    assert torch.allclose(matrix[:, 0, 0], matrix[:, 1, 1])
    matrix, columns = only("rotate_frac").geometry(x)
    assert torch.allclose(matrix[:, 0, 0] - 1, columns[0][:, 0])
    assert torch.allclose(matrix[:, 1, 0], columns[0][:, 1])
    matrix, columns = only("translate_frac").geometry(x)
    assert torch.allclose(matrix[:, :2, 2], -4 * columns[0])  # 32 / 8 pixels
    matrix, columns = only("aniso").geometry(x)
    z = columns[0].norm(dim=1)
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(6), atol=1e-5)
    assert torch.allclose(torch.linalg.svdvals(matrix[:, :2, :2])[:, 0], 2 ** (0.2 * z), atol=1e-5)
    # the axis of the label, seen upwards, is stretched by 2^(0.2 z) or, for a negative z, shrunk
    axis = columns[0] / z[:, None] * torch.tensor([1.0, -1.0])
    length = torch.einsum("bij,bj->bi", matrix[:, :2, :2], axis).norm(dim=1)
    assert torch.allclose(torch.minimum(length, 1 / length), 2 ** (-0.2 * z), atol=1e-5)


def test_colours():
    torch.manual_seed(0)
    x = noise(16)
    luma = x.mean(1, keepdim=True)
    expected = {
        "brightness": lambda z: x + 0.2 * z,
        "contrast": lambda z: x * 2 ** (0.5 * z),
        "lumaflip": lambda z: x - 2 * z * luma,
        "saturation": lambda z: luma + (x - luma) * 2**z,
    }
    for name, formula in expected.items():
        images, labels = apply(only(name), x)
        assert labels.count_nonzero() > 4
        assert torch.allclose(images, formula(labels[:, :, None, None]), atol=1e-5), name
    images, _ = apply(only("hue"), x)
    assert torch.allclose(images.mean(1), x.mean(1), atol=1e-5)
    assert torch.allclose(images.square().sum(1), x.square().sum(1), atol=1e-4)
    third = luma_rotation(torch.tensor([2 * math.pi / 3]))  # turns red into green
    assert torch.allclose(recolour(x, third.expand(16, 4, 4)), x.roll(1, 1), atol=1e-5)
    grey = noise(16, 1)
    images, labels = apply(only("brightness"), grey)
    assert torch.allclose(images, grey + 0.2 * labels[:, :, None, None], atol=1e-6)
    images, labels = apply(only("lumaflip"), grey)
    assert torch.allclose(images, grey * (1 - 2 * labels[:, :, None, None]), atol=1e-6)
    for name in ("hue", "saturation"):
        assert torch.allclose(apply(only(name), grey)[0], grey, atol=1e-6)


def test_the_exact_part_has_the_same_columns():
    torch.manual_seed(0)
    x = noise(64)
    images, labels = apply(AugmentPipe(0.5).exact, x)
    assert labels.shape == (64, 9)
    assert labels[:, 2:].count_nonzero() == 0
    for image, original, label in zip(images, x, labels, strict=True):
        expected = original.flip(2) if label[0] else original
        assert torch.equal(image, expected.flip(1) if label[1] else expected)


def test_a_function_of_the_random_stream():
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(apply(AugmentPipe(0.5), noise()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    with pytest.raises(ValueError, match="from 0 to 1; got 12"):
        AugmentPipe(12)


# Reference arrays: EDM's augmentation of the same images with the same draws.

EDM_MIX = ("xflip", "yflip", "scale", "rotate_frac", "aniso", "translate_frac")
CASES = {name: (name,) for name in WIDTHS} | {"edm": EDM_MIX, "edm_all": EDM_MIX, "all": tuple(WIDTHS)}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "augment.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


class Given(AugmentPipe):
    """A pipe with the magnitudes that are given it."""

    draws: dict[str, torch.Tensor]

    def on(self, name, values):
        assert values.shape == self.draws[name].shape
        return self.draws[name].to(values.dtype)


def reference(golden, kind, case, monkeypatch):
    """The pipe of a case, the images, and what EDM makes of them."""
    prefix = f"{kind}_{case}_"
    found = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    draws = {name.removeprefix("draw_"): value for name, value in found.items() if name.startswith("draw_")}
    if "translate_int" in draws:
        draws["translate_int"] = draws.pop("translate_int_pixels")
    if "aniso" in draws:
        monkeypatch.setattr(augment, "stretch_angle", lambda x: draws["aniso_angle"])
    pipe = Given(1.0, **(dict.fromkeys(WIDTHS, 0.0) | dict.fromkeys(CASES[case], 1.0)))
    object.__setattr__(pipe, "draws", draws)
    return pipe, golden[f"{kind}_images"], found


def within_padding(size, matrix, margin):
    """Pixels (B, size, size) that EDM computes from the image and the mirror images that it pads it with alone."""
    reach = 3.0  # of the filters that halve and double the resolution, in pixels
    pixel = torch.arange(size) - (size - 1) / 2 - FIXED_POINT
    ends = (pixel[:, None] + torch.tensor([-reach, reach])).flatten()
    grid = torch.stack([ends.expand(2 * size, -1), ends[:, None].expand(-1, 2 * size), torch.ones(2 * size, 2 * size)])
    place = torch.einsum("bij,jhw->bihw", matrix[:, :2], grid) + FIXED_POINT + (size - 1) / 2
    low, high = reach - margin[:2, None, None], size - 1 - reach + margin[2:, None, None]
    inside = ((low <= place) & (place <= high)).all(1)
    return inside.unflatten(1, (size, 2)).unflatten(3, (size, 2)).all(4).all(2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["rgb", "grey"])
def test_every_operation_is_that_of_edm(golden, kind, case, monkeypatch):
    pipe, x, expected = reference(golden, kind, case, monkeypatch)
    images, labels = apply(pipe, x)
    torch.testing.assert_close(labels, expected["labels"], atol=1e-6, rtol=0)
    error = (images - expected["output"]).abs()
    if "G_inv" in expected:
        matrix, _ = pipe.geometry(x)
        torch.testing.assert_close(matrix, expected["G_inv"], atol=2e-6, rtol=1e-6)
        size, margin = x.shape[-1], expected["margin"]
        if margin.max() == size - 1:  # EDM continues with zeros beyond
            inside = within_padding(size, matrix, margin)
            assert inside.float().mean() > 0.2
            assert error.max() < 1e-3
            error = error[inside[:, None].expand_as(error)]
    if "C" in expected:
        torch.testing.assert_close(pipe.colours(x)[0], expected["C"], atol=2e-6, rtol=1e-6)
    assert error.max() < 1e-5


def test_width_and_height_play_the_same_part():
    """What EDM's square images cannot show: of a transposed image through the transposed map comes the transposed result."""
    x = noise(4, 3, 10, 17)
    swap = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    matrix = rotation(torch.linspace(-3, 3, 4)) @ shift(torch.randn(4, 2)) @ stretch(torch.ones(4), -torch.ones(4) / 2)
    error = (resample(x.mT, swap @ matrix @ swap).mT - resample(x, matrix)).abs().max()
    assert error < 1e-5
    torch.manual_seed(0)
    pipe = AugmentPipe(1.0, **(dict.fromkeys(WIDTHS, 0.0) | {"translate_frac": 1.0}))
    matrix, (z,) = pipe.geometry(x)
    torch.testing.assert_close(matrix[:, :2, 2], -z * torch.tensor([17 / 8, 10 / 8]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_places_are_not_rounded_to_the_precision_of_images(dtype):
    x = noise(4, 3, 64, 64).to(dtype)
    matrix = rotation(torch.linspace(-3, 3, 4))
    expected = resample(x.float(), matrix)
    found = resample(x, matrix)
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() <= 2 * max(torch.finfo(dtype).eps, 5e-6) * expected.abs().max()


def test_images_of_one_row_cannot_be_resampled():
    with pytest.raises(ValueError, match="at least 2 x 2 pixels; got 16 x 1"):
        resample(noise(1, 3, 1, 16), torch.eye(3)[None])
