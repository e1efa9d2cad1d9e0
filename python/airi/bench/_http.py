"""Streamed POSTs on asyncio, of the standard library only; as little work per event as there can be."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from airi.errors import AiriError

__all__ = ["Endpoint"]

_MAX_LINE = 1 << 22


class Endpoint:
    """A server's address; each POST has a connection of its own."""

    def __init__(self, host: str, port: int, *, secure: bool, api_key: str | None) -> None:
        self._host, self._port = host, port
        self._tls = ssl.create_default_context() if secure else None
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = f"Host: {host}:{port}\r\n{key}Content-Type: application/json\r\nConnection: close\r\n"

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The server-sent events of one POST. Raises AiriError for any other answer, OSError without one."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\n{self._headers}Content-Length: {len(data)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=_MAX_LINE)
        try:
            writer.write(head.encode() + data)
            status, headers = await _head(reader)
            if status != 200:
                raise AiriError(f"status {status}: {_message(await reader.read())}")
            async for line in _lines(reader, chunked="chunked" in headers.get("transfer-encoding", "")):
                if line.startswith(b"data:"):
                    payload = line[5:].strip()
                    if payload == b"[DONE]":
                        return
                    yield json.loads(payload)
            raise AiriError("the answer broke off")
        finally:
            writer.close()
            with suppress(OSError, ssl.SSLError):
                await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first = (await reader.readline()).split()
    if len(first) < 2 or not first[1].isdigit():
        raise AiriError("the server closed the connection without an answer")
    headers = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip().lower()
    return int(first[1]), headers


async def _lines(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    if not chunked:
        while line := await reader.readline():
            yield line
        return
    rest = b""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
        await reader.readexactly(2)
        for line in lines:
            yield line
    if rest:
        yield rest


def _message(body: bytes) -> str:
    start = body.find(b"{")
    try:
        return str(json.loads(body[start : body.rfind(b"}") + 1])["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return repr(body[:200])
