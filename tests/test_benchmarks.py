"""Benchmarks: that they are found, take turns, and that documents name those that exist. What they measure is not tested."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import inverse, measure, networks, reference, samplers, start, writing
from benchmarks.__main__ import known, main
from benchmarks.teacher import arguments, run
from torch import Tensor, nn

from tests import ROOT


def test_the_list_names_every_benchmark_with_its_first_line(capsys):
    main([])
    printed = capsys.readouterr().out
    for name, line in known().items():
        assert f"{name} " in printed and line in printed and line


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit, match="there is no benchmark 'nothing'"):
        main(["nothing"])


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Makefile"]), ids=str)
def test_documents_name_benchmarks_that_exist(page):
    found = re.findall(r"-m benchmarks (\w+)", page.read_text())
    assert set(found) <= {*known(), "NAME"}
    assert "-m benchmarks." not in page.read_text()


def test_start_up_uses_every_public_name():
    uses: dict[str, Any] = {}
    exec(start.NAMES, uses)
    assert {"load", "distill"} < {name for name in dir(uses["fs"]) if name in vars(uses["fs"])}


def test_functions_take_turns_and_ratios_are_of_neighbours(monkeypatch):
    called, now = [], iter([0, 9, 9, 18, 0, 1, 1, 3, 0, 10, 10, 40])
    monkeypatch.setattr(measure, "clock", lambda: next(now))
    times = measure.alternate({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2)
    assert called == ["a", "b"] * 3  # the first round warms up
    assert times == {"a": [1, 10], "b": [2, 30]}
    assert measure.ratio(times["b"], times["a"]) == 2.5


def test_operations_of_a_product():
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert measure.flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_a_step_is_measured_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "matrix_rate", lambda dtype: 1e9)
    monkeypatch.setattr(measure, "copy_rate", lambda: 1e9)
    parser = argparse.ArgumentParser()
    arguments(parser)
    given = parser.parse_args(["--channels", "32", "--batch", "1", "--repeats", "1", "--dtype", "float32"])
    monkeypatch.setattr("benchmarks.teacher.traces", lambda given: measure.Table("left out"))
    tables = list(run(given))
    measure.write(tmp_path / "out.json", measure.about("teacher", ["teacher"]), tables)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["tables"][0]["rows"][0]["images/s"] > 0
    assert record["machine"]["device"] and record["limits"]["copy_bytes_per_s"] == 1e9


def test_samplers_are_compared_on_a_mixture(tmp_path):
    def tables(*options: str) -> list[measure.Table]:
        parser = argparse.ArgumentParser()
        samplers.arguments(parser)
        return list(samplers.run(parser.parse_args(options)))

    path, law, runs = tables("--samples", "8", "--steps", "2", "4", "--svg", str(tmp_path / "out.svg"))
    assert {"Heun", "Ito-Taylor"} <= {row["sampler"] for row in path.rows} == {row["sampler"] for row in law.rows}
    assert len(runs.rows) == 2 * len(path.rows)
    assert (tmp_path / "out.svg").read_text().count('class="fewstep-chart"') == 2
    with pytest.raises(SystemExit, match="give both or neither"):
        tables("--images", "digits")


def test_a_checkout_without_the_module_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="has no module training.loss"):
        reference.module(tmp_path, "training.loss")


def test_what_a_checkout_imports_is_asked_for(tmp_path):
    (tmp_path / "needy.py").write_text("import a_package_that_is_missing")
    with pytest.raises(SystemExit, match="imports a_package_that_is_missing, which is missing; install it"):
        reference.module(tmp_path, "needy")


def test_networks_of_every_kind_are_found_by_name_and_have_no_zero_gain():
    parser = argparse.ArgumentParser()
    networks.arguments(parser, batch=1)
    given = parser.parse_args(["--network", "edm2-img64-xs", "--channels", "16"])
    denoiser = networks.denoiser(given)
    assert denoiser.shape == (3, 64, 64) and denoiser.net.config.model_channels == 16
    assert denoiser.uncertainty is not None and all(p.abs().max() > 0 for p in denoiser.parameters())
    assert {type(config) for config in networks.SIZES.values()} == set(networks.UNETS)


def test_what_a_benchmark_varies_goes_before_the_command_line():
    parser = argparse.ArgumentParser()
    networks.arguments(parser, batch=1)
    given = parser.parse_args(["--channels", "8"])
    widths = [networks.denoiser(given, **options).net.config.model_channels for options in ({}, {"model_channels": 4})]
    assert widths == [8, 4]


def test_a_step_of_ncvsds_reference_moves_each_player_once_in_its_turn(monkeypatch):
    class Player(nn.Module):
        label_dim = 3

        def __init__(self, **options: float) -> None:
            super().__init__()
            self.init_kwargs, self.weight = options, nn.Parameter(torch.ones(1))

        def init_from_pretrained(self, teacher: nn.Module) -> Player:
            assert self.init_kwargs["dropout"] == 0  # which the teacher had
            return self

    turns: list[tuple[str, ...]] = []

    def answer(loss: str, y: Tensor, labels: Tensor, **players: Player) -> Tensor:
        assert labels.tolist() == [[0, 1, 0], [0, 0, 1]]
        moving = (name for name, player in players.items() if player.weight.requires_grad and player.training)
        turns.append((loss, *moving))
        return y + torch.stack([player.weight for player in players.values()]).sum()

    def pair(loss: Tensor) -> tuple[Tensor, Tensor]:
        return loss, loss[:, :1, :1, :1]

    losses = {
        "DSMLoss": lambda levels: lambda sigma, **given: answer("denoising", **given),
        "DiscriminatorLoss": lambda levels: lambda sigma, images, **given: pair(answer("game", **given)[:, :1, :1, :1]),
        "NCVSDLoss": lambda levels: lambda sigma, **given: pair(answer("scores", **given)),
        "LogNormalNoiseSampler": lambda mean, std: None,
        "UniformNoiseSampler": lambda: lambda x: torch.ones(len(x), 1, 1, 1),
    }
    nets = {"PrecondCondition": Player, "DiscriminatorCondition": Player, "GenerativeDenoiser": lambda net: net}
    stubs = {"training.networks_edm2": SimpleNamespace(**nets), "training.training_loop": SimpleNamespace(**losses)}
    monkeypatch.setattr(reference, "module", lambda checkout, name: stubs[name])
    made: list[dict[str, Player]] = []
    players = reference.ncvsd_players
    monkeypatch.setattr(reference, "ncvsd_players", lambda *given: made.append(players(*given)) or made[-1])
    teacher = Player(dropout=0.1)
    reference.ncvsd_step(Path(), teacher, torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]))()
    assert turns == [("denoising", "score_model"), ("game", "discriminator"), ("scores", "generator")]
    moved = [round(1 - player.weight.item(), 7) for player in made[0].values()]
    assert moved == pytest.approx([1e-5] * 3, rel=0.1) and teacher.weight.item() == 1  # a step of Adam at that rate


def test_a_step_of_gdds_reference_moves_both_players_and_the_penalty_is_due_in_every_16th(monkeypatch):
    stages: list[tuple[int, int]] = []

    class GDDLoss:
        def __init__(self, g: nn.Module, d: nn.Module, **options: object) -> None:
            self.players = nn.ModuleList([g, d])

        def accumulate_gradients(self, images: Tensor, classes: Tensor, *, stage: int, gain: int) -> None:
            assert classes.tolist() == [[0, 1, 0], [0, 0, 1]]
            stages.append((stage, gain))
            self.players[min(stage, 1)](torch.ones(1)).backward()

    class Generator(nn.Linear):
        label_dim = 3

    judge, generator = nn.Linear(1, 1), Generator(1, 1)
    before = [player.weight.item() for player in (generator, judge)]
    monkeypatch.setattr(reference, "gdd_judge", lambda checkout: (nn.Identity(), judge))
    monkeypatch.setattr(reference, "module", lambda checkout, name: SimpleNamespace(GDDLoss=GDDLoss))
    step = reference.gdd_step(Path(), generator, torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]))
    for _ in range(18):
        step()
    assert stages == [*[(0, 1), (1, 1)] * 17, (2, 16), (0, 1), (1, 1)]
    moved = [was - player.weight.item() for was, player in zip(before, (generator, judge), strict=True)]
    assert moved == pytest.approx([18e-5, 19e-5], rel=0.01)  # a move of Adam at that rate each


def test_networks_of_timm_are_made_anew_and_not_downloaded(monkeypatch):
    asked: list[tuple[str, dict[str, object]]] = []

    def create(name: str, **options: object) -> nn.Module:
        asked.append((name, options))
        return nn.Module()

    zoo = SimpleNamespace(vgg16_bn=lambda weights=None: weights)
    timm = SimpleNamespace(create_model=create)
    monkeypatch.setattr(reference, "import_module", {"timm": timm, "torchvision.models": zoo}.__getitem__)
    with reference.untrained_features():
        assert timm.create_model("lite", pretrained=True).act1 is not None and zoo.vgg16_bn(True) is None
        assert not hasattr(timm.create_model("vgg", pretrained=True, features_only=True), "act1")
    assert asked == [("lite", {}), ("vgg", {"features_only": True})] and timm.create_model is create


def test_the_reference_loop_gets_the_preset_and_is_needed(monkeypatch):
    def proximal(x0: Tensor, y: Tensor, sigma_y: float, rho: float) -> Tensor:
        return x0 + y + sigma_y + rho

    def sampler(
        net: object, noise: Tensor, sigmas: list[float], draw: object, *, ema_sigma: float, ema_decay: float
    ) -> object:
        assert net is student and noise.shape == y.shape and (ema_sigma, ema_decay) == (100, 0.6) and callable(draw)
        return draw(noise - noise, sigmas[-1], None)

    student, y = nn.Identity(), torch.ones(2, 3, 8, 8)
    loop = SimpleNamespace(karras_sigmas=lambda n, device, rho: [n * rho], pnp_gd_sampler=sampler)
    blurs = SimpleNamespace(GaussialBlurCircular=lambda *given: SimpleNamespace(proximal_generator=proximal))
    stubs = {"posterior_sample": loop, "tasks.gaussian_blur": blurs}
    monkeypatch.setattr(reference, "module", lambda checkout, name: stubs[name])
    found = reference.deblur(Path(), student, y, evaluations=4, beta=0.5, ema=(100, 0.6))()
    assert (found == 1 + 0.5 + 5 * 2).all()  # sigma_y^2 is beta / 2, and the last of five levels is not evaluated
    parser = argparse.ArgumentParser()
    inverse.arguments(parser)
    with pytest.raises(SystemExit, match="loop needs --reference"):
        list(inverse.run(parser.parse_args(["loop"])))


def test_writing_is_measured_for_every_kind_of_output():
    (table,) = writing.run(argparse.Namespace(num=2, repeats=1))
    assert [row[""] for row in table.rows] == list(writing.OUTPUTS)
    assert all(row["images/s"] > 0 for row in table.rows) and table.rows[-1]["of npz"] == 1
