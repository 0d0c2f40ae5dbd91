"""The folder of a run: one process at a time trains in it, and it belongs to one configuration."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fewstep.runtime.distributed import barrier, rank, world_size
from fewstep.runtime.files import read_json, tidy, write_json
from fewstep.runtime.locks import lock, lock_file
from fewstep.train.identity import differences, environment

RECORD = "run.json"
FOLDERS = ("snapshots", "averages", "checkpoints", "samples", "best", "posthoc", "tensorboard")
FILES = ("log.jsonl", "metrics.jsonl", "best.json", "sent.json", RECORD)


@contextmanager
def claimed(folder: Path) -> Iterator[Callable[[], None]]:
    """Make the folder if it does not exist, and keep other runs out of it within the block.

    Yields:
        A function that raises ValueError if the folder was removed or replaced; so does any OSError in the block then.
    """
    if rank() != 0:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    opened = False

    def check() -> None:
        nonlocal opened
        same = folder.exists() and os.path.samestat(os.stat(folder), os.fstat(descriptor))
        if opened and not (same and (folder / RECORD).exists()):
            raise ValueError(f"{folder} was removed or replaced while this run trained in it; start it again")
        opened = True

    try:
        with alone(folder, descriptor):
            try:
                yield check
            except OSError:
                if opened:
                    check()
                raise
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path, descriptor: int) -> Iterator[None]:
    """Lock the open folder, by a file in it on a file system without locks. Raises ValueError if another process has it."""
    mine = lock(descriptor)
    if mine is None:
        print(
            f"warning: the file system of {folder} has no locks ({os.strerror(errno.ENOLCK).lower()}); the file .lock in it "
            "keeps other runs away instead",
            file=sys.stderr,
        )
    with nullcontext(mine) if mine is not None else lock_file(folder / ".lock") as free:
        if not free:
            hint = "" if mine is not None else f". If none does, as after a loss of power, remove {folder / '.lock'}"
            raise ValueError(
                f"another process is training in {folder}; wait for it, stop it, or choose another folder{hint}"
            )
        yield


def open_folder(folder: Path, identity: dict[str, Any], about: Mapping[str, Any], *, fresh: bool) -> None:
    """Check that the folder belongs to the run with this identity, or start a record there; all ranks call it.

    Args:
        folder: Of the run.
        identity: What decides the weights.
        about: Further entries of a new record.
        fresh: Discard what a run left there.
    """
    if rank() == 0:
        tidy(folder)
        record = folder / RECORD
        left = [name for name in (*FOLDERS, *FILES) if (folder / name).exists()]
        if fresh and record.exists():
            discard(folder)
        elif fresh and left:
            raise ValueError(
                f"{folder} has {left[0]} and no {RECORD}, so it may not be a run; --fresh does not remove it"
            )
        identity = json.loads(json.dumps(identity, allow_nan=False))
        if record.exists():
            check_identity(folder, identity, read_json(record))
        else:
            if (folder / "config.json").exists():
                raise ValueError(f"{folder} holds a model (config.json); choose another folder for the run")
            if left and not fresh:
                print(f"warning: {folder} has no {RECORD}; continuing with its {', '.join(left)}", file=sys.stderr)
            identity["micro_batch"] = identity["micro_batch"] or identity["batch_size"] // world_size()
            started = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
            write_json(record, {**about, **started, **environment(), "identity": identity})
    barrier()


def discard(folder: Path) -> None:
    """Remove what runs write, the record last, so that a run killed here can be discarded again."""
    for name in FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def check_until(folder: Path, until: int, batch_size: int) -> None:
    """Raise ValueError if the folder holds a checkpoint beyond the end of this run, whose records it would rewrite."""
    reached = max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]" * 12)), default=0)
    if reached >= until + batch_size:
        raise ValueError(
            f"{folder} holds a longer run, of {reached:,} images; this one ends at {until:,}. Train to at least as many images "
            "(--until), choose another folder, or start over with --fresh (fresh=True)"
        )


def check_identity(folder: Path, identity: dict[str, Any], record: Any) -> None:
    """Raise ValueError for a run of other settings. The number of ranks and the name of the data may differ."""
    known = record.get("identity") if isinstance(record, dict) else None
    if isinstance(known, dict):
        if identity["micro_batch"] is None:
            identity["micro_batch"] = known.get("micro_batch")
        data = known.get("data")
        if isinstance(data, dict) and data.get("sha256") == identity["data"]["sha256"]:
            identity["data"]["name"] = data.get("name")
    if found := differences(identity, known):
        raise ValueError(
            f"{folder} belongs to another configuration: {'; '.join(found[:5])}"
            + ("" if len(found) <= 5 else f"; and {len(found) - 5} more")
            + ". Choose another folder, or start over with --fresh (fresh=True)"
        )
