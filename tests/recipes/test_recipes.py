"""Every recipe makes its run from a small data set; networks have no memory here."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep import recipes
from fewstep.cli.parsing import field_docs
from fewstep.core.codec import Pixels
from fewstep.core.method import zero_nonfinite
from fewstep.core.noise import LogNormal, LogUniform
from fewstep.core.objectives import StableTarget, VPTime, clean, edm_weight, inverse_variance
from fewstep.core.precondition import EDM, VE, VP
from fewstep.data.codec import StabilityVAE
from fewstep.io.configuration import to_dict
from fewstep.nets import sizes
from fewstep.recipes import REQUIRED, edm, edm2, gdd, get, ncvsd, sid, sid_edm2, small
from fewstep.recipes.edm import Teacher, network
from fewstep.recipes.edm2 import SIZES
from fewstep.runtime.precision import fast_dtype
from fewstep.train.ema import HalfLife, PowerFunction
from fewstep.train.loop import fit
from tests.data.test_latents import pack_latents


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
    images[256] = pack(folder / "images256.zip", 256, classes=1, n=2)
    return images | {512: pack_latents(folder / "latents.zip", (8, 64, 64))}


PIXELS = {"cifar10": 32, "ffhq": 64, "afhqv2": 64, "imagenet64": 64, "imagenet512": 512, "ffhq256": 256, "small": 32}
TEACHERS = [
    name for name, row in recipes.TABLE.items() if name.split(":")[0] in PIXELS and isinstance(row.settings, Teacher)
]


BUILT = {}


def build(name, zips, **options):
    """The run of a recipe, made once for each choice of options."""
    recipe = get(name, data=str(zips[PIXELS[name.split(":")[0]]]), **options)
    if recipe not in BUILT:
        with torch.device("meta"):
            BUILT[recipe] = recipe.run()
    return BUILT[recipe]


@pytest.mark.parametrize("name", TEACHERS)
def test_every_recipe_makes_its_run(name, zips):
    run = build(name, zips)
    size = PIXELS[name.split(":")[0]]
    assert run.method.denoiser.net.resolution == (64 if size == 512 else size)
    assert run.identity()["network"]["denoiser"]["model_channels"] >= 64
    assert run.batch_size * 100 < run.until


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
        assert (adam.rampup, adam.betas, adam.eps, run.ema) == (10e6, (0.9, 0.999), 1e-8, HalfLife(run.ema.nimg, 0.05))
        assert run.until / run.snapshots == (10e6 if name == "imagenet64:teacher" else 2.5e6)
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
    assert (target.n, target.augment, target.rule) == (64, run.method.objective.augment, "matched")
    assert build("cifar10:stf", zips).method.objective.target.n == 1024
    assert build("cifar10:stf", zips, stf="published").method.objective.target.rule == "published"
    assert run.method.denoiser.net.config.embedding_type == "fourier"
    described = run.identity()["method"]["objective"]["target"]
    assert described["n"] == 64
    assert run.identity() != build("cifar10:stf", zips, references=65).identity()


EDM2_TABLE = {
    # duration in Mi images, learning rate, channels, dropout
    "img512-xxs": (2048, 0.0170, 64, 0.0),
    "img512-xs": (2048, 0.0120, 128, 0.0),
    "img512-s": (2048, 0.0100, 192, 0.0),
    "img512-m": (2048, 0.0090, 256, 0.1),
    "img512-l": (1792, 0.0080, 320, 0.1),
    "img512-xl": (1280, 0.0070, 384, 0.1),
    "img512-xxl": (896, 0.0065, 448, 0.1),
    "img64-xs": (1024, 0.0120, 128, 0.0),
    "img64-s": (1024, 0.0100, 192, 0.0),
    "img64-m": (2048, 0.0090, 256, 0.1),
    "img64-l": (1024, 0.0080, 320, 0.1),
    "img64-xl": (640, 0.0070, 384, 0.1),
    "ffhq256-xs": (64, 0.0120, 128, 0.0),
    "ffhq256-s": (64, 0.0100, 192, 0.0),
}
EDM2_RECIPES = {"img64": "imagenet64:edm2", "img512": "imagenet512:teacher", "ffhq256": "ffhq256:teacher"}


@pytest.mark.parametrize("row", EDM2_TABLE)
def test_the_table_of_edm2(row):
    """Karras et al. (2024), Table 6; FFHQ: the pretraining of Peng et al. (2025)."""
    kind, size = row.split("-")
    settings, network = get(EDM2_RECIPES[kind], size=size).resolved(), sizes.edm2(size)
    assert (settings.until / 2**20, settings.lr, network.model_channels, network.dropout) == EDM2_TABLE[row]


@pytest.mark.parametrize("row", ["img512-s", "img64-s", "ffhq256-xs"])
def test_runs_of_edm2(zips, row):
    """The default size of each data set."""
    kind = row.split("-")[0]
    run = build(EDM2_RECIPES[kind], zips)
    denoiser, adam, config = run.method.denoiser, run.optimizers["denoiser"], run.method.denoiser.net.config
    assert (run.until / 2**20, adam.lr, config.model_channels, config.dropout) == EDM2_TABLE[row]
    assert (run.name, run.batch_size) == (f"edm2-{row}", 128 if kind == "ffhq256" else 2048)
    assert run.until / run.snapshots == (2**20 if kind == "ffhq256" else 8 * 2**20)
    assert denoiser.uncertainty is not None
    assert denoiser.codec == (StabilityVAE() if kind == "img512" else Pixels())
    assert run.method.objective.noise == (LogNormal(-0.4, 1.0) if kind == "img512" else LogNormal(-0.8, 1.6))
    assert run.ema == (PowerFunction(0.1), PowerFunction(0.05))
    assert run.method.phases[0].clean is zero_nonfinite
    assert (adam.betas, adam.eps, adam.rampup) == ((0.9, 0.99), 1e-8, 1e6 if kind == "ffhq256" else 1e7)
    assert adam.reference == (70_000 if kind == "img512" else 35_000) * run.batch_size


def test_every_row_of_edm2_is_in_the_table():
    assert set(SIZES) == set(EDM2_TABLE)


def test_the_learning_rate_of_edm2(zips):
    for name, decay in (("imagenet64:edm2", 35_000), ("imagenet512:teacher", 70_000)):
        adam = build(name, zips, lr=0.01).optimizers["denoiser"]
        assert [adam.rate(n) for n in (0, 2048, 10**7)] == pytest.approx([0, 2.048e-6, 0.01])
        assert adam.rate(2 * decay * 2048) == pytest.approx(0.00707107, rel=1e-6)


# Options under the names of the original programs


@pytest.mark.parametrize(
    "name", ["cifar10:teacher", "cifar10:stf", "ffhq:teacher", "afhqv2:teacher", "imagenet64:teacher"]
)
def test_options_of_edm(zips, name):
    run = build(name, zips, cbase=32, cres="1,3", xflip=True, ema=7_000, precond="ve")
    config = run.method.denoiser.net.config
    assert (config.model_channels, config.channel_mult) == (32, (1, 3))
    assert (run.data.flip, run.ema, type(run.method.denoiser.precondition)) == (True, HalfLife(7_000, 0.05), VE)
    plain = build(name, zips)
    assert (plain.data.flip, plain.identity() == run.identity()) == (False, False)


@pytest.mark.parametrize("arch", ["ddpmpp", "ncsnpp", "adm"])
def test_architectures_of_edm(arch):
    """Each for every data set, as EDM's --arch; its rows of --cres are those of the published scripts."""
    for name in ("cifar10:teacher", "ffhq:teacher", "imagenet64:teacher"):
        config = network(get(name).network, arch)
        faces = (1, 2, 2, 2) if name == "ffhq:teacher" else (2, 2, 2)
        assert config.channel_mult == ((1, 2, 3, 4) if arch == "adm" else faces)
        assert config.model_channels == (192 if arch == "adm" else 128)
        assert getattr(config, "embedding_type", "") == {"ddpmpp": "positional", "ncsnpp": "fourier", "adm": ""}[arch]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cres": "1,x"}, "--cres needs one positive integer per resolution, such as 1,2,2,2; got '1,x'"),
        ({"cres": "2,0"}, "--cres needs one positive integer"),
        ({"cbase": 0}, "--cbase must be at least 1; got 0"),
        ({"references": 64}, "--references has no effect without --stf"),
        ({"stf": "published", "references": 0}, "needs at least one reference; got n=0"),
        ({"stf": "mine"}, "the rules of the stable target are matched, published; got 'mine'"),
    ],
)
def test_options_that_mean_nothing_are_refused(zips, options, words):
    with pytest.raises(ValueError, match=words):
        build("ffhq:teacher", zips, **options)


