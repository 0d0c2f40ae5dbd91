"""Knowing what training does: evaluations on a clock, the best product, trackers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep import checkpoint
from fewstep.cli import main
from fewstep.data import ImageData, ImageStream, digits
from fewstep.denoiser import Denoiser
from fewstep.generation import generated
from fewstep.metrics.evaluate import evaluate
from fewstep.metrics.extractors import NETWORKS, Network
from fewstep.metrics.protocol import Result
from fewstep.objectives import DenoisingLoss, Pretraining
from fewstep.train.evaluation import Evaluation
from fewstep.train.log import Log
from fewstep.train.optim import Adam
from fewstep.train.run import Run, fit
from fewstep.train.trackers import TRACKERS, open_trackers
from tests.conftest import tiny_net


def short_run(until=32, **options) -> Run:
    torch.manual_seed(0)
    method = Pretraining(Denoiser(tiny_net(attn_resolutions=(), model_channels=4, num_blocks=0)), DenoisingLoss())
    return Run(
        method,
        ImageStream(digits()),
        {"denoiser": Adam(2e-3)},
        batch_size=8,
        until=until,
        snapshots=1,
        checkpoint_seconds=0.0,
        **options,
    )


def lines(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run that was measured at 16, at 24, where it was interrupted, and at 32 images."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    evaluation = Evaluation(16, n=20)
    fit(short_run(24, evaluation=evaluation), folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"nimg": 40, "results": []}\n{"nimg"')  # beyond the checkpoint, and torn
    fit(short_run(32, evaluation=evaluation), folder)
    return folder


def test_evaluations_follow_the_clock_and_carry_their_protocol(evaluated):
    found = lines(evaluated / "metrics.jsonl")
    assert [line["nimg"] for line in found] == [16, 24, 32]
    last = Result(**found[-1]["results"][0])
    product = checkpoint.load(evaluated)
    (again,) = evaluate(generated(product, range(20)), digits())
    assert (last.value, last.n, last.protocol) == (again.value, 20, again.protocol)
    assert last.protocol["seeds"] == "0-19" and last.protocol["sampler"] == "heun"
    log = {line["nimg"]: line for line in lines(evaluated / "log.jsonl")}
    assert log[32]["fd_pixels@20"] == last.value
    assert "fd_pixels@20" not in log[8]


def test_the_best_product_is_kept_and_named(evaluated):
    values = {line["nimg"]: line["results"][0]["value"] for line in lines(evaluated / "metrics.jsonl")}
    nimg = min(values, key=lambda n: values[n])
    assert json.loads((evaluated / "best.json").read_text()) == {
        "model": "best",
        "nimg": nimg,
        "fd_pixels@20": values[nimg],
    }
    card = checkpoint.card(evaluated / "best")
    assert card.nimg == nimg and card.metrics[0]["value"] == values[nimg]
    (again,) = evaluate(generated(checkpoint.load(evaluated / "best"), range(20)), digits())
    assert again.value == values[nimg]


def test_features_in_the_precision_asked_for(denoiser, monkeypatch):
    class Few(torch.nn.Module):
        def forward(self, images):
            return {"features": images[:, 0, :3, 3]}

    def network(dtype):
        return Network("inception", Few(), torch.Tensor.float, resize="", sha256="00ff", dtype=dtype)

    monkeypatch.setitem(NETWORKS, "inception", network)
    for dtype in (torch.float32, torch.bfloat16):
        (result,) = Evaluation(8, ("fid",), n=4, feature_dtype=dtype).prepare(digits())(denoiser)
        assert result.protocol["extractor"].get("dtype") == {torch.bfloat16: "bfloat16"}.get(dtype)


def test_measuring_does_not_change_training(evaluated, tmp_path):
    fit(short_run(), tmp_path / "plain")
    a, b = (checkpoint.load(folder).state_dict() for folder in (evaluated, tmp_path / "plain"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not (tmp_path / "plain" / "metrics.jsonl").exists()


def test_best_compares_like_with_like():
    def result(value, name="fd_pixels", n=20, reference="a"):
        return [Result(name, value, n, {"reference": reference})]

    distance, score = Evaluation(1, n=20), Evaluation(1, ("is", "fd_pixels"), n=20)
    assert distance.best(result(3.0), [])
    assert distance.best(result(3.0), [result(4.0), result(5.0)])
    assert not distance.best(result(3.0), [result(4.0), result(2.0)])
    assert distance.best(result(3.0), [result(2.0, reference="b"), result(2.0, n=30), result(2.0, "kd_pixels")])
    assert score.best(result(3.0, "is"), [result(2.0, "is")])
    assert not score.best(result(3.0, "is"), [result(4.0, "is")])


def test_evaluations_are_due_when_a_multiple_is_crossed():
    evaluation = Evaluation(20, n=20)
    assert [n for n in range(8, 81, 8) if evaluation.due(n - 8, n)] == [24, 40, 64, 80]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "at least 1; got 0"),
        ({"every": 8, "n": 1}, "fd_pixels needs at least 2 generated images; got 1"),
        ({"every": 8, "metrics": ("colour",)}, "no metric is called 'colour'"),
        ({"every": 8, "metrics": ()}, "no metric is asked for"),
    ],
)
def test_impossible_evaluations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(**options)


def test_latents_need_a_reference():
    class Latents:
        name = "latents"

    with pytest.raises(ValueError, match="latents holds no images to compare with"):
        Evaluation(8, n=20).prepare(Latents())


def test_the_log_tells_how_training_goes(evaluated):
    for line in lines(evaluated / "log.jsonl"):
        assert line["learning_rate/denoiser"] == 2e-3
        assert line["weight_norm/denoiser"] > 1
        assert 0.05 < line["peak_memory_gib"] < 64
        levels = {k: v for k, v in line.items() if k.startswith("denoising_loss/error@")}
        assert len(levels) > 2 and all(v > 0 for v in levels.values())


def test_samples_of_other_channels_than_colours_are_shown_one_by_one(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (16, 2, 8, 8), dtype=np.uint8)
    net = tiny_net(in_channels=2, out_channels=2, label_dim=0, attn_resolutions=(), model_channels=4, num_blocks=0)
    run = short_run(8)
    run.method = Pretraining(Denoiser(net), DenoisingLoss())
    run.data = ImageStream(ImageData(array, name="pairs"))
    fit(run, tmp_path / "run")
    with Image.open(tmp_path / "run" / "samples" / f"{8:012d}.png") as samples:
        assert samples.mode == "L"
        assert samples.width / samples.height == (2 * 8 + 1) / (4 * 8 + 3)  # four images below each other, of two tiles


# --- trackers


class Spy:
    """What a run wrote to trackers."""

    def __init__(self):
        self.figures, self.images, self.closed = [], [], False

    def log(self, nimg, figures):
        self.figures.append((nimg, dict(figures)))

    def image(self, nimg, name, image):
        self.images.append((nimg, name, image.size))

    def close(self):
        self.closed = True


def test_a_run_tells_its_trackers_what_it_logs(tmp_path, monkeypatch):
    spy = Spy()
    monkeypatch.setitem(TRACKERS, "spy", lambda folder, name, config, nimg: spy)
    fit(short_run(16, track=("spy",)), tmp_path / "run")
    log = lines(tmp_path / "run" / "log.jsonl")
    assert [{"nimg": nimg, **figures} for nimg, figures in spy.figures] == log
    with Image.open(tmp_path / "run" / "samples" / f"{16:012d}.png") as samples:
        assert spy.images == [(16, "samples", samples.size)]
    assert spy.closed


def test_trackers_are_closed_when_a_run_fails(tmp_path, monkeypatch):
    spy = Spy()
    monkeypatch.setitem(TRACKERS, "spy", lambda folder, name, config, nimg: spy)
    run = short_run(track=("spy",))
    run.optimizers = {"denoiser": Adam(1e30)}
    with pytest.raises(ValueError, match="became infinite"):
        fit(run, tmp_path / "run")
    assert spy.closed


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


def test_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, value in ((0, 1.0), (8, 2.0)):  # resumed at 8 images, after a line at 16
        (tracker,) = open_trackers(["tensorboard"], folder, "teacher", {}, begin)
        for nimg in (begin + 8, begin + 16)[: 2 if begin == 0 else 1]:
            tracker.log(nimg, {"loss": value, "loss/error@0.1": 2 * value})
        tracker.image(begin + 8, "samples", Image.new("L", (4, 3), 77))
        tracker.close()
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(8, 1.0), (16, 2.0)]
    assert [e.value for e in events.Scalars("loss/error@0.1")] == [2.0, 4.0]
    assert [(e.step, e.width, e.height) for e in events.Images("samples")] == [(8, 4, 3), (16, 4, 3)]


class Service(ModuleType):
    """A package with the calls of wandb 0.31 and trackio 0.43 that are used."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, *, project, name, resume, config, id=None, dir=None, settings=None):
        self.settings = settings
        self.calls.append(("init", {"project": project, "name": name, "resume": resume, "id": id, "dir": dir}))
        return self

    def Settings(self, **options):  # noqa: N802 - their name
        return options

    def log(self, data, step):
        self.calls.append(("log", data, step))

    def Image(self, value):  # noqa: N802 - their name
        return np.asarray(value).shape

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services(folder, monkeypatch, name):
    service = Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setenv("WANDB_API_KEY", "0")
    for _ in range(2):
        (tracker,) = open_trackers([name, name], folder, "teacher", {"lr": 1}, 0)
        tracker.log(8, {"loss": 1.0})
        tracker.image(8, "samples", Image.new("L", (4, 3)))
        tracker.close()
    first, second = service.calls[:4], service.calls[4:]
    assert first == second  # a resumed run is the same run there
    (_, options), *rest = first
    assert options["project"] == "fewstep" and options["resume"] == "allow"
    assert options["name"].startswith("teacher") and len(options["id"] or options["name"]) >= 8
    assert rest == [("log", {"loss": 1.0}, 8), ("log", {"samples": (3, 4, 3)}, 8), ("finish",)]


