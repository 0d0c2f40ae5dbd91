"""`RunOptions`: what every run can be asked for, in Python and on the command line; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

SEPARATED = "separated by commas"
"""Marks a tuple of words that the command line takes as one word, separated by commas."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run computes, saves and logs, whatever its recipe is.

    `Run` and the options of `fewstep train` and `distill` inherit these fields. The text below a field is its help there.
    """

    keep: int = 3
    """How many checkpoints, each the whole state of training, stay on disk."""
    strategy: Literal["replicate", "shard"] = "replicate"
    """Under torchrun, whether each process holds the networks whole or in parts, for those that do not fit."""
    compile: bool = False
    """Compile the blocks of the denoisers first (torch.compile): slow to start, then faster on GPUs."""
    recompute: int | Literal["light"] | None = None
    """Less memory for more time: light computes norms and activations again for gradients, a number all of the blocks on
    images of at least so many pixels a side (1 means all blocks); nothing if unset."""
    tf32: bool = False
    """Let GPUs round the factors of float32 products to 10 bits."""
    track: Annotated[tuple[str, ...], SEPARATED] = ()
    """Also log metrics to tensorboard, wandb, trackio, or several of them, separated by commas."""
