"""Models on the Hugging Face hub: `hf://owner/name`, optionally with `@revision`. Needs the package `huggingface_hub`.

A repository of the hub is a model folder: `model.safetensors`, `config.json` and the card, `README.md`. Nothing else is
ever fetched from one or sent to one, so no pickle and no code; what is fetched is read as any other model folder is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.files import new_folder, offline

FILES = ("model.safetensors", "config.json", "README.md")
ADDRESS = re.compile(r"(?:hf:/{1,2})?([\w][\w.-]*/[\w][\w.-]*)(?:@([\w][\w./-]*))?")


class Address(NamedTuple):
    """A repository, owner/name, and a branch, tag or commit of it; None for the newest."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(path: str | Path) -> bool:
    """Whether a path means the hub. As a `Path` it has a single slash, since two are one there."""
    return str(path).startswith("hf:/")


def parse(text: str | Path) -> Address:
    """The address in "hf://owner/name@revision" or "owner/name@revision"."""
    match = ADDRESS.fullmatch(str(text))
    if match is None or ".." in str(text):
        raise ValueError(f"expected a model on the hub, hf://owner/name or hf://owner/name@revision; got {str(text)!r}")
    return Address(match[1], match[2])


def package() -> Any:
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise ValueError('models on the hub need the package huggingface_hub: pip install "fewstep[hub]"') from error


@contextmanager
def explained(address: Address) -> Iterator[None]:
    """The hub's errors as a ValueError that says what to do; those of the network, which are OSErrors, stay as they are."""
    errors = import_module("huggingface_hub.errors")
    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(f"{address} asks for consent: give it on its page, then log in with: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"{address}: there is no such model, or it is private; log in with: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{address}: the model has no such branch, tag or commit") from error
    except errors.LocalEntryNotFoundError as error:
        why = "and offline it cannot be" if offline() else f"and the hub cannot be reached ({error})"
        raise ValueError(f"{address} has not been fetched before, {why}; fetch it with: fewstep pull") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{address} is no name on the hub: {error}") from error


@lru_cache(maxsize=64)
def fetch(address: Address) -> Path:
    """A local folder with the files of a model, kept in the hub's own cache; offline what is there already.

    Once per process: a model does not change between two readings. Raises ValueError if it is not to be had, or if the
    repository is no model of this library.
    """
    hub = package()
    with explained(address):
        folder = hub.HfApi().snapshot_download(
            address.repository,
            revision=address.revision,
            allow_patterns=list(FILES),
            local_files_only=offline(),
        )
    if missing := [name for name in FILES[:2] if not (Path(folder) / name).is_file()]:
        raise ValueError(
            f"{address} has no {' and no '.join(missing)}: it is no model of fewstep. Upstream pickles are read with: "
            "fewstep convert"
        )
    return Path(folder)


def pull(address: Address, folder: Path, check: Callable[[Path], Any]) -> Path:
    """A copy of a model as a folder, in place of an older one; complete, and as `check` wants it, or not at all."""
    source = fetch(address)
    with new_folder(folder, FILES) as partial:
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
        check(partial)
    return folder


def push(address: Address, files: Mapping[str, Path | bytes], *, private: bool = False) -> str:
    """Send the files of a model to the hub in one commit; the repository is made if need be.

    Returns the web address of the commit. The user must be logged in (`hf auth login`), and not offline.
    """
    if offline():
        raise ValueError(f"{address} cannot be written offline")
    if address.revision is not None:
        raise ValueError(f"{address}: models are sent to the main branch; leave @{address.revision} out")
    hub = package()
    assert set(files) == set(FILES)
    added = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
    api = hub.HfApi()
    with explained(address):
        api.create_repo(address.repository, private=private, exist_ok=True)
        commit = api.create_commit(address.repository, added, commit_message="A model, by fewstep")
    return str(commit.commit_url)
