"""`Run`: a method, its data and all settings of a training, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Method, Phase
from fewstep.data.labels import LabelStream
from fewstep.data.latents import LatentStream
from fewstep.data.stream import ImageStream
from fewstep.io.card import Card
from fewstep.io.configuration import to_dict
from fewstep.runtime.distributed import world_size
from fewstep.train.ema import HalfLife, Profile
from fewstep.train.evaluation import Evaluation
from fewstep.train.identity import describe, digest
from fewstep.train.optim import Adam
from fewstep.train.options import RunOptions
from fewstep.train.sharding import STRATEGIES
from fewstep.train.trackers import check_trackers
from fewstep.train.transfer import Transfer

Stream = ImageStream | LatentStream | LabelStream


@dataclass(frozen=True)
class Run(RunOptions):
    """A method, its data and all settings of a training, except the folder; what `fit` trains.

    The options of every run (`keep`, `strategy`, `compile`, `recompute`, `tf32`, `track`) are those of `RunOptions`.
    `dataclasses.replace` makes another run of this one.

    Args:
        method: The networks and their losses.
        data: Where batches come from.
        optimizers: An optimizer for each player that trains.
        batch_size: Images of a step, over all ranks.
        until: Training images at the end.
        micro_batch: Images at a time on one rank; None for `batch_size` divided by the ranks at the first start.
        ema: How the product is averaged, in one way or several; the first average makes the snapshots.
        seed: Seed of everything that training draws.
        snapshots: How many snapshots to take, evenly spaced.
        checkpoint_seconds: Least time between two checkpoints.
        evaluation: How the product is measured during training; None for not at all.
        name: For the log and the model card.
        card: The model card; data, images and averaging are filled in.
        command: The command line that repeats this run.
        recipe: The settings that made it, as `recipes.record` has them.
        transfer: Where its weights came from, set by `transfer.transfer`.

    Raises:
        ValueError: The settings do not make a run; nothing was written.

    Example:
        >>> method = fs.Pretraining(denoiser, fs.DenoisingLoss())
        >>> stream = fs.ImageStream(fs.images("digits"))
        >>> run = fs.Run(method, stream, {"denoiser": fs.Adam(1e-3)}, batch_size=128, until=200_000)
        >>> denoiser = fs.fit(run, "runs/teacher")
    """

    method: Method
    data: Stream
    optimizers: Mapping[str, Adam]
    batch_size: int
    until: int
    micro_batch: int | None = None
    ema: Profile | tuple[Profile, ...] = HalfLife()
    seed: int = 0
    snapshots: int = 10
    checkpoint_seconds: float = 60.0
    evaluation: Evaluation | None = None
    name: str = "run"
    card: Card = field(default_factory=Card)
    command: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    transfer: Transfer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise ValueError(
                f"method must be a Method, such as fs.distill.SiD(teacher); got a {type(self.method).__name__}"
            )
        if not hasattr(self.data, "data"):
            raise ValueError(
                f"data must be a stream, such as fs.ImageStream(fs.images(path)); got a {type(self.data).__name__}"
            )
        check_method(self.method)
        check_data(self.method, self.data)
        name_classes(self.method, self.data)
        self.check_numbers()
        players = list(dict.fromkeys(phase.player for phase in self.method.phases))
        if set(players) != set(self.optimizers):
            raise ValueError(f"optimizers must name {', '.join(players)}; got {', '.join(self.optimizers) or 'none'}")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; got {self.strategy!r}")
        if self.method.uneven and self.strategy != "replicate":
            raise ValueError(
                f"with this {type(self.method).__name__} each rank draws which step it trains, so that ranks evaluate its "
                "networks in different numbers, and sharded networks would wait forever. Use strategy replicate"
            )
        check_trackers(self.track)

    def check_numbers(self) -> None:
        """Raise ValueError for numbers out of range."""
        counts: dict[str, Any] = {"batch_size": self.batch_size, "until": self.until, "keep": self.keep}
        optional = {"micro_batch": self.micro_batch, "recompute": self.recompute}
        counts |= {name: value for name, value in optional.items() if isinstance(value, int)}
        for name, value in counts.items():
            if not isinstance(value, int):
                raise ValueError(f"{name} must be an integer; got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        for name in ("seed", "snapshots", "checkpoint_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        if self.batch_size < world_size():
            raise ValueError(
                f"a batch of {self.batch_size} is too small for {world_size()} ranks; each needs at least one image"
            )

    @cached_property
    def initial_weights(self) -> dict[str, str]:
        """Hashes of the networks that the method was given, before it trains."""
        training = {phase.player for phase in self.method.phases}
        fixed = [name for name, _ in self.method.named_children() if name not in training]
        return {name: digest(self.method.get_submodule(name)) for name in (*fixed, *self.method.warm_started)}

    def identity(self) -> dict[str, Any]:
        """What decides the weights: a resumed run must have the same. `micro_batch` is None if it follows from the ranks."""
        return {
            "method": describe(self.method),
            "given": self.initial_weights,
            "network": {name: to_dict(m.net.config) for name, m in denoisers(self.method)},
            "denoiser": {name: describe(m) for name, m in denoisers(self.method)},
            "data": {"name": self.data.data.name, "n": len(self.data.data), "sha256": self.data.data.fingerprint},
            "stream": {"seed": self.data.seed, "flip": self.data.flip},
            "optimizers": {name: describe(o) for name, o in self.optimizers.items()},
            "batch_size": self.batch_size,
            "micro_batch": self.micro_batch,
            "ema": describe(self.ema),
            "seed": self.seed,
            **({"tf32": True} if self.tf32 else {}),
            **({"transfer": self.transfer.sha256} if self.transfer else {}),
        }


def denoisers(method: nn.Module) -> list[tuple[str, Denoiser]]:
    """The denoisers among a method's networks, with their names."""
    return [(name, child) for name, child in method.named_children() if isinstance(child, Denoiser)]


