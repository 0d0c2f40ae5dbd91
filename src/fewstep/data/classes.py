"""The classes of image files: from `dataset.json`, as StyleGAN and EDM have it, or from the top-level folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from fewstep.data.files import Files
from fewstep.runtime.archives import check_json

MAX_CLASSES = 2**20
SHOWN = 5
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""Names of folders that are splits of a data set rather than classes."""


class LabelError(ValueError):
    """The classes cannot be used, while the images may be fine."""


class Labels(NamedTuple):
    """The classes of files, in the order of their names."""

    indices: list[int]
    num_classes: int
    class_names: list[str] | None


def describe_classes(labels: Labels | None, names: Sequence[str]) -> str:
    """A description of the classes of files for people, or why there are none."""
    if labels is not None:
        return class_list(labels.num_classes, labels.class_names)
    tops, subfolders = {name.partition("/")[0] for name in names}, {name.rpartition("/")[0] for name in names}
    if len(tops) == 1 and len(subfolders) > 1:
        return f"no classes, for all lie in one folder; name {tops.pop()}/ itself to have the folders in it as classes"
    return "no classes"


def class_list(n: int, names: Sequence[str] | None) -> str:
    """The number of classes and the first names."""
    if names is None:
        return f"classes 0 to {n - 1}"
    return f"{n:,} classes: {', '.join(names[:SHOWN])}{', ...' if n > SHOWN else ''}"


def read_labels(files: Files) -> Labels | None:
    """The classes from `dataset.json`, else from the top-level folders; None if there are none.

    `dataset.json` is {"labels": null | [[path, class], ...]}, and optionally {"class_names": [...]}. Without it, more
    than one top-level folder makes classes of the sorted folder names.
    """
    if "dataset.json" in files:
        where = f"{files.path}/dataset.json"
        if files.path.is_file():
            check_json(files.signature("dataset.json")[0], files.path.stat().st_size, where)
        return parse_labels(files.read("dataset.json"), files.names, where)
    return folder_labels(files.names, files.folders, str(files.path))


def folder_labels(names: Sequence[str], folders: Sequence[str], where: str) -> Labels | None:
    """Classes of top-level folders; None if images lie in no more than one of `folders`."""
    used = {name.partition("/")[0] for name in names if "/" in name}
    if len(used) < 2:
        return None
    if used <= SPLITS:
        parts = sorted(used)
        raise LabelError(
            f"{where}: {', '.join(parts)} are parts of a data set, not classes; name one of them, such as "
            f'{where}/{parts[0]}, or write a dataset.json with {{"labels": null}} to have all without classes'
        )
    if empty := [folder for folder in folders if folder not in used]:
        raise LabelError(
            f"{where}/{empty[0]}: expected images, as in the {len(used)} other folders, which are classes; remove it, or "
            'write a dataset.json with {"labels": null} if the folders are no classes'
        )
    stray = next((name for name in names if "/" not in name), None)
    if stray is not None:
        raise LabelError(
            f"{where}/{stray}: expected every image in one of the {len(used)} class folders; move it there, or "
            'write a dataset.json with {"labels": null} if the folders are no classes'
        )
    classes = sorted(used)
    position = {folder: i for i, folder in enumerate(classes)}
    return Labels([position[name.partition("/")[0]] for name in names], len(classes), classes)


def parse_labels(data: bytes, names: Sequence[str], where: str) -> Labels | None:
    """The classes of the files `names` by the content of a `dataset.json`, which may list more files; None if it has none."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{where}: expected JSON; {error}") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise LabelError(f'{where}: expected {{"labels": null}} or {{"labels": [[path, class], ...]}}')
    if content["labels"] is None:
        return None
    class_names = content.get("class_names")
    if class_names is not None and not (
        isinstance(class_names, list) and all(isinstance(name, str) for name in class_names)
    ):
        raise LabelError(f"{where}: class_names must be a list of strings")
    if not isinstance(content["labels"], list):
        raise LabelError(f"{where}: labels must be null or a list of [path, class]")
    given: dict[str, Any] = {}
    for entry in content["labels"]:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise LabelError(f"{where}: expected [path, class]; got {str(entry)[:100]}")
        if entry[0] in given:
            raise LabelError(f"{where}: {entry[0]} has two labels")
        given[entry[0]] = entry[1]
    missing = next((name for name in names if name not in given), None)
    if missing is not None:
        raise LabelError(f"{where}: {missing} has no label; add one, or set labels to null")
    if len(kinds := {type(label).__name__ for label in given.values()}) > 1:
        raise LabelError(f"{where}: labels must be of one kind; got {', '.join(sorted(kinds))}")
    if given and class_names is None and kinds == {"str"}:
        class_names = sorted_class_names(given, where)
    width = {len(label) for label in given.values() if isinstance(label, list)}
    known = None if class_names is None else {name: i for i, name in reversed([*enumerate(class_names)])}
    limit = len(class_names) if class_names is not None else width.pop() if len(width) == 1 else MAX_CLASSES
    labels = {name: class_index(label, known, limit, f"{where}: {name}") for name, label in given.items()}
    # A subset keeps the classes of the whole.
    num_classes = limit if known is not None or limit < MAX_CLASSES else max(labels.values(), default=-1) + 1
    return Labels([labels[name] for name in names], num_classes, class_names)


def sorted_class_names(given: dict[str, str], where: str) -> list[str]:
    """The classes of labels that are text, sorted."""
    found = sorted(set(given.values()))
    if all(name.isdecimal() for name in found):
        raise LabelError(f'{where}: the labels are numbers as text, such as "{found[0]}"; write them without quotes')
    return found


def class_index(label: Any, known: dict[str, int] | None, limit: int, where: str) -> int:
    """The class that a label names: an integer, a name that is `known`, or a list of zeros with a single one (one-hot)."""
    if isinstance(label, str) and known is not None:
        if label not in known:
            raise LabelError(f"{where}: the class {label[:100]!r} is not in class_names")
        return known[label]
    if isinstance(label, list):
        if len(label) != limit or label.count(1) != 1 or label.count(0) != limit - 1:
            raise LabelError(f"{where}: a class as a list is all zeros but for a single one; got {str(label)[:100]}")
        return label.index(1)
    if type(label) is not int or not 0 <= label < limit:
        raise LabelError(f"{where}: the class must be an integer in [0, {limit}); got {str(label)[:100]}")
    return label
