"""Calls of HTTP routes within the process, as a client would make them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import quote

from airi.gateway.middleware import ASGIApp

__all__ = ["Answered", "ask"]


class Answered(NamedTuple):
    """What a route has answered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


async def ask(
    app: ASGIApp,
    method: str,
    path: str,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    *,
    client: str,
    is_secure: bool,
) -> Answered:
    """The answer of the application to a request; cancelled, the client has hung up. `path` is not escaped."""
    received = False
    status, told = 500, list[tuple[bytes, bytes]]()
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        nonlocal received
        if received:
            await asyncio.get_running_loop().create_future()  # it stays until it is answered
        received = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, told
        if message["type"] == "http.response.start":
            status, told = message["status"], list(message["headers"])
        else:
            parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "2",
        "method": method,
        "scheme": "https" if is_secure else "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*headers, (b"content-length", str(len(body)).encode())],
        "client": (client, 0),
        "server": None,
    }
    await app(scope, receive, send)
    return Answered(status, told, b"".join(parts))
