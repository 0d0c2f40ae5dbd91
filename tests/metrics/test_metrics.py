"""Distances and scores, against closed forms, independent formulas, and numbers of the field's libraries."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.metrics import distribution
from fewstep.metrics.distribution import (
    LowRank,
    Moments,
    Samples,
    ScoreSums,
    frechet_at_infinity,
    frechet_distance,
    kernel_distance,
    moments_of,
)
from fewstep.metrics.image import measures, psnr, ssim
from fewstep.metrics.neighbours import overlap, radii
from fewstep.metrics.pairs import evaluate_pairs


def gaussian(seed: int, dim: int, rank: int):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, rank, generator=g, dtype=torch.float64)
    return torch.randn(dim, generator=g, dtype=torch.float64), root @ root.T / rank


@given(seed=st.integers(0, 1000), dim=st.integers(1, 12), share=st.floats(0.1, 1.5))
@settings(max_examples=40, deadline=None)
def test_frechet_distance_laws(seed, dim, share):
    a, b = (gaussian(seed + i, dim, max(1, int(share * dim))) for i in range(2))
    d = frechet_distance(*a, *b)
    scale = float(torch.trace(a[1]) + torch.trace(b[1]))
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-12 * scale)
    assert frechet_distance(*b, *a) == pytest.approx(d, rel=1e-10, abs=1e-12 * scale)
    q = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    rotated = [(q @ m, q @ s @ q.T) for m, s in (a, b)]
    assert frechet_distance(*rotated[0], *rotated[1]) == pytest.approx(d, rel=1e-8, abs=1e-10 * scale)


def test_frechet_distance_of_known_gaussians():
    mean, cov = torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 0.0]).double())
    other = torch.tensor([1.0, 2.0, 2.0]).double(), torch.diag(torch.tensor([9.0, 1.0, 0.25]).double())
    expected = 9 + (1 - 3) ** 2 + (2 - 1) ** 2 + 0.5**2
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    assert frechet_distance(mean, cov, *other) == pytest.approx(expected, rel=1e-12)
    rotated = frechet_distance(q @ mean, q @ cov @ q.T, q @ other[0], q @ other[1] @ q.T)
    assert rotated == pytest.approx(expected, rel=1e-10)
    nothing = torch.zeros(3, 3).double()
    assert frechet_distance(mean, nothing, *other) == pytest.approx(9 + 10.25, rel=1e-12)
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        frechet_distance(mean, cov, mean[:2], cov[:2, :2])
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mean, cov * torch.nan, *other)


@pytest.mark.parametrize("small_side", [512, 4])
def test_frechet_distance_agrees_with_the_matrix_root(monkeypatch, small_side):
    monkeypatch.setattr(distribution, "SMALL_SIDE", small_side)
    (ma, sa), (mb, sb) = gaussian(0, 40, 60), gaussian(1, 40, 60)
    root = np.real(np.asarray(scipy.linalg.sqrtm(sa.numpy() @ sb.numpy())))
    expected = float((ma - mb).square().sum() + torch.trace(sa + sb)) - 2 * np.trace(root)
    assert frechet_distance(ma, sa, mb, sb) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("small_side", [512, 4])
@pytest.mark.parametrize(("n", "m"), [(30, 20), (30, 400), (100, 60), (101, 101)])
def test_frechet_distance_of_fewer_images_than_dimensions(monkeypatch, small_side, n, m):
    """Independent: with centred features X (n, D) the root's trace is |X Y^T|_* / sqrt((n - 1) (m - 1))."""
    monkeypatch.setattr(distribution, "SMALL_SIDE", small_side)
    draw = np.random.RandomState(0)
    scales = np.logspace(0, -3, 100)
    x, y = draw.standard_normal((n, 100)) * scales, draw.standard_normal((m, 100)) @ np.diag(scales[::-1]) + 0.1
    mx, my = x.mean(0), y.mean(0)
    nuclear = np.linalg.svd((x - mx) @ (y - my).T, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    expected = ((mx - my) ** 2).sum() + x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum() - 2 * nuclear
    a, b = (Moments.of(torch.from_numpy(v)).compute() for v in (x, y))
    assert frechet_distance(*a, *b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(*b, *a) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("small_side", [512, 4])
@pytest.mark.parametrize(("n", "m"), [(30, 20), (30, 400), (400, 30), (99, 100)])
def test_factors_of_covariances_give_the_distance_of_the_covariances(monkeypatch, small_side, n, m):
    """Of fewer images than dimensions, on one side or on both: as the covariances themselves, and far from the origin."""
    draw = np.random.RandomState(1)
    x, y = (torch.from_numpy(draw.standard_normal((k, 100)) * np.logspace(0, -1, 100)) for k in (n, m))
    low, dense = [moments_of(v) for v in (x, y)], [Moments.of(v).compute() for v in (x, y)]
    assert [isinstance(cov, LowRank) for _, cov in low] == [n <= 100, m <= 100]
    for (mean, cov), (exact, whole) in zip(low, dense, strict=True):
        assert torch.allclose(mean, exact, rtol=1e-12)
        assert torch.allclose(cov.dense() if isinstance(cov, LowRank) else cov, whole, rtol=1e-9, atol=1e-12)
    expected = frechet_distance(*dense[0], *dense[1])
    monkeypatch.setattr(distribution, "SMALL_SIDE", small_side)
    for shift in (0, 3):
        a, b = moments_of(x + shift), moments_of(y + shift)
        assert frechet_distance(*a, *b) == pytest.approx(expected, rel=1e-10)
        assert frechet_distance(*b, *a) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(*low[0], *low[0]) == pytest.approx(0, abs=1e-10)


def test_moments_stream():
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    parts = Moments(5)
    for piece in x.split([1, 60, 39]):
        parts.update(piece)
    mean, cov = parts.compute()
    assert torch.allclose(mean, x.mean(0), rtol=1e-12)
    assert torch.allclose(cov, torch.cov(x.T), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        Moments.of(x[:1]).compute()


def test_samples_keep_the_order():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    kept = Samples(7, 3)
    for piece in x.split([2, 4, 1]):
        kept.update(piece)
    kept.merge_ranks()
    assert torch.equal(kept.compute(), x)


def features():
    draw = np.random.RandomState(0)
    return (
        torch.from_numpy(v) for v in (draw.standard_normal((1300, 16)), draw.standard_normal((1200, 16)) * 0.9 + 0.2)
    )


def test_kernel_distance_is_torch_fidelitys():
    a, b = features()
    found = kernel_distance(a, b, subsets=10, size=500)
    assert found == pytest.approx((0.12649614172465626, 0.010418243382643178), rel=1e-9)
    found = kernel_distance(a[:90], b[:80])  # subsets of all 80
    assert found == pytest.approx((0.1838362831751477, 0.01636896134909579), rel=1e-9)
    with pytest.raises(ValueError, match="at least 2 images of each set; got 1 and"):
        kernel_distance(a[:1], b)
    with pytest.raises(ValueError, match="16 and 3 dimensions"):
        kernel_distance(a, b[:, :3])


def test_kernel_distance_has_no_bias():
    """Of two sets from one law it is zero on average, unlike the Frechet distance."""
    x = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, deviation = kernel_distance(x[:2000], x[2000:], subsets=50, size=200)
    assert abs(mean) < 0.5 * deviation


@pytest.mark.parametrize("tile", [(1024, 4096), (100, 77)])
def test_overlap_is_that_of_prdc(monkeypatch, tile):
    monkeypatch.setattr("fewstep.metrics.neighbours.ROWS", tile[0])
    monkeypatch.setattr("fewstep.metrics.neighbours.COLUMNS", tile[1])
    a, b = features()
    found = overlap(a, b, (3, 5))
    three, five = found[3], found[5]
    assert overlap(a, b, [3])[3] == three
    found = (three.precision, three.recall, five.density, five.coverage)
    expected = (0.8791666666666667, 0.6238461538461538, 1.3571666666666669, 0.9623076923076923)
    assert found == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="more than 3 images; got 3"):
        radii(a[:3], 3)


def test_overlap_on_a_line():
    real, fake = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([[0.5], [1.5], [100.0]])
    found = overlap(real, fake, [1])[1]  # radii: 1, 1, 1, 8 and 1, 1, 98.5
    assert found.precision == pytest.approx(2 / 3)  # 100 is in no ball
    assert found.recall == 1  # the ball of 100 reaches from 1.5 on
    assert found.density == pytest.approx((2 + 2) / 3)  # 1.5 - 10 is 8.5
    assert found.coverage == pytest.approx(3 / 4)
    same = overlap(real, real, [1])[1]
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_inception_score_is_torch_fidelitys():
    logits = torch.from_numpy(np.random.RandomState(1).standard_normal((123, 7)) * 3)  # 10 splits of 12 and 13
    for size in (123, 10):
        sums = ScoreSums(123, 7)
        for start in range(0, 123, size):
            sums.update(logits[start : start + size], torch.arange(start, min(start + size, 123)))
        assert sums.compute() == pytest.approx((2.6437760282076033, 0.19862477648151425), rel=1e-12)
    sure = ScoreSums(20, 2)
    sure.update(torch.tensor([[1e6, -1e6], [-1e6, 1e6]]).repeat(10, 1), torch.arange(20))
    assert sure.compute() == pytest.approx((2, 0))
    with pytest.raises(ValueError, match="10 splits .* got 9"):
        ScoreSums(9, 7)


def test_frechet_at_infinity_takes_the_bias_away():
    """Features of the reference's own law: the distance is about a / n, what is extrapolated nearly zero."""
    x = torch.randn(3000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, cov = torch.zeros(20).double(), torch.eye(20).double()
    plain = frechet_distance(*Moments.of(x).compute(), mean, cov)
    assert plain > 0.03
    assert abs(frechet_at_infinity(x, mean, cov)) < 0.1 * plain
    with pytest.raises(ValueError, match="at least 150 images; got 100"):
        frechet_at_infinity(x[:100], mean, cov)


def pairs(size):
    draw = np.random.RandomState(2)
    x = torch.from_numpy(draw.randint(0, 256, (2, 3, *size))).to(torch.uint8)
    return x, (x.float() * 0.9 + torch.from_numpy(draw.uniform(0, 20, x.shape))).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("size", "structure", "ratio"),
    [
        ((32, 40), [0.9903612, 0.99064776], [28.022644, 28.126231]),
        ((300, 400), [0.99063486, 0.99064958], [28.173336, 28.182713]),
    ],
)
def test_pairs_are_measured_as_by_piq(size, structure, ratio):
    a, b = pairs(size)
    assert ssim(a, b).tolist() == pytest.approx(structure, rel=1e-6)
    assert psnr(a, b).tolist() == pytest.approx(ratio, rel=1e-6)
    scaled = [x.double() / 127.5 - 1 for x in (a, b)]
    assert ssim(scaled[0], scaled[1]).tolist() == pytest.approx(structure, rel=1e-6)
    assert psnr(a, a).tolist() == pytest.approx([80, 80])
    assert ssim(a, a).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("window", [7, 11])
def test_ssim_by_its_formula(window: int):
    """With the means of SciPy's Gaussian filter, cut off where the window leaves the image."""
    a, b = (x[0, 0].double().numpy() / 255 for x in pairs((32, 40)))

    def blur(x):
        radius = window // 2
        return scipy.ndimage.gaussian_filter(x, 1.5, radius=radius)[radius:-radius, radius:-radius]

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    index = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    compute = measures(["ssim"] if window == 11 else ["ssim_7"]).popitem()[1]
    found = compute(*(torch.from_numpy(2 * x - 1)[None, None] for x in (a, b)))
    assert found.tolist() == pytest.approx([index.mean()], rel=1e-10)


def test_evaluate_pairs():
    a, b = pairs((32, 40))
    results = evaluate_pairs([(a[:1], b[:1]), (a[1:], b[1:])], measures(["psnr", "ssim"]), protocol={"task": "blur"})
    assert [r.metric for r in results] == ["psnr", "ssim"]
    assert results[0].value == pytest.approx(float(psnr(a, b).mean()))
    assert results[1].n == 2 and "piq" in results[1].protocol["settings"]["convention"]
    assert results[0].protocol["task"] == "blur"
    with pytest.raises(ValueError, match="no metric of pairs is called 'fid'"):
        measures(["fid"])
    with pytest.raises(ValueError, match="no pairs"):
        evaluate_pairs([], measures(["psnr"]))
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:, :1])
    with pytest.raises(ValueError, match="window of 11x11, odd and within the images, which are 8x8"):
        ssim(a[:, :, :8, :8], b[:, :, :8, :8])
    with pytest.raises(ValueError, match="finite numbers"):
        psnr(a.float() * torch.nan, b.float())
    with pytest.raises(ValueError, match="pair 1 is not finite"):
        evaluate_pairs([(a, b)], {"psnr": lambda a, b: torch.tensor([1.0, torch.nan])})
