"""Calls that texts are read by, under policies, limits, content rules and routes, in front of a stub engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from airi.config import parse
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.routes import RouteTable
from airi.policy.ledger import Budget, Limits

from .conftest import Gateway, Govern, StartGateway, wait_until
from .content import BLOCK_CARDS, CARD, REDACT_MAIL, TELL_BIRDS, ruled
from .test_explaining import explained
from .test_governed import limited

VECTOR = (0.6, 0.8)
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "tiny", "input": ["one", "two"]},
    "/v1/rerank": {"model": "tiny", "query": "q", "documents": ["one", "two"]},
    "/v1/score": {"model": "tiny", "text_1": "q", "text_2": ["one", "two"]},
    "/classify": {"model": "tiny", "input": ["one", "two"]},
}


def start(start_gateway: StartGateway, task: str = "embed", **options: Any) -> Gateway:
    labels = ("yes", "no") if task == "classify" else ()
    return start_gateway(task=task, vector=VECTOR, labels=labels, **options)


def ask(gateway: Gateway, path: str = "/v1/embeddings", **changes: Any) -> httpx.Response:
    return gateway.http.post(path, json=BODIES[path] | changes)


def permitting(policies: str) -> Govern:
    async def govern() -> Government:
        return Government(decider_of(policies, ("tiny",), tasks={"tiny": "embed"}))

    return govern


@pytest.mark.parametrize(
    ("action", "served"),
    [
        ("embed", {"/v1/embeddings"}),
        ("rerank", {"/v1/rerank", "/v1/score"}),
        ("chat", set()),
    ],
)
def test_each_call_needs_its_action(start_gateway: StartGateway, action: str, served: set[str]) -> None:
    govern = permitting(f'permit (principal, action == Action::"{action}", resource);')
    gateway = start(start_gateway, govern=govern)
    found = {path for path in BODIES if path != "/classify" and ask(gateway, path).status_code == 200}
    assert found == served
    assert all(ask(gateway, path).status_code == 403 for path in BODIES.keys() - served)


def test_nobody_sorts_texts_by_a_model_that_routes_alone_may_ask(start_gateway: StartGateway) -> None:
    chat = 'permit (principal, action == Action::"chat", resource);'
    assert ask(start(start_gateway, "classify", govern=permitting(chat)), "/classify").status_code == 403
    permitted = chat.replace("chat", "classify")
    answer = ask(start(start_gateway, "classify", govern=permitting(permitted)), "/classify")
    assert [each["label"] for each in answer.json()["data"]] == ["no", "no"]


def test_policies_see_how_many_texts_there_are_and_what_the_model_does(start_gateway: StartGateway) -> None:
    govern = permitting(
        'permit (principal, action in [Action::"embed", Action::"rerank"], resource)'
        "when { context.n <= 2 && context.max_tokens == 0 };"
        'forbid (principal, action == Action::"rerank", resource) when { resource.task == "embed" };'
    )
    gateway = start(start_gateway, govern=govern)
    assert ask(gateway).status_code == 200
    assert ask(gateway, input=["one", "two", "three"]).status_code == 403
    assert ask(gateway, "/v1/rerank").status_code == 403


def test_a_model_is_listed_for_who_may_use_it_for_what_it_does(start_gateway: StartGateway) -> None:
    for action, listed in (("embed", ["tiny", "tiny-alias"]), ("chat", [])):
        allowed = f'action == Action::"{action}" || action == Action::"list_models"'
        govern = permitting(f"permit (principal, action, resource) when {{ {allowed} }};")
        data = start(start_gateway, govern=govern).http.get("/v1/models").json()["data"]
        assert [model["id"] for model in data] == listed


def test_texts_count_as_one_request_and_by_their_tokens(start_gateway: StartGateway) -> None:
    limits = Limits(requests_per_minute=3, tokens_per_minute=100)
    gateway = start(start_gateway, govern=limited(limits))
    answer = ask(gateway, input=[[5] * 20, [6] * 30])
    assert answer.headers["x-ratelimit-remaining-requests"] == "2"
    assert answer.json()["usage"] == {"prompt_tokens": 50, "total_tokens": 50}
    over = ask(gateway, input=[[5] * 60])
    message = "tpm_limit of tenant 'anyone' is 100: 50 left, 60 needed"
    assert (over.status_code, over.json()["error"]["message"].startswith(message)) == (429, True)
    assert ask(gateway, input=[[5] * 50]).status_code == 200
    assert ask(gateway, input=[[5]]).json()["error"]["param"] == "rpm_limit"


def test_money_is_spent_by_the_price_of_what_is_read(start_gateway: StartGateway) -> None:
    govern = limited(Limits(budget=Budget(amount_micro=1000)), price=10)
    gateway = start(start_gateway, govern=govern)
    assert ask(gateway, input=[[5] * 60]).status_code == 200
    assert ask(gateway, input=[[5] * 41]).json()["error"]["code"] == "insufficient_quota"
    assert ask(gateway, input=[[5] * 40]).status_code == 200


def test_a_refused_call_holds_nothing(start_gateway: StartGateway) -> None:
    gateway = start(start_gateway, govern=limited(Limits(max_parallel_requests=1, tokens_per_minute=10)))
    assert ask(gateway, input=["x", ""]).status_code == 400
    assert ask(gateway, input=[[600]]).status_code == 400
    assert ask(gateway, input=[[5] * 10]).status_code == 200


def test_a_full_queue_ends_the_call_and_all_of_it(start_gateway: StartGateway) -> None:
    gateway = start(start_gateway, max_queued=3, step_us=200_000)
    answer = ask(gateway, input=[[5]] * 8)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    wait_until(lambda: gateway.stub.num_running == 0, "texts of a call that has failed go on")
    assert ask(gateway, input=[[5]] * 3).status_code == 200


def test_content_rules_read_every_text(start_gateway: StartGateway, tmp_path: Path) -> None:
    rules = {"input": [BLOCK_CARDS, REDACT_MAIL, TELL_BIRDS], "output": [BLOCK_CARDS]}
    audit = tmp_path / "audit.jsonl"
    gateway = start(start_gateway, govern=ruled(audit, **rules))
    error = ask(gateway, input=["one", f"my card {CARD}"]).json()["error"]
    assert (error["param"], error["code"]) == ("input[1]", "content_filter")
    error = ask(gateway, "/v1/rerank", documents=["one", {"text": CARD}]).json()["error"]
    assert error["param"] == "documents[1].text"
    assert ask(gateway, "/v1/rerank", query=CARD).json()["error"]["param"] == "query"
    assert ask(gateway, "/v1/score", text_2=["one", CARD]).json()["error"]["param"] == "text_2[1]"
    assert gateway.stub.num_requests == 0
    told = ask(gateway, input=["one", "a heron"]).json()["prompt_filter_results"]
    assert [(each["prompt_index"], list(each["content_filter_results"])) for each in told] == [(1, ["birds"])]
    ranked = ask(gateway, "/v1/rerank", documents=["me@here.org", "one"]).json()
    assert [each["document"]["text"] for each in ranked["results"]] == ["<mail>", "one"]
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {"embed", "rerank"} <= {line["action"] for line in lines}
    assert CARD not in audit.read_text()


def test_a_route_stands_for_a_model_of_vectors(start_gateway: StartGateway) -> None:
    models = [{"name": "tiny", "source": "s", "task": "embed", "price": {"input_per_1m": 1e6}}]
    route = {"name": "auto", "default": "tiny", "max_cost_per_request": 20}
    file = parse(json.dumps({"version": 1, "models": models, "routes": [route]}))

    async def govern() -> Government:
        return Government(decider_of(None, ("tiny",)), routes=RouteTable(file))

    gateway = start(start_gateway, govern=govern)
    answer = ask(gateway, model="auto", input=[[5] * 20])
    assert (answer.status_code, answer.json()["model"]) == (200, "auto")
    assert ask(gateway, "/v1/rerank", model="auto").status_code == 200
    costly = ask(gateway, model="auto", input=[[5] * 21]).json()["error"]
    assert (costly["param"], costly["code"]) == ("input", "too_costly")


@pytest.mark.parametrize("path", list(BODIES))
def test_what_became_of_a_call_is_told(start_gateway: StartGateway, path: str) -> None:
    gateway = start_gateway(
        task="classify" if path == "/classify" else "embed",
        vector=VECTOR,
        labels=("a", "b") if path == "/classify" else (),
    )
    answer = ask(gateway, path)
    found = explained(gateway.http, answer.json()["id"])
    assert (found["status"], found["path"], found["asked"]) == (200, path, "tiny")
    (call,) = found["calls"]
    assert "inner" not in found
    assert call["decision"]["allowed"] is True
    assert call["input_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert {choice["finish_reason"] for choice in call["choices"]} == {"stop"}


def test_a_priority_is_no_more_than_the_callers(start_gateway: StartGateway) -> None:
    gateway = start(start_gateway)
    assert ask(gateway, priority=0).status_code == 200
    assert ask(gateway, priority=99).json()["error"]["param"] == "priority"
