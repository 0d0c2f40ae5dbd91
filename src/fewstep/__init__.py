"""fewstep: train EDM-family diffusion models, distil them into few-step generators, sample, restore, measure.

The public names, loaded when they are used, so that the command line can show its help without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep import distill as distill
    from fewstep import metrics as metrics
    from fewstep import nets as nets
    from fewstep import oracle as oracle
    from fewstep import precondition as precondition
    from fewstep import samplers as samplers
    from fewstep.checkpoint import Card as Card
    from fewstep.checkpoint import card as card
    from fewstep.checkpoint import load as load
    from fewstep.checkpoint import save as save
    from fewstep.data import ImageData as ImageData
    from fewstep.data import ImageStream as ImageStream
    from fewstep.data import images as images
    from fewstep.denoiser import Denoiser as Denoiser
    from fewstep.denoiser import guided as guided
    from fewstep.denoiser import score as score
    from fewstep.generation import Plan as Plan
    from fewstep.generation import default_plan as default_plan
    from fewstep.generation import generate as generate
    from fewstep.generation import generated as generated
    from fewstep.method import Batch as Batch
    from fewstep.method import Method as Method
    from fewstep.method import Phase as Phase
    from fewstep.metrics.evaluate import evaluate as evaluate
    from fewstep.noise import KarrasUniform as KarrasUniform
    from fewstep.noise import LogNormal as LogNormal
    from fewstep.noise import LogUniform as LogUniform
    from fewstep.noise import add_noise as add_noise
    from fewstep.noise import fuse as fuse
    from fewstep.noise import karras_sigmas as karras_sigmas
    from fewstep.objectives import DenoisingLoss as DenoisingLoss
    from fewstep.objectives import Pretraining as Pretraining
    from fewstep.objectives import StableTarget as StableTarget
    from fewstep.train.ema import HalfLife as HalfLife
    from fewstep.train.ema import PowerFunction as PowerFunction
    from fewstep.train.optim import Adam as Adam
    from fewstep.train.posthoc import reconstruct as reconstruct
    from fewstep.train.run import Run as Run
    from fewstep.train.run import fit as fit
    from fewstep.train.trainer import Trainer as Trainer
    from fewstep.train.transfer import transfer as transfer

MODULES = ("distill", "metrics", "nets", "oracle", "precondition", "samplers")
NAMES = {
    "checkpoint": ("Card", "card", "load", "save"),
    "data": ("ImageData", "ImageStream", "images"),
    "denoiser": ("Denoiser", "guided", "score"),
    "generation": ("Plan", "default_plan", "generate", "generated"),
    "method": ("Batch", "Method", "Phase"),
    "metrics.evaluate": ("evaluate",),
    "noise": ("KarrasUniform", "LogNormal", "LogUniform", "add_noise", "fuse", "karras_sigmas"),
    "objectives": ("DenoisingLoss", "Pretraining", "StableTarget"),
    "train.ema": ("HalfLife", "PowerFunction"),
    "train.optim": ("Adam",),
    "train.posthoc": ("reconstruct",),
    "train.run": ("Run", "fit"),
    "train.trainer": ("Trainer",),
    "train.transfer": ("transfer",),
}
WHERE = {name: module for module, names in NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"fewstep.{name}")
    if name in WHERE:
        value = getattr(import_module(f"fewstep.{WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*MODULES, *WHERE])
