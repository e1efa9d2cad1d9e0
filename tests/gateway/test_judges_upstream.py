"""Judges that another server runs: their verdicts in words, and whatever they do instead of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from airi.config import parse
from airi.config.content import ContentPart
from airi.gateway.asking import without_marks
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.limits import Limiter
from airi.gateway.models import ServedModel
from airi.policy.audit import AuditLog
from airi.policy.ledger import Limits, LimitTable, ProcessLedger, Scope
from airi.text import Tokenizer

from .upstream import (
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

UPSTREAM = {"base_url": "http://gpu/v1", "model": "m", "max_model_len": 512}
MODELS = [{"name": name, "upstream": UPSTREAM} for name in ("far", "guard")]
MOST = 1 << 40
Judged = tuple[httpx.Client, HostileServer, HostileServer]


def verdict(text: str) -> bytes:
    """A whole answer."""
    return STREAM + chunk(text) + chunk(finish="stop") + usage(40, 2) + DONE


@contextmanager
def judged(
    says: bytes | Say,
    action: str = "block",
    side: str = "input",
    audit: Path | None = None,
    limiter: Limiter | None = None,
    policies: str | None = None,
    **options: Any,
) -> Iterator[Judged]:
    """A gateway whose model `far` another server runs, as it does the judge."""
    rule = {"name": "harm", "judge": "guard", "models": ["far"], "action": action}
    file = parse(json.dumps({"version": 1, "models": MODELS, "content": {side: [rule]}}))

    async def govern() -> Government:
        if limiter is not None:
            await limiter._ledger.set_limits(limiter.table)
        log = None if audit is None else AuditLog(audit)
        return Government(
            decider_of(policies, ("far", "guard")), limiter, audit=log, content=ContentPart(file)
        )

    with hostile(GOOD) as own, hostile(says) as guard:
        models = [far(own.url), far(guard.url, name="guard", **options)]
        with front(*(replace(each, aliases=()) for each in models), govern=govern) as http:
            yield http, own, guard


@pytest.mark.parametrize("said", ["unsafe", " Unsafe.", "**UNSAFE**\n"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_its_verdict_holds(said: str, side: str, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    with judged(verdict(said), side=side, audit=audit) as (http, own, guard):
        response = ask(http)
        if side == "input":
            assert (response.status_code, response.json()["error"]["code"]) == (400, "content_filter")
            assert own.asked == []
        else:
            assert response.json()["choices"][0]["finish_reason"] == "content_filter"
        (asked,) = guard.asked
    body = asked.body
    assert (body["model"], body["temperature"], body["max_tokens"], body["stream"]) == ("tiny", 0.0, 16, True)
    assert ("Hi" if side == "input" else "Hello there") in body["messages"][0]["content"]
    assert '"action":"judge","resource":"Model::guard","allowed":true' in audit.read_text()


def test_what_it_finds_safe_goes_on() -> None:
    with judged(verdict("Safe")) as (http, _, guard):
        assert content(ask(http)) == "Hello there"
        assert len(guard.asked) == 1
        page = http.get("/metrics").text
    assert 'airi_prompt_tokens_total{model_name="guard"} 40.0' in page


@pytest.mark.parametrize(
    "said", [verdict("It is not unsafe"), verdict("what"), status(500), status(400), STREAM, b""]
)
@pytest.mark.parametrize(("action", "code"), [("block", 503), ("annotate", 200)])
def test_without_a_verdict_nothing_passes_that_might_have_been_blocked(
    said: bytes, action: str, code: int
) -> None:
    with judged(said, action) as (http, own, _):
        assert ask(http).status_code == code
        assert len(own.asked) == (code == 200)


@pytest.mark.parametrize("message", ["This model's maximum context length is 512 tokens", "no"])
def test_what_it_cannot_read_whole_is_unsafe(message: str) -> None:
    error = {"error": {"message": message, "code": None if message != "no" else "context_length_exceeded"}}
    with judged(status(400, json.dumps(error).encode()), "annotate") as (http, _, _):
        (found,) = ask(http).json()["prompt_filter_results"]
        assert found["content_filter_results"]["harm"]["matches"] == {"judge_too_long": 1}


def test_a_policy_may_forbid_it() -> None:
    policies = (
        'permit (principal, action, resource); forbid (principal, action == Action::"judge", resource);'
    )
    with judged(verdict("safe"), policies=policies) as (http, own, guard):
        assert ask(http).status_code == 503
        assert own.asked == guard.asked == []


def test_a_question_is_no_request_of_its_own() -> None:
    limits = Limits(requests_per_minute=9, input_tokens_per_minute=MOST, output_tokens_per_minute=MOST)
    table = LimitTable({Scope(tenant="anyone"): limits})
    limiter = Limiter(ProcessLedger(table), table, lambda *_: 0)
    with judged(verdict("safe"), limiter=limiter) as (http, _, _):
        left = [ask(http).headers["x-ratelimit-remaining-requests"] for _ in range(2)]
        assert left == ["8", "7"]


def test_marks_of_models_whose_tokens_are_not_known_are_broken_up() -> None:
    model = cast(ServedModel, SimpleNamespace(upstream=object(), tokenizer=Tokenizer.of_bytes()))
    text = without_marks(model, "a <|im_end|> </s> [INST] 1 < 2 [x]")
    assert text == "a <\u200b|im_end|> <\u200b/s> [\u200bINST] 1 < 2 [x]"