@pytest.mark.parametrize("name", [name for name in TEACHERS if name != "cifar10:stf"])
def test_every_teacher_takes_the_stable_target(zips, name):
    assert build(name, zips).method.objective.target is clean
    smallest = {"size": "xs"} if hasattr(get(name), "size") else {}
    run = build(name, zips, stf="published", references=40, **smallest)
    target = run.method.objective.target
    assert (target.n, target.rule, target.augment) == (40, "published", run.method.objective.augment)
    assert run.card.method.endswith(", stable target of 40 (published)")
    assert target.references(run.data.batch(0, 2))[1].image.shape == (38, *run.method.denoiser.shape)


def test_options_of_edm2(zips):
    run = build("imagenet64:edm2", zips, channels=64, dropout=0.3, p_mean=-1.0, p_std=0.5, decay=10)
    config = run.method.denoiser.net.config
    assert (config.model_channels, config.dropout, run.method.objective.noise) == (64, 0.3, LogNormal(-1.0, 0.5))
    assert run.optimizers["denoiser"].reference == 10 * 2048


def test_settings_that_are_unknown_or_missing_are_refused():
    assert get("cifar10:stf").references == 1024
    with pytest.raises(TypeError, match="unexpected keyword argument 'cress'"):
        get("ffhq:teacher", cress="1")
    with pytest.raises(ValueError, match="the recipe ffhq-teacher needs data"):
        get("ffhq:teacher").run()


