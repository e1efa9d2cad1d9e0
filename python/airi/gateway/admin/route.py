"""One route of the admin API: who may come here, and from where."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl

import msgspec

from airi._hosts import is_loopback
from airi.errors import ConfigError
from airi.gateway.errors import ApiError
from airi.gateway.gate import Gate
from airi.gateway.http import Receive, Scope, Send, header, read_body, record_of, respond
from airi.policy.decisions import Action
from airi.policy.keys import UnknownKeyError
from airi.policy.principal import Principal

__all__ = ["AdminCall", "AdminRoute", "Work"]

_HOST = re.compile(r"\[?([^\[\]]*?)\]?(:\d+)?")
"""A Host header: a name or an address, and a port."""
_MOST_BODY = 64 * 1024
_LONGEST_PATH = 200  # characters in the audit log, as in the access log
_NOT_KEPT = ((b"cache-control", b"no-store"),)


class AdminCall(NamedTuple):
    """What came with a request."""

    path: Mapping[str, str]
    """What stands in the path's places."""
    query: Mapping[str, str]
    body: bytes
    caller: Principal


Work = Callable[[AdminCall], Awaitable[msgspec.Struct]]


class AdminRoute:
    """Answers with what its work returns, for callers that may administer.

    Without keys everybody on this machine may, and so may every web page that is open on it: there a page that is not
    of this server is refused, whether it sends here or has its own name lead here. Bodies are JSON and are said to be,
    which pages of others cannot do unasked.
    """

    def __init__(
        self,
        works: Mapping[str, Work],
        gate: Gate,
        *,
        needs_key: bool,
        hide: Callable[[str], str],
        promotes: Callable[[Mapping[str, str]], str | None] | None = None,
    ) -> None:
        """`works`: what is done, by method; `hide` makes a path without keys; `promotes`: from what stands in the path,
        the model whose traffic is moved, where that is what the route does and there is such a model."""
        self._works, self._gate, self._needs_key, self._hide = works, gate, needs_key, hide
        self._promotes = promotes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raises a 403, 413, 415 or what the work raises."""
        if not self._needs_key:
            _check_page(scope)
        method, path = str(scope["method"]), self._hide(str(scope["path"]))[:_LONGEST_PATH]
        record, call = record_of(scope), f"{method} {path}"
        model = None if self._promotes is None else self._promotes(scope["path_params"])
        if model is None:
            self._gate.admit_to_server(record, Action.ADMIN, call=call)
        else:
            self._gate.admit_to_promote(record, model, call=call)
        body = b""
        if method == "POST":
            _check_json(header(scope, b"content-type"))
            body = await read_body(scope, receive, _MOST_BODY)
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        work = self._works["GET" if method == "HEAD" else method]
        try:
            answer = await work(AdminCall(scope["path_params"], query, body or b"{}", record.principal))
        except UnknownKeyError as error:
            raise ApiError(404, str(error), param=error.field, code="key_not_found") from None
        except ConfigError as error:
            raise ApiError(400, str(error), param=error.field, code="invalid_value") from None
        await respond(send, 200, msgspec.json.encode(answer), headers=_NOT_KEPT)


def _check_json(content_type: str | None) -> None:
    if (content_type or "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "content-type must be application/json", code="unsupported_media_type")


def _check_page(scope: Scope) -> None:
    """Raises a 403 for a request of a web page that is not this server's own."""
    host, origin = header(scope, b"host"), header(scope, b"origin")
    if host is not None and not _is_local(host):
        raise _foreign("host", "a server without keys is administered as localhost or by a loopback address")
    if origin is not None and origin.partition("://")[2] != host:
        raise _foreign("origin", "a server without keys is not administered by pages of other origins")


def _is_local(host: str) -> bool:
    """Whether a Host header says what nobody can have lead to another machine, or from another's page to here."""
    match = _HOST.fullmatch(host)
    return match is not None and is_loopback(match[1])


def _foreign(name: str, message: str) -> ApiError:
    return ApiError(403, f"{name}: {message}", type="permission_error", param=name, code=f"foreign_{name}")
