"""Errors of the layers below, as clients see them."""

from __future__ import annotations

import json

import msgspec
import pytest

from airi import errors
from airi.gateway.errors import ApiError, api_error_from, decode_body, internal_error
from airi.gateway.generation import _raise_early_end
from airi.outputs import ErrorInfo
from airi.text import TemplateError
from airi.transport import Output


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.ContextLengthError("too long", field="prompt"), 400, "context_length_exceeded"),
        (errors.RequestError("top_k is wrong", field="top_k"), 400, None),
        (TemplateError("roles must alternate"), 400, None),
        (errors.ModelNotFoundError("no such model", field="model"), 404, "model_not_found"),
        (errors.QueueFullError("full"), 429, "queue_full"),
        (errors.ExecutionError("not-a-number logits"), 500, "execution_failed"),
        (errors.EngineDeadError("died"), 503, "engine_unavailable"),
        (errors.EngineStartError("not ready"), 503, "engine_unavailable"),
        (ApiError(418, "teapot", code="t"), 418, "t"),
    ],
)
def test_every_expected_error_has_a_status_and_a_code(
    error: Exception, status: int, code: str | None
) -> None:
    answer = api_error_from(error)
    assert answer is not None
    assert (answer.status, answer.error_code) == (status, code)
    assert set(json.loads(answer.body())["error"]) == {"message", "type", "param", "code"}


def test_a_busy_server_says_when_to_come_back() -> None:
    answer = api_error_from(errors.QueueFullError("full"))
    assert answer is not None
    assert (b"retry-after", b"1") in answer.headers


def test_a_bug_is_no_expected_error() -> None:
    assert api_error_from(ZeroDivisionError("secret")) is None
    assert api_error_from(errors.AiriError("unforeseen")) is None
    assert internal_error("req-1").status == 500


@pytest.mark.parametrize(
    ("reason", "status"),
    [("deadline", 504), ("cancelled", 503), ("error", 429), ("stop", None), (None, None)],
)
def test_an_output_that_ends_early_ends_the_request(reason: str | None, status: int | None) -> None:
    error = ErrorInfo("queue_full", "full") if reason == "error" else None
    output = Output(1, [], finish_reason=reason, error=error)  # type: ignore[arg-type]
    if status is None:
        _raise_early_end(output, None)
        return
    with pytest.raises(errors.AiriError) as raised:
        _raise_early_end(output, None)
    answer = api_error_from(raised.value)
    assert answer is not None
    assert answer.status == status


class Inner(msgspec.Struct):
    n: int


class Outer(msgspec.Struct):
    items: list[Inner]


def test_decoding_names_the_place_and_the_number() -> None:
    decoder = msgspec.json.Decoder(Outer)
    with pytest.raises(ApiError, match=r"^items\[1\]\.n: expected `int`, got `float`") as raised:
        decode_body(decoder, b'{"items": [{"n": 1}, {"n": 1.5}]}')
    assert raised.value.param == "items[1].n"
    with pytest.raises(ApiError, match="not valid JSON"):
        decode_body(decoder, b'{"items": [')
