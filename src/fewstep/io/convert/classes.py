"""The classes of upstream networks: their preconditioning, the names of their tensors, and what they are here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep.io.convert import preconditions as read
from fewstep.io.upstream_names import EDM, EDM2, NCVSD_HALF, NCVSD_STUDENT, Prefixes
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.edm2 import EDM2Config, EDM2UNet
from fewstep.nets.song import SongConfig, SongUNet

if TYPE_CHECKING:
    from fewstep.io.convert.snapshot import UpstreamSnapshot


@dataclass(frozen=True)
class Preconditioner:
    """An upstream class that wraps a U-Net.

    Attributes:
        precondition: reads the preconditioning from a snapshot.
        prefixes: what the names of its tensors begin with.
        levels: noise levels from which the students of this class generate; None for classes of teachers.
    """

    precondition: Callable[[UpstreamSnapshot], Any]
    prefixes: Prefixes = EDM
    levels: tuple[float, ...] | None = None


PRECONDITIONERS = {
    "EDMPrecond": Preconditioner(read.edm),
    "EDMPrecond_EncoderDecoder": Preconditioner(read.edm, levels=(2.5,)),
    "VPPrecond": Preconditioner(read.vp),
    "VEPrecond": Preconditioner(read.ve),
    "iDDPMPrecond": Preconditioner(read.iddpm),
    "GDDPrecond": Preconditioner(read.gdd, levels=(80.0,)),
    "Precond": Preconditioner(read.edm2, EDM2),
    "EDM_2_Precond_EncoderDecoder": Preconditioner(read.edm2, EDM2),
    "EDM_2_Precond_Generator": Preconditioner(read.edm2, EDM2, (2.5,)),
    "GenerativeDenoiser": Preconditioner(read.edm2, NCVSD_STUDENT, (80.0,)),
    "PrecondCondition": Preconditioner(read.edm2, NCVSD_HALF),
    "DiscriminatorCondition": Preconditioner(read.edm2, NCVSD_HALF),
}
"""EDM's classes, SiDA's (EncoderDecoder), GDD's, EDM2's (Precond), those of SiD and SiDA on EDM2 (EDM_2), and NCVSD's. The level
80 of GenerativeDenoiser is that of NCVSD's one-step FFHQ student."""

UNETS: dict[str, tuple[type, type]] = {
    "SongUNet": (SongConfig, SongUNet),
    "SongUNet_EncoderDecoder": (SongConfig, SongUNet),
    "DhariwalUNet": (ADMConfig, ADMUNet),
    "DhariwalUNet_EncoderDecoder": (ADMConfig, ADMUNet),
    "UNet": (EDM2Config, EDM2UNet),
    "UNet_EncoderDecoder": (EDM2Config, EDM2UNet),
    "UNetEncoder": (EDM2Config, EDM2UNet),
}
"""The configuration and the network that stand for each upstream U-Net here."""


def is_on_edm2(class_name: str) -> bool:
    """Whether a preconditioner wraps EDM2's whole U-Net."""
    return PRECONDITIONERS[class_name].prefixes is EDM2
