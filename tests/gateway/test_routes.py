"""Routes: the model that a request is for, the next one where that cannot serve, and none where nobody may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from airi.config import parse
from airi.config.content import ContentPart
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.routes import RouteTable
from airi.policy.audit import AuditLog

from .conftest import events
from .content import REDACT_MAIL
from .test_upstream_hostile import says
from .upstream import (
    CHAT,
    DONE,
    GOOD,
    STREAM,
    HostileServer,
    Say,
    ask,
    chunk,
    content,
    far,
    front,
    hostile,
    status,
    usage,
)

OTHER = STREAM + chunk("I am another") + chunk(finish="stop") + usage(9, 3) + DONE
ROUTE: dict[str, Any] = {
    "name": "auto",
    "rules": [
        {"when": "request.metadata.topic == 'billing'", "use": "b"},
        {"when": "size(request.tools) > 0 || request.characters > 100", "use": "b"},
    ],
    "default": "a",
    "fallback": ["b"],
}
Served = tuple[httpx.Client, HostileServer, HostileServer]


@contextmanager
def routed(
    a: bytes | Say | list[bytes],
    b: bytes | Say = OTHER,
    policies: str | None = None,
    content: dict[str, Any] | None = None,
    audit: Any = None,
    holder: list[Government] | None = None,
    **route: Any,
) -> Iterator[Served]:
    """A gateway with the route `auto` over the models a and b, which other servers run."""
    upstream = {"base_url": "http://x/v1", "model": "m", "max_model_len": 512}
    price = {"input_per_1m": 0, "output_per_1m": 1e6}
    models = [
        {"name": "a", "upstream": upstream, "price": price},
        {"name": "b", "upstream": upstream, "price": price | {"output_per_1m": 1}},
    ]
    file = parse(
        json.dumps({"version": 1, "models": models, "routes": [ROUTE | route], "content": content or {}})
    )

    async def govern() -> Government:
        made = Government(
            decider_of(policies, ("a", "b")),
            routes=RouteTable(file),
            content=ContentPart(file),
            audit=None if audit is None else AuditLog(audit),
        )
        if holder is not None:
            holder.append(made)
        return made

    with hostile(*(a if isinstance(a, list) else [a])) as first, hostile(b) as second:
        upstreams = [
            replace(far(each.url, name=name), aliases=()) for each, name in ((first, "a"), (second, "b"))
        ]
        with front(*upstreams, govern=govern) as http:
            yield http, first, second


def test_the_first_rule_that_holds_says_which_model_answers() -> None:
    with routed(GOOD) as (http, first, second):
        default = ask(http, model="auto")
        assert content(default) == "Hello there"
        assert default.headers["x-airi-model"] == "a"
        assert default.json()["model"] == "auto"
        for changes in (
            {"metadata": {"topic": "billing"}},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"messages": [{"role": "user", "content": "x" * 101}]},
        ):
            response = ask(http, model="auto", **changes)
            assert content(response) == "I am another"
            assert response.headers["x-airi-model"] == "b"
        assert (len(first.asked), len(second.asked)) == (1, 3)
        page = http.get("/metrics").text
        assert 'airi_route_calls_total{model_name="b",route="auto"} 3.0' in page


def test_it_is_called_in_all_ways_that_models_are_and_listed() -> None:
    with routed(GOOD) as (http, _, _):
        assert [each["id"] for each in http.get("/v1/models").json()["data"]] == ["a", "b", "auto"]
        assert http.get("/v1/models/auto").json()["root"] == "a"
        assert events(ask(http, model="auto", stream=True).text)[-1]["choices"][0]["finish_reason"] == "stop"
        asked = {"model": "auto", "messages": CHAT["messages"], "max_tokens": 9}
        assert http.post("/v1/messages", json=asked).json()["content"][0]["text"] == "Hello there"
        assert http.post("/v1/responses", json={"model": "auto", "input": "Hi"}).status_code == 200


def test_a_condition_that_cannot_be_evaluated_is_false_and_told(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    rules = [ROUTE["rules"][0], {"when": "request.characters", "use": "b"}]
    with routed(GOOD, audit=audit, rules=rules, fallback=["b"]) as (http, _, _):
        assert content(ask(http, model="auto", metadata={"secret": "x"})) == "Hello there"
        page = http.get("/metrics").text
    assert "rules[0] of route auto counts as false: it cannot be evaluated: KeyError" in caplog.text
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    (told,) = [line for line in lines if "route" in line]
    assert (told["route"], told["tenant"]) == ("auto", "anyone")
    assert told["failed"] == [
        "rules[0]: it cannot be evaluated: KeyError",
        "rules[1]: it gives a int, neither true nor false",
    ]
    assert told["request_id"] in {line["request_id"] for line in lines if "action" in line}
    assert "secret" not in caplog.text + audit.read_text()
    for rule in (0, 1):
        counted = f'airi_route_condition_failures_total{{route="auto",rule="rules[{rule}]"}} 1.0'
        assert counted in page


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", [status(500), status(429), b"", STREAM, STREAM + b"data: {\n\n"])
def test_where_one_cannot_serve_the_next_is_asked(said: bytes, stream: bool) -> None:  # noqa: FBT001
    with routed(said) as (http, first, second):
        response = ask(http, model="auto", stream=stream)
        assert response.status_code == 200
        assert "I am another" in response.text
        assert response.headers["x-airi-model"] == "b"
        assert (len(first.asked), len(second.asked)) == (1, 1)


def test_where_none_can_the_first_failure_is_told() -> None:
    with routed(status(500), status(429)) as (http, _, second):
        response = ask(http, model="auto")
        assert (response.status_code, len(second.asked)) == (502, 1)
        assert "the upstream of a answers with status 500" in response.json()["error"]["message"]


def test_behind_the_first_event_no_other_is_asked() -> None:
    with routed(STREAM + chunk("Hel")) as (http, _, second):
        told = events(ask(http, model="auto", stream=True).text)
        assert "ended its answer in the middle" in told[-1]["error"]["message"]
        assert second.asked == []


def test_what_is_wrong_with_the_request_is_asked_of_no_other() -> None:
    with routed(status(400)) as (http, _, second):
        assert ask(http, model="auto").status_code == 400
        assert ask(http, model="auto", temperature=-1).status_code == 400
        assert second.asked == []


def test_a_client_that_hangs_up_is_no_reason_to_ask_another() -> None:
    with routed(says(hangs=True)) as (http, first, second):
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=CHAT | {"model": "auto"}, timeout=1.0)
        assert first.hung_up.wait(30)
        assert second.asked == []


def test_each_model_is_decided_on_by_itself(tmp_path: Any) -> None:
    audit = tmp_path / "audit.jsonl"
    only_a = 'permit (principal, action, resource == Model::"a");'
    with routed(status(500), policies=only_a, audit=audit) as (http, _, second):
        assert ask(http, model="auto").status_code == 502  # the failure, and not that b is denied
        denied = ask(http, model="auto", metadata={"topic": "billing"})
        assert denied.status_code == 403
        assert second.asked == []
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    decided = [(line["resource"], line["allowed"]) for line in lines if "resource" in line]
    assert decided == [
        ("Model::a", True),
        ("Model::b", False),
        ("Model::b", False),
    ]


def test_rules_for_texts_of_one_model_do_not_reach_the_next() -> None:
    rules = {"input": [REDACT_MAIL | {"models": ["a"]}]}
    with routed(status(500), content=rules) as (http, first, second):
        said = [{"role": "user", "content": "To me@x.org"}]
        assert content(ask(http, model="auto", messages=said)) == "I am another"
        assert first.asked[0].body["messages"][0]["content"] == "To <mail>"
        assert second.asked[0].body["messages"] == said


def test_what_may_cost_too_much_goes_to_the_next_or_is_refused() -> None:
    with routed(GOOD, max_cost_per_request=20) as (http, first, second):
        assert content(ask(http, model="auto", max_tokens=20)) == "Hello there"
        assert content(ask(http, model="auto", max_tokens=21)) == "I am another"
        assert (len(first.asked), len(second.asked)) == (1, 1)
    with routed(GOOD, max_cost_per_request=20, fallback=[]) as (http, first, _):
        refused = ask(http, model="auto", max_tokens=21)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_costly")
        assert "may cost 21 with a; max_cost_per_request of auto is 20" in refused.json()["error"]["message"]
        assert first.asked == []


def test_a_model_that_is_named_is_the_one_that_answers() -> None:
    with routed(status(500)) as (http, _, second):
        assert ask(http, model="a").status_code == 502
        named = ask(http, model="b")
        assert named.headers["x-airi-model"] == "b"
        assert len(second.asked) == 1
