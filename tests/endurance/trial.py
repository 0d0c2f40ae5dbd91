"""A command that is killed or fails: the old output or the new one is there, whole, and the command can be repeated.

Each command replaces what an earlier one wrote from other weights or data. After a fault, its output must be the earlier
one or the new one, and its inputs unchanged. The same command again must write the new one and leave nothing else.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fewstep.runtime.files import PARTIAL
from tests.endurance import hub_client
from tests.endurance.commands import call, ended, finish, forked, warm, words_of
from tests.faults import with_fault

FAULTS = (0, errno.EIO, errno.ENOSPC)
SYSTEM_CALLS = "write,pwrite64,writev,fsync,ftruncate,rename,renameat,renameat2,mkdir,unlink,unlinkat,rmdir,link,chmod"
NETWORK_CALLS = "connect,sendto,recvfrom"
INJECTIONS = ("error=EIO", "error=ENOSPC", "signal=KILL")
VOLATILE = re.compile(rb'"(seconds|[a-z_]*_seconds|images_per_second)": [^,\n]*|[0-9]+(\.[0-9]+)? (ms|s|min)\b')
"""What differs between two runs of one command."""
OURS = {"said", "trace", "saved", "cache", hub_client.PORT}
PIECEMEAL: tuple[str, ...] = ("sample folder",)
"""Commands that replace their files one by one."""


def outputs(folder: Path, kind: str) -> list[Path]:
    """Files and folders that a command wrote, whole or not."""
    if kind == "report":  # into the folder that it reads
        return sorted(p for v in ("a", "b") for p in (folder / f"run-{v}").glob("*report*"))
    return sorted(folder.glob("*out*"))


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def content(path: Path) -> bytes:
    """The content of a file without what differs from run to run; of a page, whether it is whole."""
    data = path.read_bytes()
    if path.suffix == ".html":
        return b"whole" if b"</html>" in data else b"torn"
    return VOLATILE.sub(b"", data)


def written(folder: Path, kind: str, *, hidden: bool = False) -> dict[str, bytes]:
    """What a command wrote, by name. hidden: also what may be left half-written."""
    names = {str(p.relative_to(folder)): p for path in outputs(folder, kind) for p in files(path)}
    left = {n for n in names if any(PARTIAL.fullmatch(part) or ".old-" in part for part in Path(n).parts)}
    return {n: content(p) for n, p in names.items() if hidden or n not in left}


class Trial:
    """A command in a folder, with its old and its new output. Use as a context manager."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind, self.saved = folder, kind, folder / "saved"
        self.open = ExitStack()
        self.clear()
        if kind == "push":
            self.serve()
        warm(folder, kind, "b")
        self.old = written(folder, kind)
        for path in outputs(folder, kind):
            copy(path, self.saved / path.relative_to(folder))
        self.inputs = self.others()
        self.seconds = finish(folder, kind, "a")
        self.new = written(folder, kind)
        self.repeated: set[str] = set()
        if not self.new or self.new == self.old:
            raise AssertionError(f"{kind} wrote nothing, or the same of different inputs: {sorted(self.new)}")

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()
        self.clear()
        shutil.rmtree(self.saved)

    def serve(self) -> None:
        """Start the hub."""
        begun, ready = os.pipe()
        pid = forked(partial(hub_client.serve, self.folder, ready))
        self.open.callback(os.waitpid, pid, 0)
        self.open.callback(os.kill, pid, signal.SIGKILL)
        os.close(ready)
        os.read(begun, 1)
        os.close(begun)

    def clear(self) -> None:
        for path in outputs(self.folder, self.kind):
            remove(path)

    def before(self) -> None:
        """The output of the other version."""
        self.clear()
        for path in outputs(self.saved, self.kind):
            copy(path, self.folder / path.relative_to(self.saved))

    def others(self) -> dict[str, tuple[int, int, int]]:
        """Identity, size and time of every file that is no output."""
        mine = {p for path in outputs(self.folder, self.kind) for p in files(path)}
        found = [p for path in self.folder.iterdir() if path.name not in OURS for p in files(path) if p not in mine]
        stats = {str(p.relative_to(self.folder)): p.stat() for p in found}
        return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats.items()}

    def state(self) -> str:
        """A hash of all that a command finds besides its inputs; temporary folders count by their content alone."""
        found = [*outputs(self.folder, self.kind), self.folder / "cache"]
        paths = {p for path in found for p in [path, *path.rglob("*")] if path.exists()}
        names = {p: [re.sub(r"(partial|old)-\w+", r"\1", part) for part in p.parts] for p in paths}
        parts = sorted((names[p], content(p) if p.is_file() else b"") for p in paths)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def check(self, what: str) -> None:
        """Nothing is lost, and the command can be repeated.

        Repeating it is a function of what it finds, so that it is repeated once for each state of the folder.
        """
        if self.kind == "push":
            hub_client.settle(self.folder)
        found = written(self.folder, self.kind)
        lost = sorted(self.old.keys() - found.keys())
        torn = [n for n in found.keys() & {*self.old, *self.new} if found[n] not in (self.old.get(n), self.new.get(n))]
        if lost or torn:
            raise AssertionError(f"{self.kind}, {what}: lost {lost[:3]}, torn {torn[:3]} in {self.folder}")
        if found not in (self.old, self.new) and self.kind not in PIECEMEAL:
            raise AssertionError(f"{self.kind}, {what}: files of both versions, or others, in {self.folder}")
        if changed := sorted(name for name, _ in self.inputs.items() ^ self.others().items()):
            raise AssertionError(f"{self.kind}, {what}: changed or left {changed[:3]} in {self.folder}")
        if (state := self.state()) in self.repeated:
            return
        finish(self.folder, self.kind, "a")
        if (again := written(self.folder, self.kind, hidden=True)) != self.new:
            different = sorted(n for n in {*again, *self.new} if again.get(n) != self.new.get(n))
            raise AssertionError(f"{self.kind}, {what}: the same command again leaves {different[:3]} in {self.folder}")
        self.repeated.add(state)

    def killed(self, moments: random.Random) -> None:
        """At a random moment."""
        self.before()
        pid = forked(partial(call, self.folder, words_of(self.kind, "a")))
        time.sleep(moments.uniform(0, self.seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.check("killed")

    def faulty(self, number: int, fault: int) -> bool:
        """At its change of files of this number, see `faults.with_fault`; False if there are fewer."""
        self.before()
        code = with_fault(partial(call, self.folder, words_of(self.kind, "a")), number, fault)
        self.check(f"{errno.errorcode.get(fault, 'SIGKILL')} at change {number}")
        return code is not None

    def system_calls(self) -> list[tuple[str, int]]:
        """Name and number, among those of the same name and thread, of each system call that writes or sends."""
        self.before()
        log, _ = self.traced([])
        self.check("traced")
        seen: Counter[tuple[str, str]] = Counter()
        calls: list[tuple[str, int]] = []
        for thread, name in re.findall(r"^(\d*) *(\w+)\(", log, re.MULTILINE):
            seen[thread, name] += 1
            calls.append((name, seen[thread, name]))
        return calls

    def faulty_call(self, name: str, number: int, fault: str) -> bool:
        """With a fault at a system call of this name and number; whether it came to that."""
        self.before()
        log, code = self.traced(["-e", f"inject={name}:{fault}:when={number}"])
        self.check(f"{fault} at {name} {number}")
        return "INJECTED" in log or code == -signal.SIGKILL

    def traced(self, options: list[str]) -> tuple[str, int]:
        """Run the command in a fork that strace is attached to; returns what strace wrote and the exit code."""
        log = self.folder / "trace"
        calls = SYSTEM_CALLS + ("," + NETWORK_CALLS if self.kind == "push" else "")
        pid = forked(partial(call_when_traced, self.folder, words_of(self.kind, "a")))
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={calls}", *options, "-p", str(pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        code = ended(pid)
        error = tracer.communicate()[1]
        if code == NOT_TRACED:
            raise AssertionError(f"strace could not be attached: {error.strip()}")
        return log.read_text(errors="replace"), code


NOT_TRACED = 77


def call_when_traced(folder: Path, words: list[str]) -> None:
    """Run a command once a tracer is attached to this process."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1 & 0xFFFFFFFFFFFFFFFF), 0, 0, 0)  # PR_SET_PTRACER: any process
    began = time.monotonic()
    while re.search(r"TracerPid:\s+0\n", Path("/proc/self/status").read_text()):
        if time.monotonic() - began > 60:
            os._exit(NOT_TRACED)
        time.sleep(0.001)
    time.sleep(0.01)  # until the tracer listens
    call(folder, words)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
