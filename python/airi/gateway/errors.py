"""Every way a request can fail, as the OpenAI error body `{"error": {message, type, param, code}}`.

`ApiError` is what the gateway raises on purpose. `api_error_from` turns the exceptions of the layers below into
one; whatever it does not know is a bug and becomes a 500 that says nothing but the request id.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from airi.errors import (
    AiriError,
    AuditUnavailableError,
    ConflictError,
    ContextLengthError,
    EngineError,
    ExecutionError,
    LedgerUnavailableError,
    LifecycleError,
    ModelNotFoundError,
    QueueFullError,
    RequestError,
    StateError,
)
from airi.text import TemplateError
from airi.upstreams.errors import UpstreamError, UpstreamRefusal

T = TypeVar("T")

_RETRY_AFTER = ((b"retry-after", b"1"),)  # seconds: a queue of short requests turns over within about one

_UNAVAILABLE = {
    LedgerUnavailableError.code: "limits cannot be counted at the moment",
    AuditUnavailableError.code: "decisions cannot be recorded at the moment",
    StateError.code: "the state of keys cannot be read or written at the moment",
}
"""What callers are told, who need not know where these are."""

_VALIDATION = re.compile(r"^(?P<what>.*?) - at `(?:(?P<key>key) in )?(?P<path>\$.*)`$", re.DOTALL)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_FIELD = re.compile(r"object (missing required|contains unknown) field `(.+)`", re.DOTALL)
_ENUM = re.compile(r"invalid (?:enum )?value '(.*)'", re.DOTALL)
_MAX_MESSAGE = 500
_MAX_VALUE = 60

# Fields that mean something elsewhere in the field; ignoring them would give an answer nobody asked for.
_REFUSED = {
    "suffix": "filling in the middle is not supported",
    "functions": "use `tools` instead",
    "function_call": "use `tool_choice` instead",
    "audio": "this server answers in text only",
    "best_of": "ask for `n` choices and rank them",
    "chat_template": "templates come with the model; a request cannot bring its own",
}


class ApiError(AiriError):
    """Raised anywhere in a handler to end the request with one OpenAI error body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.error_code = code
        self.headers = headers

    def body(self) -> bytes:
        """The JSON body; all four keys are always there, as OpenAI sends them."""
        return msgspec.json.encode(
            {
                "error": {
                    "message": self.message,
                    "type": self.type,
                    "param": self.param,
                    "code": self.error_code,
                }
            }
        )


class ForeignError(ApiError):
    """What another server has said of a request: its words may quote it."""


class OverLimitError(ApiError):
    """A 429 that names the limit."""

    def __init__(
        self, message: str, limit: str, scope: str, headers: tuple[tuple[bytes, bytes], ...], *, money: bool
    ) -> None:
        """`scope`: whose limit it is; `money`: waiting a minute does not help."""
        self.limit, self.scope = limit, scope
        code = "insufficient_quota" if money else "rate_limit_exceeded"
        super().__init__(429, message, type="rate_limit_error", param=limit, code=code, headers=headers)


def bad_field(param: str, message: str, *, code: str | None = None) -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def content_refused(field: str, rule: str) -> ApiError:
    """A 400 that names where a content rule found what it blocks, and nothing of it."""
    return bad_field(field, f"is refused by content rule {rule!r}", code="content_filter")


def judge_unavailable(rule: str) -> ApiError:
    """A 503 for a text that a content rule's judge gave no verdict on."""
    return ApiError(
        503,
        f"the judge of content rule {rule!r} gave no verdict",
        type="service_unavailable",
        code="judge_unavailable",
        headers=_RETRY_AFTER,
    )


def foreign_origin() -> ApiError:
    """A 403 for a page of another machine at a server without keys."""
    message = (
        "without keys no pages of other machines are answered; --cors-origin or server.cors lets some in"
    )
    return ApiError(403, f"origin: {message}", type="permission_error", param="origin", code="foreign_origin")


