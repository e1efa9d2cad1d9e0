"""A classifier says which model a call is for; whatever becomes of it, the call goes on."""

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
from airi.gateway.limits import Limiter
from airi.gateway.routes import RouteTable
from airi.policy.audit import AuditLog
from airi.policy.ledger import Limits, LimitTable, ProcessLedger, Scope
from airi.text import Tokenizer

from .conftest import StartGateway
from .content import REDACT_MAIL
from .test_judges_upstream import verdict
from .test_routes import OTHER
from .test_server import requests_of
from .test_upstream_hostile import says
from .upstream import CHAT, GOOD, STREAM, HostileServer, Say, ask, content, far, front, hostile, status

MODEL = {"upstream": {"base_url": "http://x/v1", "model": "m", "max_model_len": 4096}}
LABELS = {"code": "b", "small talk": "a"}
MOST = 1 << 40
Served = tuple[httpx.Client, HostileServer, HostileServer, HostileServer]


@contextmanager
def sorted_by(
    said: bytes | Say,
    *,
    policies: str | None = None,
    limits: Limits | None = None,
    audit: Path | None = None,
    input: list[dict[str, Any]] | None = None,
    affinity: str | None = None,
    rules: list[dict[str, str]] | None = None,
    **classifier: Any,
) -> Iterator[Served]:
    """A gateway with the route `auto` over the models a and b, which the model c classifies for."""
    route: dict[str, Any] = {"name": "auto", "default": "a", "rules": rules or [], "affinity": affinity}
    route["classifier"] = {"model": "c", "labels": LABELS} | classifier
    models = [{"name": name} | MODEL for name in "abc"]
    file = parse(
        json.dumps({"version": 1, "models": models, "routes": [route], "content": {"input": input or []}})
    )

    async def govern() -> Government:
        limiter = None
        if limits is not None:
            table = LimitTable({Scope(tenant="anyone"): limits})
            ledger = ProcessLedger(table)
            await ledger.set_limits(table)
            limiter = Limiter(ledger, table, lambda *_: 0)
        return Government(
            decider_of(policies, ("a", "b", "c")),
            limiter,
            routes=RouteTable(file),
            content=ContentPart(file),
            audit=None if audit is None else AuditLog(audit),
        )

    with hostile(GOOD) as a, hostile(OTHER) as b, hostile(said) as c:
        named = zip((a, b, c), "abc", strict=True)
        served = [replace(far(each.url, name=name), aliases=(), max_model_len=4096) for each, name in named]
        with front(*served, govern=govern) as http:
            yield http, a, b, c


def test_its_label_says_which_model_answers() -> None:
    with sorted_by(verdict("Code.")) as (http, a, _, c):
        response = ask(http, model="auto")
        assert content(response) == "I am another"
        assert response.headers["x-airi-model"] == "b"
        page = http.get("/metrics").text
        assert ask(http, model="auto", stream=True).headers["x-airi-model"] == "b"
        assert a.asked == []
    assert 'airi_route_classifications_total{label="code",outcome="ok",route="auto"} 1.0' in page
    body = c.asked[0].body
    assert (body["temperature"], body["max_tokens"]) == (0.0, 16)
    assert "The labels are: code, small talk." in body["messages"][0]["content"]
    with sorted_by(verdict("small talk")) as (http, _, _, _):
        assert ask(http, model="auto").headers["x-airi-model"] == "a"


def test_it_is_shown_the_last_text_of_the_user_alone() -> None:
    messages = [
        {"role": "system", "content": "SYSTEM"},
        {"role": "user", "content": "FIRST"},
        {"role": "assistant", "content": "ANSWER"},
        {"role": "user", "content": [{"type": "text", "text": "LAST <|im_end|>"}]},
        {"role": "assistant", "content": "MORE"},
    ]
    with sorted_by(verdict("code"), question="Is it a program?") as (http, _, _, c):
        assert ask(http, model="auto", messages=messages).status_code == 200
        shown = c.asked[0].body["messages"][0]["content"]
        assert "LAST <\u200b|im_end|>" in shown
        assert shown.count("Is it a program?") == 2
        assert not any(word in shown for word in ("SYSTEM", "FIRST", "ANSWER", "MORE"))
        http.post("/v1/completions", json={"model": "auto", "prompt": ["ONE", "TWO"], "max_tokens": 4})
        assert "TWO" in c.asked[1].body["messages"][0]["content"]


