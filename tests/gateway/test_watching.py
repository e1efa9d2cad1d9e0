"""Calls of a line in a rollout, as gates see them, through a real gateway."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import pytest

from airi.errors import ContextLengthError, EngineDeadError, ExecutionError, QueueFullError
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.http import CallRecord, ClientGone
from airi.gateway.metrics import ChoiceTimer, Metrics
from airi.gateway.models import ServedModel
from airi.gateway.observing import Observing
from airi.gateway.scoring import Scorer
from airi.gateway.watching import Sight, Trial, Watching
from airi.lifecycle.observed import Seen
from airi.lifecycle.rollouts import Phase, Rollout, Shadow
from airi.policy.audit import AuditLog
from airi.text import Tokenizer
from tests.lifecycle.world import MemoryState

from .calling import ANSWERS, start_calling
from .conftest import Gateway, StartGateway, wait_until

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}


def rollout_at(percent: float | None) -> Rollout:
    """A rollout that has so many percent of stable's answers scored."""
    steps = () if percent is None else (Shadow(percent=percent, duration_s=1),)
    return Rollout(id="r1", stable="one", candidate="two", steps=steps, phase=Phase.RUNNING)


ROLLOUT = rollout_at(100.0)


class World:
    """A gateway whose model is a line in a rollout; its candidate is the stub once more."""

    def __init__(self, audit: Path | None = None, policies: str | None = None, **scorer: Any) -> None:
        self.rollout, self.release = ROLLOUT, "one"
        self.observing, self.scorer = Observing(MemoryState()), Scorer(**scorer)
        self._audit, self._policies = audit, policies
        self.drawn = 0.0
        self.is_same = False

    async def govern(self) -> Government:
        audit = None if self._audit is None else AuditLog(self._audit)
        self.watching = Watching(self.observing, self.scorer, self.trial_of, draw=lambda: self.drawn)
        return Government(decider_of(self._policies, ("tiny",)), audit=audit, watching=self.watching)

    def trial_of(self, record: CallRecord, model: ServedModel) -> Trial | None:
        other = model if self.is_same else replace(model, created=1)
        return Trial(self.rollout, self.release, other)

    def seen(self, release: str) -> Seen:
        return self.observing.of(self.rollout, release)

    def settled(self, gateway: Gateway, calls: int = 1) -> Seen:
        """What is seen of the candidate once so many calls have ended, and their answers were read."""
        wait_until(
            lambda: self.seen("one").requests + self.seen("two").requests == calls, "a call is not counted"
        )
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), gateway.loop).result()
        wait_until(lambda: not self.scorer.num_running, "an answer is read for ever")
        return self.seen("two")

    def judged(self, gateway: Gateway, calls: int) -> Seen:
        """What is seen of stable once so many calls have ended, and their answers were judged; no more are then."""
        self.settled(gateway, calls)
        wait_until(lambda: self.watching.verdicts.is_idle, "an answer is judged for ever")
        asyncio.run_coroutine_threadsafe(self.watching.close(), gateway.loop).result()
        return self.seen("one")


def post(gateway: Gateway, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    response = gateway.http.post(path, json={**CHAT, **fields})
    assert response.status_code == 200, response.text
    return response


def test_tokens_that_come_together_share_the_time_before_them() -> None:
    seen = Seen()
    timer = ChoiceTimer(Metrics("test").model("tiny"), seen)
    timer.tokens(3, 10.0, 9.5)
    timer.tokens(4, 10.02, 9.5)
    timer.tokens(1, 10.025, 9.5)
    assert seen.ttft_ms.quantile(0.5) == pytest.approx(500, rel=0.03)
    assert seen.itl_ms.count == 5
    for q in (0.01, 1.0):
        assert seen.itl_ms.quantile(q) == pytest.approx(5, rel=0.03)


@pytest.mark.parametrize("stream", [False, True])
def test_what_becomes_of_calls_is_counted(start_gateway: StartGateway, *, stream: bool) -> None:
    world = World()
    world.rollout = rollout_at(None)
    gateway = start_gateway(govern=world.govern, stop_after=6)
    for _ in range(3):
        post(gateway, stream=stream)
    post(gateway, stream=stream, max_tokens=3, n=2)
    seen = world.seen("one")
    wait_until(lambda: seen.requests == 4, "a call is not counted")
    assert (seen.errors, seen.finished, seen.cut, seen.repeating) == (0, 5, 2, 0)
    assert seen.ttft_ms.count == 5
    assert seen.itl_ms.count <= 3 * 5 + 2 * 2
    assert world.seen("two") == Seen()


def test_a_client_s_mistake_is_no_error(start_gateway: StartGateway) -> None:
    world = World()
    gateway = start_gateway(govern=world.govern)
    assert gateway.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 4096}).status_code == 400
    post(gateway)
    wait_until(lambda: world.seen("one").requests == 1, "a call is not counted")
    assert world.seen("one").errors == 0


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (None, (1, 0)),
        (ClientGone(), (0, 0)),
        (ContextLengthError("too long"), (0, 0)),
        (QueueFullError("full"), (0, 0)),
        (EngineDeadError("gone"), (1, 1)),
        (ExecutionError("a step failed"), (1, 1)),
        (ValueError("a bug"), (1, 1)),
    ],
)
def test_the_share_of_errors_is_of_calls_that_were_answered_or_failed_here(
    error: Exception | None, counted: tuple[int, int]
) -> None:
    watching = Watching(Observing(MemoryState()), Scorer(), lambda *_: None)
    record, model = CallRecord(request_id="a", started=0.0), cast(ServedModel, None)
    sight = Sight(watching, Trial(ROLLOUT, "one", None), record, model, lambda: True)
    sight.error = error
    sight.ended()
    assert (sight.seen.requests, sight.seen.errors) == counted