def check_method(method: Method) -> None:
    """Raise ValueError unless the phases and the product of a method are as `Method` describes.

    The product of a method with a teacher is assumed to be a generator, which must have the noise levels that it is sampled
    from; without them it would be sampled as a teacher is, in many steps.
    """
    kind, modules = type(method).__name__, dict(method.named_modules())
    phases, product = getattr(method, "phases", None), getattr(method, "product", None)
    if not isinstance(phases, tuple) or not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise ValueError(f"{kind}.phases must be a tuple of Phase(player, loss), at least one; got {phases!r}")
    for phase in phases:
        if phase.player not in modules:
            raise ValueError(
                f"{kind}: the phase {phase.name} trains {phase.player!r}, which is not a network of the method"
            )
    result = modules.get(product) if isinstance(product, str) else None
    if not isinstance(result, Denoiser):
        known = [name for name, module in modules.items() if isinstance(module, Denoiser)]
        raise ValueError(
            f"{kind}.product must be the name of one of its denoisers ({', '.join(known) or 'it has none'}); got {product!r}"
        )
    trained = {phase.player for phase in phases} | {product}
    teachers = [name for name, _ in denoisers(method) if name not in trained]
    if teachers and result.levels is None and not method.every_level:
        raise ValueError(
            f"{kind}: the {product} has no noise levels to be sampled from. Set {product}.levels, such as (2.5,) for one step; "
            f"if it denoises at every level, as the {teachers[0]} does, set every_level = True on the method"
        )


def check_data(method: Method, stream: Stream) -> None:
    """Raise ValueError for data whose shape or classes are not those of the networks, and for labels without images."""
    data = stream.data
    if method.needs_images and isinstance(stream, LabelStream):
        raise ValueError(
            f"{type(method).__name__} learns from images, and this data has only labels. Give it the images too"
        )
    for name, network in denoisers(method):
        if network.shape != tuple(data.shape):
            raise ValueError(
                f"the {name} takes images of shape {network.shape}; {data.name} has {tuple(data.shape)}. Give data "
                "of the same shape, or another teacher"
            )
        if network.num_classes and network.num_classes != data.num_classes:
            raise ValueError(
                f"the {name} has {network.num_classes} classes; {data.name} has {data.num_classes or 'none'}. Give data "
                "with the same classes, or another teacher"
            )


def name_classes(method: Method, stream: Stream) -> None:
    """Give denoisers that do not know the names of their classes those of the data."""
    for _, network in denoisers(method):
        if network.num_classes and network.class_names is None:
            network.class_names = getattr(stream.data, "class_names", None)
