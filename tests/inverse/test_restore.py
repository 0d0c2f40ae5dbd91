"""`fewstep restore`: what it writes, that samples depend on their seeds alone, given measurements, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fewstep as fs
from fewstep import demo, inverse
from fewstep.cli import main, warning_line
from fewstep.core.codec import Pixels
from fewstep.core.denoiser import Denoiser
from fewstep.core.oracle import GaussianDenoiser
from fewstep.data import digits
from fewstep.distill.conditional import generative
from fewstep.inverse import TASKS, Solver, adapters, measure, restore, sample_posterior, task_operator
from fewstep.inverse.folder import HEADING, write_image
from fewstep.inverse.metrics import RestorationMetrics, coverage
from fewstep.inverse.operator import Decomposed
from fewstep.inverse.pnp_gd import named_preset
from fewstep.inverse.problem import Problem
from fewstep.inverse.restore import restored
from fewstep.inverse.solver import fitted
from fewstep.inverse.tasks import BLURS
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.metrics.image import psnr
from fewstep.report import write_report
from tests.conftest import tiny_net
from tests.linear import matrix

SHAPE = (1, 8, 8)
FAST = ["--nfe", "6", "--first", "3", "--class", "data"]


@pytest.fixture
def model(denoiser, tmp_path) -> str:
    return str(model_folder.save(denoiser, tmp_path / "model", Card(name="tiny")))


@pytest.fixture
def student() -> Denoiser:
    """A generative denoiser without classes, of a few weights."""
    torch.manual_seed(0)
    return generative(Denoiser(tiny_net(label_dim=0))).eval()


def fails(capsys, *argv: str) -> str:
    capsys.readouterr()
    try:
        code = main(list(argv))
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    return capsys.readouterr().err


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))[None]


def test_what_is_written(model, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    argv = ["restore", model, "digits", "--task", "box_inpainting", "--samples", "3", "--out", str(out), *FAST]
    assert main(argv) == 0
    assert "psnr" in capsys.readouterr().out
    names = ["000000", "000001", "000002"]
    expected = {f"{folder}/{name}.png" for folder in ("samples/0", "samples/1", "samples/2", "mean") for name in names}
    expected |= {f"{folder}/{name}.png" for folder in ("measurements", "deviation", "sheets") for name in names}
    expected |= {f"measurements/{name}.npy" for name in names} | {"metrics.json", "sheet.png"}
    assert set(files(out)) == expected

    result = json.loads((out / "metrics.json").read_text())
    about = result["protocol"]
    assert (
        about["nfe"] == 6 and about["preset"] == "published" and about["prior_steps"] == 3 and about["class"] == "data"
    )
    truth = torch.from_numpy(np.stack([digits()[i] for i in range(3)]))
    for i, name in enumerate(names):
        samples = torch.stack([pixels(out / "samples" / str(j) / f"{name}.png") for j in range(3)])
        values = result["images"][name]["psnr"]
        assert values["samples"] == pytest.approx(psnr(samples, truth[i].expand(3, -1, -1, -1)).tolist(), abs=1e-4)
        mean = psnr(pixels(out / "mean" / f"{name}.png")[None], truth[i][None])
        assert values["mean_of_samples"] == pytest.approx(mean.item(), abs=1e-4)
        y = np.load(out / "measurements" / f"{name}.npy")
        kept = inverse.box_mask(8, 8).numpy() > 0
        noise = y[0][kept] - (truth[i, 0].numpy()[kept] / 127.5 - 1)
        assert 0.02 < noise.std() < 0.08
    figures = result["metrics"]["psnr"]
    best = np.mean([max(v["psnr"]["samples"]) for v in result["images"].values()])
    assert figures["best_of_3_runs_chosen_by_the_truth"] == pytest.approx(best)
    assert figures["best_of_3_runs_chosen_by_the_truth"] > figures["sample"]
    assert "window" in result["notes"]["ssim"] and 0 < result["metrics"]["ssim_7"]["sample"] < 1


def test_in_python_as_on_the_command_line(model, denoiser, tmp_path) -> None:
    """The samples of a folder, an array and a path are the same, returned or written; so are their metrics."""
    argv = ["restore", model, "digits", "--task", "box_inpainting", "--samples", "2", "--out", str(tmp_path / "out")]
    assert main([*argv, *FAST]) == 0
    settings: dict[str, Any] = {"samples": 2, "nfe": 6, "label": "data", "first": 3}
    found = fs.restore(model, "digits", "box_inpainting", **settings)
    assert found.metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    for image in found.images:
        assert image.samples.shape == (2, *SHAPE) and image.deviation.shape == image.mean.shape == SHAPE
        for j in range(2):
            written = pixels(tmp_path / "out" / "samples" / str(j) / f"{image.name}.png")
            assert torch.equal(Pixels().decode(image.samples[j]), written)
    data = digits()
    assert data.labels is not None
    array = np.stack([data[i] for i in range(3)])
    mask = inverse.box_mask(8, 8).numpy()
    settings |= {"label": [int(v) for v in np.asarray(data.labels)[:3]], "mask": mask, "solver": "pnp_gd"}
    again = fs.restore(denoiser, array, "box_inpainting", **settings)
    assert all(torch.equal(a.samples, b.samples) for a, b in zip(found.images, again.images, strict=True))
    assert again.metrics["metrics"] == found.metrics["metrics"] and again.metrics["protocol"]["weights"] is None
    y = np.stack([image.measurement.numpy() for image in found.images])
    given = fs.restore(denoiser, y, "box_inpainting", measured=True, samples=2, nfe=6, label=settings["label"])
    assert all(torch.equal(a.samples, b.samples) for a, b in zip(found.images, given.images, strict=True))


def test_sheets_name_their_columns(student, tmp_path) -> None:
    """Above every column there is ink, nowhere else in the row of headings, and the joint sheet has one such row."""
    image = np.full((2, *SHAPE), 255, np.uint8)
    fs.restore(student, image, "box_inpainting", samples=2, nfe=4, out=tmp_path / "out")
    with Image.open(tmp_path / "out/sheets/000000.png") as one, Image.open(tmp_path / "out/sheet.png") as both:
        page, joint = np.array(one), np.array(both)
    columns = np.array_split(page[:HEADING] < 128, 6, axis=1)  # truth, measurement, two samples, mean, deviation
    assert all(column.any() and not column[:, [0, -1]].any() for column in columns)
    assert np.array_equal(joint[: len(page)], page)
    assert 2 * (len(page) - HEADING) < len(joint) - HEADING < 2 * len(page)


def test_images_of_an_npz_file(model, tmp_path, monkeypatch) -> None:
    """As of the data set itself; the only warning is that of a model that was trained with classes only."""
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", arr_0=digits().decoded()[:2].transpose(0, 2, 3, 1))
    base = ["restore", model, "--task", "box_inpainting", "--samples", "1", "--nfe", "6"]
    for argv in ([*base, "digits", "--first", "2", "--out", "a"], [*base, "images.npz", "--out", "b"]):
        with pytest.warns(UserWarning, match="trained with classes only") as caught:
            assert main([*argv, "--class", "none"]) == 0
        assert len(caught) == 1
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert sorted(a["samples/0/" + name] for name in ("000000.png", "000001.png")) == sorted(
        content for name, content in b.items() if name.startswith("samples/0")
    )


def test_a_sample_depends_on_its_seed_alone(denoiser) -> None:
    """Not on the batch, nor on how many samples and images there are."""

    def samples(**settings: Any) -> list[Tensor]:
        options: dict[str, Any] = {"preset": "balanced", "nfe": 6, "label": "data", "first": 3} | settings
        found = fs.restore(denoiser, "digits", "super_resolution", **options).images
        return [Pixels().decode(image.samples) for image in found]

    a, b, c = samples(samples=3, batch_size=7), samples(samples=2, batch_size=1, first=2), samples(samples=1, seed=1)
    assert all(torch.equal(x[:2], y) for x, y in zip(a, b, strict=False)) and len(b) == 2
    assert not torch.equal(a[0][0], a[0][1]) and not torch.equal(c[0][0], a[0][0])


def test_ranks_share_the_images(denoiser, tmp_path) -> None:
    """Two ranks, one after the other, write what one writes, and their metrics add up."""
    data = digits()
    problem = Problem("digits", ["a", "b", "c"], [data[i] for i in range(3)], None)
    operator = inverse.Inpainting(inverse.random_mask(8, 8), SHAPE)
    settings = {"samples": 2, "seed": 0, "sigma_y": 0.05, "batch_size": 4}

    def share(indices: range, out: str) -> RestorationMetrics:
        measured = RestorationMetrics(problem, SHAPE, 2)
        solver = Solver(evaluations=4, prior_steps=2)
        for i, image in restored(denoiser, operator, problem, solver, indices, [0, 1, 2], **settings):
            measured.add(i, image)
            write_image(image, tmp_path / out)
        return measured

    alone = share(range(3), "one")
    first, second = share(range(0, 3, 2), "two"), share(range(1, 3, 2), "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert torch.equal(first.table + second.table, alone.table)


def test_given_measurements_give_the_same_restorations(model, tmp_path) -> None:
    base = ["--task", "gaussian_deblur", "--samples", "2", "--nfe", "6", "--class", "3"]
    assert main(["restore", model, "digits", *base, "--first", "2", "--out", str(tmp_path / "a")]) == 0
    given = str(tmp_path / "a" / "measurements")
    assert main(["restore", model, given, "--given", *base, "--out", str(tmp_path / "b")]) == 0
    a, b = (files(tmp_path / name) for name in "ab")
    same = [name for name in a if name.startswith(("samples", "measurements", "mean"))]
    assert same and all(a[name] == b[name] for name in same)
    assert json.loads(b["metrics.json"])["metrics"] == {}


def test_an_earlier_restoration_is_replaced_and_nothing_else(model, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    base = ["restore", model, "digits", "--task", "box_inpainting", "--out", str(out), *FAST]
    assert main([*base, "--first", "2", "--samples", "2"]) == 0
    again = ["restore", model, str(out / "measurements"), "--given", *base[3:]]
    assert "which would be replaced" in fails(capsys, *again)
    assert main([*base, "--first", "1", "--samples", "1"]) == 0
    assert (
        [p.name for p in (out / "samples").rglob("*.png")]
        == ["000000.png"]
        == [p.name for p in (out / "mean").iterdir()]
    )
    elsewhere = tmp_path / "elsewhere"
    (out / "samples").rename(elsewhere)
    (out / "samples").symlink_to(elsewhere)
    assert main([*base, "--first", "2", "--samples", "1"]) == 0
    assert not (out / "samples").is_symlink() and len([*(out / "samples").rglob("*.png")]) == 2
    assert len([*elsewhere.rglob("*.png")]) == 1 and not [*tmp_path.glob(".*")]
    (out / "letter.txt").write_text("mine")
    assert "letter.txt" in fails(capsys, *base, "--first", "1")
    assert (out / "metrics.json").exists()


@pytest.mark.parametrize("task", [t for t in TASKS if t != "colorization"])
def test_every_task_has_an_operator_for_any_size(task: str) -> None:
    for shape in ((1, 8, 8), (3, 48, 40)):
        op = TASKS[task](shape)
        assert op(torch.zeros(2, *shape)).isfinite().all()
    preset = named_preset("balanced", task)
    assert fitted(preset, op).coupling == ("split" if not isinstance(op, Decomposed) else "tight")


@pytest.mark.parametrize("solver", ["dps", "daps", "diffpir"])
def test_other_solvers(model, tmp_path, solver: str) -> None:
    argv = ["restore", model, "digits", "--task", "phase_retrieval", "--solver", solver, "--samples", "1"]
    assert main([*argv, "--out", str(tmp_path / "out"), *FAST]) == 0
    about = json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"]
    assert about["solver"] == solver and about["nfe"] == 6 and "preset" not in about


def test_a_student_draws_and_a_users_operator_measures(student, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder.save(student, tmp_path / "student")
    Path("mine.py").write_text("def rows(x):\n    return x.cumsum(2) / 8\n\ndef odd(x):\n    return x.abs().sum(3)\n")
    for name in ("rows", "odd"):
        argv = ["restore", "student", "digits", "--task", f"mine.py:{name}", "--preset", "balanced", "--first", "2"]
        assert main([*argv, "--nfe", "5", "--samples", "2", "--out", name]) == 0
    protocol = json.loads(Path("rows/metrics.json").read_text())["protocol"]
    assert protocol["nfe"] == 5 and "prior_steps" not in protocol
    linear = adapters.operator_of(lambda x: x.cumsum(2), SHAPE)
    assert isinstance(linear, inverse.LinearFunction)
    assert isinstance(adapters.operator_of(lambda x: x.abs(), SHAPE), inverse.Function)
    assert adapters.operator_of(linear, SHAPE) is linear
    with pytest.raises(ValueError, match="takes images of shape"):
        adapters.operator_of(linear, (1, 9, 9))


class Prior(Denoiser):
    """A Gaussian prior's exact denoiser in the place of a network's."""

    def __init__(self, exact: GaussianDenoiser) -> None:
        super().__init__(tiny_net(label_dim=0))
        self.exact = exact

    def forward(self, x: Tensor, sigma: Any, label: Tensor | None = None, *, augment: Tensor | None = None) -> Tensor:
        return self.exact(x, sigma)


def test_many_samples_have_the_mean_and_deviation_of_the_posterior() -> None:
    """A teacher that is exact, 8 evaluations for each draw; coverage of the truths is that of a calibrated posterior."""
    place = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double()
    covariance = 0.25 * torch.exp(-(torch.cdist(place, place) ** 2) / 18) + 1e-3 * torch.eye(64).double()
    exact = GaussianDenoiser(torch.zeros(*SHAPE, dtype=torch.float64), covariance)
    truth = exact.sample(1, generator=torch.Generator().manual_seed(0)).float()
    op = inverse.Inpainting(inverse.box_mask(8, 8), SHAPE)
    y = measure(op, truth, 0.05, [1])
    n = 200
    solver = Solver(evaluations=49 * 8, prior_steps=8)
    samples = sample_posterior(Prior(exact), op, y.expand(n, -1, -1, -1), 0.05, range(n), solver=solver)
    seen = inverse.box_mask(8, 8).flatten() > 0
    mean, cov = exact.posterior(matrix(op)[seen], y.flatten()[seen], 0.05).moments()
    gap = (samples.mean(0).flatten() - mean.flatten()).abs()
    deviation = cov.diagonal().sqrt()
    assert (gap < 0.03 + 4 * deviation / n**0.5).all()
    assert (samples.std(0).flatten() - deviation).abs().max() < 0.04
    assert deviation[~seen].min() > 0.05


def test_coverage() -> None:
    torch.manual_seed(0)
    draws = torch.randn(17, 1, 200, 200)
    assert coverage(draws[1:], draws[0]) == pytest.approx(0.5 * 15 / 17, abs=0.01)
    assert coverage(draws[1:], draws[0] + 10) == 0
    assert coverage(0.5 * draws[1:], draws[0]) < 0.3


def test_the_demo_restores_hidden_and_blurred_digits(model, tmp_path) -> None:
    demo.restorations(Path(model), tmp_path / "restored", seed=0, nfe=6)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for task in demo.TASKS:
        told = json.loads((tmp_path / "restored" / task / "metrics.json").read_text())
        assert told["n"] == 8 and told["samples"] == 4 and told["protocol"]["task"] == task
        assert f"<b>{task.replace('_', ' ').capitalize()}</b>" in page


def test_refusals(model, denoiser, tmp_path, capsys, monkeypatch) -> None:
    """On the command line; nothing is written."""
    monkeypatch.chdir(tmp_path)
    base = ["restore", model, "digits", "--out", "out", "--first", "1"]
    task = ["--task", "box_inpainting"]
    assert "give a label (--class NUMBER" in fails(capsys, *base, *task)
    assert "there is no class 'seven'; the classes are 0, 1, " in fails(capsys, *base, *task, "--class", "seven")
    base += ["--class", "3"]
    assert "there is no task 'unblur'" in fails(capsys, *base, "--task", "unblur")
    assert "sigma_y must be positive" in fails(capsys, *base, *task, "--sigma-y=-1")
    assert "are not finite" in fails(capsys, *base, *task, "--solver", "dps", "--weight", "1e38")
    assert "ncvsd_shift has no effect" in fails(capsys, *base, *task, "--ncvsd-shift")
    (tmp_path / "given").mkdir()
    given = ["restore", model, "given", "--given", *task, "--class", "3", "--out", "out"]
    assert "expected a folder of measurements" in fails(capsys, *given)
    np.save("given/a.npy", np.zeros((1, 8, 9), np.float32))
    assert "given/a.npy: this task's measurements" in fails(capsys, *given)
    Path("given/a.npy").unlink()
    Image.new("LA", (8, 8)).save("given/a.png")
    assert "given/a.png: " in (error := fails(capsys, *given)) and "it has transparent pixels" in error
    model_folder.save(Denoiser(denoiser.net, levels=(2.5,)), "one_step")
    assert "own noise levels" in fails(capsys, "restore", "one_step", *base[2:], *task)
    assert not (tmp_path / "out").exists()  # nor is anything half-written


def test_what_does_not_fit_is_named(denoiser, tmp_path) -> None:
    def error(task: Any = "box_inpainting", images: Any = "digits", **settings: Any) -> str:
        options: dict[str, Any] = {"first": 1, "label": 3, "nfe": 6, "out": tmp_path / "out"} | settings
        with pytest.raises(ValueError) as raised:  # noqa: PT011  # the caller looks at what it says
            fs.restore(denoiser, images, task, **options)
        assert not (tmp_path / "out").exists()
        return str(raised.value)

    assert "labels of this model are 0 to 9" in error(label=10)
    assert "one for each of 1 images; got 2" in error(label=[1, 2])
    assert "several channels" in error("colorization", preset="balanced")
    assert "no preset is published" in error("jpeg")
    assert "sigma_y must be positive" in error(sigma_y=0)
    assert "samples must be at least 1" in error(samples=0)
    assert "first must be at least 1" in error(first=0)
    assert "nfe must be at least 1" in error(nfe=0)
    assert "weight must be positive" in error(solver="diffpir", weight=-1)
    assert "positive and finite; got inf" in error(solver="dps", weight=float("inf"))
    assert "weight has no effect" in error(weight=2)
    assert "kernel has no effect" in error(kernel="k.npy")
    assert "fewer than one draw" in error(nfe=2)
    assert "give these to the Solver itself" in error(solver=Solver(), nfe=3)
    assert "beta, ema_sigma: options of pnp_gd, which have no effect on dps" in error(
        solver="dps", beta=1e-3, ema_sigma=1
    )
    assert "rho has no effect on the preset balanced" in error(preset="balanced", rho=2)
    assert "beta must be positive" in error(beta=0)
    assert "rho must be positive" in error(rho=-1)
    assert "sigma_min must be less than sigma_max" in error(sigma_min=90)
    assert "decay in [0, 1); got 100, 1" in error(ema_decay=1)
    assert "images must be uint8 (N, C, H, W)" in error(images=np.zeros((1, 1, 8, 8)))
    assert "restores images of shape (1, 8, 8)" in error(images=np.zeros((1, 3, 8, 8), np.uint8))
    for name, picture, message in [
        ("mask.png", Image.new("L", (9, 8), 255), "a mask for images"),
        ("black.png", Image.new("L", (8, 8)), "black.png: every pixel of this mask is black"),
        ("clear.png", Image.new("LA", (8, 8), (255, 0)), "it has transparent pixels"),
    ]:
        picture.save(tmp_path / name)
        assert message in error(mask=tmp_path / name)
    (tmp_path / "empty.png").touch()
    assert "empty.png is empty (0 bytes)" in error(mask=tmp_path / "empty.png")
    np.save(tmp_path / "complex.npy", np.ones((8, 8)) * 1j)
    assert "expected an npy file of real" in error(mask=tmp_path / "complex.npy")
    assert "larger than the images" in error("motion_deblur", kernel=np.ones((9, 9)) / 81)
    for kernel in (np.array([["a"]]), np.ones((3, 3)) * 1j):
        np.save(tmp_path / "words.npy", kernel)
        assert "words.npy: expected an npy file of real" in error("motion_deblur", kernel=tmp_path / "words.npy")
    flat = error(lambda x: x.reshape(1, -1), preset="balanced")
    assert "one for each; this one returned" in flat
    nan = np.full((1, 1, 8, 8), np.nan, np.float32)
    assert "with 64 NaN or infinite values" in error(images=nan, measured=True)
    (tmp_path / "given").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "given/a.png")
    given: dict[str, Any] = {"images": tmp_path / "given", "measured": True}
    assert "given/a.png: this task's measurements are finite floats of shape (1, 8, 8)" in error(**given)
    assert "an image cannot hold the moduli" in error("phase_retrieval", **given)


def test_ncvsds_names_and_options(model, tmp_path, capsys) -> None:
    """Every option of its `posterior_sample.py` changes what its name says, and metrics.json tells the values."""
    base = ["restore", model, "digits", "--task", "gaussian_deblur_circ", "--runs", "1", *FAST]
    said = [
        "--beta",
        "0.004",
        "--rho",
        "3",
        "--sigma-min",
        "0.01",
        "--sigma-max",
        "40",
        "--ema-sigma",
        "1",
        "--ema-decay",
    ]
    assert main([*base, "--out", str(tmp_path / "default")]) == 0
    assert main([*base, *said, "0.3", "--out", str(tmp_path / "said")]) == 0
    about = [json.loads((tmp_path / n / "metrics.json").read_text())["protocol"] for n in ("default", "said")]
    assert [a["task"] for a in about] == ["gaussian_deblur_circ"] * 2
    published = {"beta": 2e-3, "rho": 2, "sigma_min": 0.002, "sigma_max": 80, "ema_below": 100, "ema_decay": 0.6}
    changed = {"beta": 0.004, "rho": 3, "sigma_min": 0.01, "sigma_max": 40, "ema_below": 1, "ema_decay": 0.3}
    for found, expected in zip(about, (published, changed), strict=True):
        assert found["preset_settings"] == expected | {"coupling": "split", "persistence": 0.0}
    ours = [a if a != "gaussian_deblur_circ" else "gaussian_deblur" for a in base]
    assert main([*ours, "--out", str(tmp_path / "ours")]) == 0
    a, b, c = (files(tmp_path / name) for name in ("default", "ours", "said"))
    assert all(a[name] == b[name] for name in a if name.startswith("samples"))
    assert all(a[name] != c[name] for name in a if name.startswith("samples"))


@pytest.mark.parametrize("option", ["beta", "rho", "sigma_min", "sigma_max", "ema_sigma", "ema_decay"])
def test_each_option_of_pnp_gd_counts(denoiser, option: str) -> None:
    value = {"beta": 0.1, "rho": 5, "sigma_min": 1, "sigma_max": 20}.get(option, 0.9)
    settings: dict[str, Any] = {"samples": 1, "nfe": 6, "first": 1, "label": "data"}
    a, b = (
        fs.restore(denoiser, "digits", "box_inpainting", **settings, **changes).images[0].samples
        for changes in ({}, {option: value})
    )
    assert not torch.equal(Pixels().decode(a), Pixels().decode(b))


def test_measurements_of_ncvsds_code_can_be_given(model, tmp_path) -> None:
    """Its folder holds PNG files alone, blurred by kernels whose centre lies a pixel off."""
    base = ["restore", model, "--task", "motion_deblur_circ", "--samples", "1", "--nfe", "6", "--class", "3"]
    shifted = [*base, "--ncvsd-shift"]
    assert main([*shifted, "digits", "--first", "2", "--out", str(tmp_path / "a")]) == 0
    operator = BLURS["motion_deblur_circ"](SHAPE, (-1, -1))
    x = torch.from_numpy(digits()[0] / 127.5 - 1).float()[None]
    y = np.load(tmp_path / "a/measurements/000000.npy")
    torch.testing.assert_close(torch.from_numpy(y)[None], operator(x), atol=0.25, rtol=0)
    plain = TASKS["motion_deblur_circ"](SHAPE)
    torch.testing.assert_close(operator(x), plain(x).roll((-1, -1), (2, 3)))
    given = tmp_path / "given"
    given.mkdir()
    for file in (tmp_path / "a/measurements").glob("*.png"):
        (given / file.name).write_bytes(file.read_bytes())
    assert main([*shifted, str(given), "--given", "--out", str(tmp_path / "b")]) == 0
    assert main([*base, str(given), "--given", "--out", str(tmp_path / "c")]) == 0
    seen = np.load(tmp_path / "b/measurements/000000.npy")
    assert np.abs(seen - y.clip(-1, 1)).max() < 0.51 / 127.5
    a, b, c = (pixels(tmp_path / name / "samples/0/000000.png").int() for name in "abc")
    assert (a - b).abs().max() <= 1 and not torch.equal(b, c)


@pytest.mark.parametrize("kind", ["0/255", "0/1", "1 bit", "palette", "opaque alpha", "npy", "rgb"])
def test_masks_of_any_kind(tmp_path, kind: str) -> None:
    mask = (np.arange(64).reshape(8, 8) % 3 > 0).astype(np.uint8)
    file = tmp_path / ("mask.npy" if kind == "npy" else "mask.png")
    if kind == "npy":
        np.save(file, mask)
    elif kind == "0/1":
        Image.fromarray(mask).save(file)
    else:
        mode = {"1 bit": "1", "palette": "P", "opaque alpha": "LA", "rgb": "RGB"}.get(kind, "L")
        Image.fromarray(mask * 255).convert(mode).save(file)
    operator = task_operator("box_inpainting", SHAPE, mask=file)
    assert isinstance(operator, inverse.Inpainting)
    torch.testing.assert_close(operator.singular[0], torch.from_numpy(mask).float())


def test_a_kernel_that_changes_the_brightness_is_allowed_and_said(model, tmp_path) -> None:
    np.save(tmp_path / "kernel.npy", np.full((2, 2), 0.5))
    argv = ["restore", model, "digits", "--task", "motion_deblur", "--kernel", str(tmp_path / "kernel.npy")]
    with pytest.warns(UserWarning, match="the kernel sums to 2, not to one") as told:
        assert main([*argv, "--runs", "1", "--out", str(tmp_path / "out"), *FAST]) == 0
    line = warning_line(told[0].message, told[0].category, told[0].filename, told[0].lineno)
    assert line == "fewstep: warning: the kernel sums to 2, not to one: it changes the brightness\n"
    assert (tmp_path / "out" / "samples" / "0").exists() and not (tmp_path / "out" / "samples" / "1").exists()


def test_diverging_langevin_steps_are_mended_and_told_of_the_sample(student) -> None:
    """The operator is steep for the second image's measurement alone; the first is restored as if it were alone."""
    op = inverse.Function(lambda x: x + 3 * x**3, SHAPE)
    y = np.stack([np.zeros(SHAPE, np.float32), np.full(SHAPE, 300.0, np.float32)])
    both, alone = (
        restore(student, y[:n], op, measured=True, samples=2, solver=Solver(evaluations=6), batch_size=4)
        for n in (2, 1)
    )
    diverged = both.metrics["langevin_diverged"]
    assert [(d["image"], d["sample"]) for d in diverged] == [("000001", 0), ("000001", 1)]
    assert all(d["fixed_by_smaller_steps"] > 0 for d in diverged)
    assert "2 of 4 samples" in both.metrics["notes"]["langevin"]
    assert "langevin_diverged" not in alone.metrics and "langevin" not in alone.metrics["notes"]
    assert both.images[1].samples.isfinite().all()
    assert torch.equal(both.images[0].samples, alone.images[0].samples)


def test_solvers_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="there is no solver 'dpss'; choose one of pnp_gd, dps, daps, diffpir"):
        Solver("dpss")  # pyright: ignore[reportArgumentType] - that is the point


def test_a_student_needs_pnp_gd(student) -> None:
    op = inverse.Inpainting(inverse.box_mask(8, 8), SHAPE)
    with pytest.raises(ValueError, match="use pnp_gd"):
        sample_posterior(student, op, torch.zeros(1, *SHAPE), 0.1, [0], solver=Solver("dps"))
