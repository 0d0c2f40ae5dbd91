"""What a model says of itself: a text for readers, under metadata that the hub reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from fewstep.metrics.protocol import table, words
from fewstep.runtime.foreign import inline, public

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
"""Names that the hub has for licenses; others are told in words."""


@dataclass
class Card:
    """What a model says of itself; free text and numbers, written into `README.md` and `config.json`.

    method: how it was made. nimg: training images seen. data: its name, number of images and fingerprint. lineage: the
    models it comes from. license: of the weights, which a student inherits from its teacher. metrics: results with
    their protocol. ema: how the weights were averaged over training.
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
        """The card as a page. config: of the model folder. where: what `fewstep.load` is to be given."""
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
        """YAML in front of the page: license, lineage, data, and metrics with all of their protocols."""
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
            about["model-index"] = [{"name": self.name or "model", "results": [result(m) for m in self.metrics]}]
        return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120)}---\n\n"


def license_names(text: str) -> dict[str, str]:
    """The hub's name of a license, or the words for one that it does not know; nothing if none is stated."""
    slug = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    if text == UNSTATED:
        return {}
    known = [name for name in LICENSES if slug == name or slug.startswith(f"{name}-")]
    return {"license": max(known, key=len)} if known else {"license": "other", "license_name": slug[:80]}


def result(metric: dict[str, Any]) -> dict[str, Any]:
    """A figure as the hub has it, with its protocol as `args`."""
    protocol = metric.get("protocol", {})
    reference = protocol.get("reference") if isinstance(protocol.get("reference"), dict) else {}
    data = str(reference.get("name", "none"))
    figure = {"type": metric["metric"], "value": metric["value"], "args": {"n": metric["n"], **protocol}}
    return {
        "task": {"type": "unconditional-image-generation"},
        "dataset": {"type": data, "name": data},
        "metrics": [figure],
    }


def body(text: str) -> str:
    """A page without the metadata in front of it."""
    return text.partition("\n---\n")[2].strip() if text.startswith("---\n") else text.strip()
