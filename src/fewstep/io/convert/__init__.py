"""Upstream networks in and out. Their files are programs; here they are read, never run."""

from fewstep.io.convert.origin import clean, file_name, weights_license
from fewstep.io.convert.snapshot import Snapshot, load_snapshot
from fewstep.io.convert.source import fetch
from fewstep.io.convert.unpickle import Record, UnsafePickle, read
from fewstep.io.convert.upstream import convert, to_denoiser, to_discriminator, upstream_state_dict

__all__ = [
    "Record",
    "Snapshot",
    "UnsafePickle",
    "clean",
    "convert",
    "fetch",
    "file_name",
    "load_snapshot",
    "read",
    "to_denoiser",
    "to_discriminator",
    "upstream_state_dict",
    "weights_license",
]
