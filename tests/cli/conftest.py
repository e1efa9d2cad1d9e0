"""The command line in this process, its model, and a server that answers as OpenAI's does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airi.cli import main
from tests.llm.fake_engine import FakeEngine, make_folder


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def airi(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `airi` with arguments."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Result:
        code = main(arguments)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def _fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airi.engine.Engine", FakeEngine)


@dataclass
class StubServer:
    """What a server should answer, and what it was asked."""

    url: str = ""
    status: int = 200
    code: str | None = None
    """Of the error where the status is another."""
    models: list[str] = field(default_factory=lambda: ["stub-1", "stub-2"])
    words: list[str] = field(default_factory=lambda: ["Hel", "lo ", "there."])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    chunked: bool = True
    error_event: bool = False
    page: bytes | None = None
    """What a GET is answered with instead of the models."""
    page_status: int = 200
    paths: list[str] = field(default_factory=list)
    """Of GETs."""
    cut_after: int | None = None
    """Hang up after so many words."""


class _Handler(BaseHTTPRequestHandler):
    stub: StubServer

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.stub.keys.append(self.headers.get("Authorization"))
        self.stub.paths.append(self.path)
        models = json.dumps({"data": [{"id": name} for name in self.stub.models]}).encode()
        self._send(self.stub.page_status, models if self.stub.page is None else self.stub.page)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.stub.bodies.append({"path": self.path, **body})
        if self.stub.status != 200:
            self._send(
                self.stub.status,
                json.dumps({"error": {"message": "not today", "code": self.stub.code}}).encode(),
            )
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked" if self.stub.chunked else "identity")
        self.send_header("Connection", "close")
        self.end_headers()
        for word in self.stub.words[: self.stub.cut_after]:
            chat = self.path.endswith("/chat/completions")
            self._event({"choices": [{"delta": {"content": word}} if chat else {"text": word}]})
        if self.stub.cut_after is not None:
            return
        if self.stub.error_event:
            self._event({"error": {"message": "engine died"}})
        else:
            self._event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}})
        self._write(b"data: [DONE]\n\n")
        self._write(b"")

    def _event(self, event: dict[str, Any]) -> None:
        data = f"data: {json.dumps(event)}\n\n".encode()
        self._write(data[:9])  # an event cut into two chunks
        self._write(data[9:])

    def _write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if self.stub.chunked else data)
        self.wfile.flush()

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[StubServer]:
    stub = StubServer()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": stub}))
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stub.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield stub
    httpd.shutdown()
    thread.join()
    httpd.server_close()
