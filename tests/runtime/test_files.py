"""Nothing is half-written: at every moment of a write, and after every fault in it, the old or the new is there."""

from __future__ import annotations

import errno
import json
import os
import signal
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from fewstep.runtime import files, locks
from fewstep.runtime.files import PARTIAL, clear, clear_once, new_file, new_folder, recover
from tests.faults import with_fault

NAMES = ("a", "b")


def write_folder(path: Path, text: str) -> None:
    clear_once.cache_clear()
    with new_folder(path, NAMES) as folder:
        for name in NAMES:
            (folder / name).write_text(text)


def write_file(path: Path, text: str) -> None:
    clear_once.cache_clear()
    with new_file(path) as temporary:
        temporary.write_text(text)


def read_folder(path: Path) -> list[str]:
    return [(path / name).read_text() for name in sorted(p.name for p in path.iterdir())]


@pytest.fixture(params=["one step", "two renames"])
def renames(request, monkeypatch):
    """With the system's exchange, and on a file system that has none."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "exchange", lambda a, b: False)
    return request.param


def test_a_folder_is_exchanged(tmp_path, renames):
    for text in ("old", "new", "newer"):
        write_folder(tmp_path / "model", text)
        assert read_folder(tmp_path / "model") == [text, text]
        assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_exchange_is_one_step(tmp_path):
    """On the file system of the tests; where it is none, the two renames are tested above all the same."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not files.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system exchanges nothing in one step")
    assert [(tmp_path / name / "file").read_text() for name in NAMES] == ["b", "a"]
    with pytest.raises(OSError, match="No such file"):
        files.exchange(tmp_path / "a", tmp_path / "missing")


@pytest.mark.parametrize("fault", [0, errno.EIO, errno.ENOSPC])
def test_a_fault_at_any_moment_loses_no_folder(tmp_path, renames, fault):
    path, number = tmp_path / "model", 0
    write_folder(path, "old")
    for number in count():
        code = with_fault(partial(write_folder, path, "new"), number, fault)
        if code is None:
            break
        if not fault:
            assert code == -signal.SIGKILL
        recover(path)
        assert read_folder(path) in (["old", "old"], ["new", "new"])
        assert code == 0 or fault == 0 or code == fault
        write_folder(path, "old")
        assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert number > 3


@pytest.mark.parametrize("fault", [0, errno.EIO, errno.ENOSPC])
def test_a_fault_at_any_moment_loses_no_file(tmp_path, fault):
    path, number = tmp_path / "x.json", 0
    write_file(path, "old")
    for number in count():
        if with_fault(partial(write_file, path, "new"), number, fault) is None:
            break
        assert path.read_text() in ("old", "new")
        write_file(path, "old")
        assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert number > 2


def test_an_exchange_that_fails_leaves_the_old_folder(tmp_path, renames, monkeypatch):
    write_folder(tmp_path / "model", "old")
    rename = os.rename

    def fails(a, b):
        if PARTIAL.fullmatch(Path(a).name):
            raise OSError(errno.EIO, "Input/output error", a)
        rename(a, b)

    def broken(a, b):
        raise OSError(errno.EIO, "Input/output error", str(b))

    monkeypatch.setattr(os, "rename", fails)
    if renames == "one step":
        monkeypatch.setattr(files, "exchange", broken)
    with pytest.raises(OSError, match="Input/output error") as error:
        write_folder(tmp_path / "model", "new")
    assert error.value.filename == str(tmp_path / "model")
    assert read_folder(tmp_path / "model") == ["old", "old"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_has_nothing_half_written_in_it(tmp_path, monkeypatch):
    """What could not be removed within it goes before it is shown, and is no obstacle where an earlier version left it."""
    monkeypatch.setattr(files, "remove", lambda path: None)
    with new_folder(tmp_path / "model", NAMES) as folder, new_file(folder / "a") as temporary:
        temporary.write_text("")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["a"]
    (tmp_path / "model" / ".b.partial-0123abcd").mkdir()
    write_folder(tmp_path / "model", "new")
    assert read_folder(tmp_path / "model") == ["new", "new"]


def test_what_the_killed_left_is_cleared_and_nothing_else(tmp_path):
    """Neither what a living process writes, nor what has another name."""
    for name in (".x.png.partial-0123abcd", ".run.json.partial-77"):
        (tmp_path / name).mkdir()
    (tmp_path / ".x.partial-123").write_text("of a former version")
    kept = [".x.partial", ".partial-1", "x.partial-1", ".x.partial-mine", ".DS_Store"]
    for name in kept:
        (tmp_path / name).write_text("")
    with new_file(tmp_path / "living") as temporary:
        clear(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, temporary.parent.name])
        temporary.write_text("")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "living"])


def test_the_first_write_to_a_folder_clears_it(tmp_path):
    (tmp_path / ".y.partial-0123abcd").mkdir()
    write_file(tmp_path / "x", "")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_link_to_a_folder_is_followed(tmp_path):
    write_folder(tmp_path / "model", "old")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "model")
    write_folder(tmp_path / "elsewhere" / "link", "new")
    assert (tmp_path / "elsewhere" / "link").is_symlink()
    assert read_folder(tmp_path / "model") == ["new", "new"]


# --- locks


def test_one_lock_at_a_time(tmp_path):
    with locks.locked(tmp_path) as mine, locks.locked(tmp_path) as theirs:
        assert (mine, theirs) == (True, False)
    with locks.locked(tmp_path) as mine:
        assert mine


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks(tmp_path, monkeypatch, code):
    def missing(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", missing)
    with locks.locked(tmp_path) as mine:
        assert mine is None
    (tmp_path / ".y.partial-0123abcd").mkdir()
    write_file(tmp_path / "x", "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".y.partial-0123abcd", "x"]  # its process may live


def test_a_lock_file_names_its_owner_and_goes_stale(tmp_path):
    path = tmp_path / ".lock"
    with locks.lock_file(path) as mine, locks.lock_file(path) as theirs:
        assert (mine, theirs) == (True, False)
        assert locks.read_owner(path) == locks.owner()
    assert not path.exists()

    assert with_fault(partial(hold_and_die, path), 10, 0) == -signal.SIGKILL
    assert path.exists()
    with locks.lock_file(path) as mine:
        assert mine
    assert [*tmp_path.iterdir()] == []


def hold_and_die(path: Path) -> None:
    with locks.lock_file(path):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({}, False),
        ({"host": "another"}, False),
        ({"boot": "before"}, True),
        ({"started": "7"}, True),
        ({"pid": 2**22 + 1}, True),
        ({"pid": "none"}, False),
    ],
)
def test_which_lock_files_are_stale(tmp_path, change, free):
    path = tmp_path / ".lock"
    path.write_text(json.dumps(locks.owner() | change))
    with locks.lock_file(path) as mine:
        assert mine is free


def test_what_was_left_is_cleared_in_each_current_folder(tmp_path, monkeypatch):
    """Paths without a folder mean another place after a change of the current one."""
    clear_once.cache_clear()
    for name in ("one", "two"):
        left = tmp_path / name / ".a.partial-0123abcd"
        left.mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        with new_file(Path("b")) as temporary:
            temporary.write_text("whole")
        assert [p.name for p in Path().iterdir()] == ["b"]
