"""From seeds to images: each image depends on its own seed alone, not on its batch nor on the number of processes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, zip_longest
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser
from fewstep.core.denoiser import Denoise, Denoiser, guided
from fewstep.core.inputs import check_guidance, told
from fewstep.core.noise import Noise
from fewstep.metrics.protocol import ROUNDING, show_seeds
from fewstep.metrics.sources import ImageSource
from fewstep.runtime import precision
from fewstep.runtime.distributed import gather, rank, world_size
from fewstep.runtime.memory import lacks_memory
from fewstep.samplers import Sampler, counted, edm_sigmas, heun, indexed_sigmas, last, multistep, posterior
from fewstep.samplers.distilled import GRID


class SeededNoise:
    """Unit Gaussian noise for a batch, every image from a generator of its own seed (mod 2^32), drawn on the CPU."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Noise of the shape, dtype and device of `x` (B, ...), drawn in `dtype`, that of `x` if None.

        The numbers of a seed depend on the precision in which they are drawn.
        """
        return self.draw(x.shape[1:], dtype or x.dtype).to(x)

    def draw(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.stack([torch.randn(tuple(shape), generator=g, dtype=dtype) for g in self.generators])

    def classes(self, n: int) -> Tensor:
        """A uniform class index for each image (B,)."""
        return torch.stack([torch.randint(n, (), generator=g) for g in self.generators])


@dataclass(frozen=True)
class Guidance:
    """How another prediction steers the model: guide + scale (model - guide), for sigma in `interval`.

    guide: a weaker network (autoguidance), or one without classes; None for the model itself without its label
    (classifier-free guidance).
    """

    scale: float
    guide: Denoiser | None = None
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        check_guidance(self.scale, self.interval)
        if self.guide is not None and not isinstance(self.guide, Denoiser):
            raise ValueError(f"guide is a model, such as fs.load(path); got a {type(self.guide).__name__}")


@dataclass(frozen=True)
class Plan:
    """How images are made: a sampler, its noise levels and its options, and guidance.

    noise_dtype: in which the noise of the sampler is drawn, None for that of what the sampler asks for.
    """

    sampler: Sampler
    sigmas: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    guidance: Guidance | None = None
    noise_dtype: torch.dtype | None = None

    @classmethod
    def of(cls, denoiser: Denoiser, sampler: Sampler, sigmas: Tensor, **options: Any) -> Plan:
        """A plan for one network, whose levels are rounded and whose noise is drawn as its authors do: of an EDM or EDM2
        model, a seed gives the image of EDM's or EDM2's generator.
        """
        own = {"round_sigma": denoiser.precondition.round, "idle_noise": denoiser.sampling.idle_noise}
        known = inspect.signature(sampler).parameters
        options = {name: value for name, value in own.items() if name in known} | options
        return cls(sampler, sigmas, options, noise_dtype=denoiser.sampling.noise_dtype)

    def __call__(
        self, denoise: Denoise, weak: Denoise, noise: SeededNoise, z: Tensor, *, mean: Tensor | None = None
    ) -> Tensor:
        """The images (B, C, H, W), float64, that start from unit noise `z`; `weak` is what guidance steers away from.

        mean: of all images, for samplers that start about it.
        """
        options, known = dict(self.options), inspect.signature(self.sampler).parameters
        if "noise" in known:
            options["noise"] = partial(noise, dtype=self.noise_dtype)
        if "mean" in known and mean is not None:
            options["mean"] = mean
        if self.guidance is not None:
            denoise = guided(denoise, weak, self.guidance.scale, interval=self.guidance.interval)
        return last(self.sampler(denoise, z.double() * self.sigmas[0], self.sigmas, **options), like=z)

    def bind(self, denoiser: Denoiser, label: Tensor | None, noise: Noise) -> tuple[Denoise, Denoise]:
        """The two predictions for images of these classes (B,): the model's, and what guidance steers away from. A model
        that draws gets its noise from `noise`.
        """
        if isinstance(denoiser, GenerativeDenoiser):
            draw = partial(denoiser, label=label, noise=noise)
            return draw, draw
        guide = self.guidance.guide if self.guidance is not None else None
        if guide is None:
            return partial(denoiser, label=label), partial(denoiser, label=None)
        return partial(denoiser, label=label), partial(guide, label=label if guide.num_classes else None)

    def check(self, denoiser: Denoiser) -> None:
        """Refuse guidance that does not fit the model."""
        if self.guidance is None:
            return
        if isinstance(denoiser, GenerativeDenoiser):
            raise ValueError("a generative denoiser draws images, of which there is no guided mean; leave guidance out")
        guide = self.guidance.guide
        for name, model in {"model": denoiser, "guide": guide}.items():
            if model is not None and (model.levels is not None or isinstance(model, ConditionalDenoiser)):
                raise ValueError(
                    f"guidance mixes predictions of the mean at every noise level, and the {name} is a generator or a fake "
                    "score, which has none; leave guidance out, or give a teacher"
                )
        if guide is None and not denoiser.num_classes:
            raise ValueError(
                "classifier-free guidance needs a model with classes; give a weaker model as guide instead"
            )
        if guide is None and not denoiser.knows_no_class:
            raise ValueError(
                f"guidance {self.guidance.scale:g} by the model itself needs one that was trained without its class, too, and "
                "this one was not (label_dropout 0 in its config.json): its prediction without a class means nothing. Give a "
                "weaker or an unconditional model as guide (--guide FOLDER, Guidance(guide=...)), or leave guidance out"
            )
        if guide is not None and guide.shape != denoiser.shape:
            raise ValueError(f"the guide makes images of shape {guide.shape}, the model of {denoiser.shape}")
        if guide is not None and guide.num_classes not in (0, denoiser.num_classes):
            raise ValueError(f"the guide has {guide.num_classes} classes, the model {denoiser.num_classes}")

    @property
    def nfe(self) -> int:
        """Network evaluations per image, those of the guide included, counted on stubs."""
        model, guide = counted(lambda x, sigma: x * 0.5), counted(lambda x, sigma: x * 0.5)
        self(model, guide, SeededNoise([0]), torch.zeros(1, 1))
        return model.nfe + model.jvp + guide.nfe + guide.jvp

    def describe(self) -> dict[str, Any]:
        """What a result says of the sampler."""
        levels = [float(s) for s in self.sigmas][:-1]
        start = {"start": levels.pop(0)} if self.sampler is posterior and len(levels) > 1 else {}  # no step
        return {
            "sampler": getattr(self.sampler, "__name__", type(self.sampler).__name__),
            "steps": len(levels),
            **start,
            **({"levels": levels} if self.sampler in (posterior, multistep) else {}),
            "sigma_max": levels[0],
            "sigma_min": levels[-1],
            "options": {k: str(v) for k, v in self.options.items()},
            "guidance": None if self.guidance is None else self.describe_guidance(self.guidance),
            "nfe": self.nfe,
        }

    @staticmethod
    def describe_guidance(guidance: Guidance) -> dict[str, Any]:
        guide = "the model without its label" if guidance.guide is None else "another model"
        return {"scale": guidance.scale, "guide": guide, "interval": [str(v) for v in guidance.interval]}


def default_plan(denoiser: Denoiser, steps: int | None = None) -> Plan:
    """A generator's own levels; for other denoisers Heun's method on Karras' schedule over their range, in 18 steps, or 32
    for EDM2's networks.

    A generative denoiser takes any number of steps: at its own levels if they are as many, else spread over NCVSD's grid.
    """
    if isinstance(denoiser, GenerativeDenoiser):
        own = denoiser.levels or ()
        if steps in (None, len(own)):
            return Plan(posterior, torch.tensor([denoiser.sigma_init, *own, 0.0], dtype=torch.float64))
        return Plan(posterior, spread_sigmas(denoiser, steps))
    if denoiser.levels is not None:
        if steps not in (None, len(denoiser.levels)):
            raise ValueError(
                f"this generator was distilled to {len(denoiser.levels)} step(s); got steps={steps}. Leave it out, or "
                "name a sampler and its noise levels"
            )
        return Plan(multistep, torch.tensor([*denoiser.levels, 0.0], dtype=torch.float64))
    return Plan.of(denoiser, heun, edm_sigmas(denoiser, denoiser.sampling.steps if steps is None else steps))


def spread_sigmas(denoiser: GenerativeDenoiser, steps: int) -> Tensor:
    """Noise levels of `posterior` for any number of steps: indices at equal distances, as 0,10,20,30,39 for four, on the
    grid down to the lowest level that the model has learned.
    """
    if not 0 < steps < GRID:
        raise ValueError(f"a generative denoiser takes 1 to {GRID - 1} steps; got {steps}")
    indices = [*(GRID * k // steps for k in range(steps)), GRID - 1]
    return indexed_sigmas(indices, sigma_init=denoiser.sigma_init, sigma_min=denoiser.sigma_end)


class BatchSize:
    """How many images at a time: given, or doubled from 64 on GPUs as long as their memory holds twice as many; halved where
    it does not suffice.

    Time has no part in it, so that the same machine makes the same batches again.
    """

    FIRST, LARGEST = 64, 1024

    def __init__(self, device: torch.device, given: int | None = None) -> None:
        if given is not None and given < 1:
            raise ValueError(f"batch_size: images are made at least one at a time; got a batch of {given}")
        self.device, self.size = device, given or self.FIRST
        self.grows = given is None and device.type == "cuda"  # no CPU says when there will be no memory
        self.before = torch.cuda.memory_reserved(device) if self.grows else 0

    def fits(self, n: int) -> None:
        """Learn that `n` images fit; the memory that they took suffices for as many again."""
        if self.grows and n == self.size:
            taken = torch.cuda.memory_reserved(self.device) - self.before
            self.grows = self.size < self.LARGEST and torch.cuda.mem_get_info(self.device)[0] > taken
            self.size *= 2 if self.grows else 1

    def too_large(self, n: int) -> None:
        """Learn that `n` images do not fit."""
        self.grows, self.size = False, n // 2


FITTING: MutableMapping[Denoiser, int] = WeakKeyDictionary()
"""Sizes of batches that were found for denoisers of this process."""


def in_batches(
    make: Callable[[Sequence[int]], NDArray[np.uint8]], n: int, size: BatchSize
) -> Iterator[NDArray[np.uint8]]:
    """This rank's share of `n` images, every world-th, made in batches of their places."""
    mine, start = range(rank(), n, world_size()), 0
    while start < len(mine):
        batch = mine[start : start + size.size]
        try:
            images = make(batch)
            size.fits(len(batch))
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            if len(batch) == 1:
                raise MemoryError(f"one image alone does not fit into the memory of {size.device}") from error
            images = None
        if images is None:  # outside of the handler, whose traceback holds the tensors
            size.too_large(len(batch))
            if size.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        yield from images
        start += len(batch)


