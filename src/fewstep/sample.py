"""From seeds to images: each image depends on its own seed alone, not on its batch nor on the number of processes.

One path: `generate` asks the model for a `Plan` (or is given one) and checks it; `generate_in_batches` draws noise for
a batch of seeds, has `run` take the sampler to its end on the denoiser that the model binds to classes and noise, and
decodes.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Guidance
from fewstep.core.inputs import check_classes, class_index
from fewstep.core.noise import Denoise, SeededNoise
from fewstep.core.plan import Plan, Sampler
from fewstep.metrics.protocol import ROUNDING, show_seeds
from fewstep.metrics.sources import ImageSource
from fewstep.runtime import precision
from fewstep.runtime.distributed import gather, share, world_size
from fewstep.runtime.memory import lacks_memory
from fewstep.runtime.progress import Progress
from fewstep.samplers.catalog import NAMED, check_options, find, parameters
from fewstep.samplers.contract import check_states, counted, final_state


def make_plan(
    model: Denoiser,
    steps: int | None = None,
    *,
    sampler: str | Sampler | None = None,
    guidance: Guidance | float | None = None,
    **options: Any,
) -> Plan:
    """Return the plan that `generate` carries out for the same arguments.

    Args:
        model: the model.
        steps: number of steps; the model's own if None.
        sampler: the name of one of `fs.samplers`, a function, or an object with a schedule of its own; the model's own way
            if None.
        guidance: a scale of classifier-free guidance, or a `Guidance`; None for none.
        **options: options of `Denoiser.plan` and of the sampler.

    Returns:
        The sampler with its noise levels, options and guidance.

    Raises:
        ValueError: the sampler, the guidance or an option does not fit the model, or has no effect.

    Example:
        >>> plan = fs.make_plan(model, 18, sampler="churn", S_churn=10)
        >>> images = fs.generate(model, range(64), plan=plan)
    """
    if not isinstance(model, Denoiser):
        raise ValueError(f"denoiser is a model, such as fs.load(path); got a {type(model).__name__}")
    guidance = guidance if isinstance(guidance, Guidance | None) else Guidance(guidance)
    sampler = next((name for name, function in NAMED.items() if function is sampler), sampler)
    if isinstance(sampler, str):
        find(sampler)
    plan = model.plan(steps, sampler=sampler, guidance=guidance, **options)
    function = find(plan.sampler)
    known = parameters(function)
    if options.get("rho") is not None and "rho" in known:
        plan = dataclasses.replace(plan, options=plan.options | {"rho": options["rho"]})
    check_options(f"the sampler {plan.name}", known, plan.options)
    return dataclasses.replace(plan, sampler=function)


def run(plan: Plan, denoise: Denoise, z: Tensor, **offered: Any) -> Tensor:
    """The images (B, C, H, W), float64, that start from unit noise `z`.

    offered: options for the sampler if it takes them, such as noise.
    """
    sampler = find(plan.sampler)
    known = parameters(sampler)
    options = {name: value for name, value in offered.items() if name in known} | plan.options
    states = sampler(denoise, z.double() * plan.sigmas[0], plan.sigmas, **options)
    check_states(states)
    return final_state(deque(states, maxlen=1), z)


def count_evaluations(plan: Plan) -> int:
    """Network evaluations per image (NFE), those of a guide included, counted on stubs."""
    model, guide = counted(lambda x, sigma: x * 0.5), counted(lambda x, sigma: x * 0.5)
    denoise: Denoise = model if plan.guidance is None else plan.guidance.mix(model, guide)
    run(plan, denoise, torch.zeros(1, 1), noise=SeededNoise([0]))
    return model.nfe + model.jvp + guide.nfe + guide.jvp


def describe(plan: Plan) -> dict[str, Any]:
    """What a result says of the sampler."""
    levels = [float(s) for s in plan.sigmas][:-1]
    start = {"start": levels.pop(0)} if plan.name == "posterior" and len(levels) > 1 else {}  # no step
    return {
        "sampler": plan.name,
        "steps": len(levels),
        **start,
        **({"levels": levels} if plan.name in ("posterior", "multistep") else {}),
        "sigma_max": levels[0],
        "sigma_min": levels[-1],
        "options": {name: str(value) for name, value in plan.options.items()},
        "guidance": None if plan.guidance is None else plan.guidance.describe(),
        "nfe": count_evaluations(plan),
    }


def generate(
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    sampler: str | Sampler | None = None,
    guidance: Guidance | float | None = None,
    label: int | str | Tensor | None = None,
    plan: Plan | None = None,
    batch_size: int | None = None,
    tf32: bool = False,
    progress: bool = False,
    **options: Any,
) -> Iterator[NDArray[np.uint8]]:
    """Generate images, one for each seed, in order; under torchrun those of this rank, every world-th.

    The draws of a seed are, in order: the initial noise (float32), a class if there are classes, and the sampler's noise
    (float64, for EDM2's networks float32), so that they are those of EDM's and EDM2's generators on a CPU.

    Args:
        denoiser: the model.
        seeds: one for each image, such as range(64).
        steps: number of steps; the model's own if None.
        sampler: the name of one of `fs.samplers`, a function that follows their contract, or an object with a schedule of its
            own, such as `fs.samplers.Ablation(solver="euler", discretization="vp")`; the model's own way if None.
        guidance: a scale of classifier-free guidance, or a `Guidance`.
        label: a class for all images, by index or by one of `denoiser.class_names`, or one for each seed (N,); None draws it
            from the seed.
        plan: what `model.plan(...)` or `fs.make_plan` returned, in place of steps, sampler, guidance and options.
        batch_size: images at a time; None for as many as fit, remembered for this model. It does not change the images.
        tf32: in float32, let GPUs round the factors of products to 10 bits.
        progress: show a progress bar.
        **options: options of `Denoiser.plan`, such as levels, sigma_max and rho, and of the sampler, such as S_churn and kappa.

    Returns:
        An iterator over images (H, W, C), uint8.

    Raises:
        ValueError: at once, for what does not fit the model or would have no effect.

    Example:
        >>> model = fs.load("runs/teacher")
        >>> images = list(fs.generate(model, range(16), steps=9, sampler="churn", S_churn=10, label=3))
    """
    if plan is None:
        plan = make_plan(denoiser, steps, sampler=sampler, guidance=guidance, **options)
    else:
        given = {"steps": steps, "sampler": sampler, "guidance": guidance, **options}
        check_plan(denoiser, plan, [name for name, value in given.items() if value is not None])
    check_seeds(seeds)
    if isinstance(label, str):
        label = class_index(label, denoiser.num_classes, denoiser.class_names)
    check_classes(label, len(seeds), denoiser.num_classes)
    denoiser.codec.prepare(next(denoiser.parameters()).device)
    return generate_in_batches(denoiser, seeds, label, plan, batch_size, tf32, progress)


def check_plan(denoiser: Denoiser, plan: Plan, beside: Sequence[str]) -> None:
    """Raise ValueError for a plan that does not fit a model, or that comes with what it already says."""
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"denoiser is a model, such as fs.load(path); got a {type(denoiser).__name__}")
    if not isinstance(plan, Plan):
        raise ValueError(f"plan is a Plan, such as model.plan(steps); got {plan!r}")
    if beside:
        raise ValueError(f"the plan already says how; leave {', '.join(beside)} out, or the plan")
    if denoiser.needs_observation:
        denoiser.plan()
    if plan.guidance is not None:
        denoiser.check_guidance(plan.guidance)


@torch.inference_mode()
def generate_in_batches(
    denoiser: Denoiser,
    seeds: Sequence[int],
    label: int | Tensor | None,
    plan: Plan,
    batch_size: int | None,
    tf32: bool,
    progress: bool,
) -> Iterator[NDArray[np.uint8]]:
    """The images of `generate`, whose arguments are checked: this rank's share, batch by batch."""
    device = next(denoiser.parameters()).device
    mine, start = share(range(len(seeds))), 0
    labels = None if label is None else torch.as_tensor(label).long().expand(len(seeds))
    size = BatchSize(device, FITTING.get(denoiser) if batch_size is None else batch_size)
    with Progress("sample", total=len(mine), show=progress) as bar:
        while start < len(mine):
            places = mine[start : start + size.size]
            batch = [seeds[i] for i in places]
            try:
                with precision.tf32(tf32):
                    denoise, z, offered = begin(denoiser, plan, batch, None if labels is None else labels[list(places)])
                    x0 = run(plan, denoise, z, **offered)
                    check_finite(x0, batch)
                    images = denoiser.codec.decode(x0).permute(0, 2, 3, 1).cpu().numpy()
                size.fits(len(batch))
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                if len(batch) == 1:
                    raise MemoryError(f"one image alone does not fit into the memory of {device}") from error
                images = None
            if images is None:  # outside of the handler, whose traceback holds the tensors
                size.too_large(len(batch))
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            start += len(batch)
            bar.update(start)
            yield from images
    if batch_size is None and not size.grows:
        FITTING[denoiser] = size.size


def begin(
    denoiser: Denoiser, plan: Plan, seeds: Sequence[int], label: Tensor | None
) -> tuple[Denoise, Tensor, dict[str, Any]]:
    """What `run` takes for these seeds: the bound denoiser, unit noise (B, C, H, W), and options that samplers may take."""
    device = next(denoiser.parameters()).device
    noise = SeededNoise(seeds)
    z = noise.draw(denoiser.shape, torch.float32).to(device)
    drawn = (
        noise.classes(denoiser.num_classes) if denoiser.num_classes else None
    )  # also where it is not used: see `generate`
    label = drawn if label is None else label
    classes = None if label is None else label.to(device)
    denoise = denoiser.bind(classes, noise) if plan.guidance is None else plan.guidance.bind(denoiser, classes, noise)
    offered = {"noise": partial(noise, dtype=denoiser.sampling.noise_dtype), **denoiser.sampler_options(classes)}
    return denoise, z, offered


def check_finite(x0: Tensor, seeds: Sequence[int]) -> None:
    """Raise ValueError that names the seeds whose images (B, C, H, W) contain NaN or infinities."""
    if not x0.isfinite().all():
        bad = [seed for seed, image in zip(seeds, x0, strict=True) if not image.isfinite().all()]
        raise ValueError(f"the images of the seeds {show_seeds(bad)} are not finite; check weights, levels, precision")


class BatchSize:
    """How many images at a time: given, or doubled from 64 on GPUs as long as their memory holds twice as many; halved where
    it does not suffice.

    Time has no part in it, so that the same machine makes the same batches again.
    """

    FIRST, LARGEST = 64, 1024

    def __init__(self, device: torch.device, given: int | None = None) -> None:
        if given is not None and given < 1:
            raise ValueError(f"batch_size must be at least 1; got {given}")
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


def gather_images(images: Iterable[NDArray[np.uint8]], n: int, *, batch_size: int = 64) -> list[NDArray[np.uint8]]:
    """All `n` images in order on the first rank, out of every rank's share (every world-th); none on the others.

    batch_size: images that a rank sends at a time.
    """
    mine = list(images)
    if world_size() == 1:
        return mine
    together: list[NDArray[np.uint8]] = []
    for start in range(0, -(-n // world_size()), batch_size):
        for row in zip_longest(*gather(mine[start : start + batch_size])):
            together += [image for image in row if image is not None]
    return together


def generated(
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    label: int | str | Tensor | None = None,
    plan: Plan | None = None,
    batch_size: int | None = None,
    tf32: bool = False,
    **options: Any,
) -> ImageSource:
    """Return the images of `generate` as a source to be measured, with their part of the protocol.

    Args:
        denoiser: the model.
        seeds: one for each image.
        label: a class for all images, by index or by one of `denoiser.class_names`, or one for each seed (N,); None draws it
            from the seed.
        plan: what `model.plan(...)` or `fs.make_plan` returned; None for that of `options`.
        batch_size: images at a time; None for as many as fit.
        tf32: in float32, let GPUs round the factors of products to 10 bits.
        **options: arguments of `make_plan`, such as steps and sampler.

    Returns:
        The source, which `fs.evaluate` takes.

    Raises:
        ValueError: see `make_plan`.

    Example:
        >>> results = fs.evaluate(fs.generated(model, range(2000), steps=9), fs.images("digits"))
    """
    plan = plan or make_plan(denoiser, **options)
    if isinstance(label, str):
        label = class_index(label, denoiser.num_classes, denoiser.class_names)

    def make() -> Iterator[NDArray[np.uint8]]:
        made = generate(denoiser, seeds, label=label, plan=plan, batch_size=batch_size, tf32=tf32)
        return (image.transpose(2, 0, 1) for image in made)

    drawn = "drawn from the seeds" if denoiser.num_classes else "none"
    given = label if isinstance(label, int) else "given for each seed"
    repeated = len(seeds) - len(set(seeds))
    twice = {"repeated_seeds": repeated} if repeated else {}
    protocol = {"seeds": show_seeds(seeds), **twice, **describe(plan), "labels": drawn if label is None else given}
    protocol["precision"] = str(denoiser.dtype).removeprefix("torch.") + (", TF32" if tf32 else "")
    protocol["rounding"] = ROUNDING
    # metrics never compute in TF32, and the process has one setting
    on_side = next(denoiser.parameters()).is_cuda and not tf32
    return ImageSource(len(seeds), make, lambda i: f"the image of seed {seeds[i]}", protocol, overlap=on_side)


def check_seeds(seeds: Any) -> None:
    """Refuse seeds that are no integers, or that would give the images of others."""
    if not isinstance(seeds, Iterable) or not hasattr(seeds, "__len__") or isinstance(seeds, (str, bytes)):
        raise ValueError(f"seeds is a sequence of integers, such as range(64); got {seeds!r}")
    ends = (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else seeds
    for seed in ends:
        if not hasattr(seed, "__index__") or not 0 <= seed < 2**32:
            raise ValueError(f"seeds are integers from 0 to 2^32 - 1 = {2**32 - 1}; got {seed!r}")
