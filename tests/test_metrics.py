import json

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.data import digits
from fewstep.metrics.distribution import Moments, frechet_distance
from fewstep.metrics.evaluate import evaluate


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
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-7 * scale)
    assert frechet_distance(*b, *a) == pytest.approx(d, rel=1e-8, abs=1e-7 * scale)
    q = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    rotated = [(q @ m, q @ s @ q.T) for m, s in (a, b)]
    assert frechet_distance(*rotated[0], *rotated[1]) == pytest.approx(d, rel=1e-7, abs=1e-7 * scale)


def test_frechet_distance_of_known_gaussians():
    mean, cov = torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 0.0]).double())
    other = torch.tensor([1.0, 2.0, 2.0]).double(), torch.diag(torch.tensor([9.0, 1.0, 0.25]).double())
    assert frechet_distance(mean, cov, *other) == pytest.approx(9 + (1 - 3) ** 2 + (2 - 1) ** 2 + 0.5**2, rel=1e-12)


def test_frechet_distance_agrees_with_the_matrix_root():
    (ma, sa), (mb, sb) = gaussian(0, 40, 60), gaussian(1, 40, 60)
    root = scipy.linalg.sqrtm(sa.numpy() @ sb.numpy()).real
    expected = float((ma - mb).square().sum() + torch.trace(sa + sb)) - 2 * np.trace(root)
    assert frechet_distance(ma, sa, mb, sb) == pytest.approx(expected, rel=1e-8)


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


def test_evaluate_carries_its_protocol():
    data = digits()
    half = [data[i] for i in range(0, len(data), 2)]
    [result] = evaluate(half, data, protocol={"seeds": "0-9"})
    assert result.metric == "fd_pixels"
    assert 0.05 < result.value < 0.12  # half of the set against all of it
    assert (result.n, result.protocol["seeds"]) == (len(half), "0-9")
    assert result.protocol["reference"] == {"name": "digits", "n": 1797, "sha256": data.fingerprint}
    assert "biased upwards" in result.protocol["note"]
    json.dumps(result.asdict(), allow_nan=False)
    [zero] = evaluate((data[i] for i in range(len(data))), data)
    assert zero.value == pytest.approx(0, abs=1e-6)  # roots of rounding, for constant pixels
    with pytest.raises(ValueError, match="compare images of one size"):
        evaluate([np.zeros((1, 4, 4), np.uint8)] * 3, data)
    with pytest.raises(ValueError, match="at least 2 generated images; got 0"):
        evaluate([], data)
