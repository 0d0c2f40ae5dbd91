"""The section of restored images: sheets of `fewstep restore`, each with what was measured on it, and how."""

from __future__ import annotations

from pathlib import Path

from fewstep.report.markup import definitions, disclosure, embed, escape, figure, heading, plural, spoken, words
from fewstep.report.numerals import human
from fewstep.report.records import find, flat, is_number, read_object


def restorations(folder: Path) -> str:
    """The sheets beneath `folder` that lie beside a metrics.json with a protocol."""
    measured = {path.parent for path in find(folder, "metrics.json")}
    sheets = [path for path in find(folder, "sheet.png") if path.parent in measured]
    return f'<div class="grids">{"".join(map(restoration, sheets))}</div>' if sheets else ""


def restoration(sheet: Path) -> str:
    path = sheet.parent / "metrics.json"
    told = read_object(path, dict)
    protocol, figures, samples = told.get("protocol"), told.get("figures"), told.get("samples")
    if not isinstance(protocol, dict) or not isinstance(figures, dict) or type(samples) is not int:
        raise ValueError(f"{path} must hold a protocol, figures and samples, as fewstep restore writes them")
    task = heading(spoken(protocol.get("task")).replace("_", " "))
    how = [spoken(protocol[key]) for key in ("model", "solver", "preset") if protocol.get(key)]
    how += [f"NFE {spoken(protocol.get('nfe'))} per sample"]
    measured = [
        f"{words(name)} {human(value)} of {words(kind)}"
        for name, of in figures.items()
        if isinstance(of, dict)
        for kind in ("sample", "mean_of_samples")[:samples]
        if is_number(value := of.get(kind))
    ]
    columns = ["truth"] * (protocol.get("measurement") != "given") + ["measurement", plural(samples, "sample")]
    columns += ["mean", "deviation"] * (samples > 1)
    lines = [", ".join(how), ", ".join(measured), f"n {spoken(told.get('n'))}, seed {spoken(protocol.get('seed'))}"]
    lines += [f"from left to right: {', '.join(columns)}"]
    caption = "<br>".join([f"<b>{escape(task)}</b>", *(escape(line) for line in lines if line)])
    return figure(
        embed(sheet, f"{task}: {', '.join(columns)}"), caption + disclosure("Protocol", definitions(flat(protocol)))
    )
