"""The recipes by name: settings, where they come from, and what their authors measured."""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fewstep.recipes.base import Row
from fewstep.recipes.digits import (
    DigitsDMD2,
    DigitsGDD,
    DigitsNCVSD,
    DigitsSiD,
    DigitsSiD2A,
    DigitsSiDA,
    DigitsTeacher,
)
from fewstep.recipes.edm import EDM
from fewstep.recipes.edm2 import EDM2, MI
from fewstep.recipes.gdd import GDD
from fewstep.recipes.ncvsd import NCVSD
from fewstep.recipes.own import load
from fewstep.recipes.sid import SiD, SiD2A, SiD2AOfEDM2, SiDA, SiDAOfEDM2, SiDOfEDM2
from fewstep.recipes.small import Small

# What published configurations share

FACES_TEACHER = EDM(network="ffhq-64x64-uncond", cond=False, augment=0.15, lr=2e-4, batch_size=256)
CIFAR10_SIDA = {"batch_size": 256, "dtype": "float32", "eps": 1e-8}
FACES = {"shape": (3, 64, 64), "batch_size": 512, "augment": 0.15, "dropout": 0.05}
IMAGENET64 = {"shape": (3, 64, 64), "batch_size": 8192, "augment": 0.0, "dropout": 0.1, "lr": 4e-6, "ema": 2_000_000}
IMAGENET512 = {
    "shape": (4, 64, 64),
    "batch_size": 2048,
    "micro_batch": None,
    "until": None,
    "alpha": 1.0,
    "augment": 0.0,
    "dropout": None,
    "lr": 5e-5,
    "lsg": None,
    "ema": 2_000_000,
    "p_mean": -0.4,
    "p_std": 1.0,
}
IMAGENET512_SIDA = {**IMAGENET512, "lsd": 100.0, "clip": None}

CAUTION = "FID favours discriminators with ImageNet features; report other metrics as well."
BEST = "The best FID of SiDA and SiD2A in one step"
EDM2_FID = "2.156 (xs), 1.669 (s), 1.488 (m), 1.413 (l), 1.379 (xl), 1.366 (xxl)"

DIGITS = {
    "digits:teacher": Row(
        DigitsTeacher(name="teacher"), "A class-conditional EDM teacher (DDPM++ of 0.42 M parameters)."
    ),
    "digits:sid": Row(DigitsSiD(name="student"), "A one-step student trained with score identity distillation (SiD)."),
    "digits:sida": Row(
        DigitsSiDA(name="student"),
        "A one-step student trained with adversarial score identity distillation (SiDA).",
    ),
    "digits:sid2a": Row(
        DigitsSiD2A(name="student", warmup=2_560, until=25_600), "SiD2A: as digits:sida, starting from a SiD student."
    ),
    "digits:dmd2": Row(
        DigitsDMD2(name="student"),
        "A one- or few-step student trained with improved distribution matching distillation (DMD2).",
    ),
    "digits:ncvsd": Row(
        DigitsNCVSD(name="student"),
        "A generative denoiser trained with noise conditional variational score distillation (NCVSD).",
    ),
    "digits:gdd": Row(DigitsGDD(name="student"), "A one-step student trained with a GAN loss only (GDD)."),
    "digits:gddi": Row(
        DigitsGDD(name="student", innate=True, lr=1e-3, until=51_200),
        "As digits:gdd, with most convolutions of the generator frozen (GDD-I).",
    ),
}

OWN = {"small:teacher": Row(Small(name="small-teacher"), "EDM on your own images, up to 128x128 pixels.")}

