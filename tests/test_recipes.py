"""Every recipe makes its run from a small data set; networks have no memory here."""

from __future__ import annotations

import inspect
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.checkpoint import to_dict
from fewstep.data.codec import Pixels, StabilityVAE
from fewstep.method import zero_nonfinite
from fewstep.noise import LogNormal, LogUniform
from fewstep.objectives import StableTarget, VPTime, edm_weight, inverse_variance
from fewstep.precision import fast_dtype
from fewstep.precondition import EDM, VE, VP
from fewstep.recipes import find, recipes, small
from fewstep.recipes._edm2 import ROWS
from fewstep.train.ema import HalfLife, PowerFunction
from fewstep.train.run import fit
from tests.test_latents import pack_latents


def pack(path, resolution, channels=3, classes=2, n=6, height=None):
    """A zip as `fewstep data pack` writes it."""
    rng = np.random.default_rng(0)
    labels = []
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(n):
            pixels = rng.integers(0, 256, (height or resolution, resolution, channels), dtype=np.uint8)
            with archive.open(name := f"00000/img{i:08d}.png", "w") as file:
                Image.fromarray(pixels.squeeze()).save(file, "PNG")
            labels.append([name, i % classes])
        archive.writestr("dataset.json", json.dumps({"labels": labels if classes > 1 else None}))
    return path


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zips")
    images = {size: pack(folder / f"images{size}.zip", size) for size in (32, 64)}
    return images | {512: pack_latents(folder / "latents.zip", (8, 64, 64))}


SIZES = {"cifar10": 32, "ffhq": 64, "afhqv2": 64, "imagenet64": 64, "imagenet512": 512, "small": 32}
TEACHERS = [
    name
    for name, recipe in recipes().items()
    if name.split(":")[0] in SIZES and "teacher" not in inspect.signature(recipe).parameters
]


def build(name, zips, **options):
    with torch.device("meta"):
        return find(name)(zips[SIZES[name.split(":")[0]]], **options)


@pytest.mark.parametrize("name", TEACHERS)
def test_every_recipe_makes_its_run(name, zips):
    run = build(name, zips)
    assert run.method.denoiser.net.resolution == min(SIZES[name.split(":")[0]], 64)
    assert run.identity()["network"]["denoiser"]["model_channels"] >= 64
    assert run.batch_size * 100 < run.until
    recipe = find(name)
    for option in inspect.signature(recipe).parameters:
        assert f"{option}: " in str(recipe.__doc__)


def test_the_table_of_edm(zips):
    """Karras et al. (2022), Table 7."""
    rows = {
        "cifar10:teacher": (512, 1e-3, 200e6, 0.13, 0.12, 500_000),
        "ffhq:teacher": (256, 2e-4, 200e6, 0.05, 0.15, 500_000),
        "afhqv2:teacher": (256, 2e-4, 200e6, 0.25, 0.15, 500_000),
        "imagenet64:teacher": (4096, 1e-4, 2500e6, 0.10, None, 50_000_000),
    }
    for name, row in rows.items():
        run = build(name, zips)
        objective, adam = run.method.objective, run.optimizers["denoiser"]
        found = (
            run.batch_size,
            adam.lr,
            run.until,
            run.method.denoiser.net.config.dropout,
            objective.augment and objective.augment.p,
            run.ema.nimg,
        )
        assert found == row, name
        assert (adam.rampup, adam.betas, run.ema) == (10e6, (0.9, 0.999), HalfLife(run.ema.nimg, 0.05))
        assert objective.noise == LogNormal(-1.2, 1.2)
        assert run.method.denoiser.net.config.augment_dim == (0 if row[4] is None else 9)


def test_networks_of_cifar10(zips):
    def parameters(**options):
        denoiser = build("cifar10:teacher", zips, **options).method.denoiser
        assert denoiser.dtype == (getattr(torch, options["dtype"]) if "dtype" in options else fast_dtype())
        return sum(p.numel() for p in denoiser.parameters()), denoiser.num_classes

    assert parameters(cond=False) == (55_733_891, 0)
    assert parameters(arch="ncsnpp", cond=False, dtype="bfloat16") == (56_397_827, 0)
    assert parameters(cond=True)[1] == 2


