"""Upstream files by path, or by web address with a cache. A download is complete and verified, or it leaves nothing."""

from __future__ import annotations

import hashlib
import http.client
import math
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.io.convert.identify import is_page
from fewstep.runtime import environment
from fewstep.runtime.display import public
from fewstep.runtime.environment import cache_folder
from fewstep.runtime.files import new_file

LIMITS = {"FEWSTEP_DOWNLOAD_GIB": 32.0, "FEWSTEP_DOWNLOAD_HOURS": 6.0}
"""Limits of one download by the environment variables that change them. Published networks have at most 6 GB."""
TIMEOUT = 20
"""Seconds without an answer after which a server counts as unreachable."""
PIECE = 2**20
BY_HAND = "download it by hand and give the path of the copy"
HUB = "https://huggingface.co/"
LOGIN = "it needs a login or consent; download it by hand in a browser and give the path of the copy"
ADVICE = {401: LOGIN, 403: LOGIN, 404: "check the address, or give the path of a copy"}


def fetch(source: str | Path, *, offline: bool = False, cache: Path | None = None) -> Path:
    """The local file of a path or address. A file from the web is downloaded once and kept.

    Args:
        source: a path, or an http(s) address.
        offline: use only what was downloaded before; the environment variable FEWSTEP_OFFLINE=1 does the same.
        cache: the folder for downloads; None for the cache folder of fewstep.

    Returns:
        The file, which is whole.

    Raises:
        ValueError: the path is missing, the address has another scheme, or it is not in the cache while offline.
        OSError: the download fails.

    Example:
        >>> path = fetch("https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-cond-vp.pkl")
    """
    scheme = urllib.parse.urlsplit(str(source)).scheme if isinstance(source, str) and "://" in source else ""
    if not scheme:
        path = Path(source)
        if not path.is_file():
            raise ValueError(
                f"expected a file or an http(s) address; {path} is {'a folder' if path.is_dir() else 'missing'}"
            )
        return path
    if scheme not in ("http", "https"):
        raise ValueError(f"{public(source)} has the scheme {scheme}; expected a path, or an http or https address")
    address = mirrored(str(source))
    target = (cache or cache_folder()) / cache_name(address)
    if target.is_file():
        return target
    if offline or environment.offline():
        raise ValueError(
            f"{public(address)} is not in the cache ({target}); run the command once without --offline, or give the path "
            "of a copy"
        )
    download(address, target)
    return target


def cache_name(address: str) -> str:
    """A readable name that is different for different addresses."""
    last = re.sub(r"[^A-Za-z0-9._-]", "_", urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])[-100:]
    return f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{last or 'file'}"


def mirrored(address: str) -> str:
    """The address at $HF_ENDPOINT, if that is set and the address is one of the Hugging Face hub."""
    endpoint = os.environ.get("HF_ENDPOINT")
    return address.replace(HUB, endpoint.rstrip("/") + "/", 1) if endpoint and address.startswith(HUB) else address


class WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https alone; the standard handler also follows them to ftp.

    Attributes:
        announced: the SHA-256 that the hub announces when it redirects to the store of a file.
    """

    announced: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        self.announced = announced_sha256(headers) or self.announced
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            fp.close()
            raise ValueError(
                f"{public(req.full_url)} redirects to {public(newurl)[:100]}, which is not an http or https address"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def announced_sha256(headers: Any) -> str | None:
    """The SHA-256 in the headers with which the Hugging Face hub answers for a large file."""
    match = re.fullmatch(r'(?:W/)?"?([0-9a-f]{64})"?', headers.get("X-Linked-Etag") or "")
    return match[1] if match else None


def limit(name: str) -> float:
    """The limit that an environment variable sets, or else the default."""
    text = os.environ.get(name) or str(LIMITS[name])
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise ValueError(f"the environment variable {name} must be a number above 0; got {text!r}")
    return value


def body(response: http.client.HTTPResponse, address: str, *, hashed: bool) -> Iterator[bytes]:
    """The body of a response in pieces.

    Raises OSError if the body is longer or shorter than declared, or exceeds the limits. Its end must differ from an
    interruption: by the declared length, by the last of its chunks, or because its hash is known (`hashed`).
    """
    declared, size = response.length, 0
    most, hours = limit("FEWSTEP_DOWNLOAD_GIB"), limit("FEWSTEP_DOWNLOAD_HOURS")
    end = time.monotonic() + 3600 * hours
    while piece := response.read1(PIECE):
        yield piece
        size += len(piece)
        if declared is None and not response.chunked and not hashed:
            raise OSError(
                f"{address} does not declare its length, so an interrupted download could not be detected; {BY_HAND}"
            )
        if max(size, declared or 0) > most * 2**30:
            raise OSError(f"{address} is larger than {most:g} GiB; set FEWSTEP_DOWNLOAD_GIB to allow it")
        if time.monotonic() > end:
            raise OSError(f"{address} takes longer than {hours:g} hours; set FEWSTEP_DOWNLOAD_HOURS, or {BY_HAND}")
    if declared is not None and size < declared:
        raise OSError(f"{address} broke off after {size} of {declared} bytes; try again")
    if declared is not None and continues(response):
        raise OSError(f"{address} continues after the {declared} bytes that it declares; {BY_HAND}")


def continues(response: http.client.HTTPResponse) -> bool:
    """Whether a server sends more than it declared. It was asked to close the connection; if it does not, that is all."""
    response.length = 1
    try:
        return bool(response.read1(1))
    except (TimeoutError, ConnectionError):
        return False


def download(address: str, target: Path) -> None:
    """Download to a temporary name, check the length and the SHA-256 that the server declares, and rename."""
    redirects = WebOnly()
    opener = urllib.request.build_opener(redirects)
    try:
        with opener.open(address, timeout=TIMEOUT) as response, new_file(target) as partial:
            announced = announced_sha256(response.headers) or redirects.announced
            digest, head = hashlib.sha256(), b""
            with partial.open("wb") as file:
                for piece in body(response, public(address), hashed=announced is not None):
                    if len(head) < 1024 and is_page(head := (head + piece)[:1024]):
                        raise OSError(f"{public(address)} answers with a web page; give the address of the file itself")
                    digest.update(piece)
                    file.write(piece)
            if announced not in (None, digest.hexdigest()):
                raise OSError(
                    f"{public(address)} came with the sha256 {digest.hexdigest()}; its server announces {announced}; try again"
                )
    except urllib.error.HTTPError as error:
        error.close()
        advice = ADVICE.get(error.code, "try again later, or give the path of a copy")
        reason = " ".join(str(error.reason).split())
        raise OSError(f"{public(address)} cannot be fetched: HTTP {error.code} {reason}; {advice}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise OSError(
            f"{public(address)} cannot be fetched: {public(error) or type(error).__name__}; or give the path of a copy"
        ) from error
