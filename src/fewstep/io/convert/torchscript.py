"""Reads the tensors of a TorchScript archive. The programs in it are neither run nor looked at."""

from __future__ import annotations

import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

from fewstep.io.convert.opcodes import Budget, Global, Machine, Stream, UnsafePickle, expect
from fewstep.io.convert.unpickle import Record, Zipped
from fewstep.runtime.files import regular

LISTS = {f"build_{kind}list" for kind in ("int", "double", "bool", "tensor")}


class Script(Zipped):
    """Within a TorchScript archive: also its lists. Its own classes become records."""

    def find(self, module: str, name: str) -> object:
        if module == "torch.jit._pickle" and (name in LISTS or name == "restore_type_tag"):
            return Global(f"{module}.{name}", first)
        return super().find(module, name)


def first(arguments: tuple[object, ...]) -> object:
    """A list or a typed container is its content."""
    if not arguments:
        raise UnsafePickle("a list without content")
    return arguments[0]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip with programs, which torch.save does not write."""
    try:
        if not path.is_file() or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UnsafePickle(f"{path}: the archive is damaged: {error}") from error


def read_torchscript(path: Path) -> Record:
    """The module in a TorchScript archive: attributes, tensors and submodules. Raises UnsafePickle, as `read` does."""
    budget = Budget(regular(path).stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            budget.step(len(members))
            pickles = [m for m in members if m.filename.count("/") == 1 and m.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or len({m.filename for m in members}) < len(members):
                raise UnsafePickle(f"expected one data.pkl; there are {len(pickles)}")
            root = pickles[0].filename.removesuffix("data.pkl")
            budget.allocate(pickles[0].file_size)
            data = archive.read(pickles[0])
            stream = Stream(BytesIO(data), 0, len(data))
            return expect(Record, Machine(stream, Script(budget, archive, root), budget).run())
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}") from error
    # RuntimeError: an archive that is encrypted, or of a later version
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OverflowError, ValueError) as error:
        raise UnsafePickle(f"{path}: the archive is damaged: {error}") from error
