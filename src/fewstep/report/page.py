"""One self-contained HTML page from the records of runs: no script, no font, no request to anywhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.io.card import body
from fewstep.report import records
from fewstep.report.charts import palette, quality_charts
from fewstep.report.comparison import results_table, sample_grids
from fewstep.report.records import RunRecord
from fewstep.report.restorations import restorations
from fewstep.report.training import moment, training
from fewstep.report.wording import as_text, capitalized
from fewstep.runtime.display import visible
from fewstep.runtime.files import new_file, writable

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_CARD_BYTES = 2**20
"""Bytes of a model's card that are shown."""


def write_report(folder: str | Path, *, title: str | None = None) -> Path:
    """Write `folder`/report.html from everything that the folder of one or more runs contains.

    These files are read, at any depth:

    - results.json, a list of rows: model, method, sampler, nfe, n, seeds, any metric by its name, images_per_second,
      training_images, training_seconds, grid, protocol;
    - files of any name that `fewstep eval --json` wrote;
    - run folders: run.json, log.jsonl, samples/*.png;
    - folders of `fewstep restore`: sheet.png beside metrics.json;
    - cards of model folders: README.md beside config.json.

    Links are skipped with a warning. Lines of a log that are damaged, as by a kill, are skipped and counted on the page.

    Args:
        folder: a run, or a folder of runs.
        title: of the page; the folder's name if left out.

    Returns:
        The path of the page.

    Raises:
        ValueError: there is nothing to report, or a file of results, a run.json, a metrics.json or an image cannot be read.

    Example:
        >>> write_report("runs")
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ValueError(f"a report is made from a folder of runs; {folder} is not a folder")
    out = writable(folder / "report.html")
    results = [result for path in records.find(folder, "results.json") for result in records.read_results(path)]
    results += [row for path in records.find_evaluations(folder) for row in records.read_evaluation(path)]
    runs = [records.read_run(path.parent) for path in records.find(folder, "run.json")]
    restored = restorations(folder)
    if not results and not runs and not restored:
        raise ValueError(
            f"{folder} holds neither results nor runs nor restored images: no results.json with rows, no file of fewstep "
            "eval --json, no run.json, no metrics.json with a sheet.png, at any depth"
        )
    slots = palette(results, runs)
    runs.sort(key=lambda run: slots[run.name.casefold()])
    page = render(
        "report.html.j2",
        title=title or folder.name,
        facts=common_facts(runs),
        table=results_table(results),
        quality=quality_charts(results, runs),
        samples=sample_grids(results),
        restorations=restored,
        trainings=[training(run) for run in runs],
        cards=cards(folder),
        commands=commands(runs),
    )
    with new_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


def render(template: str, **values: Any) -> str:
    """A template filled in. Values are escaped, and their control characters shown as escapes, unless marked as safe."""
    return templates().get_template(template).render(values)


@cache
def templates() -> Environment:
    """The templates of the report, each compiled once."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fewstep.report"),
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else visible(value, keep="\t\n\r"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_text"] = as_text
    return environment


def common_facts(runs: Sequence[RunRecord]) -> dict[str, str]:
    """When the page was written, and what all runs have in common; what differs is shown with each run."""
    facts = {"Written": moment(datetime.now().astimezone())}
    for key in ("versions", "machine"):
        known = {as_text(run.info[key]) for run in runs if run.info.get(key)}
        if len(known) == 1:
            facts[capitalized(key)] = known.pop()
    return facts


def cards(folder: Path) -> list[tuple[str, str]]:
    """The cards of the models beneath a folder: names and texts."""
    found = []
    for path in records.find_cards(folder):
        name = path.parent.relative_to(folder)
        with path.open("rb") as file:
            start = file.read(MOST_CARD_BYTES + 1)
        text = body(start[:MOST_CARD_BYTES].decode(errors="replace"))
        text += "\n[the rest is left out]" if len(start) > MOST_CARD_BYTES else ""
        found.append((name.as_posix() if name != Path() else folder.name, text))
    return found


def commands(runs: Sequence[RunRecord]) -> list[str]:
    """The commands that made the runs, each once."""
    lines = [run.info["command"] for run in runs if run.info.get("command")]
    return list(dict.fromkeys(shlex.join(map(str, line)) if isinstance(line, list) else str(line) for line in lines))
