"""A network as it lies in an upstream file: which entry it is, of which classes, and what the file says of its kind.

A file is a dict: a snapshot has the averaged network `ema` among records of its training, a training state whole networks
(EDM, GDD, STF, SiD) or tensors without an architecture (SiDA, EDM2, NCVSD). Whatever is not the network that is asked for is
ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fewstep.core.codec import Codec, Pixels
from fewstep.data.codec import StabilityVAE
from fewstep.io.convert.identify import refuse_foreign
from fewstep.io.convert.preconditions import PRECONDITIONS
from fewstep.io.unpickle import PERSISTENCE, Global, Record, UnsafePickle, read
from fewstep.runtime.files import listed

Kind = Literal["teacher", "student"]
"""A teacher denoises from every level; a student generates from its own few."""

MAX_DEPTH = 32
"""Of modules within modules; the published networks have 6 levels."""

ENTRIES = ("ema", "G_ema", "net", "G", "fake_score")
"""Where a file has its networks, the averaged ones first."""

NETWORKS = {
    *("SongUNet", "SongUNet_EncoderDecoder", "DhariwalUNet", "DhariwalUNet_EncoderDecoder"),
    *("UNet", "UNet_EncoderDecoder", "UNetEncoder"),
}

LEVELS = {
    "EDMPrecond_EncoderDecoder": (2.5,),
    "EDM_2_Precond_Generator": (2.5,),
    "GDDPrecond": (80.0,),
    "GenerativeDenoiser": (80.0,),
}
"""Classes of students, and the noise levels from which they generate: SiDA's, SiD's of EDM2, GDD's, and that of NCVSD's FFHQ
student for one step."""

DENOISING = ("EDMLoss", "VPLoss", "VELoss", "EDM2Loss")
"""The losses of teachers."""

ON_EDM2 = ("Precond", "EDM_2_Precond_EncoderDecoder", "EDM_2_Precond_Generator")

LATENTS = ((4, 64, 64), (8, 64, 64))
"""Shapes of EDM2's networks that stand for latents of 512 x 512 images where a file names no encoder, as SiD's do not."""


@dataclass(frozen=True)
class Snapshot:
    """A network as it lies in an upstream file.

    Attributes:
        class_name, attributes: of the preconditioner.
        network, options: class and constructor arguments of the U-Net.
        state: tensors by upstream name, in upstream order.
        codec: between the network's units and images.
        entry: the name of the network in the file.
        kind: what the file says that it is; None if it cannot tell.
        normalizations: how often EDM2's weights are normalised at each use: twice where a hook does it, too.
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


def load_snapshot(path: str | Path, network: str | None = None) -> Snapshot:
    """The network in an upstream file, of which nothing is run.

    Args:
        path: a `network-snapshot-*.pkl`, a published file, or a training state that has whole networks.
        network: which network of the file, as `ema`, `net`, `G`; None for the averaged one if there is one.

    Returns:
        The network with its options and tensors.

    Raises:
        ValueError: the file is something else, is damaged, or has no such network; the message says what it is.
    """
    path = Path(path)
    refuse_foreign(path)
    try:
        content = read(path)
    except UnsafePickle as error:
        raise UnsafePickle(f"{error}; if it should be a snapshot, it is damaged: get it again") from error
    return parse_snapshot(content, network=network, where=str(path))


def parse_snapshot(content: object, *, network: str | None = None, where: str = "the file") -> Snapshot:
    """The network in what `read` returned; see `load_snapshot`."""
    outer = content if isinstance(content, dict) else {"ema": content}
    entry, record = choose(outer, network, where)
    unet = part(record, "model", "unet", "enc")
    attributes = dict(record.state)
    if record.class_name == "GenerativeDenoiser" and isinstance(unet, Record):
        attributes = unet.state | attributes
        unet = part(unet, "enc")
    if record.class_name not in PRECONDITIONS or not isinstance(unet, Record):
        origin = "" if record.class_name in PRECONDITIONS or record.module == PERSISTENCE else f"{record.module[:80]}."
        raise ValueError(
            f"{where} holds a {origin}{record.class_name[:80]}; the preconditionings {', '.join(PRECONDITIONS)} are known, "
            "each around one network"
        )
    if unet.class_name not in NETWORKS:
        raise ValueError(f"{where} holds the network {unet.class_name[:80]}; known are {', '.join(sorted(NETWORKS))}")
    options = unet.state.get("_init_kwargs")
    if not isinstance(options, dict) or not isinstance(args := unet.state.get("_init_args", ()), tuple) or args:
        raise ValueError(f"{where}: {unet.class_name} does not name the arguments of its constructor")
    space, notes = codec(outer.get("encoder"), where), []
    sides = [options.get(name) for name in ("img_channels", "img_resolution", "img_resolution")]
    shape = tuple(n if type(n) is int else 0 for n in sides)
    if outer.get("encoder") is None and record.class_name in ON_EDM2 and shape in LATENTS:
        space = StabilityVAE()
        notes.append(f"no encoder in the file: {shape[0]} channels at 64x64 are latents of {space.vae}")
    if entry not in ("ema", "G_ema") and isinstance(content, dict):
        notes.append(f"the network {entry}, which is not averaged over training")
    state = state_dict(record)  # which makes sure that the modules are a tree
    hooked = record.class_name in ON_EDM2 and renormalized(record)
    if hooked:
        notes.append("weights are normalised twice at each use, as the hooks in the file do")
    return Snapshot(
        record.class_name,
        {k: v for k, v in attributes.items() if isinstance(k, str) and not k.startswith("_")},
        unet.class_name,
        options,
        state,
        space,
        entry,
        kind(outer, entry, record.class_name),
        1 + hooked,
        tuple(notes),
    )