def test_a_long_text_is_shown_by_its_ends() -> None:
    long = "BEGIN " + "x" * 100_000 + " END"
    with sorted_by(verdict("code"), max_text_tokens=64) as (http, _, _, c):
        ask(http, model="auto", messages=[{"role": "user", "content": long}])
        shown = c.asked[0].body["messages"][0]["content"]
    begin = shown.index("BEGIN")
    assert shown[begin:].index(" END") == 64 + len("\n[...]\n") - len(" END")


def test_rules_come_first_and_nobody_is_asked_then() -> None:
    rules = [{"when": "request.metadata.topic == 'billing'", "use": "b"}]
    with sorted_by(verdict("small talk"), rules=rules) as (http, _, _, c):
        assert ask(http, model="auto", metadata={"topic": "billing"}).headers["x-airi-model"] == "b"
        assert c.asked == []


def test_a_session_is_classified_once() -> None:
    with sorted_by(verdict("code"), affinity="session") as (http, _, _, c):
        for _ in range(3):
            response = http.post(
                "/v1/chat/completions", json=CHAT | {"model": "auto"}, headers={"x-airi-session": "s"}
            )
            assert response.headers["x-airi-model"] == "b"
        assert len(c.asked) == 1


FAILING: dict[str, tuple[bytes | Say, str]] = {
    "garbage": (verdict("Well, it is code"), "no_label"),
    "nothing": (verdict(""), "no_label"),
    "broken": (status(500), "failed"),
    "refused": (status(400), "failed"),
    "closed": (b"", "failed"),
    "half": (STREAM, "failed"),
    "hangs": (says(hangs=True), "timeout"),
}


@pytest.mark.parametrize("what", FAILING)
def test_without_a_label_the_default_answers_and_that_is_told(what: str, tmp_path: Path) -> None:
    said, outcome = FAILING[what]
    audit = tmp_path / "audit.jsonl"
    with sorted_by(said, audit=audit, timeout_s=0.5 if what == "hangs" else 20) as (http, _, _, c):
        response = ask(http, model="auto")
        assert content(response) == "Hello there"
        assert response.headers["x-airi-model"] == "a"
        page = http.get("/metrics").text
        if what == "hangs":
            assert c.hung_up.wait(30)
    assert f'airi_route_classifications_total{{label="",outcome="{outcome}",route="auto"}} 1.0' in page
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [line["failed"] for line in lines if "route" in line] == [[f"classifier: {outcome}"]]
    decided = [(line["action"], line["resource"]) for line in lines if "allowed" in line]
    assert decided[:2] == [("classify", "Model::c"), ("chat", "Model::a")]
    assert len({line["request_id"] for line in lines[:3]}) == 1


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1], [2]]])
def test_where_there_is_no_text_nobody_is_asked(prompt: Any) -> None:
    with sorted_by(verdict("code")) as (http, _, _, c):
        http.post("/v1/completions", json={"model": "auto", "prompt": prompt, "max_tokens": 4})
        messages = [{"role": "assistant", "content": "Hi"}]
        assert ask(http, model="auto", messages=messages).headers["x-airi-model"] == "a"
        assert c.asked == []


def test_a_policy_may_forbid_it(tmp_path: Path) -> None:
    policies = (
        'permit (principal, action, resource); forbid (principal, action == Action::"classify", resource);'
    )
    audit = tmp_path / "audit.jsonl"
    with sorted_by(verdict("code"), policies=policies, audit=audit) as (http, _, _, c):
        assert ask(http, model="auto").headers["x-airi-model"] == "a"
        assert c.asked == []
    assert '"action":"classify","resource":"Model::c","allowed":false' in audit.read_text()
    with sorted_by(verdict("code"), policies='permit (principal, action == Action::"chat", resource);') as (
        http,
        *_,
    ):
        assert ask(http, model="auto").headers["x-airi-model"] == "b"


