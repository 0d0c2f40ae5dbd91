"""A small Hugging Face hub on the loopback: repositories are folders, and faults are chosen by path."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fewstep.runtime.files import new_folder

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """A server of repositories.

    Attributes:
        root: holds OWNER/NAME/FILE.
        faults: what happens to paths that contain a word: an HTTP status; "flip", a bit of the body is wrong; "half", the
            body breaks off; "more", a larger length is declared; "loop", a redirection to itself; "away", one to ftp.
        listed: names of files that every repository claims to have besides its own.
        requests: the paths that were asked for.
        writable: whether it creates repositories and accepts commits, each of which appears as a whole.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.faults: dict[str, int | str] = {}
        self.listed: list[str] = []
        self.requests: list[str] = []
        self.writable = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that hang up are expected; print nothing."""


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride] - no other server has this handler

    def do_GET(self):
        self.server.requests.append(self.path)
        path = self.path.partition("?")[0].removeprefix("/")
        fault = next((fault for word, fault in self.server.faults.items() if word in path), None)
        if isinstance(fault, int):
            return self.answer(b'{"error": "on purpose"}', fault)
        if path.startswith("api/models/"):
            return self.listing(*path.split("/")[2:5])
        if path.startswith("store/"):
            return self.file(self.server.root / path.removeprefix("store/"), fault)
        owner, name, _, _, *rest = path.split("/")
        file = self.server.root / owner / name / "/".join(rest)
        if not file.is_file():
            return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        if fault in ("loop", "away"):
            target = f"/{path}" if fault == "loop" else "ftp://127.0.0.1/x"
        elif file.suffix == ".safetensors":
            # another host, as the hub's store is, which the client does not follow when it asks for the hash
            target = f"http://localhost:{self.server.server_port}/store/{owner}/{name}/{'/'.join(rest)}"
        else:
            return self.file(file, fault, self.about(file))
        return self.answer(b"", 302, {"Location": target, **self.about(file)})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if not self.server.writable:
            return self.answer(b'{"error": "read-only"}', 403)
        if len(body) < length:
            return None  # the client has gone
        path = self.path.removeprefix("/api/")
        if path == "validate-yaml":
            return self.answer(b'{"errors": [], "warnings": []}')
        if path == "repos/create":
            about = json.loads(body)
            (self.server.root / about["organization"] / about["name"]).mkdir(parents=True, exist_ok=True)
            return self.answer(
                json.dumps({"url": f"{self.server.address}/{about['organization']}/{about['name']}"}).encode()
            )
        _, owner, name, verb, _ = path.split("/")
        if verb == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer(json.dumps({"files": modes}).encode())
        self.commit(self.server.root / owner / name, [json.loads(line) for line in body.splitlines()])
        about = {
            "success": True,
            "commitOid": COMMIT,
            "commitUrl": f"{self.server.address}/{owner}/{name}/commit/{COMMIT}",
        }
        return self.answer(json.dumps(about).encode())

    def commit(self, folder: Path, lines: list[dict]) -> None:
        """Add the files of a commit to those of a repository, all at once."""
        added = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
        names = {p.name for p in folder.iterdir()} | set(added)
        with new_folder(folder, names) as new:
            shutil.copytree(folder, new, dirs_exist_ok=True)
            for name, file in added.items():
                (new / name).write_bytes(base64.b64decode(file["content"]))

    def about(self, file: Path) -> dict[str, str]:
        data = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{blob_id(data)}"'}
        if file.suffix == ".safetensors":
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        return headers

    def listing(self, owner: str, name: str, kind: str = "") -> None:
        folder = self.server.root / owner / name
        if not folder.is_dir():
            return self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        files = [(p.name, p.read_bytes()) for p in sorted(folder.iterdir())]
        files += [(listed, b"") for listed in self.server.listed]
        if kind != "tree":
            about = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": n} for n, _ in files]}
            return self.answer(json.dumps(about).encode())
        tree = []
        for path, data in files:
            entry = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
            if path.endswith(".safetensors"):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            tree.append(entry)
        return self.answer(json.dumps(tree).encode())

    def file(self, path: Path, fault: int | str | None, headers: dict[str, str] | None = None) -> None:
        data = path.read_bytes()
        length = len(data) + (100 if fault == "more" else 0)
        if fault == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault == "half":
            data = data[: len(data) // 2]
        self.answer(data, 200, {**(headers or {}), "Content-Length": str(length)})

    def answer(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format, *args):
        pass


def blob_id(data: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
