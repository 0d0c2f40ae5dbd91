"""Recognises files and folders that are not snapshots, and says what they are and what to do instead."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fewstep.runtime.files import listed, read_json, regular

TAKE_SNAPSHOT = "take the author's network-snapshot-*.pkl, which has the architecture, too"

BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": "a Git-LFS pointer in the place of the file; run `git lfs pull` in its clone",
    b"\x1f\x8b": "compressed by gzip; unpack it first: gunzip",
    b"BZh": "compressed by bzip2; unpack it first: bunzip2",
    b"\xfd7zXZ\x00": "compressed by xz; unpack it first: unxz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first: unzstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it and name the snapshot in it",
    b"Rar!": "a RAR archive; unpack it and name the snapshot in it",
    b"\x93NUMPY": "an array of NumPy, not a network",
    b"\x89HDF": f"an HDF5 file; {TAKE_SNAPSHOT}",
    b"GGUF": f"a GGUF file; {TAKE_SNAPSHOT}",
    b"\x89PNG": "an image, not a network",
    b"\xff\xd8\xff": "an image, not a network",
    b"%PDF": "a PDF document, not a network",
}

PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--", b"<error")


def is_page(head: bytes) -> bool:
    """Whether a file that begins like this is a web page, which servers send instead of a file that they refuse."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGES)


def describe_file(path: Path) -> str | None:
    """What a file is and what to do, as the end of a sentence; None if it may be a pickle or a file of torch.save."""
    with regular(path).open("rb") as file:
        head = file.read(1024)
    if not head:
        return "empty; get it again"
    if is_page(head):
        return "a web page; its address leads to a page about the file, or to an error: take the address of the file itself"
    if known := [what for beginning, what in BEGINNINGS.items() if head.startswith(beginning)]:
        return known[0]
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and name the snapshot in it"
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < path.stat().st_size:
        return describe_safetensors(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return describe_zip(path)
    return describe_text(head)


def describe_safetensors(path: Path) -> str:
    """What to do with a safetensors file, which has no architecture."""
    if (path.parent / "config.json").is_file() and path.name == "model.safetensors":
        return f"part of a folder; if that is a model of fewstep, use it as it is: fewstep sample {path.parent}"
    return f"a safetensors file, tensors without an architecture; {TAKE_SNAPSHOT}"


def describe_zip(path: Path) -> str | None:
    """What a zip holds; None if torch.save wrote it, or if it is damaged, which the reader reports."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return None
    roots = {name.partition("/")[0] for name in names if name.count("/") == 1 and name.endswith("/data.pkl")}
    if any(f"{root}/constants.pkl" in names for root in roots):
        return f"a TorchScript program; {TAKE_SNAPSHOT}"
    if roots or "data.pkl" in names:
        return None
    shown = listed([name[:60] for name in names]) or "nothing"
    if names and all(name.endswith(".npy") for name in names):
        return f"arrays of NumPy ({shown}), not a network"
    return f"a zip archive of {shown}; unpack it and name the snapshot in it"


def describe_text(head: bytes) -> str | None:
    """What a text is; None for binary data and for pickles of protocol 0, which are texts of one word a line."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = head[: error.start].decode()
    if not all(c.isprintable() or c in "\n\r\t" for c in text):
        return None
    if text.lstrip().startswith(("{", "[")):
        return f"a JSON text, not a network; {TAKE_SNAPSHOT}"
    words = text.split("\n", 1)[0].split()
    return f"a text that begins with {' '.join(words)[:60]!r}, not a network" if len(words) > 1 else None


def describe_folder(folder: Path) -> str:
    """Describe a folder that was named in place of a file, and say what to do."""
    if (folder / "model_index.json").is_file() or list(folder.glob("*/diffusion_pytorch_model*")):
        return "a pipeline of diffusers, whose networks have other architectures; convert reads the authors' pickles"
    config = folder / "config.json"
    about = read_json(config) if config.is_file() else None
    if isinstance(about, dict) and about.get("format") == "fewstep-model":
        return f"a model folder already; use it as it is: fewstep sample {folder}"
    if isinstance(about, dict) and "_class_name" in about:
        return "a model of diffusers, of another architecture; convert reads the authors' pickles"
    if snapshots := sorted(p.name for p in folder.glob("*.pkl")):
        return f"a folder; name one of its files: {listed(snapshots)}"
    return "a folder; name the file in it, as network-snapshot-*.pkl"


def refuse_foreign(path: Path) -> None:
    """Raise ValueError, saying what it is, for a folder and for a file that cannot be a snapshot."""
    if path.is_dir():
        raise ValueError(f"{path} is {describe_folder(path)}")
    if what := describe_file(path):
        raise ValueError(f"{path} is {what}")
