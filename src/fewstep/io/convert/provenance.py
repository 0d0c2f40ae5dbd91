"""Where the weights of an upstream file come from, and their license, as far as class, name and address of the file tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from fewstep.io.card import Card
from fewstep.runtime.display import public

if TYPE_CHECKING:
    from fewstep.io.convert.snapshot import UpstreamSnapshot

NVIDIA_LICENSE = "CC BY-NC-SA 4.0 (NVIDIA): no commercial use; keep the attribution and the license"
INHERITED_LICENSE = (
    "that of its teacher; students of NVIDIA's EDM and EDM2 networks inherit CC BY-NC-SA 4.0: no commercial use"
)
UNKNOWN_LICENSE = "not stated by the file; networks published by NVIDIA are under CC BY-NC-SA 4.0: no commercial use"

HOST = "nvlabs-fi-cdn.nvidia.com"
PUBLISHED = re.compile(r"edm-(cifar10|ffhq|afhqv2|imagenet)-(\d+)x\2-(cond|uncond)-(vp|ve|adm)\.pkl")
"""EDM's teachers of its own preconditioning on NVIDIA's server."""

SID_NAME = re.compile(r"-?\d+\.\d+-\d+")
"""How SiD names its snapshots: network-snapshot-ALPHA-KIMG.pkl."""


@dataclass(frozen=True)
class Provenance:
    """Where a converted network comes from.

    Attributes:
        source: the address of the file without secrets, or its name.
        bytes: size of the file.
        sha256: hash of the file.
        class_names: upstream classes of the preconditioner and of the U-Net.
        entry: the network of the file, such as "ema".
        license: of the weights, as far as is known.
        notes: what was concluded about the network and is worth knowing, as sentences.
    """

    source: str
    bytes: int
    sha256: str
    class_names: tuple[str, str]
    entry: str
    license: str
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> str:
        """Both upstream classes in words, such as "EDMPrecond around SongUNet"."""
        return " around ".join(self.class_names)

    @property
    def license_warning(self) -> str | None:
        """What to warn of before the weights are used, or None."""
        if "no commercial use" not in self.license:
            return None
        whose = "if they are NVIDIA's, " if self.license == UNKNOWN_LICENSE else ""
        return f"{whose}these weights, and students distilled from them, are not for commercial use"

    def card(self, path: str | None = None) -> Card:
        """The card of the converted model. path: what the user calls the file, if that is not its address."""
        where = self.source if "://" in self.source or path is None else path
        lineage = [f"{where} (sha256 {self.sha256})"]
        return Card(Path(file_name(where)).stem, self.classes, lineage=lineage, license=self.license)


def clean(source: str) -> str:
    """An address without parts that may be secret; a file name without the query that a download left in it."""
    return public(source).partition("?")[0]


def file_name(source: str) -> str:
    """The original name of a file: without folders, query, and the ` (1)` of a second download."""
    name = unquote(clean(source)).rsplit("/", 1)[-1]
    return re.sub(r"( \(\d+\))?(\.\w+)( \(\d+\))?$", r"\2", name)


def published_teacher(source: str, found: UpstreamSnapshot) -> bool:
    """Whether a bare network is one of EDM's teachers: it is from NVIDIA's server, or its published name fits the network."""
    if urlsplit(source).hostname == HOST:
        return True
    match = PUBLISHED.fullmatch(file_name(source))
    if match is None:
        return False
    _, resolution, classes, arch = match.groups()
    wanted = {"vp": ("SongUNet", "positional"), "ve": ("SongUNet", "fourier"), "adm": ("DhariwalUNet", "")}[arch]
    embedding = found.options.get("embedding_type", "positional" if found.network == "SongUNet" else "")
    size, labels = found.options.get("img_resolution"), found.options.get("label_dim", 0)
    same = (found.network, str(embedding)) == wanted and type(size) is int and size == int(resolution)
    return same and type(labels) is int and (labels > 0) == (classes == "cond")


def name_hint(source: str) -> str:
    """What the name of a file suggests about its kind, as the end of a message."""
    name = file_name(source)
    return "; its name looks like that of a SiD student" if SID_NAME.search(name) else ""


def weights_license(source: str, *, student: bool) -> str:
    """The license of the weights, as far as it is known.

    Args:
        source: address or name of the file.
        student: whether the network was distilled; it then has the license of its teacher.
    """
    if student:
        return INHERITED_LICENSE
    by_name = re.match(r"(edm|edm2|baseline)-(cifar10|ffhq|afhqv2|imagenet|img\d+)-", file_name(source))
    return NVIDIA_LICENSE if urlsplit(source).hostname == HOST or by_name else UNKNOWN_LICENSE