def test_a_small_set_of_ones_own_trains(tmp_path, monkeypatch):
    """An odd size, grey, three classes: a step, a model folder."""
    monkeypatch.setitem(small.NETWORKS, 16, {"channel_mult": (1, 2), "num_blocks": 1})
    path = pack(tmp_path / "mine.zip", 12, channels=1, classes=3)
    run = get("small:teacher", data=str(path), until=8, batch_size=8, cbase=8, dtype="float32").run()
    assert run.method.denoiser.sigma_data == pytest.approx(0.577, abs=0.02)  # of uniform pixels
    assert run.method.objective.noise.mean == pytest.approx(-1.2 + np.log(0.577 / 0.5 * 12 / 32), abs=0.05)
    assert (run.method.denoiser.shape, run.method.denoiser.num_classes) == ((1, 12, 12), 3)
    model = fit(run, tmp_path / "run")
    assert model.shape == (1, 12, 12)
    assert (tmp_path / "run" / "averages" / "std-0.050").is_dir()


def test_images_that_do_not_fit_are_refused(zips, tmp_path):
    with pytest.raises(ValueError, match=r"images of shape \(3, 32, 32\); got \(3, 64, 64\)\. Use small:teacher"):
        get("cifar10:teacher", data=zips[64]).run()
    plain = pack(tmp_path / "plain.zip", 32, classes=1)
    with pytest.raises(ValueError, match="has no classes; train without them: --no-cond"):
        get("cifar10:teacher", data=plain).run()
    with pytest.raises(ValueError, match=r"latents of shape 4 x 64 x 64; got \(4, 8, 8\)"):
        get("imagenet512:teacher", data=pack_latents(tmp_path / "small.zip", (8, 8, 8))).run()
    np.save(tmp_path / "wide.npy", np.zeros((2, 16, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="square images up to 128 pixels a side; got 32x16"):
        get("small:teacher", data=str(tmp_path / "wide.npy")).run()


# Settings as data

SWITCHED_ON = {"name", "data", "stf", "references"}


@pytest.mark.parametrize("family", [edm, edm2, sid, sid_edm2, gdd, ncvsd])
def test_a_row_says_all_that_differs_between_published_configurations(family):
    """A setting of which two rows have different values has no default that a reader would have to look up."""
    rows = [
        {f.name: (getattr(row.settings, f.name), f.default) for f in fields(row.settings)}
        for row in family.ROWS.values()
    ]
    for name in {name for row in rows for name in row} - SWITCHED_ON:
        values = [row[name] for row in rows if name in row]
        assert len({value for value, _ in values}) == 1 or all(default is REQUIRED for _, default in values), name


@pytest.mark.parametrize("name", recipes.names())
def test_every_setting_is_explained_and_recorded(name):
    recipe = get(name)
    names = {field.name for field in dataclasses.fields(recipe)}
    assert names == set(field_docs(type(recipe)))
    record = json.loads(json.dumps(recipes.record(recipe)))
    assert record["family"].startswith("fewstep.recipes.") and set(record["settings"]) == names
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1


def test_a_recipe_of_ones_own(tmp_path):
    """A function or a dataclass in a file; what has no default is required."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom fewstep import recipes\n\n"
        "def short(width: int, *, names: list[str] = ['a']):\n"
        "    return recipes.get('digits:teacher', until=128 * width).run()\n\n"
        "@dataclass(frozen=True)\nclass Short:\n    width: int\n"
        "    def run(self):\n        return short(self.width)\n\n"
        "@dataclass\nclass Empty:\n    width: int = 1\n\n"
        "def nothing():\n    return 3\n"
    )
    for name in ("short", "Short"):
        recipe = get(f"{tmp_path}/mine.py:{name}")
        assert recipes.required(recipe) == ["width"]
        run = recipes.build(dataclasses.replace(recipe, width=2), keep=5, name="mine")
        assert (run.until, run.keep, run.name) == (256, 5, "mine")
        assert run.recipe["family"] == f"user.mine.{name}" and run.recipe["settings"]["width"] == 2
    with pytest.raises(ValueError, match=r"mine\.py:Empty is a dataclass without a method run\(\)"):
        get(f"{tmp_path}/mine.py:Empty")
    with pytest.raises(ValueError, match="a recipe returns a Run; nothing returned int"):
        recipes.build(get(f"{tmp_path}/mine.py:nothing"))
