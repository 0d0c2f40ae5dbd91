"""Restored images: the sheets of `fewstep restore`, each with what was measured on it, and how."""

from __future__ import annotations

from pathlib import Path

from fewstep.report.numerals import human
from fewstep.report.pictures import Picture, embed
from fewstep.report.records import find, flat, is_number, read_object
from fewstep.report.wording import as_text, capitalized, label, plural


def restorations(folder: Path) -> list[Picture]:
    """The sheets beneath `folder` that lie beside a metrics.json with a protocol."""
    measured = {path.parent for path in find(folder, "metrics.json")}
    return [restoration(path) for path in find(folder, "sheet.png") if path.parent in measured]


def restoration(sheet: Path) -> Picture:
    path = sheet.parent / "metrics.json"
    record = read_object(path, dict)
    protocol, metrics, samples = record.get("protocol"), record.get("metrics"), record.get("samples")
    if not isinstance(protocol, dict) or not isinstance(metrics, dict) or type(samples) is not int:
        raise ValueError(f"{path} must hold a protocol, metrics and samples, as fewstep restore writes them")
    task = capitalized(as_text(protocol.get("task")).replace("_", " "))
    how = [as_text(protocol[key]) for key in ("model", "solver", "preset") if protocol.get(key)]
    how += [f"NFE {as_text(protocol.get('nfe'))} per sample"]
    measured = [
        f"{label(name)} {human(value)} of {label(kind)}"
        for name, values in metrics.items()
        if isinstance(values, dict)
        for kind in ("sample", "mean_of_samples")[:samples]
        if is_number(value := values.get(kind))
    ]
    columns = ["truth"] * (protocol.get("measurement") != "given") + ["measurement", plural(samples, "sample")]
    columns += ["mean", "deviation"] * (samples > 1)
    lines = [
        ", ".join(how),
        ", ".join(measured),
        f"n {as_text(record.get('n'))}, seed {as_text(protocol.get('seed'))}",
        f"from left to right: {', '.join(columns)}",
    ]
    return embed(
        sheet,
        f"{task}: {', '.join(columns)}",
        title=task,
        lines=[line for line in lines if line],
        protocol=flat(protocol),
    )
