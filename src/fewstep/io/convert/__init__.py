"""Networks of the EDM family as their authors publish them, read into denoisers; nothing in a file is executed.

`download` gets the file, `identify` says what it is if it is no snapshot, `fewstep.io.unpickle` reads it, `snapshot` finds the
network in it, `preconditions` and `networks` build the denoiser, and `provenance` says where the weights come from and under
which license they are.
"""

from fewstep.io.convert.download import fetch
from fewstep.io.convert.networks import convert, to_denoiser, to_discriminator
from fewstep.io.convert.provenance import clean, file_name, weights_license
from fewstep.io.convert.snapshot import UpstreamSnapshot, load_snapshot

__all__ = [
    "UpstreamSnapshot",
    "clean",
    "convert",
    "fetch",
    "file_name",
    "load_snapshot",
    "to_denoiser",
    "to_discriminator",
    "weights_license",
]