CIFAR10 = {
    "cifar10:teacher": Row(
        EDM(name="cifar10-teacher", batch_size=512),
        "EDM on CIFAR-10 (Karras et al., 2022).",
        "FID with 35 network evaluations (paper): with classes 1.79 (ddpmpp), 1.79 (ncsnpp); without 1.97, 1.98; about 2 "
        "days on 8 V100, in float32.",
    ),
    "cifar10:stf": Row(
        EDM(name="cifar10-stf", arch="ncsnpp", cond=False, batch_size=512, stf="matched", references=1024),
        "EDM on CIFAR-10 with the stable target field (Xu et al., 2023).",
        "FID with 35 network evaluations without classes (paper): 1.90 (ncsnpp), 1.92 (ddpmpp), with 1,024 references for "
        "64 images by the published rule: --stf published. By default only references of the same class and augmentation "
        "count, so that the target has no bias; but 37 % of the images, augmented by more than flips, then have none but "
        "themselves.",
    ),
    "cifar10:sid": Row(
        SiD(name="cifar10-sid", **CIFAR10_SIDA),
        "SiD on CIFAR-10, for teachers with and without classes (Zhou et al., 2024).",
        "FID in one step (paper): 1.710 with classes, after 713 million images; 1.923 without, after 404 million. In "
        "float32 as published, since the loss is a small difference of two networks.",
    ),
    "cifar10:sida": Row(
        SiDA(name="cifar10-sida", until=300_000_000, **CIFAR10_SIDA),
        "SiDA on CIFAR-10, for teachers with and without classes (Zhou et al., 2025).",
        f"{BEST} (paper): 1.396 with classes, 1.499 without; the released models of SiDA saw 293 and 218 million images. "
        "Published on 4 GPUs.",
    ),
    "cifar10:sid2a": Row(
        SiD2A(name="cifar10-sid2a", until=100_000_000, **CIFAR10_SIDA),
        "SiD2A on CIFAR-10: SiDA from a SiD student, for teachers with and without classes (Zhou et al., 2025).",
        f"{BEST} (paper): 1.396 with classes, 1.499 without; the released models of SiD2A saw 39 and 28 million images. "
        "Published on 4 GPUs.",
    ),
    "cifar10:gdd": Row(
        GDD(name="cifar10-gdd", shape=(3, 32, 32), backbone="vgg", lr=1e-4, disc_lr=1e-4, until=5_000_000),
        "GDD on CIFAR-10: a one-step generator trained with a GAN loss only (Zheng & Yang, 2024).",
        "The discriminator sees through VGG16 and EfficientNet-Lite0. Its authors state the FID of GDD-I alone, 1.54. "
        "Published for the NCSN++ teachers (ve), such as of cifar10:teacher with --arch ncsnpp --precond edm, with classes "
        f"and without. {CAUTION}",
    ),
    "cifar10:gddi": Row(
        GDD(name="cifar10-gddi", shape=(3, 32, 32), freeze=1, backbone="vgg", lr=1e-4, disc_lr=1e-4, until=5_000_000),
        "GDD-I on CIFAR-10: as cifar10:gdd, with most convolutions frozen (Zheng & Yang, 2024).",
        "FID 1.54 (paper's abstract, of GDD-I), 1.56 (released model, measured again by its authors); about 5 million "
        "images, 6 hours on 8 A100. Published for the NCSN++ teachers (ve), such as of cifar10:teacher with --arch ncsnpp "
        f"--precond edm, with classes and without. {CAUTION}",
    ),
}

FFHQ = {
    "ffhq:teacher": Row(
        dataclasses.replace(FACES_TEACHER, name="ffhq-teacher", dropout=0.05),
        "EDM on FFHQ at 64x64 (Karras et al., 2022).",
        "FID with 79 network evaluations (paper): 2.39 (ddpmpp), 2.53 (ncsnpp); about 4 days on 8 V100, in float32.",
    ),
    "ffhq:sid": Row(
        SiD(name="ffhq-sid", micro_batch=32, until=500_000_000, g_beta1=0.9, **FACES),
        "SiD on FFHQ at 64x64 (Zhou et al., 2024).",
        "FID in one step (paper): 1.550, after 498 million images, with alpha 1.2: the released model, from which SiD2A "
        "starts, has it in its name, and so has the script of the paper. A script of the newer code has 1, as AFHQv2 needs.",
    ),
    "ffhq:sida": Row(
        SiDA(name="ffhq-sida", micro_batch=64, until=200_000_000, **FACES),
        "SiDA on FFHQ at 64x64 (Zhou et al., 2025).",
        f"{BEST} (paper): 1.040; the released model of SiDA saw 186 million images.",
    ),
    "ffhq:sid2a": Row(
        SiD2A(name="ffhq-sid2a", micro_batch=64, until=100_000_000, **FACES),
        "SiD2A on FFHQ at 64x64: SiDA from a SiD student (Zhou et al., 2025).",
        f"{BEST} (paper): 1.040; the released model of SiD2A saw 169 million images.",
    ),
    "ffhq:gdd": Row(
        GDD(name="ffhq-gdd"),
        "GDD on FFHQ at 64x64: a one-step generator trained with a GAN loss only (Zheng & Yang, 2024).",
        "The discriminator sees through DeiT-B and EfficientNet-Lite0. Its authors state the FID of GDD-I alone, 0.85. "
        f"Published for the NCSN++ teacher (ve). {CAUTION}",
    ),
    "ffhq:gddi": Row(
        GDD(name="ffhq-gddi", freeze=1),
        "GDD-I on FFHQ at 64x64: as ffhq:gdd, with most convolutions frozen (Zheng & Yang, 2024).",
        "FID 0.85 (paper's abstract), 0.83 (released model, measured again by its authors); about 9 million images. "
        f"Published for the NCSN++ teacher (ve). {CAUTION}",
    ),
}