@pytest.mark.parametrize(
    ("precond", "expected"),
    [
        ("edm", (EDM(), LogNormal(-1.2, 1.2), edm_weight)),
        ("vp", (VP(), VPTime(), inverse_variance)),
        ("ve", (VE(), LogUniform(0.02, 100), inverse_variance)),
    ],
)
def test_preconditionings_of_cifar10(zips, precond, expected):
    method = build("cifar10:teacher", zips, precond=precond).method
    assert (to_dict(method.denoiser.precondition), method.objective.noise, method.objective.weight) == (
        to_dict(expected[0]),
        *expected[1:],
    )


def test_stable_target_of_cifar10(zips):
    run = build("cifar10:stf", zips, references=64)
    target = run.method.objective.target
    assert isinstance(target, StableTarget)
    assert (target.n, target.augment) == (64, run.method.objective.augment)
    assert run.method.denoiser.net.config.embedding_type == "fourier"
    described = run.identity()["method"]["objective"]["target"]
    assert described["n"] == 64
    assert run.identity() != build("cifar10:stf", zips, references=65).identity()


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_edm2(zips, row):
    """Karras et al. (2024), Table 6."""
    kind, size = row.split("-")
    run = build("imagenet64:edm2" if kind == "img64" else "imagenet512:teacher", zips, size=size)
    denoiser = run.method.denoiser
    assert (run.name, run.until, run.optimizers["denoiser"].lr) == (f"edm2-{row}", *ROWS[row])
    assert denoiser.net.config.dropout == (0.0 if size in ("xxs", "xs", "s") else 0.1)
    assert denoiser.uncertainty is not None
    assert denoiser.codec == (Pixels() if kind == "img64" else StabilityVAE())
    assert run.method.objective.noise == (LogNormal(-0.8, 1.6) if kind == "img64" else LogNormal(-0.4, 1.0))
    assert run.ema == (PowerFunction(0.1), PowerFunction(0.05))
    assert run.method.phases[0].clean is zero_nonfinite


def test_the_learning_rate_of_edm2(zips):
    for name, decay in (("imagenet64:edm2", 35_000), ("imagenet512:teacher", 70_000)):
        adam = build(name, zips, lr=0.01).optimizers["denoiser"]
        assert adam.betas == (0.9, 0.99)
        assert [adam.rate(n) for n in (0, 2048, 10**7)] == pytest.approx([0, 2.048e-6, 0.01])
        assert adam.rate(2 * decay * 2048) == pytest.approx(0.00707107, rel=1e-6)


def test_a_small_set_of_ones_own_trains(tmp_path, monkeypatch):
    """An odd size, grey, three classes: a step, a model folder."""
    monkeypatch.setitem(small.NETWORKS, 16, {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1})
    path = pack(tmp_path / "mine.zip", 12, channels=1, classes=3)
    run = find("small:teacher")(path, until=8, batch_size=8, dtype="float32")
    assert run.method.denoiser.sigma_data == pytest.approx(0.577, abs=0.02)  # of uniform pixels
    assert run.method.objective.noise.mean == pytest.approx(-1.2 + np.log(0.577 / 0.5 * 12 / 32), abs=0.05)
    assert (run.method.denoiser.shape, run.method.denoiser.num_classes) == ((1, 12, 12), 3)
    model = fit(run, tmp_path / "run")
    assert model.shape == (1, 12, 12)
    assert (tmp_path / "run" / "averages" / "std-0.050").is_dir()


def test_images_that_do_not_fit_are_refused(zips, tmp_path):
    with pytest.raises(ValueError, match=r"images of 3 x 32 x 32; got \(3, 64, 64\)\. Use small:teacher"):
        find("cifar10:teacher")(zips[64])
    plain = pack(tmp_path / "plain.zip", 32, classes=1)
    with pytest.raises(ValueError, match="has no classes; train without them: --no-cond"):
        find("cifar10:teacher")(plain)
    with pytest.raises(ValueError, match=r"latents of 4 x 64 x 64; got \(4, 8, 8\)"):
        find("imagenet512:teacher")(pack_latents(tmp_path / "small.zip", (8, 8, 8)))
    with pytest.raises(ValueError, match="square images up to 128 pixels a side; got 32x16"):
        find("small:teacher")(pack(tmp_path / "wide.zip", 32, height=16))
