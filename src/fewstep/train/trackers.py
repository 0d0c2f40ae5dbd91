"""Where the metrics of a run go beside its JSONL files: TensorBoard, Weights & Biases, trackio. Imported when chosen.

A tracker never ends a run: what fails in one is a warning, and the run goes on without it. Its record has each step once,
however often the run was interrupted.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from PIL import Image

from fewstep.runtime.files import optional, read_json, write_json
from fewstep.runtime.foreign import public
from fewstep.runtime.launch import launched

T = TypeVar("T")
PROJECT = "fewstep"
PACKAGES = {"tensorboard", "wandb", "trackio"}
"""Trackers that are a package of their name."""
REACH_SECONDS, INIT_SECONDS, CLOSE_SECONDS = 5.0, 20.0, 20.0
"""How long a service may keep a run waiting: to be found, to begin, to end."""


class Tracker(Protocol):
    """Takes metrics and images of a run at a number of training images; `close` when the run ends or is interrupted."""

    def log(self, nimg: int, metrics: Mapping[str, float]) -> None: ...
    def image(self, nimg: int, name: str, image: Image.Image) -> None: ...
    def close(self) -> None: ...


def load(package: str, tracker: str) -> Any:
    return optional(package, f"--track {tracker}", tracker)


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder. What a resumed run repeats replaces what was there."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], nimg: int) -> None:
        load("tensorboard", "tensorboard")
        package = load("torch.utils.tensorboard", "tensorboard")
        self.writer = package.SummaryWriter(str(folder / "tensorboard"), purge_step=nimg + 1)

    def log(self, nimg: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, nimg)
        self.writer.flush()

    def image(self, nimg: int, name: str, image: Image.Image) -> None:
        self.writer.add_image(name, np.asarray(image.convert("RGB")), nimg, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Hosted:
    """A run of the project fewstep in a service with the calls of wandb, by the number of training images.

    What a resumed run repeats was sent before, by `sent.json` in the run's folder, and is not sent again.
    """

    def __init__(self, package: Any, run: Any, folder: Path) -> None:
        self.package, self.run = package, run
        self.path = folder / "sent.json"
        self.sent: dict[str, int] = read_json(self.path) if self.path.exists() else {}

    def log(self, nimg: int, metrics: Mapping[str, float]) -> None:
        if new := self.first(nimg, metrics):
            self.run.log({key: metrics[key] for key in new}, step=nimg)

    def image(self, nimg: int, name: str, image: Image.Image) -> None:
        if self.first(nimg, [name]):
            self.run.log({name: self.package.Image(image.convert("RGB"))}, step=nimg)

    def first(self, nimg: int, keys: Iterable[str]) -> list[str]:
        """Those of the keys that have not been sent at so many images, noted before they are."""
        kind = self.package.__name__
        new = [key for key in keys if self.sent.get(f"{kind}/{key}", 0) < nimg]
        if new:
            self.sent |= {f"{kind}/{key}": nimg for key in new}
            write_json(self.path, self.sent)
        return new

    def close(self) -> None:
        """What is still to be sent may take `CLOSE_SECONDS`; without a network it would take for ever."""
        ended = threading.Thread(target=self.run.finish, daemon=True)
        ended.start()
        ended.join(CLOSE_SECONDS)
        if ended.is_alive():
            raise TimeoutError(f"it was still sending after {CLOSE_SECONDS:.0f} s")


def wandb(folder: Path, name: str, config: Mapping[str, Any], nimg: int) -> Hosted:
    """Weights & Biases. With WANDB_MODE=offline, or where its server cannot be reached, everything stays in the run's folder."""
    package = load("wandb", "wandb")
    # its metadata hold the command as it was typed
    secret = {"x_disable_meta": True} if any(public(word) != word for word in sys.argv) else {}
    settings = package.Settings(init_timeout=INIT_SECONDS, **secret)
    options = {"project": PROJECT, "name": name, "id": identifier(folder), "resume": "allow", "dir": str(folder)}
    options |= {"config": dict(config), "settings": settings}
    if "WANDB_MODE" in os.environ or reachable(settings.base_url):
        try:
            return Hosted(package, package.init(**options), folder)
        except Exception as error:  # of several kinds, and of no common one
            warn("wandb", error, "its record stays in the run's folder, for wandb login and wandb sync")
            package.teardown()
    else:
        print(f"warning: {settings.base_url} cannot be reached; wandb's record stays in {folder}", file=sys.stderr)
    return Hosted(package, package.init(**options, mode="offline"), folder)


