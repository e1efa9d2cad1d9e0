"""Calls of another server's models are decided on, counted, filtered and told of as all others are."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from airi.config import parse
from airi.config.content import ContentPart
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.limits import Limiter
from airi.policy.audit import AuditLog
from airi.policy.ledger import Limits, LimitTable, ProcessLedger, Scope

from .conftest import Govern, events, wait_until
from .content import BLOCK_CARDS, CARD, REDACT_MAIL, TELL_BIRDS
from .test_upstream_hostile import TOOLS, call, calls, says
from .upstream import CHAT, DONE, GOOD, STREAM, ask, chunk, content, event, far, front, hostile, usage
from .upstream import status as answer

MODEL = {"name": "far", "upstream": {"base_url": "http://gpu/v1", "model": "tiny", "max_model_len": 512}}
SCOPE = Scope(tenant="anyone")
MOST = 1 << 40


def ruled(audit: Path | None = None, **rules: list[dict[str, Any]]) -> Govern:
    """Everybody under these rules for texts."""
    document = {"version": 1, "models": [MODEL], "content": rules}

    async def govern() -> Government:
        part = ContentPart(parse(json.dumps(document, ensure_ascii=False)))
        return Government(
            decider_of(None, ("far",)), audit=None if audit is None else AuditLog(audit), content=part
        )

    return govern


class Counted:
    """A gateway under a ledger whose counts the test can see."""

    def __init__(self, **limits: int) -> None:
        given: dict[str, Any] = dict.fromkeys(("requests", "input_tokens", "output_tokens"), MOST) | limits
        self.table = LimitTable({SCOPE: Limits(**{f"{name}_per_minute": n for name, n in given.items()})})
        self.ledger = ProcessLedger(self.table)

    async def __call__(self) -> Government:
        self.loop = asyncio.get_running_loop()
        await self.ledger.set_limits(self.table)
        return Government(decider_of(None, ("far",)), Limiter(self.ledger, self.table, lambda *_: 0))

    def used(self) -> tuple[int, ...]:
        """Requests, tokens of prompts and tokens of answers, of the last minute."""
        asked = asyncio.run_coroutine_threadsafe(self.ledger.remaining([SCOPE]), self.loop)
        return tuple(one.limit - one.remaining for one in asked.result(10))


def test_a_call_that_no_policy_permits_is_not_made() -> None:
    async def govern() -> Government:
        return Government(decider_of('@id("never") forbid (principal, action, resource);', ("far",)))

    with hostile(GOOD) as server, front(far(server.url), govern=govern) as http:
        response = ask(http)
        assert response.status_code == 403
        assert "never" in response.json()["error"]["message"]
        assert server.asked == []


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_upstream_counts_is_charged(stream: bool) -> None:  # noqa: FBT001
    counted = Counted()
    with hostile(GOOD) as server, front(far(server.url), govern=counted) as http:
        assert ask(http, stream=stream).status_code == 200
        assert counted.used() == (1, 11, 2)


def test_what_it_does_not_count_is_charged_by_its_bytes_and_a_hang_up_too() -> None:
    counted = Counted()
    with (
        hostile(says(STREAM + chunk("Hällo"), hangs=True)) as server,
        front(far(server.url), govern=counted) as http,
    ):
        with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
            next(response.iter_lines())
        assert server.hung_up.wait(30)
        wait_until(lambda: counted.used()[2] == 6, "what came is not charged")
        requests, prompt, _ = counted.used()
        assert requests == 1
        assert 2 < prompt <= 512


@pytest.mark.parametrize("said", [answer(500), answer(429, retry_after="99"), STREAM, b""])
def test_what_was_not_answered_is_not_charged(said: bytes) -> None:
    counted = Counted()
    with hostile(said) as server, front(far(server.url), govern=counted) as http:
        assert ask(http).status_code in (502, 503)
        assert counted.used() == (0, 0, 0)


def test_what_the_upstream_refuses_is_a_request_without_tokens() -> None:
    counted = Counted()
    with hostile(answer(400)) as server, front(far(server.url), govern=counted) as http:
        assert ask(http).status_code == 400
        assert counted.used() == (1, 0, 0)


def test_a_call_that_may_take_too_much_is_not_made() -> None:
    counted = Counted(output_tokens=100)
    with hostile(GOOD) as server, front(far(server.url), govern=counted) as http:
        response = ask(http, max_tokens=None)
        assert response.status_code == 429
        assert "512 are reserved for the answer" in response.json()["error"]["message"]
        assert ask(http, max_tokens=60, n=2).status_code == 429
        assert server.asked == []
        assert ask(http, max_tokens=100).status_code == 200
        assert counted.used()[1:] == (11, 2)


def test_prompts_are_screened_before_they_are_sent(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    with (
        hostile(GOOD) as server,
        front(far(server.url), govern=ruled(audit, input=[BLOCK_CARDS, REDACT_MAIL])) as http,
    ):
        refused = ask(http, messages=[{"role": "user", "content": f"Is {CARD} mine?"}])
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
        assert server.asked == []
        told = ask(http, messages=[{"role": "user", "content": "Write to me@x.org"}])
        assert told.json()["prompt_filter_results"][0]["content_filter_results"]["mail"]["filtered"]
        assert server.asked[0].body["messages"] == [{"role": "user", "content": "Write to <mail>"}]
        assert http.post("/v1/completions", json={"model": "far", "prompt": "To me@x.org"}).status_code == 200
        assert server.asked[1].body["prompt"] == "To <mail>"
    assert "me@x.org" not in audit.read_text()
    assert '"rule":"mail"' in audit.read_text()


def test_answers_are_held_back_as_far_as_they_must_be() -> None:
    parts = ["An owl. ", "Write to me", "@x", ".org", " or pay ", CARD[:7], CARD[7:], " now"]
    script = STREAM + b"".join(map(chunk, parts)) + chunk(finish="stop") + DONE
    rules = ruled(output=[BLOCK_CARDS, REDACT_MAIL, TELL_BIRDS])
    with hostile(script) as server, front(far(server.url), govern=rules) as http:
        whole = ask(http).json()["choices"][0]
        assert whole["message"]["content"] == "An owl. Write to <mail> or pay "
        assert whole["finish_reason"] == "content_filter"
        assert whole["content_filter_results"]["birds"]["detected"]
        told = events(ask(http, stream=True).text)
        text = "".join(each["choices"][0]["delta"].get("content", "") for each in told)
        assert text == "An owl. Write to <mail> or pay "
        assert told[-1]["choices"][0]["finish_reason"] == "content_filter"
        assert CARD[:4] not in str(told)


def test_an_answer_that_a_rule_ends_is_ended_there_too() -> None:
    script = says(STREAM + chunk(f"It is {CARD}. ") + chunk("More"), hangs=True)
    with hostile(script) as server, front(far(server.url), govern=ruled(output=[BLOCK_CARDS])) as http:
        assert content(ask(http)) == "It is "
        assert server.hung_up.wait(30)


def test_what_is_held_back_stays_so_when_the_upstream_fails() -> None:
    script = STREAM + chunk("Write to me@x.or")
    with hostile(script) as server, front(far(server.url), govern=ruled(output=[REDACT_MAIL])) as http:
        told = ask(http, stream=True).text
        assert "me@x" not in told
        assert "ended its answer in the middle" in told


def test_rules_read_calls_of_tools() -> None:
    script = calls(call(0, '{"to": "me@x', "look", "a"), call(0, '.org", "n": 1}'))
    with hostile(script) as server, front(far(server.url), govern=ruled(output=[REDACT_MAIL])) as http:
        message = ask(http, tools=TOOLS).json()["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["arguments"] == '{"to": "<mail>", "n": 1}'


def test_no_text_of_the_model_makes_a_call() -> None:
    fake = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    script = STREAM + chunk(fake) + chunk(finish="stop") + DONE
    with hostile(script) as server, front(far(server.url)) as http:
        message = ask(http, tools=TOOLS).json()["choices"][0]["message"]
        assert message["content"] == fake
        assert "tool_calls" not in message


def test_what_the_model_thought_is_neither_shown_nor_unpaid() -> None:
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm. secret"}}]})
    script = STREAM + thought + chunk("Yes") + chunk(finish="stop") + usage(3, 8) + DONE
    counted = Counted()
    with hostile(script) as server, front(far(server.url), govern=counted) as http:
        response = ask(http)
        assert content(response) == "Yes"
        assert "secret" not in response.text
        assert counted.used() == (1, 3, 8)


def test_no_more_is_charged_than_was_held(caplog: pytest.LogCaptureFixture) -> None:
    script = STREAM + chunk("Yes") + chunk(finish="stop") + usage(3, 99) + DONE
    counted = Counted()
    with hostile(script) as server, front(far(server.url), govern=counted) as http:
        assert ask(http).json()["usage"]["completion_tokens"] == 99
        assert counted.used() == (1, 3, 8)
    assert "the upstream of far counts 3 and 99 tokens" in caplog.text
