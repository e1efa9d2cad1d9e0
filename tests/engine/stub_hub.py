"""A Hugging Face hub on loopback: the few endpoints that huggingface_hub asks for a snapshot, from local folders."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class StubHub:
    """What the server knows and what it was asked."""

    url: str
    revisions: dict[tuple[str, str], Path] = field(default_factory=dict)
    """(repository, revision) -> folder."""
    fetched: list[str] = field(default_factory=list)
    """Files whose content was sent, in order."""
    drops: str | None = None
    """A file that breaks off in its middle, and is not answered for again."""

    def find(self, repo: str, revision: str) -> tuple[Path, str] | None:
        """The folder and commit of a branch, tag or commit."""
        for (known, name), folder in self.revisions.items():
            sha = hashlib.sha1(f"{known}@{name}".encode()).hexdigest()
            if known == repo and revision in (name, sha):
                return folder, sha
        return None


@contextmanager
def serve_stub_hub() -> Iterator[StubHub]:
    """Runs a hub for the duration of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = StubHub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._fail("EntryNotFound", "no such path")

    do_HEAD = do_GET

    def _info(self, repo: str, revision: str) -> None:
        hub: StubHub = self.server.hub
        found = hub.find(repo, revision)
        if found is None:
            known = any(repo == name for name, _ in hub.revisions)
            self._fail("RevisionNotFound" if known else "RepoNotFound", "not found")
            return
        folder, sha = found
        siblings = [{"rfilename": str(path.relative_to(folder))} for path in _files(folder)]
        self._json(
            {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "private": False, "tags": []}
        )

    def _tree(self, repo: str, revision: str) -> None:
        found = self.server.hub.find(repo, revision)
        if found is None:
            self._fail("RevisionNotFound", "not found")
            return
        entries = [
            {
                "type": "file",
                "path": str(path.relative_to(found[0])),
                "size": path.stat().st_size,
                "oid": _etag(path),
            }
            for path in _files(found[0])
        ]
        self._json(entries)

    def _file(self, repo: str, revision: str, name: str) -> None:
        found = self.server.hub.find(repo, revision)
        path = found[0] / name if found else None
        if found is None or path is None or not path.is_file():
            self._fail("EntryNotFound", "no such file")
            return
        body = path.read_bytes()
        if self.command == "GET":
            again = name in self.server.hub.fetched
            self.server.hub.fetched.append(name)
            if name == self.server.hub.drops:
                self._break_off(body, answer=not again)
                return
        self._send(200, body, {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": found[1]})

    def _fail(self, code: str, message: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _break_off(self, body: bytes, *, answer: bool) -> None:
        if answer:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Silence: the tests read `StubHub.fetched`."""


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
