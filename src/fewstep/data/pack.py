"""Packs any collection of images into one zip of PNGs of one size, with the same bytes on every run.

The format is that of StyleGAN and EDM: uncompressed PNGs 00000/img00000000.png, ..., and a `dataset.json` with the classes.
Images with other than one or three channels are stored as `.npy` files, as EDM2 reads them.
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

from fewstep.data.color_modes import Entry, Rule
from fewstep.data.ranks import from_first, gather, ranks
from fewstep.data.sources import open_source
from fewstep.data.transform import Crop, Encoded, Resize, Transform, encode_all, parse_resolution
from fewstep.runtime import outputs
from fewstep.runtime.files import new_file
from fewstep.runtime.progress import track

CHUNK_IMAGES = 128
CHUNK_BYTES = 2**18
IN_FLIGHT = 3
"""Chunks per worker that are read ahead; this limits the memory."""


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote.

    Attributes:
        images: number of images.
        shape: (channels, height, width) of each.
        skipped: for each image that was skipped, its name and the reason.
        converted: for each kind of conversion, the number of images and the name of the first.
        ignored: files of the source that are not images.
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
    """Write the images of a source and their classes to a zip that `fewstep.data.images` opens and EDM reads.

    Ranks share the work, and the first one writes. On any failure `dest` stays as it was. A script that calls this must do so
    under `if __name__ == "__main__":`, since the worker processes import it.

    Args:
        source: a folder, zip or tar of images, CIFAR-10's and MNIST's own files, a NumPy array, an LMDB of LSUN, or
            hf:NAME[:CONFIGURATION][@SPLIT].
        dest: the zip to write.
        resolution: width x height of the stored images, such as "64x64"; None keeps the size.
        transform: how images are cropped; see `Transform`.
        resize: the filter.
        convert: the rule by which images become grey or RGB; see `fewstep.data.color_modes`.
        max_images: number of images of the source to use, from its beginning; None uses all.
        skip_bad: leave out and list images that are damaged or do not fit, instead of raising ValueError.
        strict: raise ValueError for each image that is not 8-bit grey or RGB, upright and without alpha, instead of
            converting it.
        workers: number of processes; by default one per core, and a single one for small sets.
        report: called before the work with a line about the images and classes that were found.

    Returns:
        What was written, skipped and converted; without images on ranks other than the first.

    Raises:
        ValueError: an argument, the source or one of its images cannot be used; the message names it.

    Example:
        >>> pack("photos", "photos.zip", resolution="64x64", transform="center-crop", convert="rgb")
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
        deque(encode_entries(work, islice(images.entries(), total), workers), maxlen=0)
        return from_first(Packed(0, (0, 0, 0), ()))
    with (
        new_file(dest) as partial,
        zipfile.ZipFile(partial, "w") as archive,
        closing(encode_entries(work, islice(images.entries(), total), workers)) as results,
    ):
        for entry, result in track(results, total=total, description=f"packing {dest.name}"):
            if isinstance(result, Encoded):
                result = fit_to_set(entry, result, first, strict=strict)
            if isinstance(result, ValueError):
                if not skip_bad:
                    command = check_command(source, resolution, transform, convert)
                    raise ValueError(
                        f"{result}; data pack --skip-bad skips such files, and they are listed by: {command}"
                    )
                skipped.append(str(result))
                continue
            first = first or (entry.where, result.shape)
            for note in result.notes:
                n, example = converted.get(note, (0, entry.where))
                converted[note] = n + 1, example
            names.append(f"{len(names) // 1000:05d}/img{len(names):08d}{result.extension}")
            labels.append(entry.label)
            archive.writestr(zip_entry(names[-1]), result.data)
        if first is None:
            raise ValueError(
                f"{source}: none of {total} images can be used" + "".join(f"\n  {s}" for s in skipped[:10])
            )
        write_labels(archive, names, labels, images.class_names)
    if len(skipped) > len(labels):
        warnings.warn(
            f"{source}: {len(skipped):,} of {total:,} images were skipped; all had to be {first[1]} (channels, height, width) "
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


def zip_entry(name: str) -> zipfile.ZipInfo:
    """An entry of a zip with a fixed time and system, so that the bytes are the same on every run."""
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
    archive.writestr(zip_entry("dataset.json"), json.dumps(content))


def fit_to_set(
    entry: Entry, result: Encoded, first: tuple[str, tuple[int, int, int]] | None, *, strict: bool
) -> Encoded | ValueError:
    """The image, converted to RGB if it is grey among RGB images; or the reason why it cannot be part of the set."""
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


def split_into_chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries in groups that are large enough for a process and small enough for the memory."""
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


def encode_entries(
    transform: Transform, entries: Iterable[Entry], workers: int
) -> Generator[tuple[Entry, Encoded | ValueError]]:
    """On the first rank every entry with its PNG or its error, in order; on the others nothing, while they do their share."""
    with closing(encode_chunks(transform, split_into_chunks(entries), workers)) as done:
        for group, mine in done:
            for chunk, results in zip(group, gather(mine), strict=False):
                yield from zip(chunk, results, strict=True)


def encode_chunks(
    transform: Transform, chunks: Iterator[list[Entry]], workers: int
) -> Generator[tuple[list[list[Entry]], list[Encoded | ValueError]]]:
    """Groups of one chunk for each rank, with the results of this rank's chunk."""
    me, world = ranks()
    groups = iter(lambda: list(islice(chunks, world)), [])
    if workers == 1:
        for group in groups:
            yield group, encode_all(transform, group[me]) if me < len(group) else []
        return
    pending: deque[tuple[list[list[Entry]], Future[list[Encoded | ValueError]]]] = deque()
    # Spawned, since a fork of a process with threads, as PyTorch has, may hang.
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
                "a worker process of data pack ended unexpectedly: either the memory is full, or a script called pack outside "
                'of `if __name__ == "__main__":`; use workers=1 to pack without worker processes'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """In a worker: exit when the process that started it ends, even if that is killed."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
