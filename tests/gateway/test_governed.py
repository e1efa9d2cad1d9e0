"""Every call passes one decision, and what it may use is held before it runs and settled when it has ended."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from airi.errors import LedgerUnavailableError
from airi.gateway.access import OPEN_PATHS, Access, open_access
from airi.gateway.app import create_app
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.limits import Limiter
from airi.gateway.metrics import Metrics
from airi.gateway.models import ModelRegistry
from airi.gateway.options import AppOptions
from airi.policy.audit import AuditLog
from airi.policy.keys import NewKey, create_key
from airi.policy.ledger import Budget, Limits, LimitTable, ProcessLedger, Scope
from airi.policy.tenants import TenantOptions
from airi.state import open_store
from airi.text import Tokenizer

from .conftest import ANSWER, Gateway, Govern, StartGateway, events, starter, wait_until
from .content import AUDIT_NUMBERS, BLOCK_CARDS, CARD, content_part

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
INFER = {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["Hi"]}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "Hi", "max_tokens": 8},
    "/v1/embeddings": {"model": "tiny", "input": "Hi"},
    "/v1/rerank": {"model": "tiny", "query": "Hi", "documents": ["Ho"]},
    "/v1/score": {"model": "tiny", "text_1": "Hi", "text_2": "Ho"},
    "/classify": {"model": "tiny", "input": "Hi"},
    "/v1/retrieve": {"collection": "tiny", "query": "Hi"},
    "/v1/collections/tiny/rows": {"rows": [{"id": "a", "text": "Hi"}]},
    "/v1/responses": {"model": "tiny", "input": "Hi", "max_output_tokens": 8},
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": {"model": "tiny", "messages": CHAT["messages"]},
    "/tokenize": {"model": "tiny", "prompt": "Hi"},
    "/v1/tokenize": {"model": "tiny", "prompt": "Hi"},
    "/detokenize": {"model": "tiny", "tokens": [1]},
    "/v1/detokenize": {"model": "tiny", "tokens": [1]},
    "/v2/models/tiny/infer": INFER,
    **{f"/v2/models/tiny/{way}": {"text_input": "Hi"} for way in ("generate", "generate_stream")},
    "/v2/models/tiny/versions/1/infer": INFER,
    **{f"/v2/models/tiny/versions/1/{way}": {"text_input": "Hi"} for way in ("generate", "generate_stream")},
}
NO = '@id("never") forbid (principal, action, resource);'


def limited(limits: Limits, *, price: int = 0, tenant: str = "anyone") -> Govern:
    """A tenant under these limits; a token costs `price` millionths."""

    async def govern() -> Government:
        table = LimitTable({Scope(tenant=tenant): limits})
        ledger = ProcessLedger(table)
        await ledger.set_limits(table)
        limiter = Limiter(ledger, table, lambda _, prompt, answer: price * (prompt + answer))
        return Government(decider_of(None, ("tiny",)), limiter)

    return govern


def ask(gateway: Gateway, **changes: Any) -> httpx.Response:
    return gateway.http.post("/v1/chat/completions", json=CHAT | changes)


def routes() -> list[tuple[str, str]]:
    """All of the application: method and path."""
    government = Government(decider_of(None, ()))
    app = create_app(ModelRegistry([]), Metrics("1"), AppOptions(), access=Access(), government=government)
    found = []
    for route in app.routes:
        assert isinstance(route, Route)
        methods = (route.methods or set()) - {"HEAD"}
        path = re.sub(r"{\w+(:path)?}", "tiny", route.path.replace("{version}", "1"))
        found += [(method, path) for method in sorted(methods)]
    return found


@pytest.fixture(scope="module")
def denying(
    model_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    async def govern() -> Government:
        return Government(decider_of(NO, ("tiny",)))

    with starter(model_folder, tokenizer, tmp_path_factory.mktemp("denying")) as start:
        yield start(govern=govern)


@pytest.mark.parametrize(("method", "path"), routes())
def test_no_route_but_the_open_ones_answers_without_a_decision(
    denying: Gateway, method: str, path: str
) -> None:
    response = denying.http.request(method, path, json=BODIES.get(path, {}) if method == "POST" else None)
    if path in OPEN_PATHS:
        assert response.status_code == 200
        return
    assert response.status_code == 403
    message = "the call is denied by policy never"
    if path.startswith("/v2"):
        assert response.json() == {"error": message}
        return
    if path.startswith("/v1/messages"):
        assert response.json()["error"] == {"type": "permission_error", "message": message}
        return
    assert response.json()["error"] == {
        "message": message,
        "type": "permission_error",
        "param": None,
        "code": "permission_denied",
    }


async def test_with_keys_no_route_but_the_open_ones_answers_without_one() -> None:
    options = AppOptions(api_keys=("k",))
    async with open_access(options) as access:
        government = Government(decider_of(None, ()))
        app = create_app(ModelRegistry([]), Metrics("1"), options, access=access, government=government)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
            for method, path in routes():
                response = await http.request(method, path, json=BODIES.get(path))
                assert response.status_code == (200 if path in OPEN_PATHS else 401), (method, path)


def test_a_denied_call_reaches_no_engine(denying: Gateway) -> None:
    ask(denying)
    assert denying.stub.num_requests == 0


@pytest.mark.parametrize("asked", [{}, {"max_tokens": None}, {"max_completion_tokens": 9}])
def test_policies_see_how_long_an_answer_may_become(
    start_gateway: StartGateway, asked: dict[str, Any]
) -> None:
    async def govern() -> Government:
        policies = 'permit (principal, action == Action::"chat", resource) when { context.max_tokens <= 8 };'
        return Government(decider_of(policies, ("tiny",)))

    response = ask(start_gateway(govern=govern), **asked)
    assert response.status_code == (403 if asked else 200)


def test_policies_see_how_many_answers_there_may_be(start_gateway: StartGateway) -> None:
    async def govern() -> Government:
        rule = 'permit (principal, action in [Action::"chat", Action::"completion"], resource) when { context.n <= 4 };'
        return Government(decider_of(rule, ("tiny",)))

    gateway = start_gateway(govern=govern)
    assert [ask(gateway, n=n).status_code for n in (4, 5)] == [200, 403]
    for prompts, status in ((["a", "b"], 200), (["a", "b", "c"], 403)):
        body = {"model": "tiny", "prompt": prompts, "n": 2, "max_tokens": 1}
        assert gateway.http.post("/v1/completions", json=body).status_code == status


def test_the_next_request_over_a_limit_is_told_which_and_when_to_come_back(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway(govern=limited(Limits(requests_per_minute=2)))
    first, second, third = (ask(gateway) for _ in range(3))
    assert first.status_code == second.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert [r.headers["x-ratelimit-remaining-requests"] for r in (first, second)] == ["1", "0"]
    assert third.status_code == 429
    error = third.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "rate_limit_error",
        "rpm_limit",
        "rate_limit_exceeded",
    )
    assert error["message"].startswith("rpm_limit of tenant 'anyone' is 2: 0 left, 1 needed")
    assert 0 < int(third.headers["retry-after"]) <= 61


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_answer_did_not_use_is_given_back(start_gateway: StartGateway, stream: bool) -> None:  # noqa: FBT001
    gateway = start_gateway(govern=limited(Limits(tokens_per_minute=400)), answer="Hello", step_us=10_000)

    def answered() -> bool:
        response = ask(gateway, max_tokens=300, stream=stream, stop=["l"])
        return response.status_code == 200 and (not stream or bool(events(response.text)))

    for _ in range(2):  # each holds 300 until the engine has ended it, which may be after the answer
        wait_until(answered, "nothing was given back")
    assert ask(gateway, max_tokens=390).status_code == 429


def test_money_that_is_spent_is_another_error_than_a_full_minute(start_gateway: StartGateway) -> None:
    limits = Limits(budget=Budget(amount_micro=1000))
    gateway = start_gateway(govern=limited(limits, price=100))
    response = ask(gateway)
    assert response.status_code == 429
    assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (
        "max_budget",
        "insufficient_quota",
    )
    assert "retry-after" not in response.headers


def test_a_refused_request_leaves_nothing_held(start_gateway: StartGateway) -> None:
    gateway = start_gateway(govern=limited(Limits(max_parallel_requests=1)))
    assert ask(gateway, temperature=-1).status_code == 400
    assert ask(gateway, messages=[{"role": "user", "content": "x" * 4000}]).status_code == 400
    assert ask(gateway).status_code == 200
    assert ask(gateway).status_code == 200


def test_a_ledger_that_cannot_count_admits_nobody(start_gateway: StartGateway) -> None:
    async def govern() -> Government:
        government = await limited(Limits(requests_per_minute=2))()
        assert government.limiter is not None

        async def fails(*_: Any) -> Any:
            raise LedgerUnavailableError("redis://user:password@host cannot be reached")

        government.limiter._ledger.reserve = fails  # type: ignore[assignment,method-assign]
        return government

    gateway = start_gateway(govern=govern)
    response = ask(gateway)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "ledger_unavailable")
    assert "password" not in response.text
    assert gateway.stub.num_requests == 0


def test_each_decision_is_a_line_of_the_audit_log(start_gateway: StartGateway, tmp_path: Any) -> None:
    async def govern() -> Government:
        return Government(decider_of(None, ("tiny",)), audit=AuditLog(tmp_path / "audit.jsonl"))

    gateway = start_gateway(govern=govern)
    assert ask(gateway, messages=[{"role": "user", "content": "a secret"}]).status_code == 200
    gateway.http.get("/v1/models")
    text = (tmp_path / "audit.jsonl").read_text()
    assert text.count("\n") == 2
    assert '"action":"chat","resource":"Model::tiny","allowed":true,"policies":["airi.anyone"' in text
    assert '"action":"list_models","resource":"Server::airi"' in text
    assert "secret" not in text
    assert ANSWER[:5] not in text


def test_each_line_of_the_audit_log_names_the_key_by_its_public_id(
    start_gateway: StartGateway, make_state_url: Callable[[str], str], tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"

    async def govern() -> Government:
        government = await limited(Limits(requests_per_minute=2), tenant="acme")()
        policy = '@id("no") forbid (principal, action == Action::"completion", resource);'
        government.decider = decider_of(policy + "permit (principal, action, resource);", ("tiny",))
        government.audit = AuditLog(log)
        government.content = content_part(input=[BLOCK_CARDS], output=[AUDIT_NUMBERS])
        return government

    url = make_state_url("sqlite")

    async def make() -> NewKey:
        async with await open_store(url) as store:
            return await create_key(store, "acme")

    made = asyncio.run(make())
    tenant = TenantOptions(name="acme", groups=("operators",))
    gateway = start_gateway(app=AppOptions(state=url, tenants=(tenant,)), govern=govern, answer="1 or 2 ")
    # The whole key in place of a request's id is a slip that people make.
    http = httpx.Client(
        base_url=gateway.url,
        headers={"authorization": f"Bearer {made.text}", "x-request-id": made.text},
        timeout=20,
    )
    card = [{"role": "user", "content": CARD}]
    with http:
        statuses = [
            http.post("/v1/chat/completions", json=CHAT).status_code,
            http.post("/v1/chat/completions", json=CHAT | {"messages": card}).status_code,
            http.post("/v1/chat/completions", json=CHAT).status_code,
            http.post("/v1/completions", json=BODIES["/v1/completions"]).status_code,
            http.get("/v1/models").status_code,
            http.get("/admin/tenants").status_code,
            http.request("DELETE", f"/admin/keys/{made.text}").status_code,
            http.post("/v1/chat/completions", json=CHAT).status_code,
        ]
    assert statuses == [200, 400, 429, 403, 200, 200, 200, 401]
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line.get("action") for line in lines} >= {"chat", "completion", "list_models", "admin"}
    assert {line.get("side") for line in lines} >= {"input", "output"}
    assert [line["key_id"] for line in lines] == [made.record.id] * len(lines)
    assert (lines[-1]["action"], lines[-1]["allowed"]) == ("authenticate", False), "it has been revoked"
    assert made.text.rsplit("-", 1)[1] not in text


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (Limits(requests_per_minute=0), "rpm_limit"),
        (Limits(device_seconds=Budget(amount_micro=5000)), "max_device_seconds"),
    ],
)
def test_a_call_that_a_limit_refuses_or_ends_is_a_line_of_the_audit_log(
    start_gateway: StartGateway, tmp_path: Path, limits: Limits, limit: str
) -> None:
    async def govern() -> Government:
        government = await limited(limits)()
        government.audit = AuditLog(tmp_path / "audit.jsonl")
        return government

    gateway = start_gateway(govern=govern, device_us=1000, step_us=3000)
    response = ask(gateway, messages=[{"role": "user", "content": "a secret"}], max_tokens=400)
    assert (response.status_code, response.json()["error"]["param"]) == (429, limit)
    text = (tmp_path / "audit.jsonl").read_text()
    decided, refused = map(json.loads, text.splitlines())
    assert decided["allowed"]
    assert refused | {"time": ""} == {
        "time": "",
        "request_id": decided["request_id"],
        "tenant": "anyone",
        "action": "chat",
        "resource": "Model::tiny",
        "allowed": False,
        "limit": limit,
        "scope": "tenant 'anyone'",
    }
    assert "secret" not in text


def test_a_decision_that_cannot_be_recorded_is_none(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async def govern() -> Government:
        return Government(decider_of(None, ("tiny",)), audit=AuditLog(Path("/dev/full")))

    gateway = start_gateway(govern=govern)
    for response in (ask(gateway), ask(gateway), gateway.http.get("/v1/models")):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "audit_unavailable")
        assert response.headers["retry-after"] == "1"
    assert gateway.stub.num_requests == 0
    assert gateway.http.get("/health").status_code == 200
    assert [r.name for r in caplog.records if r.levelname == "ERROR"] == ["airi.policy"]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("policies", "seen"),
    [
        ('permit (principal, action == Action::"chat", resource == Model::"tiny");', True),
        (
            "permit (principal, action, resource) when { context has max_tokens && context.max_tokens < 9 };",
            True,
        ),
        ('permit (principal, action == Action::"tokenize", resource);', False),
        ('permit (principal, action == Action::"chat", resource == Model::"other");', False),
    ],
)
def test_callers_see_the_models_that_they_may_use_for_something(
    start_gateway: StartGateway,
    policies: str,
    seen: bool,  # noqa: FBT001
) -> None:
    async def govern() -> Government:
        policy = 'permit (principal, action == Action::"list_models", resource);'
        return Government(decider_of(policy + policies, ("tiny",)))

    gateway = start_gateway(govern=govern)
    names = [model["id"] for model in gateway.http.get("/v1/models").json()["data"]]
    assert names == (["tiny", "tiny-alias"] if seen else [])
    assert gateway.http.get("/v1/models/tiny-alias").status_code == (200 if seen else 404)
    missing = ask(gateway, model="nobody").json()["error"]
    assert missing["message"].endswith("served: tiny, tiny-alias" if seen else "served: nothing")


@pytest.mark.parametrize("region", ["eu", "us", None])
def test_policies_may_ask_for_the_region_of_the_tenant_and_no_header_changes_it(
    start_gateway: StartGateway, make_state_url: Callable[[str], str], region: str | None
) -> None:
    async def govern() -> Government:
        policies = (
            'permit (principal, action, resource); @id("eu-only") forbid (principal, action, resource)'
            ' when { context has region && context.region != "eu" };'
        )
        return Government(decider_of(policies, ("tiny",)))

    url = make_state_url("sqlite")
    gateway = start_gateway(
        app=AppOptions(state=url, tenants=(TenantOptions(name="acme", region=region),)), govern=govern
    )

    async def make() -> str:
        async with await open_store(url) as store:
            return (await create_key(store, "acme")).text

    key = asyncio.run(make())
    asked = {"authorization": f"Bearer {key}", "region": "eu", "x-region": "eu", "x-airi-region": "eu"}

    def status() -> int:
        return gateway.http.post("/v1/chat/completions", json=CHAT, headers=asked).status_code

    wait_until(lambda: status() != 401, "a new key is not accepted")
    assert status() == (403 if region == "us" else 200)
