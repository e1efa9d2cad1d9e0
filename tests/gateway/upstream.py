"""Gateways in front of other servers: AIRI itself, or one that does whatever a test wants of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from airi.gateway.options import AppOptions, ServerOptions, UpstreamModel
from airi.upstreams.options import UpstreamOptions

from .conftest import Govern, _ungoverned, gateway_thread

CHAT: dict[str, Any] = {"model": "far", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def chunk(text: str | None = None, *, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    """An event of a streamed chat."""
    delta = {} if text is None else {"content": text}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event({"choices": [choice], **more})


def event(payload: Any) -> bytes:
    """An event with a JSON payload."""
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def usage(prompt: int, completion: int) -> bytes:
    """The event behind all choices."""
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


DONE = b"data: [DONE]\n\n"
GOOD = STREAM + chunk("Hello ") + chunk("there") + chunk(finish="stop") + usage(11, 2) + DONE


def status(code: int, body: bytes = b"{}", **headers: str) -> bytes:
    """A whole response."""
    lines = [f"HTTP/1.1 {code} X", f"content-length: {len(body)}", "content-type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join([*lines, "connection: close"]) + "\r\n\r\n").encode() + body


@dataclass
class Asked:
    """One request that came."""

    head: str
    body: Any


Say = Callable[["Connection"], None]


@dataclass
class Connection:
    """What a script answers on."""

    socket: socket.socket
    asked: Asked
    server: HostileServer

    def send(self, data: bytes) -> None:
        """Bytes, as they are."""
        self.socket.sendall(data)

    def hang(self) -> None:
        """Says nothing more until the other side hangs up, or the test is over."""
        self.socket.settimeout(0.05)
        while not self.server.over.is_set():
            try:
                if not self.socket.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.server.hung_up.set()


@dataclass
class HostileServer:
    """Answers POSTs by a script, one entry for each, the last for all that follow; GETs with an empty list."""

    script: list[bytes | Say]
    asked: list[Asked] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    hung_up: threading.Event = field(default_factory=threading.Event)
    """Somebody has closed a connection that `hang` was on."""
    port: int = 0

    @property
    def url(self) -> str:
        """What clients take for its base."""
        return f"http://127.0.0.1:{self.port}/v1"

    def handle(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the other side may have hung up
            self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        text = head.decode().lower()
        if text.startswith("get"):
            connection.sendall(status(200, b'{"data": []}'))
            return
        length = int(text.partition("content-length: ")[2].partition("\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        said = self.script[min(len(self.asked), len(self.script) - 1)]
        asked = Asked(head.decode(), json.loads(body))
        self.asked.append(asked)
        if isinstance(said, bytes):
            connection.sendall(said)
        else:
            said(Connection(connection, asked, self))


@contextmanager
def hostile(*script: bytes | Say) -> Iterator[HostileServer]:
    """A server that answers by a script."""
    server = HostileServer(list(script))
    listener = socket.create_server(("127.0.0.1", 0))
    server.port = listener.getsockname()[1]
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=server.handle, args=(connection,))
            thread.start()
            threads.append(thread)

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield server
    finally:
        server.over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


def far(base_url: str, **options: Any) -> UpstreamModel:
    """The model `far`, which is `tiny` there; times are short."""
    short = {
        "connect_timeout_s": 5.0,
        "first_token_timeout_s": 20.0,
        "idle_timeout_s": 20.0,
        "timeout_s": 40.0,
    }
    given: dict[str, Any] = {"name": "far", "model": "tiny", "max_retries": 0} | short | options
    return UpstreamModel(
        options=UpstreamOptions(base_url=base_url, **given), aliases=("far-alias",), max_model_len=512
    )


@contextmanager
def front(
    *upstreams: UpstreamModel,
    endpoint: str | None = None,
    govern: Govern = _ungoverned,
    app: AppOptions | None = None,
) -> Iterator[httpx.Client]:
    """A client of a gateway with these models, and those of the engine at `endpoint`."""
    in_order = tuple(replace(each, place=i) for i, each in enumerate(upstreams))
    options = ServerOptions(port=0, app=app or AppOptions(), upstreams=in_order)
    with gateway_thread(endpoint, options, govern) as (listening, _):
        headers = {} if app is None or not app.api_keys else {"authorization": f"Bearer {app.api_keys[0]}"}
        with httpx.Client(base_url=listening.url, timeout=60, headers=headers) as http:
            yield http


def ask(http: httpx.Client, **changes: Any) -> httpx.Response:
    """A chat, whole."""
    return http.post("/v1/chat/completions", json=CHAT | changes)


def content(response: httpx.Response) -> str:
    """Of a whole chat's only message."""
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text