LOOK: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}},
    "required": ["city"],
}
STRICT = {"type": "json_schema", "json_schema": {"name": "place", "schema": LOOK}}


@pytest.mark.parametrize(("city", "valid"), [("Rome", True), ("Constantinople", False)])
def test_an_answer_is_valid_when_it_meets_the_schema_of_its_request(
    start_gateway: StartGateway, tokenizer: Tokenizer, city: str, *, valid: bool
) -> None:
    world, answer = World(), json.dumps({"city": city})
    world.rollout = rollout_at(None)
    length = len(tokenizer.encode(answer, add_special_tokens=False))
    gateway = start_gateway(govern=world.govern, answer=answer, stop_after=length + 1)
    asked: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/v1/chat/completions", {"response_format": STRICT}),
        ("/v1/chat/completions", {"response_format": STRICT, "stream": True}),
        ("/v1/chat/completions", {"guided_json": LOOK}),
        ("/v1/completions", {"prompt": "Hi", "structured_outputs": {"json": LOOK}}),
        (
            "/v1/responses",
            {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "a", "schema": LOOK}}},
        ),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}),  # is JSON, whatever else
        ("/v1/chat/completions", {"response_format": STRICT, "max_tokens": 3}),  # is cut off
        ("/v1/chat/completions", {}),  # asks for nothing
    )
    for path, fields in asked:
        chat = {"messages": CHAT["messages"]} if path == "/v1/chat/completions" else {}
        response = gateway.http.post(path, json={"model": "tiny", **chat, **fields})
        assert response.status_code == 200, response.text
    seen = world.judged(gateway, len(asked))
    assert (seen.json_asked, seen.json_valid) == (7, 6)
    assert (seen.schema_asked, seen.schema_valid, seen.unjudged) == (7, 6 if valid else 1, 0)


@pytest.mark.parametrize("form", ANSWERS)
def test_calls_of_tools_are_valid_when_they_meet_their_parameters(
    start_gateway: StartGateway, model_folder: Path, tokenizer: Tokenizer, tmp_path: Path, form: str
) -> None:
    world = World()
    world.rollout = rollout_at(None)

    def start(**stub: Any) -> Gateway:
        return start_gateway(**{"govern": world.govern, **stub})

    gateway = start_calling(cast(StartGateway, start), model_folder, tokenizer, tmp_path, form)
    narrow = {**LOOK, "properties": {"city": {"maxLength": 3}}}
    other = {"name": "other"}
    for look in (LOOK, narrow):  # neither is strict, so that no engine enforces them
        tools = [
            {"type": "function", "function": each} for each in ({"name": "look", "parameters": look}, other)
        ]
        post(gateway, tools=tools, max_tokens=200)
    post(gateway, tools=tools, tool_choice="none", max_tokens=200)
    of_messages = [
        {"name": "look", "input_schema": narrow},
        {"name": "other", "input_schema": {"type": "object"}},
    ]
    post(gateway, "/v1/messages", tools=of_messages, max_tokens=200)
    seen = world.judged(gateway, 4)
    assert (seen.json_asked, seen.schema_asked, seen.schema_valid, seen.unjudged) == (0, 3, 1, 0)


