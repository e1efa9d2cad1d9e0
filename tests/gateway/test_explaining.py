"""What a gateway tells of the calls to models that it has answered, and of those that run."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from airi.cli import main
from airi.gateway.admin.requests import RequestAdmin
from airi.gateway.admin.route import AdminCall
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.limits import Limiter
from airi.gateway.options import AppOptions
from airi.observability.requests import ChoiceRecord, ModelRecord, RequestRecord, UpstreamRecord
from airi.policy import ANYONE
from airi.policy.keys import create_key
from airi.policy.ledger import Limits, LimitTable, ProcessLedger, Scope
from airi.policy.tenants import TenantOptions
from airi.state import open_store
from airi.transport.stub import StubOptions

from .admin import bearer
from .conftest import Gateway, StartGateway, serve_process, stub_engine, wait_until
from .content import REDACT_MAIL, content_part
from .test_classifier import sorted_by
from .test_judges import judged
from .test_judges import start as start_judged  # noqa: F401
from .test_judges_upstream import verdict
from .test_routes import OTHER, routed
from .test_watching import World
from .upstream import GOOD, ask, far, front, hostile, status

SECRET = "nobody-else-may-read-this"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 8}


def explained(http: httpx.Client, name: str) -> dict[str, Any]:
    """The record of a request, once it has ended."""
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        answer = http.get(f"/admin/requests/{name}")
        assert answer.status_code == 200, answer.text
        found.update(answer.json())
        return "running" not in answer.json()

    wait_until(has_ended, "the request does not end")
    answer = http.get(f"/admin/requests/{name}")
    assert SECRET not in answer.text
    return dict(answer.json())


def chat(gateway: Gateway, **fields: Any) -> tuple[httpx.Response, dict[str, Any]]:
    """An answer, and what is told of it."""
    answer = gateway.http.post("/v1/chat/completions", json=CHAT | fields)
    return answer, explained(gateway.http, answer.headers["x-request-id"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_told_from_its_decision_to_its_end(gateway: Gateway, stream: bool) -> None:  # noqa: FBT001
    answer, found = chat(gateway, model="tiny-alias", stream=stream, n=2)
    assert (found["status"], found["tenant"], found["dialect"]) == (200, "anyone", "openai")
    assert (found["path"], found["asked"]) == ("/v1/chat/completions", "tiny-alias")
    assert found.get("stream", False) is stream
    assert found["answer_id"] in answer.text
    (call,) = found["calls"]
    assert (call["kind"], call["asked"], call["model"]) == ("chat", "tiny-alias", "tiny")
    assert call["decision"] == {"allowed": True, "policies": ["airi.anyone", "airi.models"]}
    assert (call["output_tokens"], call["priority_class"]) == (16, "standard")
    assert [choice["finish_reason"] for choice in call["choices"]] == ["length", "length"]
    for choice in call["choices"]:
        assert choice["engine"] == [f"request {choice['number']} is the stub's"]
    moments = [call[f"{what}_ms"] for what in ("began", "sent", "first_token", "ended")]
    assert moments == sorted(moments)
    assert moments[-1] <= found["took_ms"]


@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        ("/v1/completions", {"prompt": SECRET}, "openai"),
        ("/v1/messages", {"messages": CHAT["messages"]}, "anthropic"),
        ("/v1/responses", {"input": SECRET}, "openai"),
        ("/v2/models/tiny/generate", {"text_input": SECRET}, "kserve"),
    ],
)
def test_every_way_to_call_a_model_is_told_by_the_id_of_its_answer(
    gateway: Gateway, path: str, body: dict[str, Any], dialect: str
) -> None:
    limit = {} if dialect == "kserve" else {"model": "tiny", "max_tokens": 8}
    if path == "/v1/responses":
        limit = {"model": "tiny", "max_output_tokens": 8}
    answer = gateway.http.post(path, json=body | limit)
    assert answer.status_code == 200, answer.text
    name = answer.json().get("id") or answer.headers["x-request-id"]
    found = explained(gateway.http, name)
    assert found["id"] == answer.headers["x-request-id"]
    assert found["dialect"] == dialect
    assert found["calls"][0]["choices"][0]["finish_reason"]


def test_what_fails_is_told_without_what_the_request_says(gateway: Gateway) -> None:
    _, unknown = chat(gateway, model="nix")
    assert unknown["error"] == {"status": 404, "code": "model_not_found", "field": "model"}
    assert unknown["calls"][0]["error"] == unknown["error"]
    assert "model" not in unknown["calls"][0]
    _, wrong = chat(gateway, temperature=SECRET)
    assert wrong["error"] == {"status": 400, "code": "invalid_value", "field": "temperature"}
    assert "calls" not in wrong
    _, long = chat(gateway, messages=[{"role": "user", "content": "word " * 5000}])
    assert long["calls"][0]["error"]["code"] == "context_length_exceeded"
    assert "token" in long["calls"][0]["error"]["message"]


def test_one_that_runs_is_told_as_such_and_one_whose_client_left_as_that(start_gateway: StartGateway) -> None:
    gateway = start_gateway(step_us=20_000)
    body = CHAT | {"stream": True, "max_tokens": 400}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_text())
        name = answer.headers["x-request-id"]
        found = gateway.http.get(f"/admin/requests/{name}").json()
        assert found["running"]
        assert "ended_ms" not in found["calls"][0]
        assert found["calls"][0]["first_token_ms"] > 0
        assert main(["explain", name, "--url", gateway.url]) == 0
    found = explained(gateway.http, name)
    assert found["error"] == {"status": 499, "code": "client_gone"}
    assert found["calls"][0]["error"] == found["error"]


def test_limits_are_told_as_they_were_reserved_and_settled(start_gateway: StartGateway) -> None:
    scope = Scope(tenant="anyone")
    table = LimitTable({scope: Limits(requests_per_minute=2, tokens_per_minute=10**6)})

    async def govern() -> Government:
        ledger = ProcessLedger(table)
        await ledger.set_limits(table)
        return Government(decider_of(None, ("tiny",)), Limiter(ledger, table, lambda _, i, o: 1000 * (i + o)))

    gateway = start_gateway(govern=govern, stop_after=5)
    _, found = chat(gateway)
    (call,) = found["calls"]
    read, limits = call["input_tokens"], call["limits"]
    assert limits["scopes"] == ["tenant 'anyone'"]
    assert limits["reserved"] == {
        "requests": 1,
        "input_tokens": read,
        "output_tokens": 8,
        "cost": (read + 8) / 1000,
    }
    assert limits["settled"] == limits["reserved"] | {"output_tokens": 5, "cost": (read + 5) / 1000}
    chat(gateway)
    _, over = chat(gateway)
    assert over["error"]["status"] == 429
    assert over["error"]["field"] == "rpm_limit"
    assert "rpm_limit of tenant 'anyone' is 2" in over["error"]["message"]
    assert "choices" not in over["calls"][0]


def test_a_route_tells_its_rule_its_fallbacks_and_why_each_failed() -> None:
    with routed(status(500)) as (http, _, _):
        answer = ask(http, model="auto", metadata={"secret": SECRET})
        found = explained(http, answer.headers["x-request-id"])
    assert found["asked"] == "auto"
    assert found["route"] == {
        "name": "auto",
        "models": ["a", "b"],
        "failed": [{"rule": 0, "error": "it cannot be evaluated: KeyError"}],
    }
    first, second = found["calls"]
    assert (first["model"], second["model"]) == ("a", "b")
    assert first["error"]["status"] == 502
    assert "answers with status 500" in first["error"]["message"]
    assert first["upstream"]["attempts"][0]["outcome"] == "status"
    assert first["upstream"]["circuit"] == "closed"
    assert "error" not in second
    assert [each["outcome"] for each in second["upstream"]["attempts"]] == ["ok"]
    assert (second["input_tokens"], second["output_tokens"]) == (9, 3)


@pytest.mark.parametrize("code", ["context_length_exceeded", "content_filter", "invalid_value"])
@pytest.mark.parametrize("number", [400, 403, 429])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_what_another_server_says_of_a_request_is_not_kept(path: str, number: int, code: str) -> None:
    said = {"error": {"message": f"{SECRET!r} is too long", "code": code, "param": f"messages.{SECRET}"}}
    with (
        hostile(status(number, json.dumps(said).encode())) as server,
        front(far(server.url, max_retries=0)) as http,
    ):
        answer = http.post(path, json=CHAT | {"model": "far"})
        found = explained(http, answer.headers["x-request-id"])
    (call,) = found["calls"]
    assert call["error"]["status"] == answer.status_code >= 400
    assert SECRET not in json.dumps(found)


def test_attempts_at_an_upstream_are_told_with_the_waits_between_them() -> None:
    with (
        hostile(status(503, retry_after_ms="20"), GOOD) as server,
        front(far(server.url, max_retries=1)) as http,
    ):
        found = explained(http, ask(http, model="far").headers["x-request-id"])
    first, second = found["calls"][0]["upstream"]["attempts"]
    assert (first["outcome"], second["outcome"]) == ("status", "ok")
    assert "answers with status 503" in first["problem"]
    assert first["waited_ms"] == 20


def test_a_rule_that_holds_is_told_by_its_place() -> None:
    with routed(GOOD, OTHER) as (http, _, _):
        answer = ask(http, model="auto", metadata={"topic": "billing"})
        found = explained(http, answer.headers["x-request-id"])
    assert found["route"] == {"name": "auto", "rule": 0, "models": ["b"]}


def test_a_classifier_is_told_with_what_it_said_and_what_its_session_kept() -> None:
    with sorted_by(verdict("code"), affinity="session") as (http, _, _, _):
        session = {"x-airi-session": SECRET}
        body = {"model": "auto", "messages": CHAT["messages"]}
        names = [
            http.post("/v1/chat/completions", json=body, headers=session).headers["x-request-id"]
            for _ in range(2)
        ]
        first, second = (explained(http, name) for name in names)
    assert first["route"] == {"name": "auto", "models": ["b"], "classified": "ok", "label": "code"}
    (asked,) = first["inner"]
    assert (asked["kind"], asked["model"]) == ("classify", "c")
    assert asked["decision"]["allowed"]
    assert [each["outcome"] for each in asked["upstream"]["attempts"]] == ["ok"]
    assert second["route"] == {"name": "auto", "models": ["b", "a"], "kept": True}
    assert "inner" not in second


def test_content_rules_are_told_by_name_and_number(start_gateway: StartGateway) -> None:
    async def govern() -> Government:
        return Government(decider_of(None, ("tiny",)), content=content_part(input=[REDACT_MAIL]))

    gateway = start_gateway(govern=govern)
    mail = f"{SECRET}@example.com"
    _, found = chat(gateway, messages=[{"role": "user", "content": f"to {mail} and {mail}"}])
    rule = REDACT_MAIL["name"]
    assert found["calls"][0]["content"] == [{"side": "input", "rule": rule, "action": "redact", "count": 2}]


def test_judges_are_told_as_calls_within_the_call(start_judged: Any) -> None:  # noqa: F811
    gateway = start_judged("safe", input=[judged("block")])
    _, found = chat(gateway)
    (judge,) = found["inner"]
    assert (judge["kind"], judge["asked"], judge["model"]) == ("judge", "tiny", "tiny")
    assert judge["decision"]["allowed"]
    assert judge["choices"][0]["finish_reason"] == "stop"
    assert judge["ended_ms"] <= found["calls"][0]["sent_ms"]
    refusing = start_judged("unsafe", input=[judged("block")])
    _, found = chat(refusing)
    assert found["error"]["code"] == "content_filter"
    assert "rule 'harm'" in found["error"]["message"]
    assert found["calls"][0]["content"] == [{"side": "input", "rule": "harm", "action": "block", "count": 1}]
    assert "sent_ms" not in found["calls"][0], "no model has seen it"


def test_an_answer_that_a_candidate_reads_is_told_with_what_came_of_it(start_gateway: StartGateway) -> None:
    world = World()
    gateway = start_gateway(govern=world.govern, step_us=100_000, stop_after=2)
    answer = gateway.http.post("/v1/chat/completions", json=CHAT)
    name = answer.headers["x-request-id"]
    inner = gateway.http.get(f"/admin/requests/{name}").json()["inner"]
    assert [each.get("outcome") for each in inner] == [None], "it is read behind the answer"
    world.settled(gateway)
    (shadow,) = explained(gateway.http, name)["inner"]
    assert (shadow["kind"], shadow["model"], shadow["outcome"]) == ("shadow", "tiny", "scored")
    assert shadow["decision"]["allowed"]


def test_an_answer_that_a_candidate_may_not_read_is_told_as_that(start_gateway: StartGateway) -> None:
    world = World(
        policies='permit (principal, action, resource); @id("private") '
        'forbid (principal, action == Action::"shadow", resource);'
    )
    _, found = chat(start_gateway(govern=world.govern))
    (shadow,) = found["inner"]
    assert shadow["outcome"] == "denied"
    assert shadow["decision"] == {"allowed": False, "policies": ["private"]}


def test_operators_alone_are_told(start_gateway: StartGateway, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'airi.db'}"
    tenants = (TenantOptions(name="ops", groups=("operators",)), TenantOptions(name="acme"))

    async def keys() -> list[str]:
        async with await open_store(url) as store:
            return [(await create_key(store, each)).text for each in ("ops", "acme")]

    operator, other = asyncio.run(keys())
    gateway = start_gateway(app=AppOptions(tenants=tenants, state=url))
    answer = gateway.http.post("/v1/chat/completions", json=CHAT | {"model": other}, headers=bearer(other))
    name = answer.headers["x-request-id"]
    assert gateway.http.get(f"/admin/requests/{name}").status_code == 401
    assert gateway.http.get(f"/admin/requests/{name}", headers=bearer(other)).status_code == 403
    told = gateway.http.get(f"/admin/requests/{name}", headers=bearer(operator))
    assert told.json()["tenant"] == "acme"
    assert told.json()["key_id"]
    assert other not in told.text, "a key in the wrong place is none the less a key"


def test_what_is_not_kept_is_a_404_that_says_where_it_may_be(gateway: Gateway) -> None:
    answer = gateway.http.get("/admin/requests/nothing")
    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert "each gateway keeps the calls to models that it answered itself" in message
    assert "the last 10,000 of them and 16 MiB" in message


def test_an_id_of_any_form_that_is_taken_is_found(gateway: Gateway) -> None:
    name = "a/b.c:d@e+f=g/h"
    gateway.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": name})
    assert main(["explain", name, "--url", gateway.url]) == 0


def test_the_command_tells_it_as_a_table_and_as_json(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, found = chat(gateway)
    assert main(["explain", answer.json()["id"], "--url", gateway.url]) == 0
    table = capsys.readouterr().out
    for text in (found["id"], "chat allowed: by airi.anyone", "tiny: length", "8 out", "is the stub's"):
        assert text in table
    assert main(["explain", found["id"], "--url", gateway.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_a_replica_is_told_with_what_it_was_chosen_from(model_folder: Path, tmp_path: Path) -> None:
    endpoints = [f"ipc://{tmp_path}/{i}" for i in range(2)]
    flags = [flag for endpoint in endpoints for flag in ("--engine", endpoint)]
    options = [StubOptions(endpoint=each, model_path=str(model_folder), name="tiny") for each in endpoints]
    with (
        stub_engine(options[0]),
        stub_engine(options[1]),
        serve_process(*flags) as (_, url, _),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        answer = http.post("/v1/chat/completions", json=CHAT)
        found = explained(http, answer.headers["x-request-id"])
    (choice,) = found["calls"][0]["choices"]
    assert choice["replica"]["replica"] == answer.headers["x-airi-replica"]
    assert sorted(each["replica"] for each in choice["replica"]["candidates"]) == ["0", "1"]
    assert choice["engine"] == [f"request {choice['number']} is the stub's"]


def test_an_engine_of_a_real_model_tells_what_it_decided() -> None:
    serving = serve_process("--threads", "1", "--kv-memory", "64MiB")
    with serving as (_, url, _), httpx.Client(base_url=url, timeout=60) as http:
        answer = http.post("/v1/chat/completions", json=CHAT | {"model": "airi-demo"})
        found = explained(http, answer.json()["id"])
    (choice,) = found["calls"][0]["choices"]
    said = [line.partition("  ")[2] for line in choice["engine"]]
    assert said[0].startswith(f"submitted: a prompt of {choice['input_tokens']} tokens")
    assert said[-1].startswith("finished: ")
    assert found["calls"][0]["output_tokens"] == choice["output_tokens"] > 0


async def test_an_engine_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airi.gateway.admin.requests._ENGINE_S", 0.02)
    asked: list[int] = []

    class Silent:
        async def explain(self, number: int) -> list[str]:
            asked.append(number)
            await asyncio.Event().wait()
            return []

    calls = [
        ModelRecord(
            asked="far", model="far", upstream=UpstreamRecord(), sent_ms=1.0, choices=[ChoiceRecord(number=1)]
        ),
        ModelRecord(
            asked="near", model="near", sent_ms=2.0, choices=[ChoiceRecord(number=n) for n in (2, 3)]
        ),
        ModelRecord(asked="near", model="near", choices=[ChoiceRecord(number=4)]),
    ]
    record = RequestRecord(id="q", tenant="acme", dialect="openai", path="/", calls=calls)
    served = [SimpleNamespace(name=name, upstream=None, client=Silent()) for name in ("far", "near")]
    traces = SimpleNamespace(recent=SimpleNamespace(find={"q": record}.get))
    admin = RequestAdmin(cast(Any, SimpleNamespace(all_versions=served)), cast(Any, traces))
    found = await admin.show(AdminCall({"request": "q"}, {}, b"", ANYONE))
    told = [choice.engine for call in found.calls for choice in call.choices]
    assert told == [[], ["(the engine does not answer)"], ["(the engine does not answer)"], []]
    assert asked == [2, 3]


def test_without_an_engine_that_answers_the_rest_is_told(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    answer, _ = chat(gateway)
    stopped = threading.Thread(target=gateway.stub.stop)
    stopped.start()
    stopped.join()
    found = explained(gateway.http, answer.headers["x-request-id"])
    assert found["calls"][0]["choices"][0]["engine"] == ["(the engine does not answer)"]
    assert found["status"] == 200