def generate(
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    label: int | Tensor | None = None,
    plan: Plan | None = None,
    batch_size: int | None = None,
    tf32: bool = False,
) -> Iterator[NDArray[np.uint8]]:
    """Images (H, W, C) uint8, one for each seed of this rank (every world-th), in order.

    label: a class for all images, or one for each seed (N,); None draws it from the seed. plan: how; `default_plan` if
    None. batch_size: images at a time; None for as many as fit, see `BatchSize`, remembered for this denoiser. tf32: see
    `precision.tf32`. Raises ValueError at once for what does not fit the model.

    The draws of a seed are, in order: the initial noise (float32), a class if there are classes, and the sampler's noise
    (float64, for EDM2's networks float32), so that they are those of EDM's and EDM2's generators on a CPU.
    """
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"denoiser is a model, such as fs.load(path); got a {type(denoiser).__name__}")
    if isinstance(denoiser, ConditionalDenoiser):
        raise ValueError("this model is a fake score of NCVSD, for training alone; it makes no images")
    check_seeds(seeds)
    if not isinstance(plan, Plan | None):
        raise ValueError(f"plan is a Plan, such as default_plan(model, steps); got {plan!r}")
    plan = plan or default_plan(denoiser)
    check_label(denoiser, label, len(seeds))
    plan.check(denoiser)
    denoiser.codec.prepare(next(denoiser.parameters()).device)
    return images_of(denoiser, seeds, label, plan, batch_size, tf32)


