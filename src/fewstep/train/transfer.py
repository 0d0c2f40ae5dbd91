"""A run that starts from the weights of another network, as EDM's `--transfer`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives import Pretraining
from fewstep.io import hub, model_folder
from fewstep.io.card import UNSTATED, Card
from fewstep.io.convert import clean, fetch, load_snapshot, to_denoiser, weights_license
from fewstep.runtime.foreign import public
from fewstep.train.ema import HalfLife, Profile
from fewstep.train.identity import describe, digest

if TYPE_CHECKING:
    from fewstep.train.run import Run

SHOWN = 5
"""Names in a message."""


@dataclass(frozen=True)
class Transfer:
    """What a run took over from another network.

    Attributes:
        source: path or address, as it was given.
        sha256: fingerprint of the weights there.
        license: of them.
        taken: number of tensors that were copied.
        new: names of tensors of the run's network that the source lacks; they keep their values.
        unused: names of tensors of the source that the run's network lacks.
        differs: settings that a transfer does not take over, such as the preconditioning, where the two differ.
    """

    source: str
    sha256: str
    license: str
    taken: int
    new: tuple[str, ...]
    unused: tuple[str, ...]
    differs: tuple[str, ...]

    def __str__(self) -> str:
        words = [f"{self.source}: took over {self.taken} tensors"]
        for names, what in ((self.new, "not there, keep their values"), (self.unused, "not needed")):
            if names:
                words.append(f"{len(names)} {what}: {listed(names)}")
        return "; ".join([*words, *self.differs])


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + ("" if len(names) <= SHOWN else ", ...")


def opened(source: str | Path) -> tuple[Denoiser, Card]:
    """A network and its card from wherever one may lie: a model or run folder, the hub, or an upstream file or its address."""
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
def transfer(run: Run, source: str | Path) -> Transfer:
    """Let what a run trains start from the weights of another network.

    Of the method's product (the denoiser of a training, the generator of a distillation) every tensor that the source
    has under the same name takes its values; the others stay as they are. As in EDM, the average of a training by
    half-life then has no ramp-up. Lineage and license of the run's card include those of the source.

    Args:
        run: changed in place, before it is fit.
        source: model or run folder, address on the hub, or an upstream `.pkl` or `.pt`, as a path or an http(s) address.

    Returns:
        What was taken over and what was not; also `run.transfer`, which `run.json` keeps.

    Raises:
        ValueError: no tensor has a name in common, or one of the same name has another shape.
    """
    theirs, about = opened(source)
    mine = run.method.get_submodule(run.method.product)
    have, given = mine.state_dict(), theirs.state_dict()
    common = [name for name in have if name in given]
    if not common:
        raise ValueError(
            f"{source} has no tensor in common with the {run.method.product} of this run, a {kind(mine)}; it is a "
            f"{kind(theirs)}. Give a network of the same kind"
        )
    if wrong := [name for name in common if have[name].shape != given[name].shape]:
        name = wrong[0]
        raise ValueError(
            f"{source}: {name} has the shape {tuple(given[name].shape)}, in the {run.method.product} of this run "
            f"{tuple(have[name].shape)}{'' if len(wrong) == 1 else f', and {len(wrong) - 1} more differ'}. A transfer takes "
            "tensors by name: train a network of the same widths and classes"
        )
    for name in common:
        have[name].copy_(given[name])
    differs = [
        f"{what} differs: there {describe(a)}, here {describe(b)}"
        for what in ("precondition", "levels", "codec")
        if describe(a := getattr(theirs, what)) != describe(b := getattr(mine, what))
    ]
    run.transfer = Transfer(
        source=public(source),
        sha256=digest(theirs),
        license=about.license,
        taken=len(common),
        new=tuple(name for name in have if name not in given),
        unused=tuple(name for name in given if name not in have),
        differs=tuple(differs),
    )
    if isinstance(run.method, Pretraining):
        profiles = run.ema if isinstance(run.ema, tuple) else (run.ema,)
        unramped = tuple(without_rampup(profile) for profile in profiles)
        run.ema = unramped if isinstance(run.ema, tuple) else unramped[0]
    run.card = dataclasses.replace(
        run.card,
        lineage=[*run.card.lineage, about.name, *about.lineage],
        license=together(run.card.license, about.license),
    )
    return run.transfer


def kind(network: object) -> str:
    inner = getattr(network, "net", None)
    return type(network).__name__ + ("" if inner is None else f" around {type(inner).__name__}")


def without_rampup(profile: Profile) -> Profile:
    return dataclasses.replace(profile, rampup=None) if isinstance(profile, HalfLife) else profile


def together(first: str, second: str) -> str:
    """The license of what comes of two models: that of the one that states any, or both."""
    stated = list(dict.fromkeys(text for text in (first, second) if text != UNSTATED))
    if not stated:
        return UNSTATED
    return stated[0] if len(stated) == 1 else f"all of: {'; '.join(stated)}"
