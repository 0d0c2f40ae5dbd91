"""Models on the Hugging Face hub: `hf://owner/name`, optionally with `@revision`. Needs the package `huggingface_hub`.

A repository of the hub is a model folder: `model.safetensors`, `config.json` and the card, `README.md`. Nothing else is
ever fetched from one or sent to one, so no pickle and no code; what is fetched is read as any other model folder is.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.runtime.files import new_folder, offline, optional, sha256
from fewstep.runtime.foreign import public

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
    return optional("huggingface_hub", "the Hugging Face hub", "hub")


ANSWERS = {
    401: "log in with: hf auth login",
    403: "your account, or its token, has no access; get it on the page of the model, then log in with: hf auth login",
    404: "check the address",
    429: "too many requests; wait, or log in with: hf auth login",
}
"""What to do about the status of an answer."""


@contextmanager
def explained(address: Address) -> Iterator[None]:
    """Whatever the hub's client raises as a ValueError of one line that says what to do."""
    errors = import_module("huggingface_hub.errors")
    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(f"{address} asks for consent: give it on its page, then log in with: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"{address}: there is no such model, or it is private; log in with: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{address}: the model has no such branch, tag or commit") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{address} is no name on the hub: {error}") from error
    except Exception as error:  # of the client, of what it transports with (httpx), of answers that are no JSON
        if offline() and isinstance(error, errors.LocalEntryNotFoundError):
            raise ValueError(
                f"{address} has not been fetched before, and offline it cannot be; fetch it with: fewstep pull"
            ) from error
        raise ValueError(f"{address}: {what_failed(error)}") from error


def what_failed(error: BaseException) -> str:
    """The status of the hub's answer, or else what the transport says, and the way out."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    status = next((e.response.status_code for e in chain if getattr(e, "response", None) is not None), None)  # type: ignore[attr-defined]  # on the client's errors alone
    if status is not None:
        return f"the hub answers HTTP {status}; {ANSWERS.get(status, RETRY)}"
    words = public(" ".join(str(chain[-1]).split()))  # the hub's store has signed addresses
    return f"the hub cannot be reached, or breaks off ({type(chain[-1]).__name__}: {words[:200]}); {RETRY}"


RETRY = "try again later; what was fetched before is there with --offline"


def damaged(path: Path) -> bool:
    """Whether a file of the hub's cache is not what the hub announced.

    The cache links to files that are named after the announced hash: the SHA-256 of large files, git's of small ones.
    """
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        return sha256(blob) != blob.name
    if re.fullmatch("[0-9a-f]{40}", blob.name):
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != blob.name
    return False


@lru_cache(maxsize=64)
def fetch(address: Address) -> Path:
    """A local folder with the files of a model, kept in the hub's own cache; offline what is there already.

    Once per process: a model does not change between two readings. Each file is compared with the hash that the hub
    announced. Raises ValueError if it is not to be had, or if the repository is no model of this library.
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
    for name in FILES:
        if (path := Path(folder) / name).is_file() and damaged(path):
            path.resolve().unlink()
            raise ValueError(
                f"{address}: {name} came damaged: its hash is not the one that the hub states; fetch it again"
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