@torch.inference_mode()
def images_of(
    denoiser: Denoiser,
    seeds: Sequence[int],
    label: int | Tensor | None,
    plan: Plan,
    batch_size: int | None,
    tf32: bool,
) -> Iterator[NDArray[np.uint8]]:
    """The images of `generate`, whose arguments are checked."""
    device = next(denoiser.parameters()).device

    @precision.tf32(tf32)
    def make(places: Sequence[int]) -> NDArray[np.uint8]:
        batch = [seeds[i] for i in places]
        noise = SeededNoise(batch)
        z = noise.draw(denoiser.shape, torch.float32).to(device)
        classes = noise.classes(denoiser.num_classes).to(device) if denoiser.num_classes else None
        if label is not None:
            chosen = torch.as_tensor(label).long().expand(len(seeds))
            classes = chosen[list(places)].to(device)
        mean = denoiser.centre(classes) if isinstance(denoiser, GenerativeDenoiser) else None
        x0 = plan(*plan.bind(denoiser, classes, noise), noise, z, mean=mean)
        if not x0.isfinite().all():
            bad = [seed for seed, image in zip(batch, x0, strict=True) if not image.isfinite().all()]
            raise ValueError(
                f"the images of the seeds {show_seeds(bad)} are not finite; check weights, levels, precision"
            )
        return denoiser.codec.decode(x0).permute(0, 2, 3, 1).cpu().numpy()

    size = BatchSize(device, FITTING.get(denoiser) if batch_size is None else batch_size)
    yield from in_batches(make, len(seeds), size)
    if batch_size is None and not size.grows:
        FITTING[denoiser] = size.size


