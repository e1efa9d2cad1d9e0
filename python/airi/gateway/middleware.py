"""What happens to every HTTP request, whatever its route: id, principal, last-resort errors, access log.

Pure ASGI: no task, no queue and no response object is created per request here.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from airi._hosts import is_loopback
from airi.gateway.access import Access
from airi.gateway.dialects import dialect_of
from airi.gateway.errors import api_error_from, foreign_origin, internal_error, unauthorized, without_text
from airi.gateway.http import (
    CLIENT_GONE_STATUS,
    CallRecord,
    ClientGone,
    Message,
    Receive,
    Scope,
    Send,
    header,
    record_of,
    respond_error,
)
from airi.gateway.metrics import Metrics, now

if TYPE_CHECKING:
    from airi.gateway.gate import Government

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

access_log = logging.getLogger("airi.access")
log = logging.getLogger("airi.gateway")

_ORIGIN = re.compile(r"https?://\[?([^\[\]/]*?)\]?(?::\d+)?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


class RequestMiddleware:
    """Outermost: names the request, answers what nobody below answered, logs one line without content.

    *Invariant*: every HTTP request is answered exactly once, also when a handler raises.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, hide: Callable[[str], str]) -> None:
        """`hide` makes texts of clients such as may be logged and sent back: without keys."""
        self._app = app
        self._metrics = metrics
        self._hide = hide

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id = f"req-{secrets.token_hex(12)}"
        record = CallRecord(
            request_id=self._request_id(header(scope, b"x-request-id")) or own_id,
            own_id=own_id,
            started=now(),
            dialect=dialect_of(scope["path"]),
            sent=scope["headers"],
        )
        scope["airi.record"] = record
        id_headers = [(name, record.request_id.encode()) for name in record.dialect.id_headers]
        if record.request_id != own_id:
            id_headers.append((b"x-airi-request-id", own_id.encode()))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                record.response_started = True
                message["headers"] = [*message["headers"], *id_headers, *record.release, *record.headers]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            record.status = CLIENT_GONE_STATUS
            self._metrics.client_gone()
        except Exception as error:
            await self._answer_failure(error, record, send_with_id)
        finally:
            self._done(scope, record)

    async def _answer_failure(self, error: Exception, record: CallRecord, send: Send) -> None:
        known = api_error_from(error)
        if known is None:
            name = type(error).__name__
            log.error("request %s failed: %s", record.request_id, name, exc_info=without_text(error))
        if record.response_started:
            raise ConnectionError("the response had begun; the connection is closed") from None
        answer = known or internal_error(record.request_id)
        if answer.error_code in _QUOTING:
            answer.message = self._hide(answer.message)
        if record.trace is not None:
            record.trace.fail(answer)
        await respond_error(send, answer, record)

    def _request_id(self, given: str | None) -> str | None:
        """The client's own id where there is one, and it is harmless in headers and logs."""
        is_harmless = given is not None and _REQUEST_ID.fullmatch(given)
        return self._hide(given) if given is not None and is_harmless else None

    def _done(self, scope: Scope, record: CallRecord) -> None:
        method = str(scope["method"])
        route = getattr(scope.get("route"), "path", "other")
        if record.trace is not None:
            record.trace.end()
        self._metrics.http_done(route, method if method in _METHODS else "other", record.status)
        if access_log.isEnabledFor(logging.INFO):
            client = scope.get("client")
            access_log.info(
                "%s %s %s %d %.1fms id=%s tenant=%s prompt_tokens=%d completion_tokens=%d device_ms=%.1f",
                client[0] if client else "-",
                method,
                _printable(self._hide(str(scope["path"]))),
                record.status,
                (now() - record.started) * 1e3,
                record.request_id,
                record.principal.tenant,
                record.prompt_tokens,
                record.completion_tokens,
                record.device_us / 1e3,
            )


_QUOTING = frozenset({"model_not_found", "invalid_value"})
"""Errors that repeat a word of the request's, which may be anything."""
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})


class AccessMiddleware:
    """Names the principal of each request, or answers 401.

    Without keys everybody on this machine may call, and so might the scripts of every web page that is open on it:
    browsers name a page's origin with what it sends, and pages of other machines are answered 403 but for `origins`.
    """

    def __init__(
        self, app: ASGIApp, *, access: Access, government: Government, origins: Collection[str] = ()
    ) -> None:
        self._app = app
        self._access = access
        self._government = government
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope; anything but HTTP passes through."""
        if scope["type"] == "http":
            record = record_of(scope)
            if not self._access.needs_key and not self._is_welcome(header(scope, b"origin")):
                await respond_error(send, foreign_origin(), record)
                return
            authorization = _authorization(scope)
            principal = self._access.find(scope["path"], authorization)
            if principal is None:
                principal = await self._access.find_late(authorization)
            if principal is None:
                if self._government.audit is not None:
                    self._government.audit.note_unknown(record.request_id, authorization)
                await respond_error(send, unauthorized(), record)
                return
            record.principal = principal
        await self._app(scope, receive, send)

    def _is_welcome(self, origin: str | None) -> bool:
        if origin is None or origin in self._origins or "*" in self._origins:
            return True
        match = _ORIGIN.fullmatch(origin)
        return match is not None and is_loopback(match[1])


def _authorization(scope: Scope) -> str | None:
    """The `Authorization` header, or what it would be for a key that comes as Anthropic's clients send theirs."""
    given = header(scope, b"authorization")
    key = None if given is not None else header(scope, b"x-api-key")
    return given if key is None else f"Bearer {key}"


def _printable(path: str) -> str:
    """A path as one log word: bounded, with nothing that could forge a line."""
    return "".join(c if c.isascii() and c.isprintable() and c != " " else "?" for c in path[:200])
