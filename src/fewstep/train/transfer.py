"""A run that starts from the weights of another network, as EDM's `--transfer`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewstep.core.denoiser import Denoiser
from fewstep.io import hub, model_folder
from fewstep.io.card import UNSTATED, Card
from fewstep.io.convert import clean, fetch, load_snapshot, to_denoiser, weights_license
from fewstep.runtime.display import public
from fewstep.train.ema import HalfLife, Profile
from fewstep.train.identity import describe, digest

if TYPE_CHECKING:
    from fewstep.train.settings import Run

SHOWN = 5
"""Names in a message."""


@dataclass(frozen=True)
class Transfer:
    """What a run copied from another network.

    Attributes:
        source: Its path or address.
        sha256: Hash of its weights.
        license: License of its weights.
        taken: Number of tensors that were copied.
        new: Names of tensors of the run's network that the source lacks; they keep their values.
        unused: Names of tensors of the source that the run's network lacks.
        differs: Settings that a transfer does not copy, such as the preconditioning, where the two differ.
    """

    source: str
    sha256: str
    license: str
    taken: int
    new: tuple[str, ...]
    unused: tuple[str, ...]
    differs: tuple[str, ...]

    def __str__(self) -> str:
        words = [f"{self.source}: copied {self.taken} tensors"]
        for names, what in ((self.new, "missing there, unchanged"), (self.unused, "not needed")):
            if names:
                words.append(f"{len(names)} {what}: {listed(names)}")
        return "; ".join([*words, *self.differs])


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + ("" if len(names) <= SHOWN else ", ...")


def open_network(source: str | Path) -> tuple[Denoiser, Card]:
    """A network and its card, from a model or run folder, the hub, or an upstream file or its address."""
    if hub.is_address(source) or Path(source).is_dir():
        return model_folder.load(source), model_folder.card(source)
    path = fetch(source)
    found = load_snapshot(path)
    # only weights are taken: whether a bare network is a teacher of EDM or a student of SiD makes no difference
    denoiser = to_denoiser(found, kind=found.kind or "teacher", where=str(path))
    origin = clean(str(source)) if "://" in str(source) else path.name
    license = weights_license(origin, student=denoiser.levels is not None)
    return denoiser, Card(name=Path(origin).stem, lineage=[origin], license=license)


@torch.no_grad()
def transfer(run: Run, source: str | Path) -> Run:
    """Start what a run trains from the weights of another network.

    Copies every tensor that the source has under the same name into the method's product (the denoiser of a training, the
    generator of a distillation), in place; other tensors keep their values. As in EDM, the average of a training by
    half-life then has no ramp-up. The run's card gets lineage and license of the source as well.

    Args:
        run: What will be trained.
        source: A model or run folder, an address on the hub, or an upstream `.pkl` or `.pt`, as a path or an http(s) address.

    Returns:
        The run to train. Its `transfer` says what was copied; `run.json` keeps it.

    Raises:
        ValueError: No tensor has a name in common, or one of the same name has another shape.

    Example:
        >>> run = fs.transfer(run, "runs/teacher")
        >>> print(run.transfer)
    """
    theirs, about = open_network(source)
    mine = run.method.get_submodule(run.method.product)
    ours, other = mine.state_dict(), theirs.state_dict()
    common = [name for name in ours if name in other]
    if not common:
        raise ValueError(
            f"{source} has no tensor in common with the {run.method.product} of this run, a {kind(mine)}; it is a "
            f"{kind(theirs)}. Give a network of the same kind"
        )
    if wrong := [name for name in common if ours[name].shape != other[name].shape]:
        name = wrong[0]
        raise ValueError(
            f"{source}: {name} has the shape {tuple(other[name].shape)}, in the {run.method.product} of this run "
            f"{tuple(ours[name].shape)}{'' if len(wrong) == 1 else f', and {len(wrong) - 1} more differ'}. A transfer copies "
            "tensors by name: train a network of the same widths and classes"
        )
    for name in common:
        ours[name].copy_(other[name])
    differs = [
        f"{what} differs: there {describe(a)}, here {describe(b)}"
        for what in ("precondition", "levels", "codec")
        if describe(a := getattr(theirs, what)) != describe(b := getattr(mine, what))
    ]
    copied = Transfer(
        source=public(source),
        sha256=digest(theirs),
        license=about.license,
        taken=len(common),
        new=tuple(name for name in ours if name not in other),
        unused=tuple(name for name in other if name not in ours),
        differs=tuple(differs),
    )
    card = dataclasses.replace(
        run.card,
        lineage=[*run.card.lineage, about.name, *about.lineage],
        license=both_licenses(run.card.license, about.license),
    )
    ema = run.ema if run.method.ramp_after_transfer else without_rampup(run.ema)
    return dataclasses.replace(run, transfer=copied, card=card, ema=ema)


def kind(network: object) -> str:
    """What an error calls a network."""
    inner = getattr(network, "net", None)
    return type(network).__name__ + ("" if inner is None else f" around {type(inner).__name__}")


def without_rampup(ema: Profile | tuple[Profile, ...]) -> Profile | tuple[Profile, ...]:
    """The same averages, those by half-life without a ramp-up."""
    if isinstance(ema, tuple):
        return tuple(dataclasses.replace(p, rampup=None) if isinstance(p, HalfLife) else p for p in ema)
    return dataclasses.replace(ema, rampup=None) if isinstance(ema, HalfLife) else ema


def both_licenses(first: str, second: str) -> str:
    """The license of a model made from two others: both, or the one that is stated."""
    stated = list(dict.fromkeys(text for text in (first, second) if text != UNSTATED))
    if not stated:
        return UNSTATED
    return stated[0] if len(stated) == 1 else f"all of: {'; '.join(stated)}"
