"""Snapshots of a run: the averaged products as model folders, and a grid of images of fixed seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from fewstep.core.denoiser import Denoiser
from fewstep.data.grid import grid, save_png
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.runtime.distributed import device, rank, world_size
from fewstep.sample import count_evaluations, gather_images, generate
from fewstep.train.identity import describe
from fewstep.train.preemption import Watch

if TYPE_CHECKING:
    from fewstep.train.ema import Average
    from fewstep.train.settings import Run
    from fewstep.train.trainer import Trainer

ROWS, COLUMNS = 4, 10
SECONDS = 60.0
"""Time that the grid of a snapshot may take on CPUs."""
SPEED = 5e10
"""Operations per second of one thread in convolutions, assumed to be the same for all CPUs, so that grids are."""


def operations(denoiser: Denoiser) -> int:
    """Multiplications and additions of one evaluation for one image, counted on the device meta."""
    tensors = {
        k: torch.empty_like(v, device="meta") for k, v in (*denoiser.named_parameters(), *denoiser.named_buffers())
    }
    x, sigma = torch.empty(1, *denoiser.shape, device="meta"), torch.ones(1, device="meta")
    label = torch.zeros(1, dtype=torch.int64, device="meta") if denoiser.num_classes else None
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        functional_call(denoiser, tensors, (x, sigma, label))
    return counter.get_total_flops()


def images_of_grid(denoiser: Denoiser) -> int:
    """How many images a grid has: four rows of a column per class, at most ten columns.

    On CPUs as many of them as `SECONDS` allow; whole rows, if there is more than one.
    """
    columns = min(max(1, denoiser.num_classes), COLUMNS)
    if device().type != "cpu":
        return ROWS * columns
    cost = operations(denoiser) * count_evaluations(denoiser.plan())
    fitting = int(SECONDS * SPEED * torch.get_num_threads() * world_size() / max(cost, 1))
    n = max(1, min(ROWS * columns, fitting))
    return n - n % columns if n > columns else n


def record_of(run: Run, product: Denoiser) -> dict[str, Any]:
    """What `run.json` says besides the identity of a run."""
    return {
        "name": run.name,
        "command": run.command,
        "recipe": run.recipe,
        "until": run.until,
        "transfer": None if run.transfer is None else dataclasses.asdict(run.transfer),
        "grid": images_of_grid(product),
    }


def card_of(run: Run, trainer: Trainer, average: Average, **entries: Any) -> Card:
    """The card of an averaged product that the run saves now."""
    data = run.data.data
    about = {"name": data.name, "n": len(data), "sha256": data.fingerprint}
    entries |= {"nimg": trainer.nimg, "data": about, "ema": describe(average.profile)}
    return dataclasses.replace(run.card, name=run.card.name or run.name, **entries)


def places(trainer: Trainer, folder: Path) -> list[Path]:
    """Where a snapshot is written now: the model folders of the averages, the product's first, and the picture."""
    names = ["snapshots", *(f"averages/{average.profile.name}" for average in trainer.averages[1:])]
    return [
        *(folder / name / f"{trainer.nimg:012d}" for name in names),
        folder / "samples" / f"{trainer.nimg:012d}.png",
    ]


def take_snapshot(run: Run, trainer: Trainer, folder: Path, n: int, watch: Watch) -> Image.Image:
    """Save every average as a model folder, and a grid of `n` images of the first one, of fixed seeds.

    All ranks make images, and the first one writes.

    Returns:
        The grid; an empty image on other ranks.
    """
    product = trainer.product
    assert isinstance(product, Denoiser)
    *models, picture = places(trainer, folder)
    if rank() == 0:
        for average, place in reversed([*zip(trainer.averages, models, strict=True)]):  # the product last
            assert isinstance(average.module, Denoiser)
            model_folder.save(average.module, place, card_of(run, trainer, average))
    classes = max(1, product.num_classes)
    label = torch.arange(n) % classes if product.num_classes else None
    images = gather_images(watch(generate(product, range(n), label=label)), n)
    if rank() != 0:
        return Image.new("L", (1, 1))
    result = grid(np.stack(images), columns=min(classes, COLUMNS, n))
    save_png(result, picture)
    return result
