"""Reads the tensors of a TorchScript archive. The programs in it are neither run nor looked at."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fewstep.io.unpickle.files import ZipVocabulary, folder_of_pickle, named, opened_zip
from fewstep.io.unpickle.machine import Global, Machine, Record, expect
from fewstep.io.unpickle.stream import Budget, Stream, UnsafePickle
from fewstep.runtime.files import regular

LISTS = {f"build_{kind}list" for kind in ("int", "double", "bool", "tensor")}


class ScriptVocabulary(ZipVocabulary):
    """The vocabulary of a TorchScript archive, which has lists of its own. Its classes become records."""

    def resolve(self, module: str, name: str) -> object:
        if module == "torch.jit._pickle" and (name in LISTS or name == "restore_type_tag"):
            return Global(f"{module}.{name}", content_of_list)
        return super().resolve(module, name)


def content_of_list(arguments: tuple[object, ...]) -> object:
    """The content of a typed list or container, which is its first argument."""
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
    """The module in a TorchScript archive, with attributes, tensors and submodules.

    Args:
        path: the archive.

    Returns:
        The module as a record. Submodules are records among its attributes.

    Raises:
        UnsafePickle: as `read`.
    """
    budget = Budget(regular(path).stat().st_size)
    with named(path), opened_zip(path, budget) as archive:
        root = folder_of_pickle([name for name in archive.namelist() if name.count("/") == 1])
        budget.allocate(archive.getinfo(f"{root}data.pkl").file_size)
        stream = Stream.of(archive.read(f"{root}data.pkl"))
        return expect(Record, Machine(stream, ScriptVocabulary(budget, archive, root), budget).run())
