"""Networks of the EDM family as their authors publish them: from a `Snapshot` to a `Denoiser`, and back by name.

A snapshot holds a preconditioner around a U-Net, with the arguments of their constructors and the tensors of an
`nn.Module`. All names of parameters are kept, but for the prefix: `model.` (EDM and its students) and `unet.` (EDM2)
are `net.` here, and EDM2's `logvar_*` the submodule `uncertainty`. NCVSD's networks are halves of U-Nets: the student
has all of them below `model.`, its fake score and its discriminator have no prefix.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser
from fewstep.core.denoiser import Denoiser
from fewstep.core.precondition import IDDPM
from fewstep.distill.conditional import ConditionalDiscriminator
from fewstep.io.convert.preconditions import PRECONDITIONS, edm2, is_number, number
from fewstep.io.convert.provenance import clean, hint, published_teacher, weights_license
from fewstep.io.convert.snapshot import LEVELS, ON_EDM2, Kind, Snapshot, load_snapshot
from fewstep.io.model_folder import check_state_dict
from fewstep.io.upstream_names import EDM, PREFIXES
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.controlled import Controlled
from fewstep.nets.discriminators import PairDiscriminator
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.extent import check_extent
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.runtime.files import sha256

BUILT: dict[str, tuple[type, type]] = {
    "SongUNet": (SongConfig, SongUNet),
    "SongUNet_EncoderDecoder": (SongConfig, SongUNet),
    "DhariwalUNet": (ADMConfig, ADMUNet),
    "DhariwalUNet_EncoderDecoder": (ADMConfig, ADMUNet),
    "UNet": (EDM2Config, EDM2UNet),
    "UNet_EncoderDecoder": (EDM2Config, EDM2UNet),
    "UNetEncoder": (EDM2Config, EDM2UNet),
}
"""What the U-Nets of the upstream classes are here."""

SID_LEVELS = (2.5,)
"""Of SiD's students in the class of EDM's teachers, which does not tell."""

TRAINED_WITH = ("force_normalization", "use_gan")
"""Options of SiDA's EDM2 networks that say how they were trained."""


def settle(
    snapshot: Snapshot, kind: Kind | None, levels: tuple[float, ...] | None, where: str
) -> tuple[float, ...] | None:
    """The noise levels of a student, None for a teacher: by what the caller says, else by what the file says.

    Raises ValueError where neither tells, and where they contradict each other.
    """
    name = snapshot.class_name
    if levels and kind == "teacher":
        raise ValueError("noise levels are a student's; leave them out for a teacher, or say kind student")
    if (
        kind == "teacher" and name in LEVELS and name != "EDMPrecond_EncoderDecoder"
    ):  # SiDA's teachers have this class, too
        raise ValueError(f"{where} holds a {name}, which is a student's class; leave the kind out")
    kind = "student" if levels else kind or snapshot.kind
    if kind is None:
        raise ValueError(
            f"{where} holds a bare {name}, as which EDM's teachers and SiD's one-step students are both saved; say which it "
            f"is: --kind teacher or --kind student (in Python kind=...){hint(where)}"
        )
    if kind == "teacher":
        return None
    known = LEVELS.get(name) or (SID_LEVELS if name == "EDMPrecond" else None)
    if not levels and known is None and name != "PrecondCondition":
        raise ValueError(
            f"{where} holds a {name}, of which no student is known; say the levels it generates from: --levels"
        )
    return levels or known


def to_denoiser(
    snapshot: Snapshot,
    *,
    levels: tuple[float, ...] | None = None,
    kind: Kind | None = None,
    where: str = "the file",
) -> Denoiser:
    """The network of a snapshot as a Denoiser in evaluation mode, with the numbers and precision of the file.

    Args:
        snapshot: the network as it lies in the file.
        levels: noise levels from which a student generates, the largest first; None for those known of its class.
        kind: "teacher" or "student", where the file does not tell; levels imply a student.
        where: the name of the file in messages.

    Returns:
        The denoiser; a generator, if it is a student.

    Raises:
        ValueError: the kind is neither given nor in the file, options are not valid, or tensors are missing, unexpected
            or of another shape; all of these are named.
    """
    if snapshot.class_name == "DiscriminatorCondition":
        raise ValueError(f"{where} holds NCVSD's discriminator, which is no denoiser; read it with to_discriminator")
    levels = settle(snapshot, kind, levels, where)
    precondition = PRECONDITIONS[snapshot.class_name](snapshot)
    state = state_of(snapshot)
    if isinstance(precondition, IDDPM):
        del state["u"]
    head = state.get("uncertainty.fourier.freqs")
    with torch.device("meta"):
        net = build(snapshot, state)
        uncertainty = Uncertainty(head.numel(), snapshot.normalizations) if head is not None else None
        options: dict[str, Any] = {"precondition": precondition, "uncertainty": uncertainty, "codec": snapshot.codec}
        if snapshot.class_name == "GenerativeDenoiser":
            numbers = {"gamma": "gamma", "sigma_init": "init_sigma"}
            options |= {ours: number(snapshot.attributes, theirs) for ours, theirs in numbers.items()}
            denoiser = GenerativeDenoiser(Controlled(net), levels=levels or (), **options)
        elif snapshot.class_name == "PrecondCondition":
            if levels:
                raise ValueError(f"{where} holds a fake score, which makes no images; leave the levels out")
            denoiser = ConditionalDenoiser(Controlled(net), **options)
        else:
            denoiser = Denoiser(net, levels=levels, **options)
    check_state_dict(denoiser.state_dict(), state, Path(where))
    denoiser.load_state_dict(state, assign=True)
    return denoiser.eval()


