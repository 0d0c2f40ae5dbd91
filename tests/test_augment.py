"""Augmentation: what each operation does to pixels and to the label, and that none leaks into the label zero."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from fewstep.data.augment import (
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
from fewstep.method import Batch

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


def test_maps_go_from_the_result_to_the_image():
    x = smooth(1)
    for turns in (1, 2, 3):
        turned = resample(x, rotation(torch.tensor([turns * math.pi / 2])))
        assert (turned - torch.rot90(x, turns, (2, 3))).abs().max() < 0.09
    # the map of an enlargement to twice the size halves coordinates
    large = resample(x, stretch(torch.tensor([-1.0]), torch.tensor([-1.0])))
    assert (large[0, 0, 8:24:2, 8:24:2] - x[0, 0, 12:20, 12:20]).abs().max() < 0.1
    wide = resample(x, stretch(torch.tensor([-1.0]), torch.tensor([0.0])))
    assert (wide[0, 0, :, 8:24:2] - x[0, 0, :, 12:20]).abs().max() < 0.1


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
    with pytest.raises(ValueError, match="need RGB"):
        apply(only("hue"), grey)


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
