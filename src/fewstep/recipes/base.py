"""What all recipes have in common: settings, the parts that they make, and the run that comes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import fewstep as fs
from fewstep.runtime.display import public

if TYPE_CHECKING:
    import torch

    from fewstep.data.labels import LabelStream
    from fewstep.data.latents import LatentStream
    from fewstep.train.ema import Profile

T = TypeVar("T")
FIXED = "fixed"
Fixed = Annotated[T, FIXED]
"""A setting of a published configuration that the command line does not offer as an option."""

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class Required:
    """The value of a setting that has no default."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = Required()


class Parts(NamedTuple):
    """What a family makes of its settings; `Recipe.run` adds what every run has. The fields are arguments of `fs.Run`.

    Args:
        method: the networks and their losses.
        data: where batches come from.
        optimizers: an optimizer for each player that trains.
        ema: how the product is averaged, in one way or several.
        snapshots: how many snapshots to take.
        card: the model card.
        checkpoint_seconds: least time between two checkpoints.

    Example:
        >>> parts = fs.recipes.Parts(method, stream, optimizers, fs.HalfLife(), snapshots=1, card=fs.Card())
    """

    method: fs.Method
    data: fs.ImageStream | LatentStream | LabelStream
    optimizers: Mapping[str, fs.Adam]
    ema: Profile | tuple[Profile, ...] | None = None
    snapshots: int = 10
    card: fs.Card | None = None
    checkpoint_seconds: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of every run. A family adds its own and defines `parts`.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Mine(fs.recipes.Recipe):
        ...     lr: float = 1e-3
        ...
        ...     def parts(self):
        ...         stream = fs.ImageStream(fs.images(self.data), seed=self.seed)
        ...         return fs.recipes.Parts(method, stream, {"denoiser": fs.Adam(self.lr)}, fs.HalfLife(), 1, fs.Card())
        >>> run = Mine(data="digits", until=100_000).run()
    """

    data: str | None = REQUIRED
    """Training images: a zip, folder, or any other source that fewstep data pack reads."""
    batch_size: int = 128
    """Images per training step, over all devices."""
    micro_batch: int | None = None
    """Images per forward pass on a device (gradient accumulation); unset: the device's whole share of the batch."""
    until: int | None = REQUIRED
    """Total number of training images."""
    dtype: Dtype = "auto"
    """Precision of the networks. auto: bfloat16 if the hardware supports it, else float32. float16 uses a dynamic loss
    scale. Weights are stored in float32."""
    seed: int = 0
    """Seed of weight initialization, data order and noise."""
    name: Fixed[str] = ""
    """Name of the run in its log and model card, {size} standing for the setting; if empty, that of the class."""

    def parts(self) -> Parts:
        """The method, its data and how it is optimized."""
        raise NotImplementedError(f"{type(self).__name__} defines no parts()")

    def resolved(self) -> Self:
        """The same settings, with those that depend on others filled in."""
        return self

    def run(self) -> fs.Run:
        """The run that these settings describe. New weights are drawn from `seed`.

        Raises:
            ValueError: A required setting is missing, or data and networks do not fit the recipe.
        """
        import torch

        name = self.name or type(self).__name__
        if missing := required(self):
            raise ValueError(f"the recipe {name} needs {', '.join(missing)}")
        final = self.resolved()
        assert final.until is not None
        torch.manual_seed(final.seed)
        parts = final.parts()
        parts = parts._replace(card=parts.card or final.card(type(parts.method).__name__))
        return fs.Run(
            **{name: part for name, part in parts._asdict().items() if part is not None},
            batch_size=final.batch_size,
            micro_batch=final.micro_batch,
            until=final.until,
            seed=final.seed,
            name=name.format(**vars(final)),
            recipe=record(self),
        )

    def card(self, method: str) -> fs.Card:
        """The model card of what the run trains."""
        return fs.Card(method=method)

    fitted: ClassVar[tuple[str, ...]] = ()  # settings besides `until` that `smaller` changes

    def smaller(self, run: fs.Run, until: int) -> Self | None:
        """The recipe with a smaller network, if that is better for a training of `until` images; None if not."""
        return None

    def expected(self, run: fs.Run) -> str:
        """What quality to expect of a run, in a sentence; empty where the published result says it."""
        return ""

    def torch_dtype(self) -> torch.dtype:
        from fewstep.runtime.precision import chosen_dtype

        return chosen_dtype(self.dtype)

    def loss_scale(self) -> float | None:
        """Where the dynamic loss scale begins: float16 alone needs one."""
        return 2.0**16 if self.dtype == "float16" else None

    def snapshots(self, interval: int) -> int:
        """How many snapshots are taken, one every `interval` images."""
        assert self.until is not None
        return max(1, self.until // interval)


@dataclass(frozen=True, kw_only=True)
class Distillation(Recipe):
    """Settings of every distillation; `Recipe` with a teacher.

    Example:
        >>> recipe: fs.recipes.Distillation = fs.recipes.get("digits:sid", teacher="runs/teacher")
    """

    teacher: Path = REQUIRED
    """Model or run folder of the teacher."""

    def card(self, method: str) -> fs.Card:
        """The model card of what the run trains: it inherits lineage and license of the teacher."""
        return fs.card(self.teacher).student(method)

    def loaded_teacher(self) -> fs.Denoiser:
        """The teacher, computing in `dtype`; students are refused."""
        from fewstep.distill.players import check_teacher

        denoiser = fs.load(self.teacher)
        check_teacher(denoiser)
        denoiser.dtype = self.torch_dtype()
        return denoiser

    def stream(self, denoiser: fs.Denoiser) -> fs.ImageStream | LatentStream | LabelStream:
        """The training data in the units of the denoiser; classes without images if there is none."""
        from fewstep.data.codec import StabilityVAE
        from fewstep.data.labels import LabelData, LabelStream
        from fewstep.data.latents import LatentData, LatentStream

        if self.data is None:
            return LabelStream(LabelData(denoiser.shape, denoiser.num_classes), seed=self.seed)
        if isinstance(denoiser.codec, StabilityVAE):
            return LatentStream(LatentData(self.data), denoiser.codec, seed=self.seed)
        return fs.ImageStream(fs.images(self.data), seed=self.seed)


class Row(NamedTuple):
    """A recipe of the table.

    Args:
        settings: the recipe.
        summary: what it is, and its source.
        result: what its authors published, and how it differs from theirs.

    Example:
        >>> fs.recipes.TABLE["digits:sid"].summary
        'A one-step student trained with score identity distillation (SiD).'
    """

    settings: Recipe
    summary: str
    result: str = ""


def required(recipe: Any) -> list[str]:
    """Return the names of the settings that have no value yet.

    Args:
        recipe: a recipe.

    Returns:
        Names of fields.

    Example:
        >>> fs.recipes.required(fs.recipes.get("digits:sid"))
        ['teacher']
    """
    return [f.name for f in dataclasses.fields(recipe) if getattr(recipe, f.name) is REQUIRED]


def record(recipe: Any) -> dict[str, Any]:
    """Return the family of a recipe and its settings as JSON, without the secrets of addresses.

    Args:
        recipe: a recipe.

    Returns:
        What `run.json` records.

    Example:
        >>> settings = fs.recipes.record(fs.recipes.get("digits:teacher"))["settings"]
    """
    settings = {f.name: plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}
    return {"family": f"{type(recipe).__module__}.{type(recipe).__qualname__}", "settings": settings}


def plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return public(str(value))
