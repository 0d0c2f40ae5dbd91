# pyright: reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# Stand-ins for extractors and modules, wrong inputs on purpose: these tests are not typed more closely.
"""One pass for all metrics: names, protocols, references, sources, ranks, costs, and the mistakes it names."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from fewstep.data import ImageData, digits
from fewstep.metrics import cost
from fewstep.metrics.catalog import Metric, parse
from fewstep.metrics.cost import check_cost
from fewstep.metrics.distribution import Moments, frechet_distance, kernel_distance
from fewstep.metrics.evaluation import Options, evaluate, make_reference
from fewstep.metrics.extractors import NETWORKS, FeatureNetwork, PixelFeatures, UserExtractor, extractor
from fewstep.metrics.neighbours import overlap
from fewstep.metrics.protocol import (
    MetricResult,
    check_comparable,
    compare,
    differences,
    markdown,
    read_results,
    repeat_seeds,
    summarize,
    write_results,
)
from fewstep.metrics.references import ReferenceData, load_reference, save_reference
from fewstep.metrics.sources import ImageSource, first, from_function, from_path, open_pairs, open_set, prefetched
from fewstep.metrics.statistics import Statistics

METRICS = ("fd_tiny", "fd_tiny@100", "kd_tiny", "is_tiny/logits", "pr_tiny", "dc_tiny")
REAL = ImageData(np.random.RandomState(0).randint(0, 256, (150, 3, 8, 8), np.uint8), name="real")
FAKE = np.random.RandomState(1).randint(0, 220, (120, 3, 8, 8), np.uint8)


class Tiny:
    """Five features, four logits."""

    name, sha256, resize = "tiny", "00ff", "none"

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += len(images)
        x = images.double().flatten(1) / 255
        return {"features": x @ torch.linspace(-1, 1, 192 * 5).sin().view(192, 5).double(), "logits": x[:, :4] * 3}


def options(**changes):
    return replace(Options(METRICS, {"tiny": Tiny()}, batch_size=32), **changes)


def values(results):
    return {r.key: r.value for r in results}


def test_all_metrics_in_one_pass():
    chosen = options()
    results = evaluate(list(FAKE), REAL, chosen, protocol={"model": "m"})
    extract = Tiny()
    fake, real = (extract(torch.tensor(x))["features"] for x in (FAKE, REAL.decoded()))
    both = [Moments.of(x).compute() for x in (fake, real)]
    hundred = Moments.of(fake[:100]).compute()
    three, five = overlap(real, fake, (3, 5)).values()
    expected = {
        "fd_tiny@120": frechet_distance(*both[0], *both[1]),
        "fd_tiny@100": frechet_distance(*hundred, *both[1]),
        "kd_tiny@120": kernel_distance(fake, real)[0],
        "precision_tiny@120": three.precision,
        "recall_tiny@120": three.recall,
        "density_tiny@120": five.density,
        "coverage_tiny@120": five.coverage,
    }
    found = values(results)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5), key
    assert set(found) == {*expected, "kd_tiny_std@120", "is_tiny/logits@120", "is_tiny/logits_std@120"}
    assert chosen.extractors["tiny"].calls == len(FAKE) + len(REAL)  # each image once, for all metrics
    protocol = results[0].protocol
    assert protocol["model"] == "m"
    assert protocol["extractor"] == {"name": "tiny", "sha256": "00ff", "part": "features", "resize": "none"}
    assert protocol["reference"] == {"name": "real", "n": 150, "sha256": REAL.fingerprint}
    assert "biased upwards" in protocol["note"]
    json.dumps([r.asdict() for r in results], allow_nan=False)
    # Neither the batch nor the other metrics change a figure.
    small = evaluate(list(FAKE), REAL, options(batch_size=7))
    assert values(small) == pytest.approx(found, rel=1e-6)
    [alone] = evaluate(list(FAKE), REAL, options(metrics=("fd_tiny",)))
    assert alone.value == pytest.approx(found["fd_tiny@120"], rel=1e-9)


def test_pixels_need_no_network():
    data = digits()
    half = [data[i] for i in range(0, len(data), 2)]
    [result] = evaluate(half, data, protocol={"seeds": "0-9"})
    assert result.metric == "fd_pixels"
    assert 0.05 < result.value < 0.12  # half of the set against all of it
    assert (result.n, result.protocol["seeds"]) == (len(half), "0-9")
    assert result.protocol["reference"] == {"name": "digits", "n": 1797, "sha256": data.fingerprint}
    [zero] = evaluate((data[i] for i in range(len(data))), data)
    assert zero.value == pytest.approx(0, abs=1e-9)


def test_extrapolation_is_added_on_request():
    results = evaluate(list(np.repeat(FAKE, 2, 0)), REAL, options(metrics=("fd_tiny",), extrapolate=True))
    assert [r.metric for r in results] == ["fd_tiny", "fd_tiny_infinity"]
    assert results[1].protocol["extrapolated"] and "note" not in results[1].protocol


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fid", Metric("fid", "frechet", "inception")),
        ("fid@2k", Metric("fid", "frechet", "inception", limit=2000)),
        ("fid50k_full", Metric("fid", "frechet", "inception", limit=50_000)),
        ("kid50k_full", Metric("kid", "kernel", "inception", limit=50_000)),
        ("is50k", Metric("is", "score", "inception", "logits", limit=50_000)),
        ("pr50k3_full", Metric("pr3", "overlap", "inception", k=3, limit=50_000)),
        ("pr", Metric("pr", "overlap", "inception", k=3)),
        ("dc", Metric("dc", "cover", "inception", k=5)),
        ("pr5_dinov2@1000", Metric("pr5_dinov2", "overlap", "dinov2", k=5, limit=1000)),
        ("sfid", Metric("sfid", "frechet", "inception", "spatial")),
        ("clip_fid", Metric("clip_fid", "frechet", "clip")),
        ("fd_dinov2", Metric("fd_dinov2", "frechet", "dinov2")),
        ("kd_my_features", Metric("kd_my_features", "kernel", "my_features")),
    ],
)
def test_names_of_metrics(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["fd", "fidd", "fid@", "fid@0k", "fid@2m", "fid5", "pr0", "", "fd_a/logits", "is_a"])
def test_names_of_no_metric(text):
    with pytest.raises(ValueError, match="no metric is called|number of images is written|at least 1"):
        parse(text)


@pytest.mark.parametrize(
    ("metrics", "n", "says"),
    [
        (("fd_tiny",), 1, "fd_tiny needs at least 2 generated images; got 1"),
        (("is_tiny/logits",), 9, "is_tiny/logits needs at least 10 generated images; got 9"),
        (("pr5_tiny",), 5, "pr5_tiny needs at least 6 generated images; got 5"),
        (("fd_tiny@2k",), 120, "fd_tiny@2k needs at least 2,000 generated images; got 120"),
        (("fd_none",), 120, "no extractor is called 'none'"),
        ((), 120, "no metric"),
    ],
)
def test_mistakes_show_before_anything_is_computed(metrics, n, says):
    def never():
        raise AssertionError("an image was made")

    with pytest.raises(ValueError, match=says):
        evaluate(ImageSource(n, never), REAL, options(metrics=metrics))


def test_weights_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("FEWSTEP_ASSETS", str(tmp_path))
    says = (
        r"inception-2015-12-05.safetensors, which are missing; run: fewstep assets fetch inception-2015-12-05.*6726825d"
    )
    with pytest.raises(ValueError, match=says):
        evaluate(list(FAKE), REAL, Options(("fid",)))


def test_features_that_are_not_finite_are_traced_to_their_image():
    def broken(images):
        features = images.double().mean((2, 3))
        features[images[:, 0, 0, 0] == 255] = torch.nan
        return features

    extractors = {"broken": UserExtractor(broken, name="broken", sha256="")}
    made = FAKE.copy()
    made[:, 0, 0, 0] = 0
    made[77, 0, 0, 0] = 255
    source = from_function(lambda seeds: made[[s - 1000 for s in seeds]], range(1000, 1120))
    with pytest.raises(ValueError, match="broken features of the image of seed 1077 are not finite"):
        evaluate(source, REAL, options(metrics=("fd_broken",), extractors=extractors))


def test_shapes_that_do_not_fit():
    data = digits()
    with pytest.raises(ValueError, match="16 numbers, those of the reference digits 64; compare images of one size"):
        evaluate([np.zeros((1, 4, 4), np.uint8)] * 3, data)
    for size in (1, 32):  # also where each batch is of one shape
        with pytest.raises(ValueError, match="several shapes"):
            evaluate([FAKE[0], FAKE[0, :, :4]], REAL, options(metrics=("fd_pixels",), batch_size=size))
    with pytest.raises(ValueError, match="needs to know the number of images"):
        evaluate(iter(FAKE), REAL, options())
    flat = UserExtractor(lambda images: images.double().mean((1, 2, 3)), name="flat", sha256="")
    with pytest.raises(ValueError, match=r"must give features \(B, D\), here \(32, D\); got \(32,\)"):
        evaluate(list(FAKE), REAL, options(metrics=("fd_flat",), extractors={"flat": flat}))


# References


def test_references_survive_their_file(tmp_path):
    reference = make_reference(REAL, options())
    save_reference(reference, tmp_path / "real.npz")
    with np.load(tmp_path / "real.npz") as data:
        about = json.loads(str(data["about"]))
    assert "for Frechet distances" in about["arrays"]["moments/tiny/features"]
    assert about["extractors"] == {"tiny": "00ff"}
    found = load_reference(tmp_path / "real.npz")
    assert (found.name, found.n, found.sha256) == ("real", 150, REAL.fingerprint)
    chosen = options()
    a, b = evaluate(list(FAKE), REAL, options()), evaluate(list(FAKE), found, chosen)
    assert values(a) == values(b)
    assert [r.protocol for r in a] == [r.protocol for r in b]
    assert chosen.extractors["tiny"].calls == len(FAKE)
    other = Tiny()
    other.sha256 = "ee"
    with pytest.raises(ValueError, match=r"made with the tiny extractor 00ff\.\.\., and this one is ee"):
        evaluate(list(FAKE), found, options(extractors={"tiny": other}))
    with pytest.raises(ValueError, match="no statistics to write"):
        save_reference(ReferenceData.of(REAL), tmp_path / "x.npz")


def test_a_reference_says_what_it_serves(tmp_path):
    save_reference(make_reference(REAL, options(metrics=("fd_tiny",))), tmp_path / "real.npz")
    found = load_reference(tmp_path / "real.npz")
    with pytest.raises(
        ValueError, match="lacks the statistics for kd_tiny, pr_tiny, dc_tiny: it has moments of tiny/features"
    ):
        evaluate(list(FAKE), found, options())
    wide = {("tiny", "features"): (torch.zeros(7).double(), torch.eye(7).double())}
    with pytest.raises(ValueError, match="have 5 numbers, those of the reference wide 7"):
        evaluate(list(FAKE), ReferenceData("wide", "", 9, wide), options(metrics=("fd_tiny",)))


def test_edms_reference_is_for_fid(tmp_path):
    cov = np.eye(2048)
    np.savez(tmp_path / "cifar10.npz", mu=np.ones(2048), sigma=cov)
    found = load_reference(tmp_path / "cifar10.npz")
    mean, read = found.moments["inception", "features"]
    assert torch.equal(read, torch.from_numpy(cov)) and mean.dtype == torch.float64
    assert (found.n, found.extractors) == (None, {"inception": None})
    np.savez(tmp_path / "bad.npz", mu=np.ones(3), sigma=np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(3, 2\)"):
        _ = load_reference(tmp_path / "bad.npz").moments["inception", "features"]
    np.savez(tmp_path / "nan.npz", mu=np.ones(3), sigma=np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        _ = load_reference(tmp_path / "nan.npz").moments["inception", "features"]
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match=r"expected mu and sigma \(EDM\), arr_0 \(ADM\)"):
        load_reference(tmp_path / "other.npz")
    np.savez(tmp_path / "code.npz", about=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="expected a reference"):
        load_reference(tmp_path / "code.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adms_reference_has_a_part_for_each_metric(tmp_path, save):
    """mu and sigma are of the whole set, for FID; arr_0 is a sample of it, for what needs single images."""
    images = REAL.decoded().transpose(0, 2, 3, 1)
    law = {"mu": np.arange(5.0), "sigma": np.eye(5), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    save(tmp_path / "batch.npz", arr_0=images, **law)
    found = load_reference(tmp_path / "batch.npz")
    assert found.images is not None and np.array_equal(found.images[3], REAL[3])
    assert set(found.moments) == {("inception", "features"), ("inception", "spatial")}
    extract = Tiny()
    chosen = Options(("fid", "pr", "kid"), {"inception": extract})
    results = values(evaluate(list(FAKE), found, chosen))
    fake = extract(torch.from_numpy(FAKE))["features"]
    mean, cov = Moments.of(fake).compute()
    law = torch.arange(5.0).double(), torch.eye(5).double()
    assert results["fid@120"] == pytest.approx(frechet_distance(mean, cov, *law), rel=1e-6)
    real = extract(torch.tensor(REAL.decoded()))["features"]
    assert results["precision@120"] == overlap(real, fake, [3])[3].precision


# The precision of features


class Small(nn.Module):
    """Twelve features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, bias=False)
        self.conv.weight.data = torch.linspace(-20, 20, 12 * 27).sin().view(12, 3, 3, 3)

    def forward(self, images):
        return {"features": self.conv(images / 255).relu().mean((2, 3), dtype=torch.float32)}


