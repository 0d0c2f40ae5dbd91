"""Names of tensors in the state dicts of upstream networks, and ours.

An upstream preconditioner wraps a U-Net as `model` (EDM and its students) or `unet` (EDM2), and EDM2's has the log-variance
head as `logvar_fourier` and `logvar_linear`. Here the U-Net is `net` and the head `uncertainty`. NCVSD's student wraps all of
it once more, as `model`; its fake score and its discriminator hold the U-Net's parts without a prefix. The rest of each name
is the same on both sides.
"""

from __future__ import annotations

from typing import NamedTuple

from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser
from fewstep.core.denoiser import Denoiser
from fewstep.distill.conditional import ConditionalDiscriminator
from fewstep.nets.edm2 import EDM2UNet


class Prefixes(NamedTuple):
    """What the names of one upstream class begin with: those of the U-Net, and those of the log-variance head."""

    network: str
    head: str = "logvar_"

    def ours(self, name: str) -> str:
        """Our name of an upstream tensor; a name with another prefix is returned as it is."""
        if name.startswith(self.head):
            return "uncertainty." + name.removeprefix(self.head)
        return "net." + name.removeprefix(self.network) if name.startswith(self.network) else name

    def theirs(self, name: str) -> str:
        """The upstream name of one of our tensors."""
        part, rest = name.split(".", 1)
        return f"{self.network if part == 'net' else self.head}{rest}"


EDM = Prefixes("model.")
EDM2 = Prefixes("unet.")
NCVSD_STUDENT = Prefixes("model.", "model.logvar_")
NCVSD_HALF = Prefixes("")


def prefixes_of(model: Denoiser | ConditionalDiscriminator) -> Prefixes:
    """The prefixes of the upstream class that holds such a model."""
    if isinstance(model, ConditionalDenoiser | ConditionalDiscriminator):
        return NCVSD_HALF
    if isinstance(model, GenerativeDenoiser):
        return NCVSD_STUDENT
    return EDM2 if isinstance(model.net, EDM2UNet) else EDM
