"""`airi explain`, as a person reads it. What gateways tell is tested with them."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest

from airi.cli._explained import lines
from airi.observability.requests import (
    Amounts,
    CandidateRecord,
    ChoiceRecord,
    ContentRecord,
    DecisionRecord,
    FailedRule,
    Failure,
    LimitsRecord,
    ModelRecord,
    ReleaseRecord,
    ReplicaRecord,
    RequestRecord,
    RouteRecord,
    UpstreamAttempt,
    UpstreamRecord,
)

from .conftest import Result, StubServer

RECORD = RequestRecord(
    id="req-1",
    answer_id="chatcmpl-1",
    at="2026-01-31T12:00:00.000Z",
    tenant="acme",
    key_id="ab12",
    dialect="openai",
    path="/v1/chat/completions",
    asked="auto",
    stream=True,
    status=200,
    took_ms=12_345.0,
    route=RouteRecord(
        name="auto", rule=1, models=["far", "near"], failed=[FailedRule(rule=0, error="KeyError")]
    ),
    calls=[
        ModelRecord(
            kind="chat",
            asked="far",
            model="far",
            error=Failure(status=502, code="upstream_error", message="the upstream of far is gone"),
            decision=DecisionRecord(allowed=True, policies=("models",)),
            upstream=UpstreamRecord(
                circuit="closed",
                attempts=[
                    UpstreamAttempt(outcome="connect", problem="no way", waited_ms=50.0),
                    UpstreamAttempt(outcome="busy"),
                ],
            ),
        ),
        ModelRecord(
            kind="chat",
            asked="near",
            model="near",
            version="g2",
            priority=1,
            priority_class="critical",
            decision=DecisionRecord(allowed=True, policies=("models",)),
            release=ReleaseRecord(
                line="near",
                release="r2",
                by="session",
                rollout="r",
                role="candidate",
                step=2,
                steps=3,
                weight=25.0,
            ),
            limits=LimitsRecord(
                scopes=["tenant 'acme'"],
                reserved=Amounts(requests=1, input_tokens=1000, output_tokens=500, cost=0.5),
                settled=Amounts(requests=1, input_tokens=1000, output_tokens=20, cost=0.25),
            ),
            content=[ContentRecord(side="output", rule="mail", action="redact", count=2)],
            choices=[
                ChoiceRecord(
                    number=7,
                    finish_reason="stop",
                    replica=ReplicaRecord(
                        replica="1",
                        took_us=3.0,
                        lost=["0"],
                        candidates=[
                            CandidateRecord(
                                replica="1", ttft_ms=10.0, cached_tokens=512, requests=2, tokens=64
                            )
                        ],
                    ),
                    engine=[f"line {i}" for i in range(40)],
                )
            ],
            input_tokens=1000,
            cached_tokens=512,
            output_tokens=20,
            device_ms=30.0,
            sent_ms=1.0,
            first_token_ms=20.0,
            ended_ms=12_345.0,
        ),
    ],
    inner=[
        ModelRecord(
            kind="judge", asked="guard", model="guard", choices=[ChoiceRecord(number=6, finish_reason="stop")]
        )
    ],
)
SAID = """\
request: req-1, answer chatcmpl-1
caller: acme, key ab12, at 2026-01-31T12:00:00.000Z
asked: /v1/chat/completions (openai) for auto, streamed
ended: 200 after 12.35 s
route: auto: rules[1] holds -> far, then near
: rules[0] counts as false: KeyError
:
model 1: far: 502 upstream_error: the upstream of far is gone
policy: chat allowed: by models
upstream: circuit closed, 2 attempts
: connect: no way; again after 50.0 ms
: busy
:
model 2: near@g2: stop
policy: chat allowed: by models
release: r2 of near, drawn by x-airi-session; candidate in step 2 of 3, candidate at 25 %
limits: reserved 1 request, 1,000 + 500 tokens, cost 0.5 (tenant 'acme')
: settled 1 request, 1,000 + 20 tokens, cost 0.25
content: output: rule mail (redact) found 2
tokens: 1,000 in (512 cached), 20 out, 30.0 ms of devices, priority 1 (critical)
times: sent +1.0 ms, first token +20.0 ms, end +12.35 s
replica: 1, decided in 3 us; 0 went before it had answered
: 1: first token in 10.0 ms, others wait 0.0 ms, 512 tokens cached, 2 requests with 64 tokens before it
engine: line 0
"""


def said(record: RequestRecord) -> str:
    return "".join(f"{title.strip()}: {text}".rstrip() + "\n" for title, text in lines(record))


def test_everything_is_told_in_the_order_in_which_it_happened() -> None:
    text = said(RECORD)
    assert text.startswith(SAID)
    assert ": ... 28 lines more: --json\n" in text
    assert text.endswith("inner judge: guard: stop\ntokens: 0 in, 0 out\ntimes: never sent\n")


@pytest.mark.parametrize(
    ("fields", "ended"),
    [
        ({"running": True, "took_ms": 5.0}, "not yet: it runs, since 5.0 ms"),
        ({"status": 200, "took_ms": 5.0}, "200 after 5.0 ms"),
        (
            {"status": 200, "took_ms": 5.0, "error": Failure(status=503, code="full", message="no room")},
            "with an error in the stream after 5.0 ms: 503 full: no room",
        ),
        (
            {"status": 400, "took_ms": 5.0, "error": Failure(status=400, code="invalid_value", field="n")},
            "400 invalid_value (n) after 5.0 ms",
        ),
        (
            {"status": 499, "took_ms": 5.0, "error": Failure(status=499, code="client_gone")},
            "the client hung up after 5.0 ms",
        ),
    ],
)
def test_how_it_ended_is_one_line(fields: dict[str, object], ended: str) -> None:
    record = msgspec.convert(
        msgspec.to_builtins(RECORD) | {"status": 0} | msgspec.to_builtins(fields), RequestRecord
    )
    assert f"\nended: {ended}\n" in said(record)


@pytest.mark.parametrize(
    ("route", "why"),
    [
        ({}, "no rule holds, its default"),
        ({"classified": "ok", "label": "code"}, "no rule holds, the classifier says code"),
        ({"classified": "timeout"}, "no rule holds, the classifier says nothing (timeout), its default"),
        ({"rule": 0, "kept": True}, "its session stays with its model"),
    ],
)
def test_why_a_route_chose_is_one_line(route: dict[str, object], why: str) -> None:
    chosen = msgspec.convert({"name": "auto", "models": ["far"], **route}, RouteRecord)
    assert f"\nroute: auto: {why} -> far\n" in said(msgspec.structs.replace(RECORD, route=chosen))


def test_what_names_may_hold_does_nothing_to_a_terminal() -> None:
    record = msgspec.structs.replace(RECORD, asked="\x1b[2Jred\n\u202e", calls=[], inner=[])
    assert "for ?[2Jred??, streamed" in said(record)


def test_a_gateway_is_asked_with_a_key_and_told_what_is_shown(
    airi: Callable[..., Result], server: StubServer
) -> None:
    server.page = msgspec.json.encode(RECORD)
    table = airi("explain", "a/b", "--url", f"{server.url}/v1", "--api-key", "sk-1")
    assert (table.code, table.err) == (0, "")
    assert "near@g2: stop" in table.out
    whole = airi("explain", "a/b", "--url", server.url, "--json")
    assert (server.paths, server.keys) == (["/admin/requests/a%2Fb"] * 2, ["Bearer sk-1", None])
    assert json.loads(whole.out) == json.loads(server.page)


@pytest.mark.parametrize(
    ("status", "page", "line"),
    [
        (
            404,
            b'{"error": {"message": "request \'x\' is not known"}}',
            "status 404: request 'x' is not known",
        ),
        (403, b'{"error": {"message": "the call is denied"}}', "status 403: the call is denied"),
        (
            401,
            b'{"error": {"message": "missing or unknown API key"}}',
            "status 401: missing or unknown API key",
        ),
        (200, b"<html>", "does not answer as this version of AIRI does"),
        (200, b'{"id": 1}', "does not answer as this version of AIRI does"),
    ],
)
def test_what_cannot_be_told_is_one_line(
    airi: Callable[..., Result], server: StubServer, status: int, page: bytes, line: str
) -> None:
    server.page_status, server.page = status, page
    result = airi("explain", "x", "--url", server.url)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"airi: {server.url}")
    assert line in result.err
    assert result.err.count("\n") == 1


def test_without_a_gateway_the_line_says_so(airi: Callable[..., Result]) -> None:
    result = airi("explain", "x", "--url", "http://127.0.0.1:1")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("airi: http://127.0.0.1:1 cannot be reached: ")
    assert airi("explain", "x", "--url", "ftp://x").err == "airi: url is 'ftp://x'; give http://HOST:PORT\n"
