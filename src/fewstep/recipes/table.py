"""The recipes by name: settings, where they come from, and what their authors measured."""

from __future__ import annotations

import dataclasses
from itertools import chain
from pathlib import Path
from typing import Any

from fewstep.recipes import edm, edm2, gdd, ncvsd, sid, sid_edm2
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
from fewstep.recipes.small import Small, SmallDMD2, SmallGDD, SmallNCVSD, SmallSiD, SmallSiDA
from fewstep.recipes.user_code import load
from fewstep.runtime.spelling import suggestion

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

OWN = {
    "small:teacher": Row(Small(name="small-teacher"), "EDM on your own images, up to 128x128 pixels."),
    "small:sid": Row(SmallSiD(name="small-sid"), "A one-step student of small:teacher trained with SiD."),
    "small:sida": Row(SmallSiDA(name="small-sida"), "A one-step student of small:teacher trained with SiDA."),
    "small:dmd2": Row(SmallDMD2(name="small-dmd2"), "A one- or few-step student of small:teacher trained with DMD2."),
    "small:ncvsd": Row(SmallNCVSD(name="small-ncvsd"), "A generative denoiser from small:teacher trained with NCVSD."),
    "small:gdd": Row(
        SmallGDD(name="small-gdd"), "A one-step student of small:teacher trained with a GAN loss only (GDD)."
    ),
}

FAMILIES = (edm.ROWS, edm2.ROWS, sid.ROWS, sid_edm2.ROWS, gdd.ROWS, ncvsd.ROWS, DIGITS, OWN)

TABLE: dict[str, Row] = dict(
    sorted(chain(*(rows.items() for rows in FAMILIES)), key=lambda item: item[0].partition(":")[0])
)
"""All recipes, by data set."""


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
        near = f"did you mean {', '.join(same)}?" if same else suggestion(name, TABLE, "", cutoff=0.5)
        raise ValueError(
            f"there is no recipe {name!r}; {near and f'{near} '}fewstep recipes lists all; a recipe of your own is named "
            "FILE.py:NAME"
        )
    return TABLE[name]