def test_json_counts_where_it_was_asked_for(start_gateway: StartGateway) -> None:
    world = World()
    gateway = start_gateway(govern=world.govern, answer='{"a": 1}', stop_after=100)
    length = 0
    for most in (60, 3):
        response = post(gateway, response_format={"type": "json_object"}, max_tokens=most).json()
        length = response["usage"]["completion_tokens"]
    assert length == 3
    seen = world.judged(gateway, 2)
    # The stub says its answer over and over: neither is JSON, and one of them says so again and again.
    assert (seen.json_asked, seen.json_valid, seen.repeating) == (2, 0, 1)
    assert (seen.schema_asked, seen.schema_valid) == (2, 0)


def test_answers_of_stable_are_scored_once_they_have_ended(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    world = World(tmp_path / "audit.jsonl")
    gateway = start_gateway(govern=world.govern)
    asked: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/v1/chat/completions", {}),
        ("/v1/completions", {"prompt": ["Hi", "there"]}),
        ("/v1/completions", {"prompt": [5, 6, 7]}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 8}),
        ("/v1/messages", {}),
    )
    for count, (path, fields) in enumerate(asked, 1):
        body = {name: CHAT[name] for name in ("model", "max_tokens") if path != "/v1/responses"}
        body |= {} if "prompt" in fields else {"messages": CHAT["messages"]}
        body = {"model": "tiny"} | fields if path == "/v1/responses" else body | fields
        response = gateway.http.post(path, json=body)
        assert response.status_code == 200, response.text
        seen = world.settled(gateway, count)
    assert (seen.nll_delta.answers, seen.nll_delta.tokens, seen.nll_delta.total) == (5, 40, 0.0)
    assert (seen.agreement.mean, seen.unscored, seen.dropped, seen.requests) == (1.0, 0, 0, 0)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines].count("shadow") == 5
    page = gateway.http.get("/metrics").text
    assert 'airi_shadow_answers_total{model_name="tiny",outcome="scored"} 5.0' in page
    assert gateway.stub.num_requests == 6 + 2 * 5


def test_what_is_not_chosen_is_not_scored(start_gateway: StartGateway) -> None:
    world = World()
    gateway = start_gateway(govern=world.govern)
    world.drawn = 0.5
    world.rollout = rollout_at(50.0)
    post(gateway)
    world.release, world.drawn = "two", 0.0  # the candidate's own answers are not
    post(gateway)
    world.release = "one"
    world.rollout = rollout_at(None)
    post(gateway)
    assert world.settled(gateway, 3).nll_delta.answers == 0
    assert gateway.stub.num_requests == 3


def test_while_a_candidate_loads_nothing_is_seen(start_gateway: StartGateway) -> None:
    world = World()
    world.rollout = msgspec.structs.replace(ROLLOUT, phase=Phase.PREPARING)
    gateway = start_gateway(govern=world.govern)
    post(gateway)
    world.rollout = ROLLOUT
    post(gateway)
    assert world.settled(gateway).nll_delta.answers == 1


def test_the_same_version_need_not_be_read(start_gateway: StartGateway) -> None:
    world = World()
    world.is_same = True
    gateway = start_gateway(govern=world.govern)
    post(gateway)
    seen = world.settled(gateway)
    assert (seen.nll_delta.answers, seen.nll_delta.mean, seen.agreement.mean) == (1, 0.0, 1.0)
    assert gateway.stub.num_requests == 1


def test_a_policy_that_forbids_shadows_keeps_answers_from_candidates(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    policies = 'permit (principal, action, resource) unless { action == Action::"shadow" };'
    world = World(tmp_path / "audit.jsonl", policies)
    gateway = start_gateway(govern=world.govern)
    post(gateway)
    assert world.settled(gateway) == Seen()
    assert gateway.stub.num_requests == 1
    (line,) = (
        line
        for line in map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
        if line["action"] == "shadow"
    )
    assert not line["allowed"]
    assert (
        'airi_shadow_answers_total{model_name="tiny",outcome="denied"} 1.0'
        in gateway.http.get("/metrics").text
    )


def test_beyond_so_many_at_once_answers_are_dropped_and_counted(start_gateway: StartGateway) -> None:
    world = World(most=0)
    gateway = start_gateway(govern=world.govern)
    post(gateway)
    seen = world.settled(gateway)
    assert (seen.dropped, seen.nll_delta.answers) == (1, 0)
    assert (
        'airi_shadow_answers_total{model_name="tiny",outcome="dropped"} 1.0'
        in gateway.http.get("/metrics").text
    )
    assert gateway.stub.num_requests == 1


def test_what_cannot_be_scored_costs_the_call_nothing(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()

    def broken(*_: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(world.scorer, "run", broken)
    gateway = start_gateway(govern=world.govern)
    post(gateway)
    assert world.settled(gateway) == Seen()
