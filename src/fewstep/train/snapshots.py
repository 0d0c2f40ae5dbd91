"""What a run shows of itself on the way: averaged products as model folders, and a grid of images of fixed seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

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
from fewstep.sample import default_plan, gathered, generate
from fewstep.train.identity import describe
from fewstep.train.preemption import Watch

if TYPE_CHECKING:
    from fewstep.train.run import Run
    from fewstep.train.trainer import Trainer

ROWS, COLUMNS = 4, 10
SECONDS = 60.0
"""What the grid of a snapshot may take on CPUs."""
SPEED = 5e10
"""Operations a second of one thread in convolutions, taken as the same for all CPUs, so that grids are."""


def operations(denoiser: Denoiser) -> int:
    """Multiplications and additions of one evaluation of one image, counted on tensors without memory."""
    tensors = {
        k: torch.empty_like(v, device="meta") for k, v in (*denoiser.named_parameters(), *denoiser.named_buffers())
    }
    x, sigma = torch.empty(1, *denoiser.shape, device="meta"), torch.ones(1, device="meta")
    label = torch.zeros(1, dtype=torch.int64, device="meta") if denoiser.num_classes else None
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        functional_call(denoiser, tensors, (x, sigma, label))
    return counter.get_total_flops()


def images_of_grid(denoiser: Denoiser) -> int:
    """Four rows of a column for each class, ten at most; on CPUs as many as `SECONDS` allow, in whole rows if there is one."""
    columns = min(max(1, denoiser.num_classes), COLUMNS)
    if device().type != "cpu":
        return ROWS * columns
    cost = operations(denoiser) * default_plan(denoiser).nfe
    fitting = int(SECONDS * SPEED * torch.get_num_threads() * world_size() / max(cost, 1))
    n = max(1, min(ROWS * columns, fitting))
    return n - n % columns if n > columns else n


def card_of(run: Run, trainer: Trainer) -> Card:
    """The card of a model that the run saves now."""
    data = run.data.data
    about = {"name": data.name, "n": len(data), "sha256": data.fingerprint}
    return dataclasses.replace(run.card, name=run.card.name or run.name, nimg=trainer.nimg, data=about)


def places(trainer: Trainer, folder: Path) -> list[Path]:
    """The model folders of the averages at this number of images, the product's first, and the picture."""
    names = ["snapshots", *(f"averages/{average.profile.name}" for average in trainer.averages[1:])]
    return [
        *(folder / name / f"{trainer.nimg:012d}" for name in names),
        folder / "samples" / f"{trainer.nimg:012d}.png",
    ]


def take_snapshot(run: Run, trainer: Trainer, folder: Path, n: int, watch: Watch) -> Image.Image:
    """Save the averaged product as a model folder, with its other averages, and a grid of `n` images of fixed seeds.

    All ranks make images, and the first one writes. Returns the grid; on the other ranks an empty one.
    """
    product, card = trainer.product, card_of(run, trainer)
    assert isinstance(product, Denoiser)
    *models, picture = places(trainer, folder)
    pairs = [*zip(trainer.averages, models, strict=True)] if rank() == 0 else []
    for average, place in reversed(pairs):  # the product last: where it is, the others are
        assert isinstance(average.module, Denoiser)
        model_folder.save(average.module, place, dataclasses.replace(card, ema=describe(average.profile)))
    classes = max(1, product.num_classes)
    columns = min(classes, COLUMNS, n)
    label = torch.arange(n) % classes if product.num_classes else None
    made = list(gathered(list(watch(generate(product, range(n), label=label))), n))
    if rank() != 0:
        return Image.new("L", (1, 1))
    result = grid(np.stack(made), columns=columns)
    save_png(result, picture)
    return result
