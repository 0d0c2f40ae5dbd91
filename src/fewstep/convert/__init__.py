"""Upstream networks in and out. Their files are programs; here they are read, never run."""

from fewstep.convert.source import fetch
from fewstep.convert.unpickle import Record, UnsafePickle, read
from fewstep.convert.upstream import (
    Snapshot,
    convert,
    load_snapshot,
    to_denoiser,
    to_discriminator,
    upstream_state_dict,
    weights_license,
)

__all__ = [
    "Record",
    "Snapshot",
    "UnsafePickle",
    "convert",
    "fetch",
    "load_snapshot",
    "read",
    "to_denoiser",
    "to_discriminator",
    "upstream_state_dict",
    "weights_license",
]