AFHQV2 = {
    "afhqv2:teacher": Row(
        dataclasses.replace(FACES_TEACHER, name="afhqv2-teacher", network="afhqv2-64x64-uncond", dropout=0.25),
        "EDM on AFHQv2 at 64x64 (Karras et al., 2022).",
        "FID with 79 network evaluations (paper): 1.96 (ddpmpp), 2.16 (ncsnpp); about 4 days on 8 V100, in float32.",
    ),
    "afhqv2:sid": Row(
        SiD(name="afhqv2-sid", alpha=1.0, lr=5e-6, micro_batch=32, until=500_000_000, **FACES),
        "SiD on AFHQv2 at 64x64 (Zhou et al., 2024).",
        "FID in one step (paper): 1.628, after 372 million images.",
    ),
    "afhqv2:sida": Row(
        SiDA(name="afhqv2-sida", lr=5e-6, micro_batch=64, until=200_000_000, **FACES),
        "SiDA on AFHQv2 at 64x64 (Zhou et al., 2025).",
        f"{BEST} (paper): 1.276; the released model of SiDA saw 127 million images. The published script took its real "
        "images from FFHQ; give it AFHQv2.",
    ),
    "afhqv2:sid2a": Row(
        SiD2A(name="afhqv2-sid2a", lr=5e-6, micro_batch=64, until=100_000_000, **FACES),
        "SiD2A on AFHQv2 at 64x64: SiDA from a SiD student (Zhou et al., 2025).",
        f"{BEST} (paper): 1.276; the released model of SiD2A saw 175 million images. The published script took its real "
        "images from FFHQ; give it AFHQv2.",
    ),
    "afhqv2:gdd": Row(
        GDD(name="afhqv2-gdd"),
        "GDD on AFHQv2 at 64x64: a one-step generator trained with a GAN loss only (Zheng & Yang, 2024).",
        "The discriminator sees through DeiT-B and EfficientNet-Lite0. FID 1.23 (paper's abstract), 1.24 (released model, "
        f"measured again by its authors); about 7 million images. Published for the NCSN++ teacher (ve). {CAUTION}",
    ),
    "afhqv2:gddi": Row(
        GDD(name="afhqv2-gddi", freeze=1),
        "GDD-I on AFHQv2 at 64x64: as afhqv2:gdd, with most convolutions frozen (Zheng & Yang, 2024).",
        f"Its authors state the FID of GDD alone, 1.23. Published for the NCSN++ teacher (ve). {CAUTION}",
    ),
}

