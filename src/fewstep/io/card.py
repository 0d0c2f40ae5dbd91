"""Model cards: how a model was made, as a page for readers under metadata that the Hugging Face hub reads."""

from __future__ import annotations

import re
import reprlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewstep.metrics.protocol import table, words
from fewstep.runtime.display import inline, public

UNSTATED = "not stated"
LICENSES = (
    "apache-2.0",
    "mit",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "bsd-3-clause",
)
"""The hub's names of licenses; any other license is stated in words."""


@dataclass
class Card:
    """How a model was made. It is stored in `config.json` and written as a page to `README.md`.

    Attributes:
        name: of the model.
        method: how it was made.
        nimg: training images seen.
        data: name, number of images and fingerprint of the training data.
        lineage: the models that it comes from, the nearest first.
        license: of the weights. A student inherits that of its teacher.
        metrics: results with their protocols.
        ema: how the weights were averaged over training.

    Example:
        >>> fs.Card(name="digits", method="EDM", license="Apache-2.0")
    """

    name: str = ""
    method: str = ""
    nimg: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    lineage: list[str] = field(default_factory=list)
    license: str = UNSTATED
    metrics: list[dict[str, Any]] = field(default_factory=list)
    ema: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name, self.lineage = public(self.name), [public(source) for source in self.lineage]

    def student(self, method: str) -> Card:
        """The card of a model distilled from this one: it inherits lineage and license."""
        return Card(method=method, lineage=[self.name, *self.lineage], license=self.license)

    def markdown(self, config: dict[str, Any], where: str = "path/to/this/folder") -> str:
        """The card as a Markdown page with metadata.

        Args:
            config: content of `config.json` of the model folder.
            where: the path or address that the page passes to `fewstep.load`.
        """
        shape = " x ".join(str(n) for n in config["shape"])
        data = (
            f", {words(self.data.get('n'))} images, sha256 {str(self.data['sha256'])[:16]}"
            if "sha256" in self.data
            else ""
        )
        lines = [
            f"# {inline(self.name) or 'A fewstep model'}",
            "",
            f"A {config['network']['kind']} under {config['precondition']['kind']} preconditioning for images of {shape}, "
            f"{config['num_classes'] or 'no'} classes.",
            "",
            f"- Made by: {inline(self.method) or UNSTATED}, {self.nimg:,} training images",
            f"- Data: {inline(self.data.get('name', UNSTATED))}{inline(data)}",
            f"- Lineage: {' <- '.join(map(inline, self.lineage)) if self.lineage else 'trained from scratch'}",
            f"- License of the weights: {inline(self.license)}",
        ]
        if config["levels"]:
            levels = ", ".join(str(s) for s in config["levels"])
            lines.append(f"- A generator: {len(config['levels'])} step(s), from sigma = {levels}")
        if self.metrics:
            rows = [
                [str(m["metric"]), words(m["value"]), words(m["n"]), words(m.get("protocol", {}))] for m in self.metrics
            ]
            lines += ["", table(["metric", "value", "images", "how it was measured"], rows).rstrip()]
        lines += ["", "```python", "import fewstep as fs", f'model = fs.load("{where}")', "```", ""]
        return self.metadata(config) + "\n".join(lines)

    def metadata(self, config: dict[str, Any]) -> str:
        """The YAML in front of the page: license, lineage, data, and metrics with their whole protocols."""
        import yaml

        conditional = "class-conditional" if config["num_classes"] else "unconditional"
        about: dict[str, Any] = {"library_name": "fewstep", "pipeline_tag": "unconditional-image-generation"}
        about |= license_names(self.license)
        about["tags"] = [
            "fewstep",
            "diffusion",
            conditional,
            *([f"{len(config['levels'])}-step"] if config["levels"] else []),
        ]
        if on_hub := [name.removeprefix("hf://") for name in self.lineage if name.startswith("hf://")]:
            about["base_model"] = on_hub[0]
        about |= {"lineage": self.lineage, "training_data": self.data, "training_images": self.nimg}
        if self.metrics:
            about["model-index"] = [
                {"name": self.name or "model", "results": [model_index_entry(m) for m in self.metrics]}
            ]
        return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120)}---\n\n"


def license_names(text: str) -> dict[str, str]:
    """The metadata for a license: the hub's name of it, `other` with a name if the hub has none, nothing if not stated."""
    slug = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    if text == UNSTATED:
        return {}
    known = [name for name in LICENSES if slug == name or slug.startswith(f"{name}-")]
    return {"license": max(known, key=len)} if known else {"license": "other", "license_name": slug[:80]}


def model_index_entry(metric: dict[str, Any]) -> dict[str, Any]:
    """A metric as the hub's `model-index` has it, with its protocol as `args`."""
    protocol = metric.get("protocol", {})
    reference = protocol.get("reference") if isinstance(protocol.get("reference"), dict) else {}
    data = str(reference.get("name", "none"))
    value = {"type": metric["metric"], "value": metric["value"], "args": {"n": metric["n"], **protocol}}
    return {
        "task": {"type": "unconditional-image-generation"},
        "dataset": {"type": data, "name": data},
        "metrics": [value],
    }


def body(text: str) -> str:
    """The page of a card without its metadata."""
    return text.partition("\n---\n")[2].strip() if text.startswith("---\n") else text.strip()


def card_from_dict(values: Any, where: Path) -> Card:
    """The card in a `config.json`. Raises ValueError for unknown entries and for values of the wrong type."""
    empty = asdict(Card())
    if not isinstance(values, dict) or set(values) - set(empty):
        raise ValueError(f"{where}: the card has unknown entries; a newer fewstep may know them")
    if wrong := [name for name, value in values.items() if type(value) is not type(empty[name])]:
        raise ValueError(f"{where}: these entries of the card have the wrong type: {', '.join(wrong)}")
    if not all(type(name) is str for name in values.get("lineage", [])):
        raise ValueError(f"{where}: the lineage of the card is a list of names; got {reprlib.repr(values['lineage'])}")
    if bad := [metric for metric in values.get("metrics", []) if not is_metric(metric)]:
        raise ValueError(f"{where}: expected metrics of the card with their value and n; got {reprlib.repr(bad[0])}")
    return Card(**values)


def is_metric(value: Any) -> bool:
    """Whether an entry of a card is a result as `fewstep eval` writes it."""
    named = isinstance(value, dict) and isinstance(value.get("metric"), str) and type(value.get("n")) is int
    return named and type(value.get("value")) in (int, float) and isinstance(value.get("protocol", {}), dict)
