"""`/v1/messages`, as clients of Anthropic's API ask."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from airi.gateway.anthropic.messages_input import read_messages_request
from airi.gateway.options import AppOptions
from airi.text import Tokenizer
from airi.text._messages import Needs, normalize_messages

from .calling import HERMES, start_calling
from .conftest import ANSWER, Gateway, StartGateway, wait_until
from .test_metrics import scrape, value

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "What is it?"}]
ASK: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4}
NEEDS = Needs(parts=False, strings=True, none=False, developer=False)
TOOLS: list[Any] = [
    {"name": "look", "input_schema": {"type": "object"}},
    {"type": "custom", "name": "other", "description": "Another.", "input_schema": {}},
]
USE = {"type": "tool_use", "id": "t1", "name": "look", "input": {"city": "Köln"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "Fine."}
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def length(tokenizer: Tokenizer, text: str = ANSWER) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def ask(gateway: Gateway, **fields: Any) -> httpx.Response:
    headers = {"anthropic-version": "2023-06-01"}
    return gateway.http.post("/v1/messages", json={**ASK, **fields}, headers=headers)


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each checked for its name."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def stream(gateway: Gateway, **fields: Any) -> list[dict[str, Any]]:
    response = ask(gateway, stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events(response.text)


def joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream tells of."""
    message = dict(events[0]["message"])
    for event in events[1:]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(dict(event["content_block"]))
            case "content_block_delta" if event["delta"]["type"] == "text_delta":
                message["content"][event["index"]]["text"] += event["delta"]["text"]
            case "content_block_delta":
                block = message["content"][event["index"]]
                block["input"] = (block["input"] or "") + event["delta"]["partial_json"]
            case "content_block_stop":
                block = message["content"][event["index"]]
                if isinstance(block.get("input"), str):
                    block["input"] = json.loads(block["input"])
            case "message_delta":
                message.update({key: event[key] for key in event if key not in ("type", "delta")})
                message.update(event["delta"])
    return message


