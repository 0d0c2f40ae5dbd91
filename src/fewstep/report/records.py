"""Reads what a folder of runs contains: results with their protocols, logs, samples, cards. Needs no torch."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fewstep.runtime.files import kind, listed, parse_json, read_json, regular

DESCRIPTION = ("model", "method", "sampler", "nfe", "n", "seeds", "grid", "protocol")
EFFORT = ("images_per_second", "training_images", "training_seconds")


@dataclass(frozen=True)
class Result:
    """One row of results.json, and the folder to which its `grid` is relative."""

    row: dict[str, Any]
    folder: Path

    @property
    def metrics(self) -> dict[str, float]:
        """Every number of the row that neither describes it nor says what it cost."""
        return {k: v for k, v in self.row.items() if is_number(v) and k not in (*DESCRIPTION, *EFFORT)}

    @property
    def protocol(self) -> dict[str, Any]:
        """How it was measured: the row's `protocol` and every other entry, without what the row itself says."""
        described = {*DESCRIPTION, *EFFORT, *self.metrics}
        protocol = {k: v for k, v in self.row.get("protocol", {}).items() if k not in self.row or self.row[k] != v}
        return flat({k: v for k, v in self.row.items() if k not in described} | protocol)


class Curve(NamedTuple):
    """One key of a log: nimg (N,) and values (N,)."""

    nimg: NDArray[np.float64]
    value: NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    """The numbers of a log.jsonl.

    Attributes:
        curves: by key.
        clock: seconds of training over images.
        unreadable: lines skipped as they are not JSON, as after a kill, or lack `nimg`.
        repeated: lines skipped as a resume from an earlier checkpoint replaced them.
    """

    curves: dict[str, Curve]
    clock: Curve
    unreadable: int
    repeated: int

    @property
    def seconds(self) -> float | None:
        """Of all training."""
        return float(self.clock.value[-1]) if self.clock.value.size else None


@dataclass(frozen=True)
class RunRecord:
    """A run folder: run.json, the log if there is one, and the sample grids in the order of training."""

    folder: Path
    info: dict[str, Any]
    log: Log
    samples: tuple[Path, ...]

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.folder.name)

    @property
    def title(self) -> str:
        return titled(self.name, self.folder)

    def setting(self, key: str) -> Any:
        """An entry of run.json or of its `identity`, the settings that decide the weights; None if neither has it."""
        identity = self.info.get("identity")
        return self.info.get(key, identity.get(key) if isinstance(identity, dict) else None)