def small(folder=None, dtype=torch.float32):
    return FeatureNetwork("inception", Small(), torch.Tensor.float, resize="none", sha256="00ff", dtype=dtype)


@pytest.fixture
def fid(monkeypatch):
    """Options for the small network by its precision."""
    monkeypatch.setitem(NETWORKS, "inception", small)
    return {dtype: Options(("fid",), batch_size=32, feature_dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}


def test_figures_say_the_precision_of_their_features(fid):
    full, low = (evaluate(list(FAKE), REAL, options)[0] for options in fid.values())
    assert full.value != low.value == pytest.approx(full.value, rel=0.02)
    extractor = {"name": "inception", "sha256": "00ff", "part": "features", "resize": "none"}
    assert full.protocol["extractor"] == extractor
    assert low.protocol == full.protocol | {"extractor": extractor | {"dtype": "bfloat16"}}
    assert differences(full, full) == [] and len(differences(full, low)) == 1
    with pytest.warns(UserWarning, match="fid cannot be compared; they differ in extractor: .*dtype bfloat16"):
        check_comparable([full, low])


def test_features_of_one_image_in_two_precisions():
    """The distance of the features of one set of images to themselves in the other precision is next to nothing."""
    images = torch.from_numpy(FAKE)
    laws = [Moments.of(small(dtype=dtype)(images)["features"]).compute() for dtype in (torch.float32, torch.bfloat16)]
    real = Moments.of(small()(torch.tensor(REAL.decoded()))["features"]).compute()
    assert 0 < frechet_distance(*laws[0], *laws[1]) < 1e-3 * frechet_distance(*laws[0], *real)


def test_references_of_another_precision_are_refused(fid, tmp_path):
    full, low = fid.values()
    for name, used in (("full", full), ("low", low)):
        save_reference(make_reference(REAL, used), tmp_path / f"{name}.npz")
    made_full, made_low = (load_reference(tmp_path / f"{name}.npz") for name in ("full", "low"))
    assert (made_full.extractors, made_low.extractors) == ({"inception": "00ff"}, {"inception": "00ff in bfloat16"})
    for reference, used in ((made_full, full), (made_low, low)):
        assert values(evaluate(list(FAKE), reference, used)) == values(evaluate(list(FAKE), REAL, used))
    with pytest.raises(
        ValueError, match=r"extractor 00ff\.\.\. in bfloat16, and this one is 00ff\.\.\.; .* same precision"
    ):
        evaluate(list(FAKE), made_low, full)
    with pytest.raises(
        ValueError, match=r"extractor 00ff\.\.\., and this one is 00ff\.\.\. in bfloat16; .* same precision"
    ):
        evaluate(list(FAKE), made_full, low)
    mean, cov = made_full.moments["inception", "features"]
    np.savez(tmp_path / "edm.npz", mu=mean, sigma=cov)
    [result] = evaluate(list(FAKE), load_reference(tmp_path / "edm.npz"), low)  # says nothing of what made it
    assert result.protocol["extractor"]["dtype"] == "bfloat16"


def test_a_precision_for_no_network_is_refused(fid):
    with pytest.raises(
        ValueError, match="features in bfloat16 .* inception, clip, dinov2 .* need pixels, tiny, with no"
    ):
        evaluate(list(FAKE), REAL, options(metrics=("fd_pixels", "fd_tiny"), feature_dtype=torch.bfloat16))
    both = options(metrics=("fd_tiny", "fid"), feature_dtype=torch.bfloat16)
    tiny, low = evaluate(list(FAKE), REAL, both)
    assert "dtype" not in tiny.protocol["extractor"] and low.protocol["extractor"]["dtype"] == "bfloat16"
    opened = replace(both, extractors=both.open_extractors(both.parsed()))  # beforehand, as for many evaluations
    assert values(evaluate(list(FAKE), REAL, opened)) == values([tiny, low])


# Sources


def folder(path, images):
    path.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(path / f"{i:03d}.png")
    return path


def test_every_source_gives_the_same_figures(tmp_path):
    folder(tmp_path / "fake", FAKE)
    with zipfile.ZipFile(tmp_path / "fake.zip", "w") as archive:
        for file in (tmp_path / "fake").iterdir():
            archive.write(file, file.name)
    np.savez(tmp_path / "fake.npz", arr_0=FAKE.transpose(0, 2, 3, 1))
    expected = values(evaluate(list(FAKE), REAL, options()))
    np.savez_compressed(tmp_path / "chw.npz", images=FAKE)
    with tarfile.open(tmp_path / "fake.tar", "w") as archive:
        for file in sorted((tmp_path / "fake").iterdir()):
            archive.add(file, file.name)
    for name in ("fake", "fake.zip", "fake.npz", "chw.npz", "fake.tar"):
        source = from_path(tmp_path / name)
        assert source.protocol["rounding"] == "as stored"
        assert values(evaluate(source, REAL, options())) == expected, name
    made = from_function(lambda seeds: torch.from_numpy(FAKE[list(seeds)]), range(120), batch_size=50)
    assert values(evaluate(made, REAL, options())) == expected
    assert from_path(tmp_path / "fake").name(7).endswith("fake/007.png")
    with pytest.raises(ValueError, match=r"expected 120 images uint8 .* got float64"):
        evaluate(
            from_function(lambda seeds: np.zeros((len(seeds), 3, 8, 8)), range(120), batch_size=120), REAL, options()
        )


def test_the_first_images_of_a_source(tmp_path):
    source = first(from_path(folder(tmp_path / "fake", FAKE)), 100)
    found = evaluate(source, REAL, options(metrics=("fd_tiny",)))
    assert values(found) == values(evaluate(list(FAKE), REAL, options(metrics=("fd_tiny@100",))))
    assert len(list(source.make())) == 100
    with pytest.raises(ValueError, match="121 images are asked for; there are 120"):
        first(from_path(tmp_path / "fake"), 121)


def test_pairs_are_found_by_name(tmp_path):
    folder(tmp_path / "a", FAKE[:3])
    folder(tmp_path / "b", FAKE[3:6])
    one, other = open_pairs(tmp_path / "a", tmp_path / "b")
    assert np.array_equal(one[1], FAKE[1]) and np.array_equal(other[1], FAKE[4])
    (tmp_path / "b" / "002.png").rename(tmp_path / "b" / "004.png")
    with pytest.raises(ValueError, match="only one has 002, 004"):
        open_pairs(tmp_path / "a", tmp_path / "b")
    Image.fromarray(FAKE[0].transpose(1, 2, 0)).save(tmp_path / "b" / "000.bmp")
    with pytest.raises(ValueError, match="b: 000 is the name of two images, which cannot be told apart as a pair"):
        open_pairs(tmp_path / "a", tmp_path / "b")
    for name, ends in (("one", (".png", ".png")), ("other", (".bmp", ".png"))):
        (tmp_path / name).mkdir()  # sorted with their extensions: c-d.png, c.png; and c-d.png, c.bmp
        Image.fromarray(FAKE[0].transpose(1, 2, 0)).save(tmp_path / name / f"c{ends[0]}")
        Image.fromarray(FAKE[1].transpose(1, 2, 0)).save(tmp_path / name / f"c-d{ends[1]}")
        (tmp_path / name / f"c-d{ends[1]}").rename(tmp_path / name / f"c.d{ends[1]}")
    one, other = open_pairs(tmp_path / "one", tmp_path / "other")
    assert all(np.array_equal(one[i], other[i]) for i in range(2))
    np.savez(tmp_path / "c.npz", arr_0=FAKE[:2].transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"a has 3 of \(3, 8, 8\), .*c\.npz 2 of"):
        open_pairs(tmp_path / "a", tmp_path / "c.npz")


def test_folders_are_looked_through_first(tmp_path):
    path = folder(tmp_path / "set", FAKE[:3])
    (path / ".hidden").write_text("x")
    (path / "dataset.json").write_text('{"labels": null}')
    before = open_set(path).fingerprint
    Image.fromarray(FAKE[3].transpose(1, 2, 0)).save(path / "002.png")
    assert len(open_set(path)) == 3 and open_set(path).fingerprint != before  # of the same name and size
    (path / "notes.txt").write_text("x")
    (path / "more.csv").write_text("x")
    with pytest.raises(ValueError, match=r"files that are no images: more\.csv, notes\.txt"):
        open_set(path)
    for name in ("notes.txt", "more.csv"):
        (path / name).unlink()
    Image.fromarray(FAKE[0, :, :4].transpose(1, 2, 0)).save(path / "small.png")
    with pytest.raises(ValueError, match=r"small\.png: expected .* \(3, 8, 8\) as in 000\.png; got \(3, 4, 8\)"):
        open_set(path)
    (path / "small.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"small\.png: expected an image"):
        open_set(path)
    np.savez(tmp_path / "x.npz", arr_0=FAKE[0, 0])
    with pytest.raises(ValueError, match=r"expected uint8 \(N, H, W\), \(N, H, W, C\)"):
        open_set(tmp_path / "x.npz")
    (tmp_path / "torn.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"torn\.npz: damaged"):
        open_set(tmp_path / "torn.npz")


def test_prefetching_passes_everything_on():
    assert list(prefetched(iter(range(100)))) == list(range(100))

    def failing():
        yield 1
        raise OSError("disk")

    items = prefetched(failing())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk"):
        next(items)
    endless = prefetched(iter(int, 1))
    assert next(endless) == 0
    endless.close()  # its thread ends


def test_a_users_extractor(tmp_path):
    (tmp_path / "mine.py").write_text("def brightness(images):\n    return images.float().mean((2, 3))\n")
    mine = extractor(f"{tmp_path}/mine.py:brightness")
    assert mine.name == "brightness" and len(mine.sha256) == 64
    [result] = evaluate(list(FAKE), REAL, Options(("fd_brightness",), {"brightness": mine}))
    assert result.protocol["extractor"]["sha256"] == mine.sha256
    for where, says in (("x:f", "named as mine.py:features"), ("no.py:f", "missing"), ("mine.py:other", "no function")):
        with pytest.raises(ValueError, match=says):
            extractor(f"{tmp_path}/{where}")
    assert isinstance(extractor("pixels"), PixelFeatures)


# Many dimensions


def wide(n, seed, size=64):
    draw = np.random.RandomState(seed)
    return ImageData(draw.randint(0, 256, (n, 3, size, size), np.uint8), name=f"wide{seed}")


def test_images_of_many_pixels_need_no_covariance_of_them(tmp_path, monkeypatch):
    """12,288 dimensions: a covariance is 1.2 GB and minutes; its factor is as large as the images."""
    monkeypatch.setattr(Moments, "__init__", lambda *_: pytest.fail("a matrix of 12,288 x 12,288"))
    fake, real = wide(12, 0), wide(9, 1)
    [result] = evaluate(list(fake), real)
    x, y = (data.decoded().reshape(len(data), -1) / 127.5 - 1 for data in (fake, real))
    gap, a, b = x.mean(0) - y.mean(0), x - x.mean(0), y - y.mean(0)
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum() / np.sqrt(11 * 8)
    expected = gap @ gap + (a * a).sum() / 11 + (b * b).sum() / 8 - 2 * nuclear
    assert result.value == pytest.approx(expected, rel=1e-6)  # its pixels are in float32
    save_reference(make_reference(real, Options()), tmp_path / "real.npz")
    assert (tmp_path / "real.npz").stat().st_size < 2e6
    assert values(evaluate(list(fake), load_reference(tmp_path / "real.npz"))) == values([result])
    with np.load(tmp_path / "real.npz") as arrays:
        changed = dict(arrays) | {"moments/pixels/features/rows": np.full((8, 5), 1.0)}
    np.savez(tmp_path / "real.npz", **changed)
    with pytest.raises(ValueError, match=r"a factor \(n - 1, D\) of the covariance; got \(12288,\) and \(8, 5\)"):
        evaluate(list(fake), load_reference(tmp_path / "real.npz"))


def test_what_a_distance_costs_is_told_before_the_work(monkeypatch):
    """Minutes are a warning, more memory than there is an error; neither where only a few images are compared."""
    needs = [parse("fd_pixels").need]
    few, many = (Statistics(needs, n) for n in (9, 50_000))
    for statistics, rows in ((few, 9), (many, 2)):
        monkeypatch.setattr(Statistics, "dims", lambda _: iter([(needs[0], 12_288)]))
        real = ReferenceData("real", "", statistics.n, images=wide(rows, 0, 4))
        monkeypatch.setattr(cost, "speed", lambda: 1e10)
        monkeypatch.setattr(cost, "available", lambda: 10**12)
        if statistics is few:
            check_cost([parse("fd_pixels")], few, real)
            continue
        with pytest.warns(
            UserWarning, match=r"fd_pixels compares covariances of 12,288 dimensions: expect about \d+ min"
        ):
            check_cost([parse("fd_pixels")], many, real)
        monkeypatch.setattr(cost, "available", lambda: 10**9)
        with pytest.raises(ValueError, match=r"take about [\d.]+ GiB of memory; 0.9 GiB are free: features with fewer"):
            check_cost([parse("fd_pixels")], many, real)


STUCK = """
import ctypes, sys, torch
from fewstep.cli import main

def stuck(matrix):  # in native code that no signal interrupts, as in a long decomposition
    print("stuck", flush=True)
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)

torch.linalg.svdvals = stuck
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="locks a mutex of glibc twice")
def test_a_signal_ends_a_long_decomposition(tmp_path):
    np.savez(tmp_path / "few.npz", images=FAKE[:5])
    command = ["eval", "few.npz", "--reference", "few.npz", "--metrics", "fd_pixels", "--json", "out.json"]
    job = subprocess.Popen([sys.executable, "-c", STUCK, *command], cwd=tmp_path, stdout=subprocess.PIPE)
    assert job.stdout is not None
    with job.stdout:
        try:
            assert job.stdout.readline() == b"stuck\n"
            job.terminate()
            assert job.wait(timeout=60) == 143
        finally:
            job.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["few.npz"]


# Ranks


def one_of_two(rank, path, queue):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    source = from_function(lambda seeds: FAKE[list(seeds)], range(119), batch_size=16)
    queue.put((rank, values(evaluate(source, REAL, options()))))
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_give_the_same_figures(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=one_of_two, args=(r, tmp_path / "s", queue)) for r in range(2)]
    for job in jobs:
        job.start()
    parts = dict(queue.get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join()
    alone = values(evaluate(from_function(lambda seeds: FAKE[list(seeds)], range(119)), REAL, options()))
    assert parts[0] == parts[1]
    assert parts[0] == pytest.approx(alone, rel=1e-9)


# Results


def result(value=1.0, n=50_000, **protocol):
    common = {"extractor": {"sha256": "aa"}, "reference": {"sha256": "bb"}, "rounding": "r", "settings": {}, "nfe": 35}
    return MetricResult("fid", value, n, {**common, **protocol})


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_figures_of_different_protocols_are_not_compared():
    check_comparable([result(), result(2.0, nfe=1), MetricResult("is", 9.0, 10)])
    with pytest.warns(UserWarning, match="fid cannot be compared.*reference: .*bb.* and .*cc"):
        check_comparable([result(), result(reference={"sha256": "cc"})])
    with pytest.warns(UserWarning, match="n: 50,000 and 2,000"):
        check_comparable([result(), result(n=2000)])
    with pytest.warns(UserWarning, match="rounding: r and other"):
        check_comparable([result(), result(rounding="other")])
    named = [result(reference={"name": name, "sha256": "bb"}) for name in ("cifar10", "renamed")]
    check_comparable([result(), *named])
    table = compare({"a.json": [result(), result(2.0)], "b.json": [result(3.0), MetricResult("is", 9.0, 10)]})
    assert [cells(line) for line in table.splitlines()] == [
        ["metric", "a.json", "b.json"],
        ["-------", "--------------:", "-----:"],
        ["fid@50k", "1.5 (mean of 2)", "3"],
        ["is@10", "", "9"],
    ]


def test_repeats():
    assert repeat_seeds(range(3), 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert repeat_seeds([5, 9], 2) == [[5, 9], [10, 14]]
    with pytest.raises(ValueError, match="at least 1 repeat"):
        repeat_seeds([1], 0)
    runs = [[result(v, seeds=str(i))] for i, v in enumerate((2.0, 1.0, 3.0))]
    [summary] = summarize(runs)
    assert (summary.mean, summary.spread, summary.minimum, summary.values) == (2, 1, 1, (2, 1, 3))
    heads, _, row, *_ = markdown(runs).splitlines()
    assert cells(heads) == ["metric", "mean", "spread", "minimum", "repeats"]
    assert cells(row) == ["fid@50k", "2", "1", "1", "3"]
    assert "- seeds: 0\n- seeds: 1\n- seeds: 2\n" in markdown(runs)
    assert summarize([[result()]])[0].spread == 0
    with pytest.raises(ValueError, match="same metrics"):
        summarize([[result()], []])


def test_results_are_written_and_read(tmp_path):
    results = [result(1.97, note="few"), MetricResult("is", 10.0, 2345, {"nfe": 35})]
    write_results(tmp_path / "r.json", results)
    assert read_results(tmp_path / "r.json") == results
    table = markdown([results])
    assert "| fid@50k |  1.97 |" in table and "| is@2345 |    10 |" in table
    assert (
        "- nfe: 35\n" in table and "- note (fid@50k): few\n" in table and "- extractor (fid@50k): sha256 aa\n" in table
    )
    (tmp_path / "r.json").write_text('[{"a": 1}]')
    with pytest.raises(ValueError, match="list of results"):
        read_results(tmp_path / "r.json")
