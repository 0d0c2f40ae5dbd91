"""The Hugging Face hub: addresses `hf://owner/name[@revision]`, fetching and uploading. Needs the package `huggingface_hub`.

A repository of the hub is a model folder: `model.safetensors`, `config.json` and the card, `README.md`. Nothing else is
fetched from one or sent to one, so there is no pickle and no code, and what is fetched is checked as any other model folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.runtime.display import public
from fewstep.runtime.environment import offline, optional
from fewstep.runtime.files import sha256

FILES = ("model.safetensors", "config.json", "README.md")
ADDRESS = re.compile(r"(?:hf:/{1,2})?([\w][\w.-]*/[\w][\w.-]*)(?:@([\w][\w./-]*))?")


class Address(NamedTuple):
    """A repository, owner/name, with a branch, tag or commit; None for the newest version."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(path: str | Path) -> bool:
    """Whether a path means the hub. A `Path` has a single slash, because it merges two."""
    return str(path).startswith("hf:/")


def parse(text: str | Path) -> Address:
    """The address in "hf://owner/name@revision" or "owner/name@revision". Raises ValueError for any other text."""
    match = ADDRESS.fullmatch(str(text))
    if match is None or ".." in str(text):
        raise ValueError(f"expected a model on the hub, hf://owner/name or hf://owner/name@revision; got {str(text)!r}")
    return Address(match[1], match[2])


def client() -> Any:
    """The package of the hub; ValueError if it is not installed."""
    return optional("huggingface_hub", "the Hugging Face hub", "hub")


RETRY = "try again later; what was fetched before is there with --offline"
ADVICE = {
    401: "log in with: hf auth login",
    403: "your account, or its token, has no access; get it on the page of the model, then log in with: hf auth login",
    404: "check the address",
    429: "too many requests; wait, or log in with: hf auth login",
}
"""What to do about an HTTP status."""


@contextmanager
def explained(address: Address) -> Iterator[None]:
    """Turn whatever the hub's client raises into a ValueError of one line that says what to do."""
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
        raise ValueError(f"{address} is not a valid name on the hub: {error}") from error
    except Exception as error:  # of the client, of what it transports with (httpx), of answers that are no JSON
        if offline() and isinstance(error, errors.LocalEntryNotFoundError):
            raise ValueError(
                f"{address} has not been fetched before, and cannot be while offline; fetch it with: fewstep pull"
            ) from error
        raise ValueError(f"{address}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """The HTTP status of the hub's answer, or else the message of the transport, and what to do."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    status = next((e.response.status_code for e in chain if getattr(e, "response", None) is not None), None)  # type: ignore[attr-defined]  # on the client's errors alone
    if status is not None:
        return f"the hub answers HTTP {status}; {ADVICE.get(status, RETRY)}"
    words = public(" ".join(str(chain[-1]).split()))  # the hub's store has signed addresses
    return f"the hub cannot be reached, or breaks off ({type(chain[-1]).__name__}: {words[:200]}); {RETRY}"


def is_damaged(path: Path) -> bool:
    """Whether a file of the hub's cache differs from the hash that the hub announced.

    The cache links to files that are named after that hash: the SHA-256 of large files, git's SHA-1 of small ones.
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
    """Fetch a model to the hub's own cache, once per process. While offline, what was fetched before is used.

    Args:
        address: of the model.

    Returns:
        A folder with the files of the model, each of which has the hash that the hub announced.

    Raises:
        ValueError: the model cannot be fetched, is damaged, or is not one of fewstep.

    Example:
        >>> folder = fetch(parse("hf://me/digits-sid@v1"))
    """
    package = client()
    with explained(address):
        folder = package.HfApi().snapshot_download(
            address.repository,
            revision=address.revision,
            allow_patterns=list(FILES),
            local_files_only=offline(),
        )
    if missing := [name for name in FILES[:2] if not (Path(folder) / name).is_file()]:
        raise ValueError(
            f"{address} is not a model of fewstep: it has no {' and no '.join(missing)}. For upstream pickles use: "
            "fewstep convert"
        )
    for name in FILES:
        if (path := Path(folder) / name).is_file() and is_damaged(path):
            path.resolve().unlink()
            raise ValueError(
                f"{address}: {name} came damaged: its hash is not the one that the hub states; fetch it again"
            )
    return Path(folder)


def upload(address: Address, files: Mapping[str, Path | bytes], *, private: bool = False) -> str:
    """Send the files of a model to the main branch in one commit.

    Args:
        address: of the repository, which is created if it does not exist.
        files: path or content of each of `FILES`.
        private: create the repository as a private one.

    Returns:
        The web address of the commit.

    Raises:
        ValueError: the address has a revision, the hub refuses or cannot be reached, or this process is offline.
    """
    if offline():
        raise ValueError(f"{address} cannot be written while offline")
    if address.revision is not None:
        raise ValueError(f"{address}: models are sent to the main branch; leave @{address.revision} out")
    package = client()
    assert set(files) == set(FILES)
    added = [package.CommitOperationAdd(name, content) for name, content in files.items()]
    api = package.HfApi()
    with explained(address):
        api.create_repo(address.repository, private=private, exist_ok=True)
        commit = api.create_commit(address.repository, added, commit_message="A model, by fewstep")
    return str(commit.commit_url)