def titled(name: str, folder: Path) -> str:
    """The name of a run, behind that of its folder where they differ: several runs may be students."""
    return name if name == folder.name else f"{folder.name}: {name}"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, under dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return result


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number, and not an integer beyond all floats."""
    return isinstance(value, float) or (isinstance(value, int) and type(value) is not bool and abs(value) < 2**1023)


def logged_number(value: object) -> float | None:
    """The value of a log as a number, else None; strict JSON writes infinite and undefined numbers as words."""
    if value in ("inf", "-inf", "nan"):
        return float(value)
    return float(value) if is_number(value) else None


def read_object(path: Path, kind: type) -> Any:
    """The contents of a JSON file that must be a dict or a list."""
    value = read_json(path)
    if not isinstance(value, kind):
        raise ValueError(
            f"{path} must hold a JSON {kind.__name__}; got {type(value).__name__}; restore it or remove it"
        )
    return value


def read_results(path: Path) -> list[Result]:
    rows = read_object(path, list)
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("protocol", {}), dict):
            raise ValueError(f"{path}: entry {i} must be an object, and its protocol one too; got {str(row)[:80]}")
    return [Result(row, path.parent) for row in rows]


def read_evaluation(path: Path) -> list[Result]:
    """Results that `fewstep eval` wrote: a row for each protocol and number of images, with all metrics that share them.

    In a run folder the model has the title of the run.
    """
    rows: list[dict[str, Any]] = []
    alike: dict[str, list[dict[str, Any]]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    of_a_run = (path.parent / "run.json").is_file()
    for result in read_results(path):
        metric, value, n, protocol = (result.row.get(key) for key in ("metric", "value", "n", "protocol"))
        if not isinstance(metric, str) or not is_number(value) or not isinstance(protocol, dict):
            raise ValueError(f"{path}: expected results as fewstep eval writes them; got {str(result.row)[:80]}")
        row = {key: protocol[key] for key in ("model", "sampler", "nfe", "seeds") if key in protocol}
        if of_a_run and "model" in row:
            row["model"] = titled(str(row["model"]), path.parent)
        row |= {"n": n, "protocol": protocol}
        key = json.dumps(row, sort_keys=True)
        same = alike.setdefault(key, [])
        if seen[key, metric] == len(same):  # repeated measurements have a row each
            same.append(row)
            rows.append(row)
        same[seen[key, metric]][metric] = value
        seen[key, metric] += 1
    return [Result(row, path.parent) for row in rows]


def find_evaluations(folder: Path) -> list[Path]:
    """Files that `fewstep eval --json` wrote, whatever their names."""
    return [path for path in find(folder, "*.json") if path.name != "results.json" and is_evaluation(path)]


def is_evaluation(path: Path) -> bool:
    with path.open("rb") as file:
        return re.match(rb'\[\s*\{\s*"metric"', file.read(64)) is not None


MOST_KEYS = 5000
"""Of a log, each of which is drawn."""


def read_log(path: Path) -> Log:
    """A log.jsonl. Lines torn by a kill are skipped, lines repeated by a resume replaced; a missing file is an empty log."""
    records: list[dict[str, Any]] = []
    unreadable = repeated = 0
    for line in regular(path).read_bytes().splitlines() if path.exists() else []:
        try:
            record = parse_json(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not is_number(nimg := record.get("nimg")) or not math.isfinite(nimg):
            unreadable += bool(line.strip())
            continue
        # A resumed run starts over from its checkpoint: what was logged beyond it is not part of its history.
        if records and nimg < records[-1]["nimg"]:
            while records and records[-1]["nimg"] >= nimg:
                records.pop()
                repeated += 1
        records.append(record)
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for key, value in record.items():
            if key not in ("nimg", "seconds") and (y := logged_number(value)) is not None:
                points.setdefault(key, []).append((float(record["nimg"]), y))
    if len(points) > MOST_KEYS:
        raise ValueError(f"{path}: a log has at most {MOST_KEYS} numbers by name; this one has {len(points)}")
    curves = {key: Curve(*np.array(pairs).T) for key, pairs in points.items()}
    times = [(float(r["nimg"]), float(r["seconds"])) for r in records if is_number(r.get("seconds"))]
    return Log(curves, Curve(*np.array(times).reshape(-1, 2).T), unreadable, repeated)


def read_run(folder: Path) -> RunRecord:
    """The records in a run folder; links in it are skipped with a warning."""
    samples = owned(sorted((folder / "samples").glob("*.png")) if owned([folder / "samples"], "a folder") else [])
    logs = owned([folder / "log.jsonl"])
    log = read_log(logs[0]) if logs else Log({}, Curve(np.empty(0), np.empty(0)), 0, 0)
    return RunRecord(folder, read_object(folder / "run.json", dict), log, tuple(samples))


def find(folder: Path, name: str) -> list[Path]:
    """Files of this name at any depth, in alphabetical order; hidden folders and links are skipped."""
    paths = sorted(folder.rglob(name))
    return owned([p for p in paths if not any(part.startswith(".") for part in p.relative_to(folder).parts)])


def owned(paths: Sequence[Path], what: str = "a file") -> list[Path]:
    """The paths that are regular files, or of another `kind`; links are skipped with a warning.

    Reports are given to others, and a link in a folder from elsewhere may lead to a file that nobody meant to share.
    """
    kinds = {path: kind(path) for path in paths}
    if links := [str(path) for path, found in kinds.items() if found == "a link"]:
        warnings.warn(f"left out, as links are not followed: {listed(links)}; copy what they lead to", stacklevel=2)
    return [path for path, found in kinds.items() if found == what]


def find_cards(folder: Path) -> list[Path]:
    """The README.md of model folders; of several beside each other under `snapshots`, the last."""
    cards = [p for p in find(folder, "README.md") if (p.parent / "config.json").is_file()]
    last = {p.parent.parent if p.parent.parent.name == "snapshots" else p: p for p in cards}
    return list(last.values())