def same(message: dict[str, Any]) -> dict[str, Any]:
    """What two answers to the same question have in common."""
    content = [{**block, "id": ""} for block in message["content"]]
    usage = message["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    return {**message, "id": "", "content": content, "usage": (prompt, usage["output_tokens"])}


def refused(response: httpx.Response, status: int = 400) -> str:
    """The message of a refusal, checked for its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    message: str = body["error"]["message"]
    assert body == {
        "type": "error",
        "error": {"type": TYPES[status], "message": message},
        "request_id": body["request_id"],
    }
    assert message
    assert "\n" not in message
    return message


def test_an_answer_has_the_text_the_usage_and_the_reason(
    start_gateway: StartGateway, tokenizer: Tokenizer
) -> None:
    count = length(tokenizer)
    response = ask(start_gateway(), max_tokens=count)
    assert response.headers["request-id"]
    message = response.json()
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(tokenizer.encode_chat(MESSAGES)),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": count,
        },
    }


def test_a_stream_tells_the_same_step_by_step(gateway: Gateway, tokenizer: Tokenizer) -> None:
    count = length(tokenizer)
    told = stream(gateway, max_tokens=count)
    deltas = [event for event in told if event["type"] == "content_block_delta"]
    assert len(deltas) > 5
    assert [event["type"] for event in told] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * len(deltas),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = told[0]["message"]
    assert (start["content"], start["stop_reason"], start["stop_sequence"]) == ([], None, None)
    assert start["usage"]["input_tokens"] == told[-2]["usage"]["input_tokens"]
    assert told[1]["content_block"] == {"type": "text", "text": ""}
    assert same(joined(told)) == same(ask(gateway, max_tokens=count).json())


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("stub", "fields", "reason", "sequence"),
    [
        ({"stop_after": 4}, {"max_tokens": 9}, "end_turn", None),
        ({}, {"max_tokens": 9}, "max_tokens", None),
        ({}, {"max_tokens": 50, "stop_sequences": ["never", "there"]}, "stop_sequence", "there"),
    ],
)
def test_it_says_why_it_ended(
    start_gateway: StartGateway,
    stub: dict[str, Any],
    fields: dict[str, Any],
    reason: str,
    sequence: str | None,
    streams: bool,  # noqa: FBT001
) -> None:
    gateway = start_gateway(**stub)
    message = joined(stream(gateway, **fields)) if streams else ask(gateway, **fields).json()
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_of_nothing_has_no_content(start_gateway: StartGateway, streams: bool) -> None:  # noqa: FBT001
    gateway = start_gateway(stop_after=1)
    message = joined(stream(gateway)) if streams else ask(gateway).json()
    assert (message["content"], message["stop_reason"]) == ([], "end_turn")


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"system": "Be brief."}, [{"role": "system", "content": "Be brief."}, *MESSAGES]),
        (
            {
                "system": [
                    {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "Be kind."},
                ]
            },
            [{"role": "system", "content": "Be brief.\nBe kind."}, *MESSAGES],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    {
                        "role": "assistant",
                        "content": [{"type": "text", "text": "Yes?"}, USE, {**USE, "id": "t2", "name": "other"}],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
                            {**RESULT, "content": [{"type": "text", "text": "Fine."}]},
                            {"type": "text", "text": "Well?"},
                        ],
                    },
                ]
            },
            [
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": "Yes?",
                    "tool_calls": [
                        {
                            "id": call,
                            "type": "function",
                            "function": {"name": name, "arguments": {"city": "Köln"}},
                        }
                        for call, name in (("t1", "look"), ("t2", "other"))
                    ],
                },
                {"role": "tool", "tool_call_id": "t2", "content": "", "is_error": True},
                {"role": "tool", "tool_call_id": "t1", "content": "Fine."},
                {"role": "user", "content": "Well?"},
            ],
        ),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT]}]},
            [
                *MESSAGES,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {
                            "id": "t1",
                            "type": "function",
                            "function": {"name": "look", "arguments": {"city": "Köln"}},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "t1", "content": "Fine."},
            ],
        ),
    ],
)  # fmt: skip
def test_messages_become_those_of_a_chat(fields: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    chat = read_messages_request(json.dumps({**ASK, **fields}).encode())
    assert normalize_messages(chat.messages, NEEDS) == messages
    assert chat.continue_final_message is None


def test_the_prompt_is_that_of_the_chat_and_can_be_counted(gateway: Gateway) -> None:
    usage = ask(gateway, system="Be brief.", tools=TOOLS).json()["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    functions = [
        {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "other", "description": "Another.", "parameters": {}}},
    ]
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    body = {"model": "tiny", "messages": messages, "tools": functions, "max_tokens": 1}
    chat = gateway.http.post("/v1/chat/completions", json=body).json()
    assert chat["usage"]["prompt_tokens"] == prompt
    body = {"model": "tiny", "messages": MESSAGES, "system": "Be brief.", "tools": TOOLS}
    counted = gateway.http.post("/v1/messages/count_tokens", json=body)
    assert counted.json() == {"input_tokens": prompt}


def test_the_last_words_of_the_assistant_go_on(gateway: Gateway, tokenizer: Tokenizer) -> None:
    talk = [*MESSAGES, {"role": "assistant", "content": "It is"}]
    usage = ask(gateway, messages=talk).json()["usage"]
    prompt = tokenizer.encode_chat(talk, continue_final_message=True, add_generation_prompt=False)
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(prompt)


@pytest.fixture
def calling(
    start_gateway: StartGateway, model_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> Callable[..., Gateway]:
    """Starts a gateway whose model writes two calls behind a text."""
    return partial(start_calling, start_gateway, model_folder, tokenizer, tmp_path)


def test_calls_are_blocks_whole_and_streamed(calling: Callable[..., Gateway]) -> None:
    gateway = calling()
    asked = {"tools": TOOLS, "max_tokens": 200}
    message = ask(gateway, **asked).json()
    text, look, other = message["content"]
    assert text == {"type": "text", "text": "Let me see."}
    assert (look["type"], look["name"], look["input"]) == ("tool_use", "look", {"city": "Köln 🙂"})
    assert (other["type"], other["name"], other["input"]) == ("tool_use", "other", {})
    assert look["id"] != other["id"]
    assert message["stop_reason"] == "tool_use"
    told = stream(gateway, **asked)
    starts = [event["content_block"] for event in told if event["type"] == "content_block_start"]
    assert [start.get("input") for start in starts] == [None, {}, {}]
    assert same(joined(told)) == same(message)
    results = [{**RESULT, "tool_use_id": block["id"]} for block in (look, other)]
    turns = [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": results}]
    again = ask(gateway, **asked, messages=[*MESSAGES, *turns], tool_choice={"type": "none"})
    assert again.json()["content"] == [{"type": "text", "text": HERMES}]


def test_one_call_at_most_where_they_may_not_be_parallel(calling: Callable[..., Gateway]) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    message = ask(calling(), tools=TOOLS, max_tokens=200, tool_choice=choice).json()
    assert [block.get("name") for block in message["content"]] == [None, "look"]


def test_a_call_that_is_cut_has_no_input(calling: Callable[..., Gateway]) -> None:
    message = ask(calling(), tools=TOOLS, max_tokens=65).json()
    assert message["stop_reason"] == "max_tokens"
    assert (message["content"][1]["name"], message["content"][1]["input"]) == ("look", {})


def test_numbers_of_a_call_stay_as_the_model_wrote_them(calling: Callable[..., Gateway]) -> None:
    answer = '<tool_call>\n{"name": "look", "arguments": {"n": 12345678901234567890.10}}\n</tool_call>'
    response = ask(calling(answer=answer), tools=TOOLS, max_tokens=200)
    assert '"input":{"n":12345678901234567890.10}' in response.text


def test_the_reason_is_the_window_where_that_is_what_ended_it(start_gateway: StartGateway) -> None:
    gateway = start_gateway(max_model_len=64)
    count = gateway.http.post(
        "/v1/messages/count_tokens", json={"model": "tiny", "messages": MESSAGES}
    ).json()["input_tokens"]
    room = 64 - count
    assert ask(gateway, max_tokens=room).json()["stop_reason"] == "max_tokens"
    message = refused(ask(gateway, max_tokens=room + 1))
    assert message.startswith(f"messages: has {count} tokens and max_tokens asks for {room + 1} more")


def test_what_fails_in_a_stream_ends_it_with_the_reason(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a secret")

    monkeypatch.setattr("airi.gateway.anthropic.messages_answer.MessagesAnswer.closing", broken)
    response = ask(gateway, stream=True, max_tokens=300)
    last = events(response.text)[-1]
    assert last["error"]["type"] == "api_error"
    assert last["request_id"] == response.headers["request-id"] in last["error"]["message"]
    assert "secret" not in response.text


def test_a_key_may_come_as_the_clients_send_it(start_gateway: StartGateway) -> None:
    gateway = start_gateway(app=AppOptions(api_keys=("k",)))
    for path, body in (("/v1/messages", ASK), ("/v1/messages/count_tokens", {})):
        for headers in ({}, {"x-api-key": "no"}, {"authorization": "Bearer no", "x-api-key": "k"}):
            message = refused(gateway.http.post(path, json=body, headers=headers), 401)
            assert "x-api-key: KEY" in message
    for headers in ({"x-api-key": "k"}, {"authorization": "Bearer k"}):
        assert gateway.http.post("/v1/messages", json=ASK, headers=headers).status_code == 200
    assert gateway.http.get("/v1/models", headers={"x-api-key": "k"}).status_code == 200


def test_calls_are_counted_and_logged(start_gateway: StartGateway, caplog: pytest.LogCaptureFixture) -> None:
    gateway = start_gateway()

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "airi.access"]

    with caplog.at_level(logging.INFO):
        ask(gateway, max_tokens=5)
        body = {"model": "tiny", "input": "Hi", "max_output_tokens": 5}
        gateway.http.post("/v1/responses", json=body)
        wait_until(lambda: len(lines()) >= 2, "the log has no line")
    paths = ["/v1/messages", "/v1/responses"]
    assert [line.split()[2] for line in lines() if "completion_tokens=5" in line] == paths
    text = scrape(gateway)
    for path in paths:
        assert value(text, "airi_http_requests_total", route=path, status="200") == 1
    assert value(text, "airi_generation_tokens_total", model_name="tiny") == 10