def gathered(images: Iterable[NDArray[np.uint8]], n: int, *, batch_size: int = 64) -> Iterator[NDArray[np.uint8]]:
    """All `n` images in order on the first rank, out of every rank's share (every world-th); none on the others.

    Every rank must go through it to the end. batch_size: images that a rank sends at a time.
    """
    mine = iter(images)
    for _ in range(0, n, batch_size * world_size()):
        for row in zip_longest(*gather(list(islice(mine, batch_size)))):
            yield from (image for image in row if image is not None)
    next(mine, None)  # what makes them comes to its end


def generated(
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    label: int | Tensor | None = None,
    plan: Plan | None = None,
    batch_size: int | None = None,
    tf32: bool = False,
) -> ImageSource:
    """The images of `generate` as a source to be measured, with the part of the protocol that is theirs."""
    plan = plan or default_plan(denoiser)

    def make() -> Iterator[NDArray[np.uint8]]:
        made = generate(denoiser, seeds, label=label, plan=plan, batch_size=batch_size, tf32=tf32)
        return (image.transpose(2, 0, 1) for image in made)

    drawn = "drawn from the seeds" if denoiser.num_classes else "none"
    given = label if isinstance(label, int) else "given for each seed"
    repeated = len(seeds) - len(set(seeds))
    twice = {"repeated_seeds": repeated} if repeated else {}
    protocol = {"seeds": show_seeds(seeds), **twice, **plan.describe(), "labels": drawn if label is None else given}
    protocol["precision"] = str(denoiser.dtype).removeprefix("torch.") + (", TF32" if tf32 else "")
    protocol["rounding"] = ROUNDING
    # metrics never compute in TF32, and the process has one setting
    on_side = next(denoiser.parameters()).is_cuda and not tf32
    return ImageSource(len(seeds), make, lambda i: f"the image of seed {seeds[i]}", protocol, overlap=on_side)


def check_label(denoiser: Denoiser, label: Any, n: int) -> None:
    """Refuse what is neither a class of the model nor one for each of `n` images."""
    if label is None:
        return
    if not denoiser.num_classes:
        raise ValueError(f"this model has no classes; leave the label out; got {told(label)}")
    try:
        values = torch.as_tensor(label).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"label must be a class from 0 to {denoiser.num_classes - 1}; got {label!r}") from error
    if values.ndim > 1 or (values.ndim == 1 and len(values) != n):
        one_hot = "; of one-hot labels take argmax(1)" if values.shape == (n, denoiser.num_classes) else ""
        raise ValueError(f"expected one label or one for each of {n} seeds; got shape {tuple(values.shape)}{one_hot}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"label must be integers from 0 to {denoiser.num_classes - 1}; got {told(label)}")
    if n and (values.min() < 0 or values.max() >= denoiser.num_classes):
        raise ValueError(
            f"labels of this model are 0 to {denoiser.num_classes - 1}; got {int(values.min())} to {int(values.max())}"
        )


def check_seeds(seeds: Any) -> None:
    """Refuse seeds that are no integers, or that would give the images of others."""
    if not isinstance(seeds, Iterable) or not hasattr(seeds, "__len__") or isinstance(seeds, (str, bytes)):
        raise ValueError(f"seeds is a sequence of integers, such as range(64); got {seeds!r}")
    ends = (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else seeds
    for seed in ends:
        if not hasattr(seed, "__index__") or not 0 <= seed < 2**32:
            raise ValueError(f"seeds are integers from 0 to 2^32 - 1 = {2**32 - 1}; got {seed!r}")
