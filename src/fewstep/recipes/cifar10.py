"""CIFAR-10: 50,000 images of 32x32 pixels in 10 classes."""

from __future__ import annotations

from pathlib import Path

import fewstep as fs
from fewstep.recipes import _edm
from fewstep.recipes._edm import Arch, Dtype, Precond


def teacher(
    data: Path,
    *,
    cond: bool = True,
    arch: Arch = "ddpmpp",
    precond: Precond = "edm",
    dropout: float = 0.13,
    augment: float = 0.12,
    lr: float = 1e-3,
    batch_size: int = 512,
    micro_batch: int | None = None,
    until: int = 200_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
) -> fs.Run:
    """EDM on CIFAR-10 (Karras et al., 2022).

    FID with 35 network evaluations (paper): with classes 1.79 (ddpmpp), 1.79 (ncsnpp); without 1.97, 1.98; about 2 days
    on 8 V100, in float32.

    Args:
        data: image zip or folder.
        cond: with classes.
        arch: DDPM++ or NCSN++.
        precond: preconditioning, noise levels and weights of EDM, or those of the VP or VE SDE for comparison.
        dropout: probability.
        augment: probability of each augmentation but mirroring, which is a fair coin; 0 for none.
        lr: learning rate of Adam, after a warm-up of 10 million images.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of weights, data order and noise.
    """
    return _edm.train(
        data,
        _edm.network("cifar10-32x32-uncond", arch),
        cond=cond,
        precond=precond,
        dropout=dropout,
        augment=augment,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        half_life=500_000,
        dtype=dtype,
        seed=seed,
        name="cifar10-teacher",
    )


def stf(
    data: Path,
    *,
    references: int = 1024,
    cond: bool = False,
    arch: Arch = "ncsnpp",
    precond: Precond = "edm",
    dropout: float = 0.13,
    augment: float = 0.12,
    lr: float = 1e-3,
    batch_size: int = 512,
    micro_batch: int | None = None,
    until: int = 200_000_000,
    dtype: Dtype = "auto",
    seed: int = 0,
) -> fs.Run:
    """EDM on CIFAR-10 with the stable target field (Xu et al., 2023).

    FID with 35 network evaluations without classes (paper): 1.90 (ncsnpp), 1.92 (ddpmpp), with 1,024 references for 64
    images. Here only references of the same class and augmentation count, so that the target has no bias.

    Args:
        data: image zip or folder.
        references: images whose posterior mean is the target, those of the micro-batch included.
        cond: with classes.
        arch: DDPM++ or NCSN++.
        precond: preconditioning, noise levels and weights of EDM, or those of the VP or VE SDE for comparison.
        dropout: probability.
        augment: probability of each augmentation but mirroring, which is a fair coin; 0 for none.
        lr: learning rate of Adam, after a warm-up of 10 million images.
        batch_size: images per step.
        micro_batch: images at a time on a device; all of its share if left out.
        until: training images in all.
        dtype: of the network's arithmetic, auto for bfloat16 where the hardware has it; weights stay in float32.
        seed: of weights, data order and noise.
    """
    return _edm.train(
        data,
        _edm.network("cifar10-32x32-uncond", arch),
        cond=cond,
        precond=precond,
        references=references,
        dropout=dropout,
        augment=augment,
        lr=lr,
        batch_size=batch_size,
        micro_batch=micro_batch,
        until=until,
        half_life=500_000,
        dtype=dtype,
        seed=seed,
        name="cifar10-stf",
    )