IMAGENET_64 = {
    "imagenet64:teacher": Row(
        EDM(
            name="imagenet64-teacher",
            network="imagenet-64x64-cond",
            arch="adm",
            dropout=0.10,
            augment=0.0,
            lr=1e-4,
            batch_size=4096,
            until=2_500_000_000,
            ema=50_000_000,
            snapshot=10_000_000,
        ),
        "EDM's ADM network on ImageNet at 64x64 (Karras et al., 2022).",
        "FID with 511 network evaluations of the stochastic sampler (paper): 1.36; about 13 days on 32 A100, in float16.",
    ),
    "imagenet64:edm2": Row(
        EDM2(
            name="edm2-img64-{size}",
            preset="img64",
            shape=(3, 64, 64),
            batch_size=2048,
            p_mean=-0.8,
            p_std=1.6,
            decay=35_000,
        ),
        "EDM2 on ImageNet at 64x64, in its sizes (Karras et al., 2024).",
        "FID with 63 network evaluations (paper): 1.58 (s), 1.43 (m), 1.33 (l), 1.33 (xl).",
    ),
    "imagenet64:sid": Row(
        SiD(name="imagenet64-sid", until=1_000_000_000, **IMAGENET64),
        "SiD on ImageNet at 64x64 (Zhou et al., 2024).",
        "FID in one step (paper): 1.524, after 939 million images.",
    ),
    "imagenet64:sida": Row(
        SiDA(name="imagenet64-sida", until=300_000_000, **IMAGENET64),
        "SiDA on ImageNet at 64x64 (Zhou et al., 2025).",
        f"{BEST} (paper): 1.110; the released model of SiDA saw 249 million images.",
    ),
    "imagenet64:sid2a": Row(
        SiD2A(name="imagenet64-sid2a", until=100_000_000, **IMAGENET64),
        "SiD2A on ImageNet at 64x64: SiDA from a SiD student (Zhou et al., 2025).",
        f"{BEST} (paper): 1.110; the released model of SiD2A saw 29 million images.",
    ),
    "imagenet64:gdd": Row(
        GDD(name="imagenet64-gdd", lr=8e-6, batch_size=512, micro_batch=128, ema=50_000_000),
        "GDD on ImageNet at 64x64: a one-step generator trained with a GAN loss only (Zheng & Yang, 2024).",
        "The discriminator sees through DeiT-B and EfficientNet-Lite0. Its authors state the FID of GDD-I alone, 1.16. "
        f"Published for the ADM teacher. {CAUTION}",
    ),
    "imagenet64:gddi": Row(
        GDD(name="imagenet64-gddi", freeze=1, lr=8e-6, batch_size=512, micro_batch=128, ema=50_000_000),
        "GDD-I on ImageNet at 64x64: as imagenet64:gdd, with most convolutions frozen (Zheng & Yang, 2024).",
        "FID 1.16 (paper's abstract), 1.13 (released model, measured again by its authors); about 6 million images. "
        f"Published for the ADM teacher. {CAUTION}",
    ),
    "imagenet64:ncvsd": Row(
        NCVSD(name="imagenet64-ncvsd-{size}"),
        "NCVSD from EDM2 on ImageNet at 64x64: a generative denoiser for any number of steps (Peng et al., 2025).",
        "FID in 1, 2, 4 steps (reference repository): 3.13, 2.66, 2.14 (s), 3.04, 2.47, 1.92 (m), 2.96, 2.35, 1.53 (l); "
        "sampled with --ts 12,39, 10,22,39 and 0,10,20,30,39. Teachers by --size: post-hoc averages of std 0.075 (s), 0.060 "
        "(m), 0.040 (l).",
    ),
}

IMAGENET_512 = {
    "imagenet512:teacher": Row(
        EDM2(name="edm2-img512-{size}", batch_size=2048),
        "EDM2 on latents of ImageNet at 512x512, in its sizes (Karras et al., 2024).",
        "FID with 63 network evaluations (paper): 3.53 (xs), 2.56 (s), 2.25 (m), 2.06 (l), 1.96 (xl), 1.91 (xxl); with "
        "guidance by a network without classes (--no-cond) 2.91, 2.23, 2.01, 1.88, 1.85, 1.81.",
    ),
    "imagenet512:sid": Row(
        SiDOfEDM2(name="imagenet512-sid-{size}", **IMAGENET512),
        "SiD from EDM2 on latents of ImageNet at 512x512 (Zhou et al., 2025).",
        "The released models saw 249, 192, 227, 204, 234 million images (xs to xl); their FID is not among the published "
        "numbers known here. Teachers have FID 3.53 (xs) to 1.91 (xxl) without guidance; by --size they are post-hoc averages "
        "of std 0.135 (xs), 0.130 (s), 0.100 (m), 0.085 (l, xl), 0.070 (xxl), as for SiDA and SiD2A.",
    ),
    "imagenet512:sida": Row(
        SiDAOfEDM2(name="imagenet512-sida-{size}", **IMAGENET512_SIDA),
        "SiDA from EDM2 on latents of ImageNet at 512x512 (Zhou et al., 2025).",
        f"{BEST}, without guidance (paper): {EDM2_FID}. The size s was trained without weights by log-variance, as here. "
        "Every step projects the weights of both networks to unit length; the published code did so for the generator alone, "
        "and for neither at the size s.",
    ),
    "imagenet512:sid2a": Row(
        SiD2AOfEDM2(name="imagenet512-sid2a-{size}", **IMAGENET512_SIDA),
        "SiD2A from EDM2 on latents of ImageNet at 512x512: SiDA from a SiD student (Zhou et al., 2025).",
        f"{BEST}, without guidance (paper): {EDM2_FID}. As SiDA; the generator's loss of the size m has the factor 50 "
        "instead of 100. At the size xxl the authors started from a student of SiDA, after 78 million images, and not of "
        "SiD: give such a one as --student.",
    ),
    "imagenet512:ncvsd": Row(
        NCVSD(
            name="imagenet512-ncvsd-{size}",
            preset="imagenet512",
            shape=(4, 64, 64),
            p_mean=-0.4,
            p_std=1.0,
            decay=70_000,
        ),
        "NCVSD from EDM2 on latents of ImageNet at 512x512: a generative denoiser for any number of steps (Peng et al., "
        "2025).",
        "FID in 1, 2, 4 steps (reference repository): 2.95, 2.60, 2.00 (s), 2.85, 2.08, 1.92 (m), 2.56, 2.03, 1.76 (l); "
        "sampled with --ts 12,39, 10,22,39 and 0,10,20,30,39. Teachers by --size: post-hoc averages of std 0.130 (s), 0.100 "
        "(m), 0.085 (l).",
    ),
}

