"""Recipes: frozen settings that make a run.

A family is a dataclass, such as `sid.SiD`; a published configuration is a row of `table.TABLE`, an instance of a family with
its source. The same object is the command line (`fewstep train NAME`), the Python call, and the record in `run.json`.

Example:
    >>> run = recipes.get("digits:sid", teacher="runs/teacher", lr=1e-4).run()
    >>> student = fs.fit(run, "runs/sid")
"""

from fewstep.recipes.base import REQUIRED, Distillation, Dtype, Fixed, Parts, Recipe, record, required
from fewstep.recipes.table import TABLE, Row, get, names
from fewstep.recipes.user_code import build

__all__ = [
    "REQUIRED",
    "TABLE",
    "Distillation",
    "Dtype",
    "Fixed",
    "Parts",
    "Recipe",
    "Row",
    "build",
    "get",
    "names",
    "record",
    "required",
]
