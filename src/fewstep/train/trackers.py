"""Where the metrics of a run are sent besides its JSONL files: TensorBoard, Weights & Biases, trackio.

Packages are imported when they are chosen. A tracker never ends a run: if it fails, the run warns and continues without it.
A tracker has each step once, however often the run was interrupted.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from PIL import Image

from fewstep.runtime.display import public
from fewstep.runtime.environment import optional
from fewstep.runtime.files import read_json, write_json
from fewstep.runtime.launch import launched

T = TypeVar("T")
PROJECT = "fewstep"
PACKAGES = {"tensorboard", "wandb", "trackio"}
"""Trackers named as their package."""
REACH_SECONDS, INIT_SECONDS, CLOSE_SECONDS = 5.0, 20.0, 20.0
"""How long a run waits for a service: to be reached, to start, to finish."""


class Tracker(Protocol):
    """Receives metrics and images of a run, by training images; closed when the run ends or is interrupted."""

    def log(self, nimg: int, metrics: Mapping[str, float]) -> None: ...
    def image(self, nimg: int, name: str, image: Image.Image) -> None: ...
    def close(self) -> None: ...


def load(package: str, tracker: str) -> Any:
    """Import a tracker's package. Raises ValueError, which says how to install it, if it is missing."""
    return optional(package, f"--track {tracker}", tracker)


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder. Steps that a resumed run repeats replace those before."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], nimg: int) -> None:
        load("tensorboard", "tensorboard")
        package = load("torch.utils.tensorboard", "tensorboard")
        order_events(folder / "tensorboard")
        self.writer = package.SummaryWriter(str(folder / "tensorboard"), purge_step=nimg + 1)

    def log(self, nimg: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, nimg)
        self.writer.flush()

    def image(self, nimg: int, name: str, image: Image.Image) -> None:
        self.writer.add_image(name, np.asarray(image.convert("RGB")), nimg, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


def order_events(folder: Path) -> None:
    """Rename event files that would sort after a new one, as when the clock was set back: TensorBoard reads by name."""
    prefix = "events.out.tfevents."
    files = sorted(folder.glob(f"{prefix}*"))
    if files and files[-1].name >= f"{prefix}{int(time.time()):010d}":
        for i, path in enumerate(files):
            path.rename(folder / f"{prefix}{i:010d}.{path.name.removeprefix(prefix).partition('.')[2]}")


class Hosted:
    """A run of the project fewstep in a service with the calls of wandb, by the number of training images.

    Steps that a resumed run repeats were sent before, according to `sent.json` in the run's folder, and are not sent again.
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
        """Those of the keys that have not been sent for this step; they are recorded as sent before they are."""
        kind = self.package.__name__
        new = [key for key in keys if self.sent.get(f"{kind}/{key}", 0) < nimg]
        if new:
            self.sent |= {f"{kind}/{key}": nimg for key in new}
            write_json(self.path, self.sent)
        return new

    def close(self) -> None:
        """Wait at most `CLOSE_SECONDS` for the rest to be sent; without a network it would take forever."""
        ended = threading.Thread(target=self.run.finish, daemon=True)
        ended.start()
        ended.join(CLOSE_SECONDS)
        if ended.is_alive():
            raise TimeoutError(f"it was still sending after {CLOSE_SECONDS:.0f} s")


def wandb(folder: Path, name: str, config: Mapping[str, Any], nimg: int) -> Hosted:
    """Weights & Biases. With WANDB_MODE=offline, or if its server cannot be reached, everything stays in the run's folder."""
    package = load("wandb", "wandb")
    # its metadata would contain the command as it was typed
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
    """Whether a server answers within seconds; assumed behind a proxy, which only the service's client can use."""
    parts = urlsplit(address)
    if not parts.hostname or getproxies().keys() & {parts.scheme, "all"}:
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), REACH_SECONDS).close()
    except OSError:
        return False
    return True


def trackio(folder: Path, name: str, config: Mapping[str, Any], nimg: int) -> Hosted:
    """trackio's local database. It identifies a run by its name, so the name contains the identifier."""
    package = load("trackio", "trackio")
    unique = f"{name}-{identifier(folder)}"
    return Hosted(package, package.init(project=PROJECT, name=unique, resume="allow", config=dict(config)), folder)


class Guarded:
    """A tracker that warns at its first failure and does nothing from then on."""

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        self.name = name
        self.tracker: Tracker | None = None
        self.tracker = self.tried(begin)

    def tried(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Exception as error:  # a tracker's code must not end a run
            warn(self.name, error, "the run continues without it; log.jsonl has everything")
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
    """Print a warning in one line: what failed, and what happens now."""
    words = " ".join(str(error).split())[:200]
    print(f"warning: {name} failed ({type(error).__name__}: {words}); {then}", file=sys.stderr)


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": wandb,
    "trackio": trackio,
}


def identifier(folder: Path) -> str:
    """A hash of the run's record, `run.json`: the same whenever the run is resumed."""
    return hashlib.sha256((folder / "run.json").read_bytes()).hexdigest()[:8]


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for trackers that cannot start: unknown ones, or without their package or a login."""
    if unknown := [n for n in names if n not in TRACKERS]:
        raise ValueError(f"unknown tracker {', '.join(unknown)}; expected {', '.join(TRACKERS)}")
    if launched().rank == 0:
        for name in PACKAGES & set(names):
            load(name, name)
        if "wandb" in names and not wandb_ready():
            raise ValueError(
                "--track wandb is not logged in: run wandb login, set WANDB_API_KEY, or keep everything in the run's folder "
                "with WANDB_MODE=offline"
            )


def wandb_ready() -> bool:
    """Whether Weights & Biases would start without a prompt: offline, with a key, or with a login in ~/.netrc."""
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
    """Open the trackers called `names` for the run `name` in `folder`, which starts or resumes at `nimg` images."""
    check_trackers(names)
    return tuple(Guarded(n, partial(TRACKERS[n], folder, name, config, nimg)) for n in dict.fromkeys(names))
