"""What the name or address of an upstream file says of its origin and of the license of its weights; evidence, no proof."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from fewstep.runtime.foreign import public

if TYPE_CHECKING:
    from fewstep.io.convert.snapshot import Snapshot

NVIDIA = "CC BY-NC-SA 4.0 (NVIDIA): no commercial use; keep the attribution and the license"
INHERITED = "that of its teacher; students of NVIDIA's EDM and EDM2 networks inherit CC BY-NC-SA 4.0: no commercial use"
OWN = "not stated by the file; networks published by NVIDIA are under CC BY-NC-SA 4.0: no commercial use"

HOST = "nvlabs-fi-cdn.nvidia.com"
PUBLISHED = re.compile(r"edm-(cifar10|ffhq|afhqv2|imagenet)-(\d+)x\2-(cond|uncond)-(vp|ve|adm)\.pkl")
"""EDM's teachers of its own preconditioning on NVIDIA's server."""

SID_NAME = re.compile(r"-?\d+\.\d+-\d+")
"""How SiD names its snapshots: network-snapshot-ALPHA-KIMG.pkl."""


def clean(source: str) -> str:
    """An address without what may be a secret; a name without the query that a download left in it."""
    return public(source).partition("?")[0]


def file_name(source: str) -> str:
    """The original name of a file: without folders, query, and the ` (1)` of a second download."""
    name = unquote(clean(source)).rsplit("/", 1)[-1]
    return re.sub(r"( \(\d+\))?(\.\w+)( \(\d+\))?$", r"\2", name)


def published_teacher(source: str, found: Snapshot) -> bool:
    """Whether a bare network is one of EDM's teachers: from NVIDIA's server, or of such a name and of what the name says."""
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


def hint(source: str) -> str:
    """What a name suggests, for the message that asks."""
    name = file_name(source)
    return "; its name is of the kind that SiD gives to students" if SID_NAME.search(name) else ""


def weights_license(source: str, *, student: bool) -> str:
    """The license of the weights, as far as the kind of the network and the name or address of the file tell."""
    if student:
        return INHERITED
    by_name = re.match(r"(edm|edm2|baseline)-(cifar10|ffhq|afhqv2|imagenet|img\d+)-", file_name(source))
    return NVIDIA if urlsplit(source).hostname == HOST or by_name else OWN