def choose(outer: dict[Any, object], network: str | None, where: str) -> tuple[str, Record]:
    """The entry of the network that is asked for, or of the best."""
    found = {
        name: value
        for name, value in outer.items()
        if isinstance(value, Record) and (name == "ema" or value.class_name in PRECONDITIONS) and isinstance(name, str)
    }
    names = [name for name in dict.fromkeys((*ENTRIES, *found)) if name in found]
    if network is not None:
        if network in found:
            return network, found[network]
        raise ValueError(f"{where} has no network {network!r}; its networks are {', '.join(names)[:200] or 'none'}")
    if names:
        return names[0], found[names[0]]
    about = describe(outer)
    if any(isinstance(value, Tensor) for value in outer.values()):
        raise ValueError(
            f"{where} is a state dict alone, tensors without an architecture ({about}); take the network-snapshot-*.pkl of "
            "the same training"
        )
    if any(has_tensors(value) for value in outer.values()):
        raise ValueError(
            f"{where} is a training state of tensors without an architecture ({about}); take the snapshot that was written "
            f"with it: {beside(Path(where))}"
        )
    raise ValueError(
        f'{where} holds no network ({about}); a network-snapshot-*.pkl of EDM, EDM2, SiD, GDD or NCVSD does, under "ema"'
    )


def has_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def describe(outer: dict[Any, object]) -> str:
    value = outer.get("ema")
    if len(outer) == 1 and "ema" in outer and not isinstance(value, dict):
        return f"it is the name {value.name}" if isinstance(value, Global) else f"it is a {type(value).__name__}"
    return "its entries: " + (listed([str(key)[:40] for key in list(outer)[:10]]) or "none")


def beside(path: Path) -> str:
    """The snapshots that belong to a training state, by the thousands of images in its name; those that exist, if any do."""
    number = re.search(r"training-state-(\d+)", path.name)
    pattern = f"network-snapshot-*{number[1]}*.pkl" if number else "network-snapshot-*.pkl"
    return listed(sorted(str(p) for p in path.parent.glob(pattern))) or pattern


def kind(outer: dict[Any, object], entry: str, class_name: str) -> Kind | None:
    """Teacher or student, by class and company in the file. SiD saves its students of EDM alone, in the class of EDM's
    teachers, for which the answer is None.
    """
    if entry == "fake_score":
        return "teacher"
    if class_name in LEVELS or entry in ("G", "G_ema"):
        return "student"
    loss = outer.get("loss_fn")
    denoising = (isinstance(loss, Record) and loss.class_name in DENOISING) or "optimizer_state" in outer
    return "teacher" if class_name != "EDMPrecond" or denoising else None


def renormalized(record: Record) -> bool:
    """Whether layers have a hook before them that still normalises their weights: a bound method, which SiDA pickles with a
    copy of the layer in training mode.
    """
    hooks = record.state.get("_forward_pre_hooks")
    for hook in hooks.values() if isinstance(hooks, dict) else ():
        if isinstance(hook, Record) and hook.class_name == "getattr" and hook.arguments:
            owner = hook.arguments[0]
            if isinstance(owner, Record) and owner.class_name == "MPConv" and owner.state.get("training") is True:
                return True
    modules = record.state.get("_modules")
    parts = modules.values() if isinstance(modules, dict) else ()
    return any(renormalized(module) for module in parts if isinstance(module, Record))


def part(record: Record, *names: str) -> object:
    """The first submodule of one of these names."""
    modules = record.state.get("_modules")
    parts = modules if isinstance(modules, dict) else {}
    return next((parts[name] for name in names if name in parts), None)


def codec(encoder: object, where: str) -> Codec:
    """Between the network's units and images, from EDM2's encoder; files without one are of pixels."""
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


def state_dict(record: Record) -> dict[str, Tensor]:
    """The tensors of an `nn.Module` by dotted name: parameters, persistent buffers, submodules, in the file's order."""
    return apart(dict(tensors(record, "", set(), MAX_DEPTH)))


def apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors; ValueError if they overlap, for each would take memory of its own where it is copied."""
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    if sum(t.numel() * t.element_size() for t in state.values()) > sum(stored.values()):
        raise ValueError("the tensors overlap: together they are larger than the data of the file")
    return state


def tensors(record: Record, prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    # A file can name a part again and again at no cost; each is walked once, so that the walk is as long as the file.
    def part(name: str) -> dict[Any, Any]:
        value = record.state.get(name)
        if not isinstance(value, dict) or id(value) in seen:
            raise ValueError(f"{prefix or 'the network'}: {name} is not a dict of its own; this is no intact module")
        seen.add(id(value))
        return value

    if depth == 0:
        raise ValueError(f"modules are nested more than {MAX_DEPTH} deep at {prefix[:80]}; no network needs that")
    skipped = record.state.get("_non_persistent_buffers_set", set())
    if not isinstance(skipped, set):
        raise ValueError(
            f"{prefix or 'the network'}: _non_persistent_buffers_set is not a set; this is no intact module"
        )
    for group in ("_parameters", "_buffers"):
        for name, tensor in part(group).items():
            if tensor is None or (group == "_buffers" and name in skipped):
                continue
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise ValueError(f"{prefix}{name} is not a tensor of real numbers; this is no intact module")
            yield f"{prefix}{name}", tensor
    for name, module in part("_modules").items():
        if module is not None:
            if not isinstance(module, Record):
                raise ValueError(f"{prefix}{name} is not a module but a {type(module).__name__}")
            yield from tensors(module, f"{prefix}{name}.", seen, depth - 1)
