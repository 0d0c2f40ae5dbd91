"""Where the figures of a run go beside its JSONL files: TensorBoard, Weights & Biases, trackio. Imported when chosen."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from fewstep.files import optional
from fewstep.foreign import public
from fewstep.launch import launched

PROJECT = "fewstep"
PACKAGES = {"tensorboard", "wandb", "trackio"}
"""Trackers that are a package of their name."""


class Tracker(Protocol):
    """Takes figures and images of a run at a number of training images; `close` when the run ends or is interrupted."""

    def log(self, nimg: int, figures: Mapping[str, float]) -> None: ...
    def image(self, nimg: int, name: str, image: Image.Image) -> None: ...
    def close(self) -> None: ...


def load(package: str, tracker: str) -> Any:
    return optional(package, f"--track {tracker}", tracker)


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder. What a resumed run repeats replaces what was there."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], nimg: int) -> None:
        load("tensorboard", "tensorboard")
        package = load("torch.utils.tensorboard", "tensorboard")
        self.writer = package.SummaryWriter(str(folder / "tensorboard"), purge_step=nimg + 1 if nimg else None)

    def log(self, nimg: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key, value, nimg)
        self.writer.flush()

    def image(self, nimg: int, name: str, image: Image.Image) -> None:
        self.writer.add_image(name, np.asarray(image.convert("RGB")), nimg, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Hosted:
    """A run of the project fewstep in a service with the calls of wandb, by the number of training images."""

    def __init__(self, package: Any, run: Any) -> None:
        self.package, self.run = package, run

    def log(self, nimg: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=nimg)

    def image(self, nimg: int, name: str, image: Image.Image) -> None:
        self.run.log({name: self.package.Image(image.convert("RGB"))}, step=nimg)

    def close(self) -> None:
        self.run.finish()


def wandb(folder: Path, name: str, config: Mapping[str, Any], nimg: int) -> Hosted:
    """Weights & Biases; with WANDB_MODE=offline everything stays in the run's folder."""
    package = load("wandb", "wandb")
    # its metadata hold the command as it was typed
    secret = any(public(word) != word for word in sys.argv)
    options = {"settings": package.Settings(x_disable_meta=True)} if secret else {}
    with begun("wandb", "log in with: wandb login, or keep it here with WANDB_MODE=offline"):
        run = package.init(
            project=PROJECT,
            name=name,
            id=identifier(folder),
            resume="allow",
            dir=str(folder),
            config=dict(config),
            **options,
        )
    return Hosted(package, run)


def trackio(folder: Path, name: str, config: Mapping[str, Any], nimg: int) -> Hosted:
    """trackio's local database; a run is known by its name there, hence the identifier in it."""
    package = load("trackio", "trackio")
    unique = f"{name}-{identifier(folder)}"
    with begun("trackio", "its database is in the folder $TRACKIO_DIR"):
        run = package.init(project=PROJECT, name=unique, resume="allow", config=dict(config))
    return Hosted(package, run)


@contextmanager
def begun(tracker: str, advice: str) -> Iterator[None]:
    """Whatever a service raises when a run begins there as a ValueError of one line."""
    try:
        yield
    except Exception as error:  # each service has its own
        words = " ".join(str(error).split())[:200]
        raise ValueError(f"--track {tracker} failed ({type(error).__name__}: {words}); {advice}") from error


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
    return tuple(TRACKERS[n](folder, name, config, nimg) for n in dict.fromkeys(names))
