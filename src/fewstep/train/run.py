"""A run: a Trainer with a folder. It logs, takes snapshots and checkpoints, and the same call again resumes it.

run.json       what runs: settings, data, versions, command
log.jsonl      one line of figures at a time
metrics.jsonl  the results of its evaluations, with their protocols
best/          the averaged product with the best result, a model folder; best.json says which
snapshots/     the averaged product as model folders, by images seen
averages/      likewise for further averages, a folder for each
checkpoints/   the whole state of training, the newest ones
samples/       grids of fixed seeds
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.core.denoiser import Denoiser, Preconditioned
from fewstep.core.method import Method
from fewstep.data.labels import LabelStream
from fewstep.data.latents import LatentStream
from fewstep.data.stream import ImageStream
from fewstep.io.card import Card
from fewstep.io.configuration import to_dict
from fewstep.io.model_folder import network_to_dict
from fewstep.nets.execution import Recomputation, compile_blocks, recompute_blocks
from fewstep.nets.layers import Frozen
from fewstep.runtime.distributed import device, world_size
from fewstep.runtime.files import read_json
from fewstep.train.checkpoints import KEPT, Checkpoints
from fewstep.train.checkpoints import load as load_state
from fewstep.train.contract import check_method
from fewstep.train.ema import HalfLife, Profile
from fewstep.train.evaluation import Evaluation
from fewstep.train.folder import RECORD, claimed, open_folder
from fewstep.train.identity import describe, digest
from fewstep.train.loop import Loop
from fewstep.train.optim import Adam
from fewstep.train.preemption import Preempted
from fewstep.train.snapshots import images_of_grid
from fewstep.train.strategies import STRATEGIES
from fewstep.train.trackers import check_trackers
from fewstep.train.trainer import Trainer
from fewstep.train.transfer import Transfer


@dataclass
class Run:
    """A method, its data and its settings: all that a training is, but the folder.

    optimizers: for each player that moves. until: training images at the end. snapshots: how many are taken on the way
    there, evenly. ema: how the product is averaged, in one way or several; the first makes the snapshots.
    checkpoint_seconds: at least so much time lies between two checkpoints, of which the newest `keep` stay. evaluation: how
    the product is measured on the way, None for not at all. track: where figures go beside the folder, as
    `trackers.TRACKERS` has it. strategy: how large networks lie on the ranks, of `strategies.STRATEGIES`; the others are
    replicated. compile: whether blocks are compiled (`nets.execution.compile_blocks`). recompute: what is
    computed again in backward passes (`nets.execution.recompute_blocks`), None for nothing. tf32: see `precision.tf32`.
    name, card: for the log and the model's card; the rest of the card is filled in. command: the command line that
    repeats this run. recipe: the settings that made it, as `recipes.record` has them. transfer: where it started, filled in by
    `transfer.transfer`.
    """

    method: Method
    data: ImageStream | LatentStream | LabelStream
    optimizers: Mapping[str, Adam]
    batch_size: int
    until: int
    micro_batch: int | None = None
    ema: Profile | tuple[Profile, ...] = HalfLife()
    seed: int = 0
    snapshots: int = 10
    checkpoint_seconds: float = 60.0
    keep: int = KEPT
    evaluation: Evaluation | None = None
    track: tuple[str, ...] = ()
    strategy: str = "replicate"
    compile: bool = False
    recompute: Recomputation | None = None
    tf32: bool = False
    name: str = "run"
    card: Card = field(default_factory=Card)
    command: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    transfer: Transfer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise ValueError(f"method is a Method, such as fs.distill.SiD(teacher); got a {type(self.method).__name__}")
        if not hasattr(self.data, "data"):
            raise ValueError(
                f"data is a stream, such as fs.ImageStream(fs.images(path)); got a {type(self.data).__name__}"
            )
        check_method(self.method)
        check_data(self.method, self.data)
        self.check()

    def check(self) -> None:
        """Refuse settings that make no run, before anything is written."""
        counts = {"batch_size": self.batch_size, "until": self.until, "keep": self.keep}
        optional = (("micro_batch", self.micro_batch), ("recompute", self.recompute))
        counts |= {k: v for k, v in optional if isinstance(v, int)}
        for name, value in counts.items():
            if not isinstance(value, int):
                raise ValueError(f"{name} must be an integer; got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        players = list(dict.fromkeys(phase.player for phase in self.method.phases))
        if set(players) != set(self.optimizers):
            raise ValueError(f"optimizers must name {', '.join(players)}; got {', '.join(self.optimizers) or 'none'}")
        if self.batch_size < world_size():
            raise ValueError(f"a batch of {self.batch_size} is too small for {world_size()} ranks; give each an image")
        for name, value in {
            "seed": self.seed,
            "snapshots": self.snapshots,
            "checkpoint_seconds": self.checkpoint_seconds,
        }.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative; got {value}")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"the strategies are {', '.join(STRATEGIES)}; got {self.strategy!r}")
        if self.method.uneven and self.strategy != "replicate":
            raise ValueError(
                f"the ranks of this {type(self.method).__name__} evaluate its networks in different numbers, as each draws which "
                "step it trains; networks in parts would wait forever. Take the strategy replicate"
            )
        check_trackers(self.track)

    @cached_property
    def given(self) -> dict[str, str]:
        """Hashes of the networks that the method was given, as they are before it trains."""
        moving = {phase.player for phase in self.method.phases}
        lasting = [name for name, _ in self.method.named_children() if name not in moving]
        return {name: digest(self.method.get_submodule(name)) for name in (*lasting, *self.method.copied)}

    def identity(self) -> dict[str, Any]:
        """What decides the weights: a resumed run must have the same. micro_batch: None if it follows from the ranks."""
        return {
            "method": describe(self.method),
            "given": self.given,
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
    return [(name, child) for name, child in method.named_children() if isinstance(child, Denoiser)]


def large(method: nn.Module) -> list[str]:
    """Names of the networks that a strategy lays out: of about the size of the teacher, wherever they are in the method, but
    for feature networks, which R1 differentiates twice.
    """
    inner = tuple(f"{name}." for name, m in method.named_modules() if isinstance(m, Frozen))
    return [name for name, m in method.named_modules() if isinstance(m, Preconditioned) and not name.startswith(inner)]


def check_data(method: Method, stream: ImageStream | LatentStream | LabelStream) -> None:
    """Refuse data of another shape or other classes than the networks', and labels alone where images are needed."""
    data = stream.data
    if method.needs_images and isinstance(stream, LabelStream):
        raise ValueError(
            f"{type(method).__name__} learns from images; this data has labels alone. Give it the data set"
        )
    for name, network in denoisers(method):
        if network.shape != tuple(data.shape):
            raise ValueError(
                f"the {name} is made for images of shape {network.shape}; {data.name} has {tuple(data.shape)}. Give data "
                "of the same shape, or another teacher"
            )
        if network.num_classes and network.num_classes != data.num_classes:
            raise ValueError(
                f"the {name} knows {network.num_classes} classes; {data.name} has {data.num_classes or 'none'}. Give data "
                "with the same classes, or another teacher"
            )


