"""Benchmarks: that they are found, take turns, and that documents name those that exist. What they measure is not tested."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from benchmarks import measure, reference
from benchmarks.__main__ import known, main
from benchmarks.teacher import arguments, run

ROOT = Path(__file__).parent.parent


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


def test_a_checkout_without_the_module_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="has no module training.loss"):
        reference.module(tmp_path, "training.loss")
