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
    """Number of recent checkpoints to keep."""
    strategy: Literal["replicate", "shard"] = "replicate"
    """Under torchrun: replicate holds every network on every process; shard splits large networks over the processes
    (FSDP2)."""
    compile: bool = False
    """Compile the blocks of the denoisers (torch.compile): slower start, then faster on GPUs."""
    recompute: int | Literal["light"] | None = None
    """Activation checkpointing: saves memory, costs time. light recomputes norms and activations; a number N recomputes all
    blocks at resolution N x N and above (1: every block). Off if unset."""
    tf32: bool = False
    """Allow TF32 on GPUs: faster float32, with factors rounded to 10 bits."""
    track: Annotated[tuple[str, ...], SEPARATED] = ()
    """Trackers that also log the metrics, separated by commas: tensorboard, wandb, trackio."""
