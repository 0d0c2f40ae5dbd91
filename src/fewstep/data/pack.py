"""The dataset tool: any collection of images -> one zip of equal PNGs, the same bytes on every run.

The format is that of StyleGAN and EDM: stored PNGs 00000/img00000000.png ..., and a `dataset.json` with the classes.
Images of other than one or three channels are `.npy` files there, as EDM2 reads them.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from shlex import quote
from typing import Any

from fewstep.data.convert import Entry, Rule
from fewstep.data.ranks import from_first, gather, ranks
from fewstep.data.sources import open_source
from fewstep.data.transform import Crop, Encoded, Resize, Transform, encode_all, parse_resolution
from fewstep.runtime import outputs
from fewstep.runtime.files import new_file
from fewstep.runtime.progress import track

CHUNK_IMAGES = 128
CHUNK_BYTES = 2**18
IN_FLIGHT = 3
"""Chunks per worker that are read ahead: what bounds the memory."""


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote: how many images, of which (channels, height, width), and what it left out and why.

    converted: how many images were converted in which way, and the first of them. ignored: files that are no images.
    """

    images: int
    shape: tuple[int, int, int]
    skipped: tuple[str, ...]
    converted: dict[str, tuple[int, str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def pack(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    resolution: str | None = None,
    transform: Crop | None = None,
    resize: Resize = "lanczos",
    convert: Rule | None = None,
    max_images: int | None = None,
    skip_bad: bool = False,
    strict: bool = False,
    workers: int | None = None,
    report: Callable[[str], object] | None = None,
) -> Packed:
    """Write the images of `source` and their classes to the zip `dest`, which `images` opens and EDM reads.

    source: a folder, zip or tar of images, CIFAR-10's and MNIST's own files, a NumPy array, an LMDB of LSUN,
        hf:NAME[:CONFIGURATION][@SPLIT].
    resolution: "64x64", None to keep the size; transform, resize, convert (its rule): see `Transform`. max_images: the
    first so many of the source. skip_bad: leave out, and list, what is damaged or does not fit, instead of raising.
    strict: an image that is not 8-bit grey or RGB, upright and without alpha, is an error instead of converted. workers:
    processes; by default one per core, and none for a small set. report: is called before the work with a line about the
    images and classes that were found. A script that packs must do so under `if __name__ == "__main__":`, since it is
    imported by the processes.

    Ranks share the work, and the first one writes. Raises ValueError that names the file; on any failure `dest` stays as
    it was.
    """
    dest = Path(dest)
    if dest.suffix.lower() != ".zip":
        raise ValueError(f"the destination must be a .zip; got {dest}")
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1; got {max_images}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    outputs.file(dest, outside=[source], overwrite=True)
    work = Transform(parse_resolution(resolution), transform, resize, convert)
    images = open_source(source)
    if report is not None:
        report(f"{source}: {images.total:,} images, {images.classes}")
    total = images.total if max_images is None else min(images.total, max_images)
    if workers is None:
        share = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks()[1] > 1 else 1
        workers = 1 if total <= 2 * CHUNK_IMAGES else max(1, len(os.sched_getaffinity(0)) // share)

    names: list[str] = []
    labels: list[int | None] = []
    skipped: list[str] = []
    converted: dict[str, tuple[int, str]] = {}
    first: tuple[str, tuple[int, int, int]] | None = None
    if ranks()[0] != 0:
        deque(encoded(work, islice(images.entries(), total), workers), maxlen=0)
        return from_first(Packed(0, (0, 0, 0), ()))
    with (
        new_file(dest) as partial,
        zipfile.ZipFile(partial, "w") as archive,
        closing(encoded(work, islice(images.entries(), total), workers)) as results,
    ):
        for entry, result in track(results, total=total, description=f"packing {dest.name}"):
            if isinstance(result, Encoded):
                result = fitting(entry, result, first, strict=strict)
            if isinstance(result, ValueError):
                if not skip_bad:
                    all_of_them = check_command(source, resolution, transform, convert)
                    raise ValueError(
                        f"{result}; --skip-bad leaves out such files, and they are listed by: {all_of_them}"
                    )
                skipped.append(str(result))
                continue
            first = first or (entry.where, result.shape)
            for note in result.notes:
                n, example = converted.get(note, (0, entry.where))
                converted[note] = n + 1, example
            names.append(f"{len(names) // 1000:05d}/img{len(names):08d}{result.extension}")
            labels.append(entry.label)
            archive.writestr(fixed(names[-1]), result.data)
        if first is None:
            raise ValueError(
                f"{source}: none of {total} images can be used" + "".join(f"\n  {s}" for s in skipped[:10])
            )
        write_labels(archive, names, labels, images.class_names)
    if len(skipped) > len(labels):
        warnings.warn(
            f"{source}: {len(skipped):,} of {total:,} images were left out; all had to be {first[1]} (channels, height, width) "
            f"as the first, {first[0]}; choose a resolution and a transform if many have another size",
            stacklevel=2,
        )
    return from_first(Packed(len(labels), first[1], tuple(skipped), converted, tuple(images.ignored)))


def check_command(
    source: str | os.PathLike[str], resolution: str | None, transform: str | None, convert: str | None
) -> str:
    """The command that lists what `pack` refuses."""
    options = {"--resolution": resolution, "--transform": transform, "--convert": convert}
    chosen = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
    return f"fewstep data check {quote(os.fspath(source))}{chosen}"


def fixed(name: str) -> zipfile.ZipInfo:
    """An entry that does not tell when and where it was written."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16
    return info


def write_labels(
    archive: zipfile.ZipFile, names: Sequence[str], labels: Sequence[int | None], class_names: Sequence[str] | None
) -> None:
    """Write `dataset.json` with the class of each file; without classes if any has none."""
    pairs = None if None in labels else list(zip(names, labels, strict=True))
    content: dict[str, Any] = {"labels": pairs}
    if class_names is not None:
        content["class_names"] = class_names
    archive.writestr(fixed("dataset.json"), json.dumps(content))


def fitting(
    entry: Entry, result: Encoded, first: tuple[str, tuple[int, int, int]] | None, *, strict: bool
) -> Encoded | ValueError:
    """The image, grey among RGB as RGB, or an error if it is not square, not like the first, or converted though `strict`."""
    _, height, width = result.shape
    advice = "choose a resolution, and a transform: center-crop makes everything square and RGB"
    if height != width:
        return ValueError(f"{entry.where}: expected a square; got {width}x{height} pixels; {advice}")
    if first is not None and result.shape != first[1]:
        if first[1] != (3, height, width) or result.shape[0] != 1:
            return ValueError(
                f"{entry.where}: expected (channels, height, width) {first[1]} as in {first[0]}; got {result.shape}; "
                + ("--convert rgb makes every image RGB" if result.shape[1:] == first[1][1:] else advice)
            )
        result = result.as_rgb()
    if strict and result.notes:
        return ValueError(f"{entry.where}: --strict refuses to convert it ({', '.join(result.notes)})")
    return result


def chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries in groups that are worth sending to a process, and small enough to be kept in memory."""
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += entry.nbytes
        if len(chunk) >= CHUNK_IMAGES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def encoded(
    transform: Transform, entries: Iterable[Entry], workers: int
) -> Generator[tuple[Entry, Encoded | ValueError]]:
    """Every entry with its PNG or its error, in order, on the first rank; nothing on others, which do their share."""
    with closing(worked(transform, chunks(entries), workers)) as done:
        for group, mine in done:
            for chunk, results in zip(group, gather(mine), strict=False):
                yield from zip(chunk, results, strict=True)


def worked(
    transform: Transform, chunks: Iterator[list[Entry]], workers: int
) -> Generator[tuple[list[list[Entry]], list[Encoded | ValueError]]]:
    """A chunk for each rank at a time, with the results of this rank's."""
    me, world = ranks()
    groups = iter(lambda: list(islice(chunks, world)), [])
    if workers == 1:
        for group in groups:
            yield group, encode_all(transform, group[me]) if me < len(group) else []
        return
    pending: deque[tuple[list[list[Entry]], Future[list[Encoded | ValueError]]]] = deque()
    # Started afresh: a fork of a process that has threads, as PyTorch has, may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            for group in groups:
                pending.append((group, pool.submit(encode_all, transform, group[me] if me < len(group) else [])))
                if len(pending) > IN_FLIGHT * workers:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that decodes images ended: out of memory, or pack was called by a script outside of "
                '`if __name__ == "__main__":`; with workers=1 there are no such processes'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """In a worker: end when the process that started it does, which may be killed and tells nobody."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
