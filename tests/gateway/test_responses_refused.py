"""What `/v1/responses` refuses, and how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.policy.ledger import Limits

from .conftest import WINDOW, Gateway, StartGateway
from .content import BLOCK_CARDS, CARD, TELL_BIRDS, ruled
from .test_bad_input import refused
from .test_governed import limited
from .test_responses import ASK, MESSAGES, TOOLS, ask, stream


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"what": 1}, "what", "is an unknown field; accepted: model, input, instructions"),
        ({"text": {"what": 1}}, "text.what", "is an unknown field; accepted: format, verbosity"),
        ({"model": 5}, "model", "expected `str`, got `int`"),
        ({"input": 5}, "input", "expected `str | array`, got `int`"),
        ({"input": []}, "input", "length >= 1"),
        ({"input": ""}, None, None),
        ({"input": [5]}, "input[0]", "expected `object`, got `int`"),
        ({"input": [{}]}, "input[0].role", "is missing; accepted: assistant, developer, system, user"),
        ({"input": [{"role": "alien", "content": ""}]}, "input[0].role", "'alien'"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "expected `str | array`"),
        ({"input": [{"role": "user", "content": "", "what": 5}]}, "input[0].what", "is an unknown field"),
        (
            {"input": [{"type": "item_reference", "id": "msg_1"}]},
            "input[0].type",
            "'item_reference' is not served here; accepted: message, function_call, function_call_output",
        ),
        ({"input": [{"type": 5}]}, "input[0].type", "a int is not served here; accepted: message"),
        (
            {
                "input": [
                    {"role": "user", "content": "Hi"},
                    {"role": "user", "content": [{"type": "input_image", "image_url": "data:a"}]},
                ]
            },
            "input[1].content[0].type",
            "'input_image' is not served here; accepted: input_text, output_text, refusal",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input[0].call_id",
            "accepted: the call_id of a function_call that stands before it",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]},
            "input",
            "input[0].arguments must be JSON",
        ),
        ({"instructions": ["a"]}, "instructions", "expected `str | null`, got `array`"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1, got 0"),
        ({"max_output_tokens": WINDOW}, "input", f"max_output_tokens asks for {WINDOW} more"),
        ({"input": "x " * 5000}, "input", "prompt is too long"),
        ({"temperature": 3}, "temperature", "<= 2.0, got 3"),
        ({"top_p": 0}, "top_p", "> 0.0, got 0"),
        ({"top_logprobs": 3}, "top_logprobs", "needs 'message.output_text.logprobs' in `include`"),
        ({"include": ["file_search_call.results"]}, "include", "accepted: 'message.output_text.logprobs'"),
        ({"stream": "yes"}, "stream", "expected `bool | null`, got `str`"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "accepted: `include_obfuscation: false`"),
        ({"store": True}, "store", "accepted: false"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation as `input`"),
        ({"conversation": "conv_1"}, "conversation", "send the whole of it as `input`"),
        ({"prompt": {"id": "p"}}, "prompt", "no prompt is stored here"),
        ({"background": True}, "background", "accepted: false"),
        ({"truncation": "auto"}, "truncation", "accepted: 'disabled'"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "accepted: an effort of 'none'"),
        ({"service_tier": "flex"}, "service_tier", "accepted: 'auto', 'default'"),
        ({"metadata": {"a": 5}}, "metadata[...]", "expected `str`, got `int`"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "length <= 16"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "'xml'"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "is missing"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "accepted: 'medium'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search' is not served here; accepted: function"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "is missing"),
        ({"tools": [TOOLS[0], {**TOOLS[1], "parameters": 5}]}, "tools[1].parameters", "got `int`"),
        ({"tool_choice": "required"}, "tool_choice", "there are no `tools`"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "not among `tools`"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice.type", "'web_search'"),
        ({"priority": 9}, "priority", "got 9"),
        ({"cache_salt": ""}, "cache_salt", "length >= 1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streams", [False, True])
def test_what_is_wrong_is_one_line_that_names_it(
    gateway: Gateway,
    change: dict[str, Any],
    param: str | None,
    words: str | None,
    streams: bool,  # noqa: FBT001
) -> None:
    response = ask(gateway, **{"stream": streams, "max_output_tokens": 4, **change})
    if words is None:
        assert response.status_code == 200
        return
    error = refused(response)
    assert error["param"] == param
    assert words in error["message"]


def test_an_unknown_model_is_a_404_that_lists_what_is_served(gateway: Gateway) -> None:
    error = refused(ask(gateway, model="nope"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "tiny-alias" in error["message"]


@pytest.mark.parametrize("streams", [False, True])
def test_what_is_over_a_limit_denied_or_blocked_is_told_so(
    start_gateway: StartGateway,
    streams: bool,  # noqa: FBT001
) -> None:
    asked = {"stream": streams, "max_output_tokens": 4}
    one = start_gateway(govern=limited(Limits(requests_per_minute=1)))
    assert ask(one, **asked).headers["x-ratelimit-remaining-requests"] == "0"
    error = refused(ask(one, **asked), 429)
    assert (error["type"], error["param"]) == ("rate_limit_error", "rpm_limit")

    async def short() -> Government:
        text = 'permit (principal, action == Action::"chat", resource) when { context.max_tokens <= 4 && '
        return Government(decider_of(text + "!context.tools };", ("tiny",)))

    decided = start_gateway(govern=short)
    assert ask(decided, **asked).status_code == 200
    for more in ({"max_output_tokens": 5}, {"tools": TOOLS}):
        assert refused(ask(decided, **{**asked, **more}), 403)["code"] == "permission_denied"

    ruled_by = start_gateway(govern=ruled(input=[BLOCK_CARDS, TELL_BIRDS]))
    item = {"role": "user", "content": [{"type": "input_text", "text": f"It is {CARD}."}]}
    error = refused(ask(ruled_by, **asked, input=[MESSAGES[0], item]))
    assert (error["code"], error["param"]) == ("content_filter", "input[1].content[0].text")
    error = refused(ask(ruled_by, **asked, instructions=CARD))
    assert (error["code"], error["param"]) == ("content_filter", "instructions")
    heron = {**asked, "input": "A heron."}
    told = stream(ruled_by, **heron)[-1]["response"] if streams else ask(ruled_by, **heron).json()
    [found] = told["prompt_filter_results"]
    assert found["content_filter_results"]["birds"]["matches"] == {"words[0]": 1}


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_is_blocked_is_incomplete(start_gateway: StartGateway, streams: bool) -> None:  # noqa: FBT001
    gateway = start_gateway(govern=ruled(output=[BLOCK_CARDS]), answer=f"It is {CARD}. ")
    response = stream(gateway)[-1]["response"] if streams else ask(gateway).json()
    assert response["incomplete_details"] == {"reason": "content_filter"}
    assert response["output"][0]["content"][0]["text"] == "It is "
    assert response["content_filter_results"]["no-cards"]["filtered"] is True


@pytest.mark.parametrize("depth", [100, 900, 990, 5000])
@pytest.mark.parametrize("streams", [False, True])
def test_deep_nesting_is_no_reason_to_fail(
    start_gateway: StartGateway,
    depth: int,
    streams: bool,  # noqa: FBT001
) -> None:
    gateway = start_gateway(max_model_len=20_000)
    nested = '{"a":' * depth + "1" + "}" * depth
    asked = json.dumps(
        {**ASK, "stream": streams, "max_output_tokens": 4, "tools": [{**TOOLS[0], "parameters": 5}]}
    )
    asked = asked.replace('"parameters": 5', f'"parameters": {nested}')
    response = gateway.http.post("/v1/responses", content=asked)
    assert response.status_code in (200, 400), response.text[-500:]
    if response.status_code == 400:
        assert "nested too deeply" in refused(response)["message"]
    elif streams:
        assert '"type":"response.incomplete"' in response.text