def unauthorized() -> ApiError:
    """A 401 that tells nothing about which part of the key was wrong."""
    return ApiError(
        401,
        "missing or unknown API key; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
        type="authentication_error",
        code="invalid_api_key",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def denied(policies: tuple[str, ...], errors: tuple[str, ...] = ()) -> ApiError:
    """A 403 that names the policies that forbid, or that could not be evaluated, and nothing else."""
    named = f"by policy {', '.join(policies)}" if policies else "as no policy permits it"
    if errors:
        named = f"as policy {', '.join(errors)} could not be evaluated"
    return ApiError(403, f"the call is denied {named}", type="permission_error", code="permission_denied")


def model_not_found(name: str, known: list[str]) -> ApiError:
    """A 404 that lists what is served."""
    served = ", ".join(known) or "nothing"
    return ApiError(
        404,
        f"model: {name[:200]!r} is not served here; served: {served}",
        param="model",
        code="model_not_found",
    )


def version_not_found(name: str, version: str, known: list[str]) -> ApiError:
    """A 404 that lists the versions of a model that are served."""
    return ApiError(
        404,
        f"version: {version[:200]!r} of {name[:200]} is not served here; served: {', '.join(known)}",
        param="version",
        code="version_not_found",
    )


def unavailable(message: str, *, code: str = "engine_unavailable") -> ApiError:
    """A 503 the client may retry."""
    return ApiError(503, message, type="service_unavailable", code=code, headers=_RETRY_AFTER)


def internal_error(request_id: str) -> ApiError:
    """A 500 that points to the log by the request's id."""
    return ApiError(
        500, f"internal error; the server's log has it under request id {request_id}", type="server_error"
    )


def api_error_from(error: Exception) -> ApiError | None:
    """The answer to an expected failure of a layer below, or None for a bug."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            return ApiError(
                429,
                str(error),
                type="rate_limit_error",
                code="queue_full",
                headers=_RETRY_AFTER,
            )
        case ContextLengthError():
            return ApiError(400, str(error), param=error.field, code="context_length_exceeded")
        case ConflictError():
            return ApiError(409, str(error), param=error.field, code=error.code)
        case LifecycleError():
            return ApiError(400, str(error), param=error.field, code=error.code)
        case ModelNotFoundError():
            return ApiError(404, str(error), param="model", code="model_not_found")
        case TemplateError():
            field, message = error.field or "messages", str(error)[:_MAX_MESSAGE]
            return ApiError(400, message if field in message else f"{field}: {message}", param=field)
        case RequestError():
            return ApiError(400, str(error)[:_MAX_MESSAGE], param=error.field)
        case ExecutionError():
            return ApiError(500, str(error), type="server_error", code=error.code)
        case LedgerUnavailableError() | AuditUnavailableError() | StateError():
            return unavailable(_UNAVAILABLE[error.code], code=error.code)
        case EngineError():
            return unavailable(str(error))
        case UpstreamError():
            return _upstream_failed(error)
        case UpstreamRefusal():
            code = error.error_code or error.code
            return ForeignError(error.status, str(error), param=error.param, code=code)
        case _:
            return None


def is_unavailable(error: Exception) -> bool:
    """Whether the server was full or could not serve: the same request may be answered later."""
    known = api_error_from(error)
    full = isinstance(error, QueueFullError | UpstreamError)
    return full or (known is not None and known.status == 503)


def _upstream_failed(error: UpstreamError) -> ApiError:
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if error.status == 503:
        seconds = 1 if error.retry_after_s is None else max(1, math.ceil(error.retry_after_s))
        headers = ((b"retry-after", str(seconds).encode()),)
    return ApiError(error.status, str(error), type="upstream_error", code=error.code, headers=headers)


class Failure(Exception):
    """Stands in the log for an unexpected error: its type and traceback, not its text."""


def without_text(error: Exception) -> Failure:
    """The error with its traceback but without its text, which might quote the request."""
    return Failure(type(error).__name__).with_traceback(error.__traceback__)


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes, *, refused: Mapping[str, str] = _REFUSED) -> T:
    """The request in a body; raises a 400 that says where it is not JSON or does not fit, and what is accepted.

    `refused` has the reason for each field that is known, but not served.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid_value(error, body, decoder.type, refused=refused) from None
    except msgspec.DecodeError as error:
        reason = str(error)[:_MAX_MESSAGE]
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except RecursionError:
        reason = "it is nested too deeply"
    raise ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")


def invalid_value(
    error: msgspec.ValidationError,
    body: bytes | Any,
    kind: Any,
    *,
    prefix: str = "",
    refused: Mapping[str, str] = _REFUSED,
) -> ApiError:
    """The 400 for a value that is not of its kind; `prefix` is where it stands in the request, `refused` as above."""
    match = _VALIDATION.match(str(error))
    what, path = (str(error), "") if match is None else (match["what"], match["path"][1:].removeprefix("."))
    what = what[:1].lower() + what[1:]
    field, value = _FIELD.fullmatch(what), _ENUM.fullmatch(what)
    accepted = ""
    if value is not None:
        what, accepted = f"{value[1][:_MAX_VALUE]!r} is not accepted", _accepted(kind, path)
    elif field is not None:
        name = repr(field[2][:_MAX_VALUE])[1:-1]  # in one line, whatever it is
        inner = f"{path}.{name}".removeprefix(".")
        if field[1] == "missing required":
            what, accepted = "is missing", _accepted(kind, inner)
        else:
            what, accepted = "is an unknown field", _accepted(kind, path) or "no fields"
        path = inner
    param = f"{prefix}{path}" if path.startswith("[") else ".".join(part for part in (prefix, path) if part)
    root = param.split("[")[0].split(".")[0]
    for known in (param, root):
        if known in refused:
            return bad_field(known, f"not supported: {refused[known]}", code="unsupported_parameter")
    if accepted:
        what += f"; accepted: {accepted}"
    if not param:
        return ApiError(400, f"the body must be a JSON object: {what[:_MAX_MESSAGE]}", code="invalid_type")
    found = _number_at(body, path) if field is None else None
    got = f", got {str(found)[:_MAX_VALUE]}" if found is not None and "got" not in what else ""
    return bad_field(param, f"{what[:_MAX_MESSAGE]}{got}", code="invalid_value")


def _accepted(kind: Any, path: str) -> str:
    """The texts, or fields, that may stand at a path in what is of this kind; empty where they cannot be listed."""
    kinds: list[Any] = _parts(msgspec.inspect.type_info(kind))
    for step, _ in _STEP.findall(path):
        tags = [str(each.tag) for each in kinds if step and getattr(each, "tag_field", None) == step]
        if tags:
            return ", ".join(tags)
        kinds = [part for each in kinds for below in _below(each, step) for part in _parts(below)]
    values = [str(value) for each in kinds for value in getattr(each, "values", ())]
    return ", ".join(values or [each.encode_name for one in kinds for each in getattr(one, "fields", ())])


def _parts(kind: Any) -> list[Any]:
    kind = kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind
    return [part for each in kind.types for part in _parts(each)] if hasattr(kind, "types") else [kind]


def _below(kind: Any, step: str) -> list[Any]:
    """What may stand in a field, or where there is no name as an item."""
    if not step:
        return [getattr(kind, "item_type", None) or getattr(kind, "value_type", kind)]
    return [each.type for each in getattr(kind, "fields", ()) if each.encode_name == step]


def _number_at(body: bytes | Any, path: str) -> int | float | None:
    """The number at `path`: numbers are worth repeating in a message, text might be the user's own."""
    try:
        value = msgspec.json.decode(body) if isinstance(body, bytes) else body
        for key, index in _STEP.findall(path):
            value = value[key] if key else value[int(index)]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value
