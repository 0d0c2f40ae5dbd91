"""fewstep: train EDM-family diffusion models, distil them into few-step generators, sample, restore, measure.

The public names, loaded when they are used, so that the command line can show its help without importing torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep import distill, inverse, metrics, nets, recipes, samplers
    from fewstep.core import oracle, precondition
    from fewstep.core.denoiser import Denoiser, score
    from fewstep.core.guidance import Guidance, guided
    from fewstep.core.method import Batch, Method, Phase
    from fewstep.core.noise import KarrasUniform, LogNormal, LogUniform, add_noise, fuse, karras_sigmas
    from fewstep.core.objectives import DenoisingLoss, Pretraining, StableTarget
    from fewstep.core.plan import Plan
    from fewstep.data import ImageData, ImageStream, images
    from fewstep.inverse.restore import restore
    from fewstep.io.card import Card
    from fewstep.io.model_folder import card, load, save
    from fewstep.metrics.evaluate import evaluate
    from fewstep.runtime.threads import use_threads
    from fewstep.sample import generate, generated, make_plan
    from fewstep.train.ema import HalfLife, PowerFunction
    from fewstep.train.loop import fit
    from fewstep.train.optim import Adam
    from fewstep.train.posthoc import reconstruct
    from fewstep.train.settings import Run
    from fewstep.train.trainer import Trainer
    from fewstep.train.transfer import transfer

    __version__: str

__all__ = [
    "Adam",
    "Batch",
    "Card",
    "Denoiser",
    "DenoisingLoss",
    "Guidance",
    "HalfLife",
    "ImageData",
    "ImageStream",
    "KarrasUniform",
    "LogNormal",
    "LogUniform",
    "Method",
    "Phase",
    "Plan",
    "PowerFunction",
    "Pretraining",
    "Run",
    "StableTarget",
    "Trainer",
    "__version__",
    "add_noise",
    "card",
    "distill",
    "evaluate",
    "fit",
    "fuse",
    "generate",
    "generated",
    "guided",
    "images",
    "inverse",
    "karras_sigmas",
    "load",
    "make_plan",
    "metrics",
    "nets",
    "oracle",
    "precondition",
    "recipes",
    "reconstruct",
    "restore",
    "samplers",
    "save",
    "score",
    "transfer",
    "use_threads",
]

ROOMS = {
    "distill": "distill",
    "inverse": "inverse",
    "metrics": "metrics",
    "nets": "nets",
    "oracle": "core.oracle",
    "precondition": "core.precondition",
    "recipes": "recipes",
    "samplers": "samplers",
}
NAMES = {
    "core.denoiser": ("Denoiser", "score"),
    "core.guidance": ("Guidance", "guided"),
    "core.method": ("Batch", "Method", "Phase"),
    "core.noise": ("KarrasUniform", "LogNormal", "LogUniform", "add_noise", "fuse", "karras_sigmas"),
    "core.objectives": ("DenoisingLoss", "Pretraining", "StableTarget"),
    "data": ("ImageData", "ImageStream", "images"),
    "core.plan": ("Plan",),
    "sample": ("generate", "generated", "make_plan"),
    "inverse.restore": ("restore",),
    "io.card": ("Card",),
    "io.model_folder": ("card", "load", "save"),
    "metrics.evaluate": ("evaluate",),
    "runtime.threads": ("use_threads",),
    "train.ema": ("HalfLife", "PowerFunction"),
    "train.optim": ("Adam",),
    "train.posthoc": ("reconstruct",),
    "train.loop": ("fit",),
    "train.settings": ("Run",),
    "train.trainer": ("Trainer",),
    "train.transfer": ("transfer",),
}
WHERE = {name: module for module, names in NAMES.items() for name in names}

if not TYPE_CHECKING:  # to a type checker a misspelt name is an error

    def __getattr__(name: str) -> Any:
        if name in ROOMS:
            value = import_module(f"fewstep.{ROOMS[name]}")
        elif name in WHERE:
            value = getattr(import_module(f"fewstep.{WHERE[name]}"), name)
        elif name == "__version__":
            value = version("fewstep")
        else:
            raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
