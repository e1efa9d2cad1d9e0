"""How the APIs that are served tell their clients of failures: the same `ApiError`, each in its own form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from airi.gateway.errors import ApiError

__all__ = ["ANTHROPIC", "KSERVE", "OPENAI", "Dialect", "dialect_of"]

_ANTHROPIC_ROOT, _KSERVE_ROOT = "/v1/messages", "/v2"
# https://docs.claude.com/en/api/errors; statuses that are not there are invalid requests below 500, else API errors.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """The form of an API's errors, from an error and the request's id, and the headers that tell that id."""

    name: str
    error_body: Callable[[ApiError, str], bytes]
    id_headers: tuple[bytes, ...]


def _openai_body(error: ApiError, request_id: str) -> bytes:
    return error.body()


def _anthropic_body(error: ApiError, request_id: str) -> bytes:
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    return msgspec.json.encode(
        {
            "type": "error",
            "error": {"type": _ANTHROPIC_TYPES.get(error.status, kind), "message": error.message},
            "request_id": request_id,
        }
    )


def _kserve_body(error: ApiError, request_id: str) -> bytes:
    return msgspec.json.encode({"error": error.message})


OPENAI = Dialect("openai", _openai_body, (b"x-request-id",))
ANTHROPIC = Dialect("anthropic", _anthropic_body, (b"x-request-id", b"request-id"))
KSERVE = Dialect("kserve", _kserve_body, (b"x-request-id",))


def dialect_of(path: str) -> Dialect:
    """That of what answers at a path, or would."""
    for root, dialect in ((_ANTHROPIC_ROOT, ANTHROPIC), (_KSERVE_ROOT, KSERVE)):
        if path == root or path.startswith(root + "/"):
            return dialect
    return OPENAI
