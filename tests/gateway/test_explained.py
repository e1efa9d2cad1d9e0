"""What a gateway tells of calls whose clients give them ids, and of those that end with errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from airi.cli._explained import lines
from airi.errors import ExecutionError
from airi.gateway.explaining import Traces
from airi.gateway.generation import Generation
from airi.gateway.http import CallRecord
from airi.gateway.limits import Held
from airi.observability.requests import RequestRecord
from airi.policy.decisions import Action, Decision

from .conftest import Gateway
from .test_classifier import sorted_by
from .test_explaining import CHAT, explained
from .test_judges import judged
from .test_judges import start as start_judged  # noqa: F401
from .test_judges_upstream import verdict
from .test_upstream_hostile import says
from .upstream import CHAT as FAR
from .upstream import STREAM, Say, ask, chunk, far, front, hostile, status

NO_QUESTIONS = """permit (principal, action, resource);
@id("none") forbid (principal, action == Action::"classify", resource);"""


def test_requests_with_one_id_are_told_apart_by_the_gateways_own(gateway: Gateway) -> None:
    same = {"x-request-id": "again"}
    answers = [
        gateway.http.post("/v1/chat/completions", json=CHAT | changes, headers=same)
        for changes in ({}, {"model": "nix"}, {"max_tokens": 9999})
    ]
    own = [answer.headers["x-airi-request-id"] for answer in answers]
    assert [answer.headers["x-request-id"] for answer in answers] == ["again"] * 3
    assert len(set(own)) == 3
    found = explained(gateway.http, "again")
    assert (found["own_id"], found["error"]["code"]) == (own[2], "context_length_exceeded")
    assert (found["same_id"], found["num_same_id"]) == ([own[1], own[0]], 2)
    for name, code in zip(own, (200, 404, 400), strict=True):
        found = explained(gateway.http, name)
        assert (found["id"], found["status"]) == ("again", code)
        assert "same_id" not in found
    unnamed = gateway.http.post("/v1/chat/completions", json=CHAT)
    assert "x-airi-request-id" not in unnamed.headers
    assert (
        explained(gateway.http, unnamed.headers["x-request-id"])["own_id"] == unnamed.headers["x-request-id"]
    )


def shown(found: dict[str, Any]) -> list[str]:
    """What a person is shown of the models that were asked."""
    record = msgspec.convert(found, RequestRecord)
    return [text for title, text in lines(record) if title.startswith(("model", "inner"))]


def test_a_stream_that_ends_with_an_error_is_told_with_it_at_its_model() -> None:
    with hostile(STREAM + chunk("Hello")) as server, front(far(server.url)) as http:
        answer = http.post("/v1/chat/completions", json=FAR | {"stream": True})
        assert answer.status_code == 200
        found = explained(http, answer.headers["x-request-id"])
    (call,) = found["calls"]
    assert call["error"] == found["error"]
    assert (call["error"]["status"], call["error"]["code"]) == (502, "upstream_error")
    assert shown(found) == ["far: 502 upstream_error: the upstream of far ended its answer in the middle"]


@pytest.mark.parametrize(
    ("said", "options", "text"),
    [
        (status(500), {}, "c: 502 upstream_error: the upstream of c answers with status 500"),
        (says(STREAM, hangs=True), {"timeout_s": 0.2}, "c: 504 timeout"),
        (verdict("neither"), {}, "c: 400 invalid_request_error (classifier)"),
        (
            verdict("code"),
            {"policies": NO_QUESTIONS},
            "c: 403 permission_denied: the call is denied by policy none",
        ),
    ],
)
def test_a_classifier_without_a_label_is_told_with_the_reason(
    said: bytes | Say, options: dict[str, Any], text: str
) -> None:
    with sorted_by(said, **options) as (http, *_):
        found = explained(http, ask(http, model="auto").headers["x-request-id"])
    assert "error" not in found
    assert shown(found)[-1] == text


def test_a_judge_without_a_verdict_is_told_with_the_reason(start_judged: Any) -> None:  # noqa: F811
    gateway = start_judged("maybe so", input=[judged("audit")])
    answer = gateway.http.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    found = explained(gateway.http, answer.headers["x-request-id"])
    assert shown(found)[-1] == "tiny: 400 invalid_request_error (judge)"


def test_each_of_several_questions_has_what_it_used_itself() -> None:
    trace = Traces().begin(CallRecord(request_id="q", started=0.0), "/")
    decision = Decision(allowed=True, policies=(), errors=())
    first, second = (trace.decided(Action.JUDGE, "guard", {}, decision) for _ in range(2))
    assert first is not None
    assert second is not None
    generation, held = cast(Generation, object()), cast(Held, object())
    second.reserved(generation, held)
    assert (second.generation, second.held) == (generation, [held])
    assert (first.generation, first.held) == (None, [])


def test_what_cannot_be_told_changes_nothing_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    traces = Traces()
    trace = traces.begin(CallRecord(request_id="q", started=0.0), "/")
    call = trace.ask("m")
    call.held.append(cast(Held, SimpleNamespace()))
    with pytest.raises(ExecutionError, match="a step failed"), call:
        raise ExecutionError("a step failed")
    inner = trace.decided(Action.JUDGE, "guard", {}, Decision(allowed=True, policies=(), errors=()))
    assert inner is not None
    inner.held.append(cast(Held, SimpleNamespace()))
    trace.end()
    found = traces.recent.find("q")
    assert found is not None
    assert [each.error is not None for each in (*found.calls, *found.inner)] == [True, False]
    assert caplog.text.count("a call cannot be told: AttributeError") == 2