def test_it_is_asked_nothing_for_who_may_use_no_model_of_the_route() -> None:
    for names in ("ab", "a"):
        denied = ", ".join(f'Model::"{name}"' for name in names)
        policies = "permit (principal, action, resource); "
        policies += f'forbid (principal, action == Action::"chat", resource) when {{ [{denied}].contains(resource) }};'
        with sorted_by(verdict("code"), policies=policies) as (http, _, _, c):
            assert ask(http, model="auto").status_code == (403 if names == "ab" else 200)
            assert len(c.asked) == (0 if names == "ab" else 1)


def test_its_label_is_no_way_around_a_policy() -> None:
    policies = "permit (principal, action, resource); "
    policies += 'forbid (principal, action == Action::"chat", resource == Model::"b");'
    with sorted_by(verdict("code"), policies=policies) as (http, _, b, _):
        assert ask(http, model="auto").status_code == 403
        assert b.asked == []


def test_it_counts_tokens_and_no_request_and_nobody_over_a_limit_has_it_asked() -> None:
    limits = Limits(requests_per_minute=2, input_tokens_per_minute=MOST, output_tokens_per_minute=MOST)
    with sorted_by(verdict("code"), limits=limits) as (http, _, _, c):
        statuses = [ask(http, model="auto").status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        assert len(c.asked) == 2
    with sorted_by(verdict("code"), limits=Limits(tokens_per_minute=800)) as (http, _, _, c):
        assert ask(http, model="auto").headers["x-airi-model"] == "a"  # its question has no room
        assert c.asked == []


def test_rules_for_texts_hold_for_what_it_is_shown() -> None:
    said = [{"role": "user", "content": "Write to me@x.org"}]
    redact, block = REDACT_MAIL | {"models": ["c"]}, REDACT_MAIL | {"models": ["c"], "action": "block"}
    with sorted_by(verdict("code"), input=[redact]) as (http, _, b, c):
        assert ask(http, model="auto", messages=said).headers["x-airi-model"] == "b"
        assert "Write to <\u200bmail>" in c.asked[0].body["messages"][0]["content"]
        assert b.asked[0].body["messages"] == said
    with sorted_by(verdict("code"), input=[block]) as (http, _, _, c):
        response = ask(http, model="auto", messages=said)
        assert response.headers["x-airi-model"] == "a"
        assert c.asked == []
        page = http.get("/metrics").text
    assert 'airi_route_classifications_total{label="",outcome="refused",route="auto"} 1.0' in page


def test_a_client_that_hangs_up_while_it_is_asked_ends_the_question() -> None:
    with sorted_by(says(hangs=True), timeout_s=60) as (http, a, _, c):
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=CHAT | {"model": "auto"}, timeout=1.0)
        assert c.hung_up.wait(30)
        assert a.asked == []


def test_a_model_of_the_engine_can_say_nothing_but_a_label(
    start_gateway: StartGateway, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"it": "tiny-alias", "what": "tiny"}
    route = {"name": "auto", "default": "tiny", "classifier": {"model": "tiny", "labels": labels}}
    models = [{"name": "tiny", "source": "s", "aliases": ["tiny-alias"]}]
    file = parse(json.dumps({"version": 1, "models": models, "routes": [route]}))

    async def govern() -> Government:
        return Government(decider_of(None, ("tiny",)), routes=RouteTable(file))

    stop_after = len(tokenizer.encode("it", add_special_tokens=False)) + 1
    gateway = start_gateway(answer="it", stop_after=stop_after, max_model_len=1024, govern=govern)
    seen = requests_of(gateway, monkeypatch)
    response = gateway.http.post("/v1/chat/completions", json=CHAT | {"model": "auto", "priority": -3})
    assert response.status_code == 200, response.text
    asked, call = seen
    assert asked.params.structured is not None
    assert asked.params.structured.choices == ["it", "what"]
    assert asked.params.temperature == 0
    assert asked.tenant == call.tenant
    tokens = memoryview(asked.tokens).cast("i").tolist()
    assert "\nHi\n" in tokenizer.decode(tokens, skip_special_tokens=False)
    page = gateway.http.get("/metrics").text
    assert 'airi_route_classifications_total{label="it",outcome="ok",route="auto"} 1.0' in page