def reachable(address: str) -> bool:
    """Whether a server answers within seconds; behind a proxy it is asked by nobody but its own client."""
    parts = urlsplit(address)
    if not parts.hostname or getproxies().keys() & {parts.scheme, "all"}:
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), REACH_SECONDS).close()
    except OSError:
        return False
    return True


def trackio(folder: Path, name: str, config: Mapping[str, Any], nimg: int) -> Hosted:
    """trackio's local database; a run is known by its name there, hence the identifier in it."""
    package = load("trackio", "trackio")
    unique = f"{name}-{identifier(folder)}"
    return Hosted(package, package.init(project=PROJECT, name=unique, resume="allow", config=dict(config)), folder)


class Guarded:
    """A tracker that warns of its first failure and is silent from then on."""

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        self.name = name
        self.tracker: Tracker | None = None
        self.tracker = self.tried(begin)

    def tried(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Exception as error:  # of other people's code, which must not end a run
            warn(self.name, error, "the run goes on without it; log.jsonl has all of it")
            self.tracker = None
        return None

    def log(self, nimg: int, metrics: Mapping[str, float]) -> None:
        if (tracker := self.tracker) is not None:
            self.tried(lambda: tracker.log(nimg, metrics))

    def image(self, nimg: int, name: str, image: Image.Image) -> None:
        if (tracker := self.tracker) is not None:
            self.tried(lambda: tracker.image(nimg, name, image))

    def close(self) -> None:
        if (tracker := self.tracker) is not None:
            self.tried(tracker.close)


def warn(name: str, error: Exception, then: str) -> None:
    words = " ".join(str(error).split())[:200]
    print(f"warning: {name} failed ({type(error).__name__}: {words}); {then}", file=sys.stderr)


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": wandb,
    "trackio": trackio,
}


def identifier(folder: Path) -> str:
    """The same for every resume of the run in `folder`: a hash of its record, `run.json`."""
    return hashlib.sha256((folder / "run.json").read_bytes()).hexdigest()[:8]


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot begin, before anything is written: unknown ones, without their package or a login."""
    if unknown := [n for n in names if n not in TRACKERS]:
        raise ValueError(f"there is no tracker {', '.join(unknown)}; there are {', '.join(TRACKERS)}")
    if launched().rank == 0:
        for name in PACKAGES & set(names):
            load(name, name)
        if "wandb" in names and not wandb_ready():
            raise ValueError(
                "--track wandb is not logged in: run wandb login, set WANDB_API_KEY, or keep everything in the run's folder "
                "with WANDB_MODE=offline"
            )


def wandb_ready() -> bool:
    """Whether Weights & Biases would begin without a question: offline, with a key, or with a login in ~/.netrc."""
    if os.environ.get("WANDB_MODE", "online") not in ("online", "run", "shared"):
        return True
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    for place in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if place and host and netrc(os.path.expanduser(place)).authenticators(host):
                return True
        except (OSError, NetrcParseError):
            continue
    return False


def open_trackers(
    names: Sequence[str], folder: Path, name: str, config: Mapping[str, Any], nimg: int
) -> tuple[Tracker, ...]:
    """The trackers called `names` for the run `name` in `folder`, which begins or resumes at `nimg` images."""
    check_trackers(names)
    return tuple(Guarded(n, partial(TRACKERS[n], folder, name, config, nimg)) for n in dict.fromkeys(names))