FFHQ_256 = {
    "ffhq256:teacher": Row(
        EDM2(
            name="edm2-ffhq256-{size}",
            preset="ffhq256",
            shape=(3, 256, 256),
            cond=False,
            size="xs",
            batch_size=128,
            p_mean=-0.8,
            p_std=1.6,
            decay=35_000,
            rampup=1_000_000,
            snapshot=MI,
        ),
        "EDM2 on the pixels of FFHQ at 256x256: the teacher of ffhq256:ncvsd (Peng et al., 2025); no FID is published.",
        "For images as fewstep data pack --transform center-crop-dhariwal --resolution 256x256 makes them.",
    ),
    "ffhq256:ncvsd": Row(
        NCVSD(
            name="ffhq256-ncvsd-{size}",
            preset="ffhq256",
            shape=(3, 256, 256),
            size="xs",
            batch_size=128,
            until=4 * MI,
            rampup=1_000_000,
            gan_start=1_049_000,
            level=0,
            scale=0.1,
            snapshot=64 * 1024,
        ),
        "NCVSD from EDM2-XS on FFHQ at 256x256, for restoration by PnP-GD (Peng et al., 2025); no FID is published.",
        "Sampled with --ts 0,39, 0,14,39 or 0,10,20,30,39.",
    ),
}

TABLE: dict[str, Row] = {**AFHQV2, **CIFAR10, **DIGITS, **FFHQ, **FFHQ_256, **IMAGENET_512, **IMAGENET_64, **OWN}


def names() -> list[str]:
    """Return the names of the library's recipes.

    Returns:
        The keys of `TABLE`.

    Example:
        >>> published = [name for name in fs.recipes.names() if name.startswith("cifar10:")]
    """
    return list(TABLE)


def get(name: str, **settings: Any) -> Any:
    """Return a recipe by its name.

    Args:
        name: `DATA:METHOD`, a key of `TABLE`, or `mine.py:name` for one of your own: a dataclass with a method `run`, or a
            function that returns a Run. The file is executed.
        **settings: settings to change.

    Returns:
        The settings, a frozen dataclass; `run()` makes the Run.

    Raises:
        ValueError: there is no such recipe.
        TypeError: the recipe has no such setting.

    Example:
        >>> recipe = fs.recipes.get("digits:sid", teacher="runs/teacher", lr=1e-4)
    """
    module, _, last = name.rpartition(":")
    recipe = load(Path(module), last) if module.endswith(".py") else row(name).settings
    return dataclasses.replace(recipe, **settings)


def row(name: str) -> Row:
    """Return the row of that name. Raise ValueError with the names near it if there is none."""
    if name not in TABLE:
        same = sorted((n for n in TABLE if n.endswith(f":{name}")), key=lambda n: not n.startswith("digits:"))
        near = ", ".join(same or get_close_matches(name, TABLE, cutoff=0.5))
        raise ValueError(
            f"there is no recipe {name!r}; {near and f'did you mean {near}? '}fewstep recipes lists all; a recipe of your "
            "own is named FILE.py:NAME"
        )
    return TABLE[name]