def fit(run: Run, folder: str | Path, *, fresh: bool = False) -> Denoiser:
    """Train until `run.until` images, in `folder`; returns the averaged product.

    The same call again resumes from the newest checkpoint, or returns at once what is finished. A run is the same, bit
    for bit, however often it was interrupted. SIGTERM and SIGINT end it with `Preempted` after its state is saved. fresh:
    discard what is there.
    """
    folder = Path(folder)
    run.check()
    product = run.method.get_submodule(run.method.product)
    if isinstance(product, Denoiser):  # of which every snapshot has images
        product.codec.prepare(device())
        network_to_dict(product.net)  # raises ValueError for a network that no snapshot can hold
    moving = [p for p in run.method.parameters() if p.requires_grad]
    with claimed(folder) as check, resumable(moving):
        open_folder(folder, run.identity(), about(run), fresh=fresh)
        check()
        if run.compile:
            compile_blocks(run.method)
        if run.recompute is not None:
            recompute_blocks(run.method, run.recompute)
        trainer = Trainer(
            run.method,
            run.data,
            run.optimizers,
            batch_size=run.batch_size,
            micro_batch=read_json(folder / RECORD)["identity"]["micro_batch"],
            ema=run.ema,
            seed=run.seed,
            tf32=run.tf32,
            device=device(),
            strategies={name: STRATEGIES[run.strategy]() for name in large(run.method)},
        )
        with closing(Checkpoints(folder / "checkpoints", keep=run.keep)) as checkpoints:
            seconds, newest = 0.0, checkpoints.newest()
            if newest is not None:
                state = load_state(newest, trainer.layout())
                try:
                    trainer.load_state_dict(state)
                except (RuntimeError, LookupError) as error:
                    raise ValueError(
                        f"{newest} holds no state of this run ({str(error)[:200]}); remove it, and the one before is used"
                    ) from error
                seconds = state["seconds"]
            Loop(run, trainer, folder, checkpoints, seconds).train(check)
        trainer.gather()
    product = trainer.product
    assert isinstance(product, Denoiser)
    return product


@contextmanager
def resumable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let a method train again in this process where all of its state has been saved: at the end, and when it was asked to
    stop. After any other exception its weights may be those of no checkpoint, and the Trainer refuses it.
    """
    try:
        yield
    except Preempted:
        nn.ParameterList(parameters).requires_grad_(True)
        raise
    nn.ParameterList(parameters).requires_grad_(True)


def about(run: Run) -> dict[str, Any]:
    """What the record of a new run says beside its identity."""
    product = run.method.get_submodule(run.method.product)
    assert isinstance(product, Denoiser)
    return {
        "name": run.name,
        "command": run.command,
        "recipe": run.recipe,
        "until": run.until,
        "transfer": None if run.transfer is None else dataclasses.asdict(run.transfer),
        "grid": images_of_grid(product),
    }
