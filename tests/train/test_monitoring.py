"""Knowing what training does: evaluations on a clock, the best product, trackers."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.data import ImageData, ImageStream, digits
from fewstep.io import model_folder
from fewstep.metrics.evaluation import evaluate
from fewstep.metrics.extractors import NETWORKS, FeatureNetwork
from fewstep.metrics.protocol import MetricResult
from fewstep.nets.sizes import EDM_SIZES
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.sample import generate, generated
from fewstep.train.evaluation import Evaluation
from fewstep.train.log import Lines, Log
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.preemption import EXIT_CODE, Watch
from fewstep.train.settings import Run
from fewstep.train.snapshots import images_of_grid, operations
from fewstep.train.trackers import TRACKERS, open_trackers, reachable
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


def unwatched(denoiser):
    return Watch(denoiser, lambda: False, lambda stop: stop)


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
    last = MetricResult(**found[-1]["results"][0])
    product = model_folder.load(evaluated)
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
    card = model_folder.card(evaluated / "best")
    assert card.nimg == nimg and card.metrics[0]["value"] == values[nimg]
    (again,) = evaluate(generated(model_folder.load(evaluated / "best"), range(20)), digits())
    assert again.value == values[nimg]


def test_features_in_the_precision_asked_for(denoiser, monkeypatch):
    class Few(torch.nn.Module):
        def forward(self, images):
            return {"features": images[:, 0, :3, 3]}

    def network(dtype):
        return FeatureNetwork("inception", Few(), torch.Tensor.float, resize="", sha256="00ff", dtype=dtype)

    monkeypatch.setitem(NETWORKS, "inception", network)
    for dtype in (torch.float32, torch.bfloat16):
        (result,) = Evaluation(8, ("fid",), n=4, feature_dtype=dtype).prepare(digits())(denoiser, unwatched(denoiser))
        assert result.protocol["extractor"].get("dtype") == {torch.bfloat16: "bfloat16"}.get(dtype)


def test_measuring_does_not_change_training(evaluated, tmp_path):
    fit(short_run(), tmp_path / "plain")
    a, b = (model_folder.load(folder).state_dict() for folder in (evaluated, tmp_path / "plain"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not (tmp_path / "plain" / "metrics.jsonl").exists()


@pytest.mark.parametrize("damage", ["{garbled", '{"nimg": "16"}', '{"nimg": 16, "results": [7]}', "\0\0\0", "[]"])
def test_a_damaged_line_costs_that_line_alone(tmp_path, capsys, monkeypatch, damage):
    """And the best model stays, though the line that told of it is lost."""
    run, evaluation = tmp_path / "run", Evaluation(8, n=20)
    values = iter([3.0, 1.0, 2.0, 1.5])  # of 8, 16, 24 and 32 images
    measured = "fewstep.train.evaluation.metrics.evaluate"
    monkeypatch.setattr(measured, lambda *_: [MetricResult("fd_pixels", next(values), 20, {})])
    fit(short_run(24, evaluation=evaluation), run)
    names = ["metrics.jsonl"] + ["log.jsonl"] * ("results" not in damage)
    damaged = {}
    for name in names:
        text = (run / name).read_text().splitlines()
        text[1] = damage
        (run / name).write_text("\n".join(text) + "\n")
        damaged[name] = (run / name).read_bytes()
    fit(short_run(32, evaluation=evaluation), run)
    assert json.loads((run / "best.json").read_text()) == {"model": "best", "nimg": 16, "fd_pixels@20": 1.0}
    assert model_folder.card(run / "best").nimg == 16
    said = capsys.readouterr().err
    for name, content in damaged.items():
        assert [line["nimg"] for line in lines(run / name)] == [8, 24, 32]
        assert f"{name} has 1 line that is damaged and left out; the original is kept as {run / name}.damaged\n" in said
        assert (run / f"{name}.damaged").read_bytes() == content


def test_a_torn_last_line_is_no_damage(tmp_path, capsys):
    for end in ('{"nimg": 9', '{"nimg": 9}'):
        (tmp_path / "log.jsonl").write_text('{"nimg": 8}\n' + end)
        assert [line["nimg"] for line in Lines(tmp_path / "log.jsonl", 9).kept] == [8] + [9] * end.endswith("}")
        assert (tmp_path / "log.jsonl").read_bytes().endswith(b"}\n")
    assert capsys.readouterr().err == "" and len([*tmp_path.iterdir()]) == 1


# --- signals during what takes long


@pytest.mark.parametrize("moment", ["evaluation", "grid"])
def test_a_signal_while_images_are_made(tmp_path, monkeypatch, capfd, moment):
    """The state is saved before; the run ends within a layer, and the next one repeats what was not finished."""
    evaluation = Evaluation(16, n=20) if moment == "evaluation" else None
    fit(short_run(evaluation=evaluation), tmp_path / "whole")
    calls: list[int] = []

    def made(denoiser, *given, **named):
        def count(*_):
            calls.append(1)
            if len(calls) == 8:
                os.kill(os.getpid(), signal.SIGTERM)

        with denoiser.register_forward_pre_hook(count):
            yield from generate(denoiser, *given, **named)

    where = "fewstep.sample.generate" if moment == "evaluation" else "fewstep.train.snapshots.generate"
    monkeypatch.setattr(where, made)
    with pytest.raises(SystemExit) as left:
        fit(short_run(evaluation=evaluation), tmp_path / "run")
    monkeypatch.undo()
    assert left.value.code == EXIT_CODE and len(calls) == 8
    nimg = 16 if moment == "evaluation" else 32
    assert f"stopped at {nimg} of 32 images" in capfd.readouterr().err
    assert max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()) == nimg
    fit(short_run(evaluation=evaluation), tmp_path / "run")
    for name in ("samples", "snapshots"):
        one, two = ({p.name for p in (tmp_path / f / name).iterdir()} for f in ("whole", "run"))
        assert one == two
    png = f"samples/{32:012d}.png"
    assert (tmp_path / "run" / png).read_bytes() == (tmp_path / "whole" / png).read_bytes()
    if moment == "evaluation":
        for name in ("metrics.jsonl", "best.json"):
            assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()
    one, two = (
        [(r["nimg"], r.get("fd_pixels@20"), r["denoising_loss"]) for r in lines(tmp_path / f / "log.jsonl")]
        for f in ("whole", "run")
    )
    assert one == two


def test_a_network_ends_within_a_layer_and_is_as_before():
    torch.manual_seed(0)
    denoiser = Denoiser(tiny_net())
    asked, seen = [False], []
    last = [*denoiser.net.modules()][-1]
    last.register_forward_pre_hook(lambda *_: seen.append(asked[0]))

    def made(n):
        for i in range(n):
            asked[0] = i == 2
            yield denoiser(torch.zeros(1, 1, 8, 8), 1.0, torch.zeros(1, dtype=torch.int64))

    found = []
    with pytest.raises(SystemExit):
        found.extend(Watch(denoiser, lambda: asked[0], lambda stop: stop)(made(4)))
    assert len(found) == 2 and seen == [False, False]
    assert len([*made(4)]) == 4  # nothing asks any more
    assert [*Watch(denoiser, lambda: False, lambda stop: stop)(range(3))] == [0, 1, 2]
    with pytest.raises(SystemExit):  # another rank was asked
        list(Watch(denoiser, lambda: False, lambda stop: True)(range(3)))


# --- grids


def test_grids_are_sized_to_the_machine(monkeypatch, denoiser):
    """CIFAR-10's network takes 42 billion operations: 4 images of 35 evaluations within a minute on two threads."""
    assert images_of_grid(denoiser) == 40
    plain, conditional = (EDM_SIZES[f"edm-cifar10-32x32-{kind}-vp"] for kind in ("uncond", "cond"))
    assert isinstance(plain, SongConfig) and isinstance(conditional, SongConfig)
    with torch.device("meta"):
        unconditional, conditional = Denoiser(SongUNet(plain)), Denoiser(SongUNet(conditional))
    counted = {d: operations(d) for d in (unconditional, conditional)}
    assert 2 * 20e9 < counted[unconditional] < 2 * 23e9
    monkeypatch.setattr("fewstep.train.snapshots.operations", counted.get)
    for threads, n in ((1, 2), (2, 4), (16, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert images_of_grid(unconditional) == n
    for threads, n in ((1, 2), (6, 10), (14, 20), (64, 40)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert images_of_grid(conditional) == n


def test_the_grid_of_a_run_is_recorded_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.train.snapshots.SPEED", 1e4)
    fit(short_run(16), tmp_path / "run")
    n = json.loads((tmp_path / "run" / "run.json").read_text())["grid"]
    assert 0 < n < 10
    monkeypatch.undo()
    fit(short_run(32), tmp_path / "run")
    for nimg in (16, 32):
        with Image.open(tmp_path / "run" / "samples" / f"{nimg:012d}.png") as picture:
            assert picture.height < picture.width if n > 1 else picture.height == picture.width


def test_best_compares_like_with_like():
    def result(value, name="fd_pixels", n=20, reference="a"):
        return [MetricResult(name, value, n, {"reference": reference})]

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
        ({"every": 8, "metrics": ()}, "no metric was given"),
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
    method, data = Pretraining(Denoiser(net), DenoisingLoss()), ImageStream(ImageData(array, name="pairs"))
    fit(dataclasses.replace(short_run(8), method=method, data=data), tmp_path / "run")
    with Image.open(tmp_path / "run" / "samples" / f"{8:012d}.png") as samples:
        assert samples.mode == "L"
        assert samples.width / samples.height == (2 * 8 + 1) / (4 * 8 + 3)  # four images below each other, of two tiles


# --- trackers


class Spy:
    """What a run wrote to trackers."""

    def __init__(self):
        self.metrics, self.images, self.closed = [], [], False

    def log(self, nimg, metrics):
        self.metrics.append((nimg, dict(metrics)))

    def image(self, nimg, name, image):
        self.images.append((nimg, name, image.size))

    def close(self):
        self.closed = True


def test_a_run_tells_its_trackers_what_it_logs(tmp_path, monkeypatch):
    spy = Spy()
    monkeypatch.setitem(TRACKERS, "spy", lambda folder, name, config, nimg: spy)
    fit(short_run(16, track=("spy",)), tmp_path / "run")
    log = lines(tmp_path / "run" / "log.jsonl")
    assert [{"nimg": nimg, **metrics} for nimg, metrics in spy.metrics] == log
    with Image.open(tmp_path / "run" / "samples" / f"{16:012d}.png") as samples:
        assert spy.images == [(16, "samples", samples.size)]
    assert spy.closed


def test_trackers_are_closed_when_a_run_fails(tmp_path, monkeypatch):
    spy = Spy()
    monkeypatch.setitem(TRACKERS, "spy", lambda folder, name, config, nimg: spy)
    run = dataclasses.replace(short_run(track=("spy",)), optimizers={"denoiser": Adam(1e30)})
    with pytest.raises(ValueError, match="became infinite or NaN"):
        fit(run, tmp_path / "run")
    assert spy.closed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0")
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("hours", [0, -1, 1])
def test_tensorboard(folder, monkeypatch, hours):
    """Also if the clock of the machine jumps between two starts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    clock, shift = time.time, 0
    monkeypatch.setattr(time, "time", lambda: clock() + shift)
    # killed before the first checkpoint, then resumed at 8 images, after a line at 16
    for begin, value in ((0, 0.5), (0, 1.0), (8, 2.0)):
        (tracker,) = open_trackers(["tensorboard"], folder, "teacher", {}, begin)
        for nimg in (begin + 8, begin + 16)[: 2 if begin == 0 else 1]:
            tracker.log(nimg, {"loss": value, "loss/error@0.1": 2 * value})
        tracker.image(begin + 8, "samples", Image.new("L", (4, 3), 77))
        tracker.close()
        shift += 3600 * hours
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(8, 1.0), (16, 2.0)]
    assert [e.value for e in events.Scalars("loss/error@0.1")] == [2.0, 4.0]
    assert [(e.step, e.width, e.height) for e in events.Images("samples")] == [(8, 4, 3), (16, 4, 3)]


class Service(ModuleType):
    """A package with the calls of wandb 0.31 and trackio 0.43 that are used."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []
        self.failure: Exception | None = None
        self.settings: Any = None

    def teardown(self):
        self.calls.append(("teardown",))

    def Settings(self, **options):  # noqa: N802 - their name
        return SimpleNamespace(base_url="https://tracker.invalid", **options)

    def init(self, *, project, name, resume, config, id=None, dir=None, settings=None, mode=None):
        self.settings = settings
        if mode != "offline" and self.failure:
            raise self.failure
        self.calls.append(("init", {"project": project, "name": name, "resume": resume, "id": id, "dir": dir}))
        return self

    def log(self, data, step):
        self.calls.append(("log", data, step))

    def Image(self, value):  # noqa: N802 - their name
        return np.asarray(value).shape

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def service(monkeypatch, request):
    found = Service(request.param)
    monkeypatch.setitem(sys.modules, request.param, found)
    monkeypatch.setattr("fewstep.train.trackers.reachable", lambda address: True)
    return found


@pytest.mark.parametrize("service", ["wandb", "trackio"], indirect=True)
def test_services(folder, service):
    """A run that is repeated from the beginning, as after a kill before its first checkpoint, sends each step once."""
    for last in (16, 24):
        (tracker,) = open_trackers([service.__name__] * 2, folder, "teacher", {"lr": 1}, 0)
        for nimg in range(8, last + 1, 8):
            tracker.log(nimg, {"loss": 1.0})
            tracker.log(nimg, {"fid": 2.0})
            tracker.image(nimg, "samples", Image.new("L", (4, 3)))
        tracker.close()
    (kind, options), *rest = service.calls
    assert kind == "init" and options["project"] == "fewstep" and options["resume"] == "allow"
    assert options["name"].startswith("teacher") and len(options["id"] or options["name"]) >= 8
    sent = [call for n in (8, 16, 24) for call in at(n)]
    assert rest == [*sent[:6], ("finish",), (kind, options), *sent[6:], ("finish",)]


def at(nimg):
    return [("log", {"loss": 1.0}, nimg), ("log", {"fid": 2.0}, nimg), ("log", {"samples": (3, 4, 3)}, nimg)]


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
@pytest.mark.parametrize("reached", [True, False])
def test_wandb_without_a_network_is_offline(folder, service, monkeypatch, capsys, reached):
    monkeypatch.setattr("fewstep.train.trackers.reachable", lambda address: reached)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    service.failure = RuntimeError("no such host\nand a long trace")
    (tracker,) = open_trackers(["wandb"], folder, "teacher", {}, 0)
    tracker.log(8, {"loss": 1.0})
    assert [call[0] for call in service.calls] == ["teardown"] * reached + ["init", "log"]
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and len(said.splitlines()) == 1
    assert ("no such host" if reached else "https://tracker.invalid cannot be reached") in said


def test_a_server_that_is_not_there_is_found_out_soon(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reachable(f"http://127.0.0.1:{port}")
    assert not reachable(f"http://127.0.0.1:{port}")
    monkeypatch.setenv("http_proxy", "http://proxy:80")
    assert reachable(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("moment", ["begin", "log", "image", "close"])
def test_a_tracker_that_fails_never_ends_a_run(tmp_path, monkeypatch, capsys, moment):
    class Broken(Spy):
        def fail(self, *_):
            raise RuntimeError("the service is gone")

        def __getattribute__(self, name):
            return super().__getattribute__("fail" if name == moment else name)

    def begin(*_):
        tracker = Broken()
        if moment == "begin":
            tracker.fail()
        return tracker

    monkeypatch.setitem(TRACKERS, "spy", begin)
    fit(short_run(16, track=("spy",)), tmp_path / "run")
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warned == [
        "warning: spy failed (RuntimeError: the service is gone); the run continues without it; log.jsonl has everything"
    ]


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_a_service_that_never_ends_is_left(folder, service, monkeypatch, capsys):
    monkeypatch.setattr("fewstep.train.trackers.CLOSE_SECONDS", 0.01)
    go = threading.Event()
    service.finish = go.wait
    (tracker,) = open_trackers(["wandb"], folder, "teacher", {}, 0)
    tracker.close()
    go.set()
    assert "warning: wandb failed (TimeoutError: it was still sending after 0 s)" in capsys.readouterr().err


def test_wandb_records_no_secret_of_the_command(folder, monkeypatch):
    """Its metadata hold `sys.argv`."""
    monkeypatch.setitem(sys.modules, "wandb", service := Service("wandb"))
    monkeypatch.setattr("fewstep.train.trackers.reachable", lambda address: True)
    for word, secret in (("https://h/x.pkl", False), ("https://h/x.pkl?token=5ecret", True)):
        monkeypatch.setattr(sys, "argv", ["fewstep", "train", f"--transfer={word}"])
        open_trackers(["wandb"], folder, "teacher", {}, 0)
        assert service.settings.init_timeout == 20
        assert hasattr(service.settings, "x_disable_meta") is secret


def test_a_log_is_not_written_through_a_link(tmp_path):
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="expected the name of a file to write; it is a link to"):
        Log(tmp_path / "log.jsonl", 0)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_that_fails_is_one_line_each(folder, monkeypatch, capsys, name):
    service = Service(name)
    monkeypatch.setattr(service, "init", lambda **_: 1 // 0)
    monkeypatch.setattr("fewstep.train.trackers.reachable", lambda address: True)
    monkeypatch.setitem(sys.modules, name, service)
    (tracker,) = open_trackers([name], folder, "teacher", {}, 0)
    tracker.log(8, {"loss": 1.0})
    tracker.close()
    *first, last = capsys.readouterr().err.splitlines()
    assert last == (
        f"warning: {name} failed (ZeroDivisionError: integer division or modulo by zero); the run continues without it; "
        "log.jsonl has everything"
    )
    assert len(first) == (name == "wandb") and all("for wandb login and wandb sync" in line for line in first)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_tracker_is_asked_for(folder, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=rf'--track {name} needs the package {name}, which .*: pip install "fewstep\[{name}\]"'
    ):
        open_trackers([name], folder, "teacher", {}, 0)
    with pytest.raises(ValueError, match="needs the package"):
        fit(short_run(track=(name,)), folder / "run")
    assert not (folder / "run").exists()


def test_unknown_trackers_are_refused(folder):
    with pytest.raises(ValueError, match="unknown tracker paper; expected tensorboard, wandb, trackio"):
        open_trackers(["paper"], folder, "teacher", {}, 0)


# --- on the command line

RECIPE = """
from tests.train.test_monitoring import short_run
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
        def measure(product, watch):
            nonlocal now
            now += 1000
            return []

        return measure

    monkeypatch.setattr("fewstep.train.loop.time.monotonic", lambda: now)
    monkeypatch.setattr(Evaluation, "prepare", measured)
    monkeypatch.setattr("fewstep.train.evaluation.Evaluations.add", lambda *_: None)
    fit(short_run(evaluation=Evaluation(8, n=20)), tmp_path / "run")
    assert now == 4000
    assert {line["seconds"] for line in lines(tmp_path / "run" / "log.jsonl")} == {0.0}
