"""What `/v1/messages` refuses, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.options import AppOptions
from airi.policy.audit import AuditLog
from airi.policy.ledger import Limits

from .conftest import WINDOW, Gateway, StartGateway
from .content import BLOCK_CARDS, CARD, TELL_BIRDS, content_part, ruled
from .test_governed import limited
from .test_messages_api import MESSAGES, RESULT, TOOLS, USE, ask, joined, refused, stream


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"what": 1}, "what: is an unknown field; accepted: model, messages, system, tools"),
        ({"what\n": 1}, "what\\n: is an unknown field"),
        ({"model": 5}, "model: expected `str`, got `int`"),
        ({"max_tokens": None}, "max_tokens: expected `int`, got `null`"),
        ({"max_tokens": 0}, "max_tokens: expected `int` >= 1, got 0"),
        ({"messages": []}, "messages: expected `array` of length >= 1"),
        ({"messages": "hi"}, "messages: expected `array`, got `str`"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: is missing"),
        ({"messages": [{"role": "alien", "content": ""}]}, "'alien' is not accepted; accepted: assistant, "),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: expected `str | array`"),
        (
            {"messages": [*MESSAGES, {"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[1].content[0].type: 'image' is not served here; accepted: text, tool_result",
        ),
        ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content[0].type: 'tool_use' is not"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}]}]},
            "messages[0].content[0].type: 'thinking' is not served here; accepted: text, tool_use",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text: is missing"),
        (
            {"messages": [{"role": "user", "content": [RESULT]}]},
            "messages[0].content[0].tool_use_id: names no call; accepted: the id of a tool_use of the message",
        ),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "content": [USE]}]},
            "messages[1].content[0]: has no result; accepted: a tool_result in the next message",
        ),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "content": [USE]}, *MESSAGES]},
            "messages[1].content[0]: has no result",
        ),
        ({"messages": [{"role": "user", "content": "x " * 5000}]}, "messages: prompt is too long"),
        ({"max_tokens": WINDOW}, f"max_tokens asks for {WINDOW} more"),
        ({"system": 5}, "system: expected `str | array | null`, got `int`"),
        ({"system": [{"type": "image"}]}, "system[0].type: 'image' is not served here; accepted: text"),
        ({"stop_sequences": [""]}, "stop_sequences[0]: expected `str` of length >= 1"),
        ({"stop_sequences": "a"}, "stop_sequences: expected `array | null`, got `str`"),
        ({"temperature": 1.5}, "temperature: expected `float` <= 1.0, got 1.5"),
        ({"top_p": 0}, "top_p: expected `float` > 0.0, got 0"),
        ({"top_k": -1}, "top_k: expected `int` >= 0, got -1"),
        ({"stream": "yes"}, "stream: expected `bool | null`, got `str`"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id: expected `str | null`, got `int`"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "accepted: type 'disabled' or 'adaptive'"),
        ({"service_tier": "priority"}, "service_tier: not supported: there is one tier"),
        ({"speed": "fast"}, "speed: not supported: there is one speed; accepted: 'standard'"),
        ({"container": "c"}, "container: not supported"),
        ({"output_config": {"effort": "high"}}, "output_config.effort: not supported: models here have one effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type: 'xml' is not accepted"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type: 'bash_20250124' is not served"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema: is missing"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: asks for a call, but there are no `tools`"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice: names a function that is not"),
        ({"tool_choice": "auto"}, "tool_choice: expected `object | null`, got `str`"),
        ({"priority": 9}, "priority: expected `int` <= "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streams", [False, True])
def test_what_is_wrong_is_one_line_that_names_it(
    gateway: Gateway,
    change: dict[str, Any],
    words: str,
    streams: bool,  # noqa: FBT001
) -> None:
    assert words in refused(ask(gateway, **{"stream": streams, **change}))


def test_other_failures_have_the_same_form(start_gateway: StartGateway) -> None:
    gateway = start_gateway(app=AppOptions(body_limit=2000))
    message = refused(ask(gateway, model="nope"), 404)
    assert message == "model: 'nope' is not served here; served: tiny, tiny-alias"
    refused(ask(gateway, system="x" * 3000), 413)
    refused(gateway.http.get("/v1/messages"), 405)
    refused(gateway.http.post("/v1/messages/batches", json={}), 404)
    refused(gateway.http.post("/v1/messages", content=b"{"), 400)
    full = ask(start_gateway(max_queued=0))
    refused(full, 429)
    assert int(full.headers["retry-after"]) >= 1


@pytest.mark.parametrize("streams", [False, True])
def test_what_is_over_a_limit_denied_or_blocked_is_told_so(
    start_gateway: StartGateway,
    tmp_path: Path,
    streams: bool,  # noqa: FBT001
) -> None:
    one = start_gateway(govern=limited(Limits(requests_per_minute=1)))
    assert ask(one, stream=streams).headers["x-ratelimit-remaining-requests"] == "0"
    over = ask(one, stream=streams)
    assert refused(over, 429).startswith("rpm_limit of tenant 'anyone' is 1")
    assert int(over.headers["retry-after"]) > 0

    async def short() -> Government:
        text = 'permit (principal, action == Action::"chat", resource) when { context.max_tokens <= 4 && '
        return Government(decider_of(text + "!context.tools };", ("tiny",)))

    decided = start_gateway(govern=short)
    assert ask(decided, stream=streams).status_code == 200
    for more in ({"max_tokens": 5}, {"tools": TOOLS}):
        assert "as no policy permits it" in refused(ask(decided, stream=streams, **more), 403)

    path = tmp_path / f"{streams}.jsonl"

    async def screened() -> Government:
        content = content_part(input=[BLOCK_CARDS, TELL_BIRDS])
        return Government(decider_of(None, ("tiny",)), audit=AuditLog(path), content=content)

    ruled_by = start_gateway(govern=screened)
    talk = [*MESSAGES, {"role": "assistant", "content": [USE]}]
    talk.append({"role": "user", "content": [{**RESULT, "content": f"It is {CARD}."}]})
    words = "is refused by content rule 'no-cards'"
    answer = ask(ruled_by, stream=streams, system="A heron.", messages=talk)
    assert refused(answer) == f"messages[2].content[0].content: {words}"
    blocked = {**USE, "input": {"card": CARD}}
    talk[1:] = [{"role": "assistant", "content": [blocked]}, {"role": "user", "content": [RESULT]}]
    assert refused(ask(ruled_by, stream=streams, messages=talk)) == f"messages[1].content[0].input: {words}"
    where = [line.get("where") for line in map(json.loads, path.read_text().splitlines())]
    assert [place for place in where if place is not None] == [
        "system",
        "messages[2].content[0].content",
        "messages[1].content[0].input",
    ]
    heron = {"system": [{"type": "text", "text": "A heron."}]}
    told = joined(stream(ruled_by, **heron)) if streams else ask(ruled_by, **heron).json()
    [found] = told["prompt_filter_results"]
    assert found["content_filter_results"]["birds"]["matches"] == {"words[0]": 1}


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_is_blocked_is_a_refusal(start_gateway: StartGateway, streams: bool) -> None:  # noqa: FBT001
    gateway = start_gateway(govern=ruled(output=[BLOCK_CARDS]), answer=f"It is {CARD}. ")
    message = joined(stream(gateway, max_tokens=99)) if streams else ask(gateway, max_tokens=99).json()
    assert message["stop_reason"] == "refusal"
    assert message["content"] == [{"type": "text", "text": "It is "}]
    assert message["content_filter_results"]["no-cards"]["filtered"] is True