def test_wandb_records_no_secret_of_the_command(folder, monkeypatch):
    """Its metadata hold `sys.argv`."""
    monkeypatch.setenv("WANDB_API_KEY", "0")
    monkeypatch.setitem(sys.modules, "wandb", service := Service("wandb"))
    for word, expected in (("https://h/x.pkl", None), ("https://h/x.pkl?token=5ecret", {"x_disable_meta": True})):
        monkeypatch.setattr(sys, "argv", ["fewstep", "train", f"--transfer={word}"])
        open_trackers(["wandb"], folder, "teacher", {}, 0)
        assert service.settings == expected


def test_a_log_is_not_written_through_a_link(tmp_path):
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="expected the name of a file to write; it is a link to"):
        Log(tmp_path / "log.jsonl", 0)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("name", "advice"), [("wandb", "log in with: wandb login"), ("trackio", "TRACKIO_DIR")])
def test_a_service_that_fails_is_one_line(folder, monkeypatch, name, advice):
    service = Service(name)
    monkeypatch.setenv("WANDB_API_KEY", "0")
    monkeypatch.setattr(service, "init", lambda **_: 1 // 0)
    monkeypatch.setitem(sys.modules, name, service)
    with pytest.raises(ValueError, match=rf"^--track {name} failed \(ZeroDivisionError: .*\); .*{advice}"):
        open_trackers([name], folder, "teacher", {}, 0)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_tracker_is_asked_for(folder, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=rf'--track {name} needs the package {name}, which .*: pip install "fewstep\[{name}\]"'
    ):
        open_trackers([name], folder, "teacher", {}, 0)


def test_unknown_trackers_are_refused(folder):
    with pytest.raises(ValueError, match="there is no tracker paper; there are tensorboard, wandb, trackio"):
        open_trackers(["paper"], folder, "teacher", {}, 0)


# --- on the command line

RECIPE = """
from tests.test_monitoring import short_run
def short(*, until: int = 16):
    return short_run(until)
"""


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """`fewstep train` of a short run; returns its exit code and what it wrote on standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)

    def call(*options):
        return main(["train", "mine.py:short", "--out", "run", *options]), capsys.readouterr().err

    return call


def test_options_of_the_command(train):
    options = ["--eval-every", "8", "--eval-images", "12", "--eval-metrics", "kd_pixels,fd_pixels"]
    assert train(*options, "--eval-reference", "digits", "--track", "tensorboard")[0] == 0
    found = lines(Path("run/metrics.jsonl"))
    assert [line["nimg"] for line in found] == [8, 16]
    assert [(r["metric"], r["n"]) for r in found[0]["results"]][::2] == [("kd_pixels", 12), ("fd_pixels", 12)]
    assert list(Path("run/tensorboard").iterdir())


def test_options_without_effect_are_refused(train):
    code, error = train("--eval-images", "12")
    assert code == 2 and "--eval-images has no effect without --eval-every" in error


def test_the_time_of_training_is_without_that_of_evaluations(tmp_path, monkeypatch):
    now = 0.0

    def measured(self, data):
        def measure(product):
            nonlocal now
            now += 1000
            return []

        return measure

    monkeypatch.setattr("fewstep.train.run.time.monotonic", lambda: now)
    monkeypatch.setattr(Evaluation, "prepare", measured)
    monkeypatch.setattr("fewstep.train.run.record", lambda *_: None)
    fit(short_run(evaluation=Evaluation(8, n=20)), tmp_path / "run")
    assert now == 4000
    assert {line["seconds"] for line in lines(tmp_path / "run" / "log.jsonl")} == {0.0}