def state_of(snapshot: Snapshot) -> dict[str, Tensor]:
    """The tensors of a snapshot under our names."""
    prefixes = PREFIXES.get(snapshot.class_name, EDM)
    return {prefixes.ours(name): tensor.contiguous() for name, tensor in snapshot.state.items()}


def build(snapshot: Snapshot, state: dict[str, Tensor]) -> Any:
    """The U-Net of a snapshot, whole, with new weights."""
    config, network = BUILT[snapshot.network]
    options = snapshot.options
    if snapshot.class_name in ON_EDM2:
        wrong = [name for name in TRAINED_WITH if not isinstance(options.get(name, False), bool)]
        if wrong:
            raise ValueError(f"{wrong[0]} of the network is a {type(options[wrong[0]]).__name__} where bool belongs")
        options = {k: v for k, v in options.items() if k not in TRAINED_WITH}
        options |= {"normalizations": snapshot.normalizations} if snapshot.normalizations > 1 else {}
    return network(configure(config, options, state))


def to_discriminator(snapshot: Snapshot, *, where: str = "the file") -> ConditionalDiscriminator:
    """NCVSD's discriminator in a snapshot, strict as `to_denoiser`."""
    if snapshot.class_name != "DiscriminatorCondition":
        raise ValueError(f"{where} holds a {snapshot.class_name}, not NCVSD's discriminator; read it with to_denoiser")
    state = state_of(snapshot)
    with torch.device("meta"):
        net = PairDiscriminator(build(snapshot, state))
    result = ConditionalDiscriminator(net, precondition=edm2(snapshot))
    check_state_dict(result.state_dict(), state, Path(where))
    result.load_state_dict(state, assign=True)
    return result.eval()


def configure(kind: type, options: dict[str, object], state: dict[str, Tensor]) -> Any:
    """The frozen configuration for constructor arguments of a file, bounded by the number of tensors that it has."""
    hints, known = get_type_hints(kind), {f.name for f in dataclasses.fields(kind)}
    if unknown := [str(name)[:40] for name in options if name not in known]:
        raise ValueError(f"{kind.__name__} has no option {', '.join(unknown)}; this version cannot build the network")
    if "img_resolution" not in options:
        raise ValueError("the file does not say the resolution of its network")
    config = kind(**{name: option(name, value, hints[name]) for name, value in options.items()})
    check_extent(config, state)
    return config


def option(name: str, value: object, hint: Any) -> Any:
    """One constructor argument, of the type that our configuration declares and of a sane size."""
    low = 0 if name in ("label_dim", "augment_dim") else 1
    kinds = get_args(hint) if get_origin(hint) is not tuple else ()
    if get_origin(hint) is Literal and isinstance(value, str) and value in kinds:
        return value
    if name == "resample_filter":
        return taps(value)
    share = name in ("dropout", "label_dropout")
    if float in (hint, *kinds) and is_number(value) and (0 <= value <= 1 if share else math.isfinite(value)):
        return float(value)
    if (
        get_origin(hint) is tuple
        and isinstance(value, list | tuple)
        and (name != "attn_resolutions") <= len(value) <= 32
    ):
        return tuple(option(name, item, int) for item in value)
    if int in (hint, *kinds) and type(value) is int and low <= value < 2**16:
        return value
    if value is None and type(None) in kinds:
        return value
    raise ValueError(f"{name} of the network is out of range, or a {type(value).__name__} where {hint} belongs")


def taps(value: object) -> tuple[float, ...]:
    """A filter of resampling: an even number of numbers, whose sum is not 0."""
    found = tuple(v for v in value if is_number(v) and abs(v) < 2**16) if isinstance(value, list | tuple) else ()
    if not 0 < len(found) <= 32 or len(found) % 2 or len(found) < len(value) or not sum(found):  # type: ignore[arg-type]  # a list or tuple by the line above
        raise ValueError("resample_filter of the network is not an even number of taps whose sum is not 0")
    return tuple(int(v) if v == int(v) else float(v) for v in found)


def convert(
    path: str | Path,
    *,
    source: str | None = None,
    levels: tuple[float, ...] | None = None,
    kind: Kind | None = None,
    network: str | None = None,
) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser in an upstream file, and where it comes from; nothing in the file is run.

    Args:
        path: a snapshot, a published file, or a training state that has whole networks.
        source: the address that the file was fetched from, or its original name; None for the name of `path`.
        levels: noise levels from which a student generates, the largest first; None for those known of its class.
        kind: "teacher" or "student", for files that do not tell: SiD saves its students of EDM as EDM's bare networks.
        network: which network of the file, as `ema`, `net`, `G`; None for the averaged one if there is one.

    Returns:
        The denoiser, with the numbers and precision of the file, and its provenance: source, bytes and sha256 of the
        file, the upstream classes, the entry, the license of the weights, and notes on what was concluded.

    Raises:
        ValueError: the file holds no known network that is whole, or does not tell its kind; the message says what it is.
    """
    path, source = Path(path), clean(source or Path(path).name)
    found = load_snapshot(path, network)
    if kind is None and not levels and found.kind is None and published_teacher(source, found):
        kind = "teacher"
    denoiser = to_denoiser(found, levels=levels, kind=kind, where=str(path) if source == path.name else source)
    student = denoiser.levels is not None
    provenance = {
        "source": source,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "classes": [found.class_name, found.network],
        "entry": found.entry,
        "license": weights_license(source, student=student),
        "notes": list(found.notes),
    }
    return denoiser, provenance
