"""The built-in data set: 1,797 handwritten digits of 8x8 pixels. Small enough for a laptop without a GPU."""

from __future__ import annotations

from pathlib import Path

import fewstep as fs


def teacher(
    data: str = "digits", *, lr: float = 3e-3, batch_size: int = 128, until: int = 89_600, seed: int = 0
) -> fs.Run:
    """A class-conditional EDM teacher (DDPM++ of 0.42 M parameters).

    Args:
        data: image zip or folder, or the built-in digits.
        lr: learning rate of Adam.
        batch_size: images per step.
        until: training images in all.
        seed: of weights, data order and noise.
    """
    import torch

    from fewstep.nets.song import SongConfig, SongUNet

    images = fs.images(data)
    channels, resolution, _ = images.shape
    torch.manual_seed(seed)
    net = SongUNet(
        SongConfig(
            resolution,
            in_channels=channels,
            out_channels=channels,
            label_dim=images.num_classes,
            model_channels=24,
            channel_mult=(1, 2),
            num_blocks=1,
            attn_resolutions=(4,),
            dropout=0.0,
        )
    )
    return fs.Run(
        fs.Pretraining(fs.Denoiser(net), fs.DenoisingLoss()),
        fs.ImageStream(images, seed=seed),
        {"denoiser": fs.Adam(lr, betas=(0.9, 0.99), rampup=0.05 * until, cooldown=0.5 * until, until=until)},
        batch_size=batch_size,
        until=until,
        ema=fs.HalfLife(20_000),
        seed=seed,
        snapshots=4,
        name="teacher",
        card=fs.Card(method="EDM", license="Apache-2.0"),
    )


def sid(
    teacher: Path,
    data: str = "digits",
    *,
    alpha: float = 1.2,
    lr: float = 3e-4,
    fake_lr: float = 1e-3,
    batch_size: int = 128,
    until: int = 57_600,
    seed: int = 0,
) -> fs.Run:
    """A one-step student by score identity distillation; uses the labels of the data only.

    Args:
        teacher: model or run folder of the teacher.
        data: image zip or folder, or the built-in digits.
        alpha: of the SiD loss.
        lr: learning rate of the generator.
        fake_lr: learning rate of the fake score, which has to keep up with the generator.
        batch_size: images per step.
        until: training images in all.
        seed: of data order and noise.
    """

    def adam(rate: float) -> fs.Adam:
        return fs.Adam(rate, betas=(0.0, 0.99), rampup=0.05 * until, cooldown=0.5 * until, until=until)

    return fs.Run(
        fs.distill.SiD(fs.load(teacher), alpha=alpha),
        fs.ImageStream(fs.images(data), seed=seed),
        {"fake_score": adam(fake_lr), "generator": adam(lr)},
        batch_size=batch_size,
        until=until,
        ema=fs.HalfLife(8_000, rampup=0.25),
        seed=seed,
        snapshots=4,
        name="student",
        card=fs.card(teacher).student(f"SiD, alpha {alpha:g}"),
    )
