"""Finds the network in an upstream file: which entry of the file it is, of which classes, and whether it is a teacher.

A file is a dict: a snapshot has the averaged network `ema` among records of its training, a training state whole networks
(EDM, GDD, STF, SiD) or tensors without an architecture (SiDA, EDM2, NCVSD). Everything beside the requested network is
ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fewstep.core.codec import Codec, Pixels
from fewstep.data.codec import StabilityVAE
from fewstep.io.convert.classes import PRECONDITIONERS, UNETS, is_on_edm2
from fewstep.io.convert.identify import refuse_foreign
from fewstep.io.convert.modules import has_normalizing_hook, state_dict, submodule
from fewstep.io.unpickle import PERSISTENCE, Global, Record, UnsafePickle, read
from fewstep.runtime.files import listed

Kind = Literal["teacher", "student"]
"""A teacher denoises from every level; a student generates from its own few."""

ENTRIES = ("ema", "G_ema", "net", "G", "fake_score")
"""Names of networks in a file, the averaged ones first."""

DENOISING = ("EDMLoss", "VPLoss", "VELoss", "EDM2Loss")
"""Loss classes that train teachers."""

LATENTS = ((4, 64, 64), (8, 64, 64))
"""Shapes of EDM2's networks that mean latents of 512 x 512 images if the file names no encoder, as SiD's files do not."""


@dataclass(frozen=True)
class UpstreamSnapshot:
    """A network as it is stored in an upstream file.

    Attributes:
        class_name: class of the preconditioner.
        attributes: attributes of the preconditioner.
        network: class of the U-Net.
        options: constructor arguments of the U-Net.
        state: tensors by upstream name, in upstream order.
        codec: between the units of the network and images.
        entry: name of the network in the file.
        kind: teacher or student, or None if the file does not tell.
        normalizations: how often EDM2's weights are normalised at each use: twice if a hook does it as well.
        notes: what was concluded and is worth knowing, as sentences.
    """

    class_name: str
    attributes: dict[str, object] = field(repr=False)
    network: str
    options: dict[str, object]
    state: dict[str, Tensor] = field(repr=False)
    codec: Codec = Pixels()
    entry: str = "ema"
    kind: Kind | None = None
    normalizations: int = 1
    notes: tuple[str, ...] = ()


def load_snapshot(path: str | Path, network: str | None = None) -> UpstreamSnapshot:
    """The network in an upstream file. Nothing in the file is executed.

    Args:
        path: a `network-snapshot-*.pkl`, a published file, or a training state that holds whole networks.
        network: which network of the file, such as `ema`, `net`, `G`; None for the averaged one if there is one.

    Returns:
        The network with its options and tensors.

    Raises:
        ValueError: the file is something else, is damaged, or has no such network; the message says what it is.

    Example:
        >>> load_snapshot("network-snapshot-200000.pkl").network
        'SongUNet'
    """
    path = Path(path)
    refuse_foreign(path)
    try:
        content = read(path)
    except UnsafePickle as error:
        raise UnsafePickle(f"{error}; if it should be a snapshot, it is damaged: get it again") from error
    return parse_snapshot(content, network=network, where=str(path))


def parse_snapshot(content: object, *, network: str | None = None, where: str = "the file") -> UpstreamSnapshot:
    """The network in the content of a file, as `unpickle.read` returns it. Arguments and errors as of `load_snapshot`."""
    outer = content if isinstance(content, dict) else {"ema": content}
    entry, record = choose_network(outer, network, where)
    unet = submodule(record, "model", "unet", "enc")
    attributes = dict(record.state)
    if record.class_name == "GenerativeDenoiser" and isinstance(unet, Record):
        attributes = unet.state | attributes
        unet = submodule(unet, "enc")
    known = record.class_name in PRECONDITIONERS
    if not known or not isinstance(unet, Record):
        module = "" if known or record.module == PERSISTENCE else f"{record.module[:80]}."
        raise ValueError(
            f"{where} holds a {module}{record.class_name[:80]}; the preconditionings {', '.join(PRECONDITIONERS)} are known, "
            "each around one network"
        )
    if unet.class_name not in UNETS:
        raise ValueError(f"{where} holds the network {unet.class_name[:80]}; known are {', '.join(sorted(UNETS))}")
    options = unet.state.get("_init_kwargs")
    if not isinstance(options, dict) or not isinstance(args := unet.state.get("_init_args", ()), tuple) or args:
        raise ValueError(f"{where}: {unet.class_name} does not name the arguments of its constructor")
    codec, notes = read_codec(outer.get("encoder"), where), []
    sides = [options.get(name) for name in ("img_channels", "img_resolution", "img_resolution")]
    shape = tuple(n if type(n) is int else 0 for n in sides)
    if outer.get("encoder") is None and is_on_edm2(record.class_name) and shape in LATENTS:
        codec = StabilityVAE()
        notes.append(f"no encoder in the file: {shape[0]} channels at 64x64 are latents of {codec.vae}")
    if entry not in ("ema", "G_ema") and isinstance(content, dict):
        notes.append(f"the network {entry}, which is not averaged over training")
    state = state_dict(record)  # raises ValueError unless the modules are a tree
    hooked = is_on_edm2(record.class_name) and has_normalizing_hook(record)
    if hooked:
        notes.append("weights are normalised twice at each use, as the hooks in the file do")
    return UpstreamSnapshot(
        class_name=record.class_name,
        attributes={k: v for k, v in attributes.items() if isinstance(k, str) and not k.startswith("_")},
        network=unet.class_name,
        options=options,
        state=state,
        codec=codec,
        entry=entry,
        kind=find_kind(outer, entry, record.class_name),
        normalizations=1 + hooked,
        notes=tuple(notes),
    )


def choose_network(outer: dict[Any, object], network: str | None, where: str) -> tuple[str, Record]:
    """Name and record of the requested network, or of the best one in the file."""
    found = {
        name: value
        for name, value in outer.items()
        if isinstance(value, Record)
        and (name == "ema" or value.class_name in PRECONDITIONERS)
        and isinstance(name, str)
    }
    names = [name for name in dict.fromkeys((*ENTRIES, *found)) if name in found]
    if network is not None:
        if network in found:
            return network, found[network]
        raise ValueError(f"{where} has no network {network!r}; its networks are {', '.join(names)[:200] or 'none'}")
    if names:
        return names[0], found[names[0]]
    about = describe_content(outer)
    if any(isinstance(value, Tensor) for value in outer.values()):
        raise ValueError(
            f"{where} is a state dict alone, tensors without an architecture ({about}); take the network-snapshot-*.pkl of "
            "the same training"
        )
    if any(has_tensors(value) for value in outer.values()):
        raise ValueError(
            f"{where} is a training state of tensors without an architecture ({about}); take the snapshot that was written "
            f"with it: {snapshots_of(Path(where))}"
        )
    raise ValueError(
        f'{where} holds no network ({about}); a network-snapshot-*.pkl of EDM, EDM2, SiD, GDD or NCVSD does, under "ema"'
    )


def has_tensors(value: object) -> bool:
    """Whether a value is a dict with tensors in it."""
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def describe_content(outer: dict[Any, object]) -> str:
    """What a file holds, for a message."""
    value = outer.get("ema")
    if len(outer) == 1 and "ema" in outer and not isinstance(value, dict):
        return f"it is the name {value.name}" if isinstance(value, Global) else f"it is a {type(value).__name__}"
    return "its entries: " + (listed([str(key)[:40] for key in list(outer)[:10]]) or "none")


def snapshots_of(path: Path) -> str:
    """The snapshots written with a training state: those beside it, or else the pattern of their names."""
    number = re.search(r"training-state-(\d+)", path.name)
    pattern = f"network-snapshot-*{number[1]}*.pkl" if number else "network-snapshot-*.pkl"
    return listed(sorted(str(p) for p in path.parent.glob(pattern))) or pattern


def find_kind(outer: dict[Any, object], entry: str, class_name: str) -> Kind | None:
    """Teacher or student, by the class of the network and by what lies beside it in the file.

    SiD saves its students of EDM without anything beside them, in the class of EDM's teachers; the answer is None then.
    """
    if entry == "fake_score":
        return "teacher"
    if PRECONDITIONERS[class_name].levels or entry in ("G", "G_ema"):
        return "student"
    loss = outer.get("loss_fn")
    denoising = (isinstance(loss, Record) and loss.class_name in DENOISING) or "optimizer_state" in outer
    return "teacher" if class_name != "EDMPrecond" or denoising else None


def read_codec(encoder: object, where: str) -> Codec:
    """The codec that EDM2's encoder describes. Networks in files without one make pixels."""
    if encoder is None or (isinstance(encoder, Record) and encoder.class_name == "StandardRGBEncoder"):
        return Pixels()
    if not isinstance(encoder, Record) or encoder.class_name != "StabilityVAEEncoder":
        name = encoder.class_name[:80] if isinstance(encoder, Record) else type(encoder).__name__
        raise ValueError(f"{where} has the encoder {name}; known are StandardRGBEncoder and StabilityVAEEncoder")
    try:
        scale, bias = (np.asarray(encoder.state[k], dtype=np.float64).reshape(-1) for k in ("scale", "bias"))
        raw_std, raw_mean = StabilityVAE.final_std / scale, -bias / scale
        means, stds = (tuple(float(f"{v:.6g}") for v in part) for part in (raw_mean, raw_std))  # float32 in the file
        return StabilityVAE(str(encoder.state["vae_name"]), means, stds)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: its encoder of latents is not intact ({error})") from error
