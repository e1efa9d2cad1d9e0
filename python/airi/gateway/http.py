"""The few ASGI moves that every handler needs: read a body, answer at once, notice a client that hangs up.

Hot routes are raw ASGI callables: a wrapped request and response object would cost more than the rest of the
gateway's own work.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airi.gateway.dialects import OPENAI, Dialect
from airi.gateway.errors import ApiError
from airi.gateway.releases import Draw, draw_of
from airi.policy import ANYONE, Principal

if TYPE_CHECKING:
    from airi.gateway.explaining import RequestTrace
    from airi.gateway.noting import ModelTrace

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

CLIENT_GONE_STATUS = 499  # nobody reads it; what the access log shows for a client that hung up

_JSON = (b"content-type", b"application/json")


@dataclass(slots=True, kw_only=True)
class CallRecord:
    """What is known of one HTTP request, for the access log and whoever decides about it. Never holds content."""

    request_id: str
    started: float
    own_id: str = ""
    """This server's own for it; empty: as request_id, which else is the client's."""
    principal: Principal = ANYONE
    dialect: Dialect = OPENAI
    """Of its path."""
    status: int = 0
    response_started: bool = False
    model: str | None = None
    action: str | None = None
    """What it was decided on as; None: not yet, or an open page."""
    headers: Headers = ()
    """What the response says of limits."""
    sent: Sequence[tuple[bytes, bytes]] = ()
    """The request's headers."""
    draw: Draw | None = None
    """The releases that the call was given, which its inner calls keep; None: none of its models has releases."""
    draw_key: str = ""
    """By which its releases are drawn: no id of the client's, which might be the same for all."""
    release: Headers = ()
    """What the response says of them."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    device_us: int = 0
    trace: RequestTrace | None = None
    """What is noted of a call to a model, and of its inner calls, for whoever asks later."""
    call: ModelTrace | None = None
    """Of these the one that this is, once it was decided on."""

    def new_draw(self) -> Draw:
        """What decides its releases; the same each time. Raises as `draw_of`."""
        self.draw_key = self.draw_key or secrets.token_hex(8)
        return draw_of(self.sent, self.draw_key)

    def inner(self) -> CallRecord:
        """The record of a call within this one, by the same caller."""
        return CallRecord(
            request_id=self.request_id,
            own_id=self.own_id,
            started=self.started,
            principal=self.principal,
            sent=self.sent,
            draw_key=self.draw_key,
            trace=self.trace,
        )


class ClientGone(Exception):
    """Raised in a handler whose client closed the connection."""


def record_of(scope: Scope) -> CallRecord:
    """The record that the outermost middleware made for this request."""
    record = scope["airi.record"]
    if not isinstance(record, CallRecord):
        raise TypeError("the request passed no RequestMiddleware")
    return record


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this (lower-case) name, or None."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole request body; more than `limit` bytes is a 413, raised before they are all read."""
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than the {limit} bytes this server accepts",
        code="request_too_large",
        headers=((b"connection", b"close"),),
    )


async def respond(
    send: Send, status: int, body: bytes, *, content_type: bytes | None = None, headers: Headers = ()
) -> None:
    """One whole response, JSON unless another content type is given."""
    kind = _JSON if content_type is None else (b"content-type", content_type)
    fixed = (kind, (b"content-length", str(len(body)).encode()), *headers)
    await send({"type": "http.response.start", "status": status, "headers": list(fixed)})
    await send({"type": "http.response.body", "body": body})


async def respond_error(send: Send, error: ApiError, record: CallRecord) -> None:
    """The error's status and headers, its body in the dialect of the path."""
    body = record.dialect.error_body(error, record.request_id)
    await respond(send, error.status, body, headers=error.headers)


@asynccontextmanager
async def watching(receive: Receive) -> AsyncIterator[None]:
    """Cancels what runs inside and raises ClientGone as soon as the client hangs up.

    The body must have been read before: from then on all that can be received is the disconnect, which a server also
    tells once the response is complete. Nothing may be awaited inside after that.
    """
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("watching() runs inside a task")
    handler = task
    gone = False

    async def wait_for_disconnect() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        handler.cancel()

    watcher = asyncio.ensure_future(wait_for_disconnect())
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        handler.uncancel()
        raise ClientGone from None
    finally:
        watcher.cancel()
