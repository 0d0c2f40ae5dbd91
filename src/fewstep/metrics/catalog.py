"""The names of metrics: what each computes, in which features, from how many images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["frechet", "kernel", "score", "overlap", "cover"]
Part = Literal["features", "spatial", "logits"]
SPLITS = 10
SHORT = {
    "fid": "fd_inception",
    "kid": "kd_inception",
    "clip_fid": "fd_clip",
    "sfid": "fd_inception/spatial",
    "is": "is_inception/logits",
}
KINDS: dict[str, Kind] = {"fd": "frechet", "kd": "kernel", "is": "score", "pr": "overlap", "dc": "cover"}
NEIGHBOURS = {"overlap": 3, "cover": 5}
ALIAS = re.compile(r"(fid|kid|is|pr)(\d+k?)(\d?)(_full)?")
NAME = re.compile(r"(fd|kd|is|pr|dc)(\d*)(?:_([A-Za-z]\w*)(?:/(features|spatial|logits))?)?")
HELP = (
    "fid, sfid, kid, is, pr, dc (3 and 5 neighbours, or pr5, dc3), clip_fid, and fd_, kd_, pr_, dc_ with an extractor, "
    "such as fd_dinov2; each with @ and a number of images, such as fid@50k"
)


class Need(NamedTuple):
    """A statistic of a set of images: `of` the first `limit` images (None: all), in one part of the features."""

    extractor: str
    part: Part
    of: Literal["moments", "samples", "scores"]
    limit: int | None


@dataclass(frozen=True)
class Metric:
    """name: as results have it. k: of nearest neighbours. limit: only the first N images; None for all."""

    name: str
    kind: Kind
    extractor: str
    part: Part = "features"
    k: int = 0
    limit: int | None = None

    @property
    def need(self) -> Need:
        of = {"frechet": "moments", "score": "scores"}.get(self.kind, "samples")
        return Need(self.extractor, self.part, of, self.limit)  # type: ignore[arg-type]  # one of the three words

    @property
    def values(self) -> tuple[str, ...]:
        """The names of its numbers in results."""
        if self.kind in NEIGHBOURS:
            suffix = self.name[2:]  # of pr5_dinov2: 5_dinov2
            names = ("precision", "recall") if self.kind == "overlap" else ("density", "coverage")
            return tuple(f"{name}{suffix}" for name in names)
        return (self.name,) if self.kind == "frechet" else (self.name, f"{self.name}_std")

    @property
    def minimum(self) -> int:
        """Images that it takes at least."""
        return {"frechet": 2, "kernel": 2, "score": SPLITS}.get(self.kind, self.k + 1)

    def check(self, n: int, what: str = "generated") -> None:
        """Raise ValueError if `n` images of a set are too few."""
        needed = max(self.minimum, self.limit or 0) if what == "generated" else self.minimum
        if n < needed:
            name = key(self.name, self.limit) if self.limit else self.name
            raise ValueError(f"{name} needs at least {needed:,} {what} images; got {n:,}")


def count(text: str) -> int:
    """A number of images: 2000, or 2k."""
    thousands = text.removesuffix("k")
    if not thousands.isdecimal() or int(thousands) == 0:
        raise ValueError(f"a number of images is written as 2000 or 2k; got {text!r}")
    return int(thousands) * (1000 if text.endswith("k") else 1)


def key(name: str, n: int) -> str:
    """A metric together with its number of images: fid@50k."""
    return f"{name}@{n // 1000}k" if n % 1000 == 0 else f"{name}@{n}"


def parse(text: str) -> Metric:
    """One metric by name, such as fid, fid@50k, pr5, fd_dinov2; also StyleGAN's fid50k_full, is50k, pr50k3_full."""
    word, at, number = text.strip().partition("@")
    if not at and (alias := ALIAS.fullmatch(word)) and (alias[2].endswith("k") or alias[4]):
        word, number = alias[1] + alias[3], alias[2]
        at = "@"
    limit = count(number) if at else None
    found = NAME.fullmatch(SHORT.get(word, word))
    if found is None or (found[3] is None and found[1] in ("fd", "kd", "is")):
        raise ValueError(f"no metric is called {text!r}; choose from {HELP}")
    short, k, extractor, part = found.groups()
    kind = KINDS[short]
    if (k and kind not in NEIGHBOURS) or (kind == "score") != (part == "logits"):
        raise ValueError(f"no metric is called {text!r}; choose from {HELP}")
    neighbours = int(k) if k else NEIGHBOURS.get(kind, 0)
    if kind in NEIGHBOURS and neighbours < 1:
        raise ValueError(f"{text!r} asks for no neighbours; at least 1 is needed")
    chosen: Part = "spatial" if part == "spatial" else "logits" if part == "logits" else "features"
    return Metric(word, kind, extractor or "inception", chosen, neighbours, limit)
