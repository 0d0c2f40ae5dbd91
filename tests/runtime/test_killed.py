"""Commands that are ended by signals, as processes of their own: nothing of them stays, and nothing is lost."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.endurance import commands
from tests.endurance.trial import Trial

SECONDS = 120.0
"""How long anything may take before a test gives up."""


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-m", "fewstep", *command.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(true: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < SECONDS, what
        time.sleep(0.01)


def gone(session: int) -> bool:
    """Whether no process of a session is left; those that ended and were not waited for do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(number) == session and state != "Z":
            return False
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sees processes through /proc")
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_pack_takes_its_processes_with_it(tmp_path, kind):
    np.savez(tmp_path / "x.npz", images=np.zeros((20_000, 16, 16, 3), np.uint8))
    job = start("data pack x.npz x.zip", tmp_path)
    begun = tmp_path.glob
    wait_until(lambda: any(p.stat().st_size for p in begun(".*.partial-*/x.zip")) or job.poll() is not None, "no zip")
    job.send_signal(kind)
    error = job.communicate(timeout=SECONDS)[1]
    assert job.returncode == (143 if kind is signal.SIGTERM else -9)
    assert kind is signal.SIGKILL or re.fullmatch(r"(packing .*\n)?", error)
    wait_until(lambda: gone(job.pid), "processes are left")
    left = [p.name for p in tmp_path.iterdir() if p.name != "x.npz"]
    assert len(left) == (kind is signal.SIGKILL)
    (tmp_path / "x.npz").unlink()
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 16, 16, 3), np.uint8))
    job = start("data pack x.npz x.zip", tmp_path)
    job.communicate(timeout=SECONDS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npz", "x.zip"]


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    commands.world(folder)
    return folder


@pytest.mark.parametrize("kind", commands.COMMANDS)
def test_a_command_loses_nothing(two_versions, kind):
    """Killed at one of its changes of files, and on a disk that is full at another; `make endurance` tries many."""
    moments = random.Random(kind)
    with Trial(two_versions, kind) as trial:
        for fault in (0, errno.ENOSPC):
            trial.faulty(moments.randint(0, 6), fault)


def test_a_fault_that_loses_something_is_found(two_versions):
    """As a writer would be that removes what is there before it writes."""
    with Trial(two_versions, "export") as trial:
        (trial.folder / "out.safetensors").unlink()
        with pytest.raises(AssertionError, match=r"lost \['out.safetensors'\]"):
            trial.check("removed")
        trial.before()
        (trial.folder / "out.safetensors").write_bytes(b"half")
        with pytest.raises(AssertionError, match=r"torn \['out.safetensors'\]"):
            trial.check("torn")
        trial.before()
        (trial.folder / "b.npz").touch()
        with pytest.raises(AssertionError, match=r"changed or left \['b.npz'"):
            trial.check("changed")


def test_what_is_left_is_found(two_versions):
    """Also after the command was repeated from the same output without it."""
    with Trial(two_versions, "export") as trial:
        trial.before()
        trial.check("nothing")
        trial.before()
        (trial.folder / ".out.old-left").write_text("")
        with pytest.raises(AssertionError, match=r"the same command again leaves \['.out.old-left'\]"):
            trial.check("left")


def test_files_of_two_versions_are_found(two_versions):
    """As a hub would have that takes the files one by one."""
    with Trial(two_versions, "push") as trial:
        trial.before()
        name = "out/owner/tiny/model.safetensors"
        (trial.folder / name).write_bytes(trial.new[name])
        with pytest.raises(AssertionError, match="files of both versions"):
            trial.check("half")
