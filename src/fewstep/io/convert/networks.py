"""Networks of the EDM family as their authors publish them: from a file, or an `UpstreamSnapshot`, to a `Denoiser`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser
from fewstep.core.denoiser import Denoiser
from fewstep.core.precondition import IDDPM
from fewstep.distill.conditional import ConditionalDiscriminator
from fewstep.io.convert.classes import PRECONDITIONERS, UNETS, is_on_edm2
from fewstep.io.convert.options import parse_config
from fewstep.io.convert.preconditions import edm2, number
from fewstep.io.convert.provenance import Provenance, clean, name_hint, published_teacher, weights_license
from fewstep.io.convert.snapshot import Kind, UpstreamSnapshot, load_snapshot
from fewstep.io.model_folder import check_state_dict
from fewstep.nets.controlled import Controlled
from fewstep.nets.discriminators import PairDiscriminator
from fewstep.nets.edm2 import Uncertainty
from fewstep.runtime.files import sha256

SID_LEVELS = (2.5,)
"""Noise levels of SiD's students, which have the class of EDM's teachers."""

TRAINED_WITH = ("force_normalization", "use_gan")
"""Options of SiDA's EDM2 networks that only record how they were trained."""


def student_levels(
    snapshot: UpstreamSnapshot, kind: Kind | None, levels: tuple[float, ...] | None, where: str
) -> tuple[float, ...] | None:
    """The noise levels of a student, or None for a teacher, by what the caller says and else by what the file says.

    Raises ValueError if neither tells, or if they contradict each other.
    """
    name = snapshot.class_name
    known = PRECONDITIONERS[name].levels or (SID_LEVELS if name == "EDMPrecond" else None)
    if levels and kind == "teacher":
        raise ValueError("only students have noise levels; leave the levels out, or give the kind student")
    # SiDA's teachers have the class of its students
    if kind == "teacher" and PRECONDITIONERS[name].levels and name != "EDMPrecond_EncoderDecoder":
        raise ValueError(f"{where} holds a {name}, which is a student's class; leave the kind out")
    kind = "student" if levels else kind or snapshot.kind
    if kind is None:
        raise ValueError(
            f"{where} holds a bare {name}, the class in which both EDM's teachers and SiD's one-step students are saved; "
            f"say which it is: --kind teacher or --kind student (in Python kind=...){name_hint(where)}"
        )
    if kind == "teacher":
        return None
    if not levels and known is None and name != "PrecondCondition":
        raise ValueError(
            f"{where} holds a {name}, for which no students are known; give the noise levels it generates from: --levels"
        )
    return levels or known


def to_denoiser(
    snapshot: UpstreamSnapshot,
    *,
    levels: tuple[float, ...] | None = None,
    kind: Kind | None = None,
    where: str = "the file",
) -> Denoiser:
    """The network of a snapshot as a denoiser in evaluation mode, with the values and the precision of the file.

    Args:
        snapshot: the network as it is stored in the file.
        levels: noise levels from which a student generates, the largest first; None for those of its class.
        kind: "teacher" or "student", if the file does not tell; levels imply a student.
        where: the name of the file, for messages.

    Returns:
        The denoiser; it has levels if it is a student.

    Raises:
        ValueError: the kind is neither given nor in the file, an option is not valid, or tensors are missing, unexpected
            or of another shape; the message names all of these.

    Example:
        >>> teacher = to_denoiser(load_snapshot("edm-cifar10-32x32-cond-vp.pkl"), kind="teacher")
    """
    if snapshot.class_name == "DiscriminatorCondition":
        raise ValueError(f"{where} holds NCVSD's discriminator, which is not a denoiser; read it with to_discriminator")
    levels = student_levels(snapshot, kind, levels, where)
    precondition = PRECONDITIONERS[snapshot.class_name].precondition(snapshot)
    state = renamed_state(snapshot)
    if isinstance(precondition, IDDPM):
        del state["u"]
    head = state.get("uncertainty.fourier.freqs")
    with torch.device("meta"):
        net = build_network(snapshot, state)
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


def renamed_state(snapshot: UpstreamSnapshot) -> dict[str, Tensor]:
    """The tensors of a snapshot under our names."""
    prefixes = PRECONDITIONERS[snapshot.class_name].prefixes
    return {prefixes.ours(name): tensor.contiguous() for name, tensor in snapshot.state.items()}


def build_network(snapshot: UpstreamSnapshot, state: dict[str, Tensor]) -> Any:
    """The U-Net of a snapshot with new weights."""
    config, network = UNETS[snapshot.network]
    options = snapshot.options
    if is_on_edm2(snapshot.class_name):
        wrong = [name for name in TRAINED_WITH if not isinstance(options.get(name, False), bool)]
        if wrong:
            raise ValueError(f"{wrong[0]} of the network must be a bool; got a {type(options[wrong[0]]).__name__}")
        options = {k: v for k, v in options.items() if k not in TRAINED_WITH}
        options |= {"normalizations": snapshot.normalizations} if snapshot.normalizations > 1 else {}
    return network(parse_config(config, options, state))


def to_discriminator(snapshot: UpstreamSnapshot, *, where: str = "the file") -> ConditionalDiscriminator:
    """NCVSD's discriminator in a snapshot, in evaluation mode.

    Args:
        snapshot: the network as it is stored in the file.
        where: the name of the file, for messages.

    Raises:
        ValueError: the snapshot holds another network, or its tensors do not fit.
    """
    if snapshot.class_name != "DiscriminatorCondition":
        raise ValueError(f"{where} holds a {snapshot.class_name}, not NCVSD's discriminator; read it with to_denoiser")
    state = renamed_state(snapshot)
    with torch.device("meta"):
        net = PairDiscriminator(build_network(snapshot, state))
    result = ConditionalDiscriminator(net, precondition=edm2(snapshot))
    check_state_dict(result.state_dict(), state, Path(where))
    result.load_state_dict(state, assign=True)
    return result.eval()


def convert(
    path: str | Path,
    *,
    source: str | None = None,
    levels: tuple[float, ...] | None = None,
    kind: Kind | None = None,
    network: str | None = None,
) -> tuple[Denoiser, Provenance]:
    """The denoiser in an upstream file, and where it comes from. Nothing in the file is executed.

    Args:
        path: a snapshot, a published file, or a training state that holds whole networks.
        source: the address that the file was fetched from, or its original name; None for the name of `path`.
        levels: noise levels from which a student generates, the largest first; None for those of its class.
        kind: "teacher" or "student", for files that do not tell: SiD saves its students of EDM as EDM's bare networks.
        network: which network of the file, such as `ema`, `net`, `G`; None for the averaged one if there is one.

    Returns:
        The denoiser in evaluation mode, with the values and the precision of the file, and its provenance.

    Raises:
        ValueError: the file holds no known network that is whole, or does not tell its kind; the message says what it holds.

    Example:
        >>> path = fetch("https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-cond-vp.pkl")
        >>> teacher, provenance = convert(path, kind="teacher")
        >>> fs.save(teacher, "models/cifar10", provenance.card())
    """
    path, source = Path(path), clean(source or Path(path).name)
    found = load_snapshot(path, network)
    if kind is None and not levels and found.kind is None and published_teacher(source, found):
        kind = "teacher"
    denoiser = to_denoiser(found, levels=levels, kind=kind, where=str(path) if source == path.name else source)
    student = denoiser.levels is not None
    return denoiser, Provenance(
        source,
        path.stat().st_size,
        sha256(path),
        (found.class_name, found.network),
        found.entry,
        weights_license(source, student=student),
        found.notes,
    )
