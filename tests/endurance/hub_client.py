"""`push` without `huggingface_hub`: a stand-in for its client that sends over HTTP to `tests.fakehub`, in its own process.

The stand-in sends the same requests for a new repository and a commit as the package does.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socketserver
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.fakehub import Hub

PORT = "hub-port"
"""File with the number of the server's port."""
ERRORS = (
    "GatedRepoError",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "LocalEntryNotFoundError",
    "HFValidationError",
)


class SerialHub(Hub):
    """Answers one request after another, so that whoever is answered knows that earlier ones are through.

    It ends with the process that started it.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.parent = os.getppid()

    def process_request(self, request: Any, client_address: Any) -> None:
        socketserver.BaseServer.process_request(self, request, client_address)

    def service_actions(self) -> None:
        if os.getppid() != self.parent:
            os._exit(0)


def serve(folder: Path, ready: int) -> None:
    """Serve the repositories in `folder`/out for ever; closes the descriptor `ready` once the port is written."""
    server = SerialHub(folder / "out")
    server.writable = True
    (folder / PORT).write_text(str(server.server_port))
    os.close(ready)
    server.serve_forever()


def request(port: int, path: str, blocks: Sequence[bytes] | None = None) -> dict[str, Any]:
    """POST blocks, or GET; returns the JSON of the answer. Raises OSError for a refusal or a broken connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if blocks is None:
        connection.request("GET", path)
    else:
        headers = {"Content-Length": str(sum(map(len, blocks))), "Content-Type": "application/x-ndjson"}
        connection.request("POST", path, body=iter(blocks), headers=headers)
    answer = connection.getresponse()
    if answer.status >= 400:
        raise OSError(f"HTTP {answer.status}")
    return json.loads(answer.read())


def settle(folder: Path) -> None:
    """Wait until the server is through with what a killed client sent."""
    request(int((folder / PORT).read_text()), "/api/models/owner/tiny")


class Client:
    """Stand-in for the parts of `huggingface_hub.HfApi` that `push` uses."""

    def __init__(self, port: int) -> None:
        self.port = port

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        owner, name = repository.split("/")
        about = {"name": name, "organization": owner, "private": private}
        request(self.port, "/api/repos/create", [json.dumps(about).encode()])

    def create_commit(self, repository: str, operations: list[tuple[str, Any]], *, commit_message: str) -> Any:
        lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": commit_message}}]
        for name, content in operations:
            data = content if isinstance(content, bytes) else content.read_bytes()
            value = {"path": name, "content": base64.b64encode(data).decode(), "encoding": "base64"}
            lines.append({"key": "file", "value": value})
        blocks = [json.dumps(line).encode() + b"\n" for line in lines]
        answer = request(self.port, f"/api/models/{repository}/commit/main", blocks)
        return SimpleNamespace(commit_url=answer["commitUrl"])


def install(folder: Path) -> None:
    """Put the stand-in in place of the package, in this process."""
    module, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    port = int((folder / PORT).read_text())
    errors.__dict__.update({name: type(name, (OSError,), {}) for name in ERRORS})
    module.__dict__.update(HfApi=lambda: Client(port), CommitOperationAdd=lambda *operation: operation, errors=errors)
    sys.modules.update({"huggingface_hub": module, "huggingface_hub.errors": errors})
