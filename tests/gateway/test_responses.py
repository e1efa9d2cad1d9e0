"""`/v1/responses`, asked with the official client."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from airi.errors import EngineDeadError
from airi.gateway.generation import Generation
from airi.gateway.openai.responses_input import read_response_request
from airi.gateway.openai.schemas_responses import LOGPROBS
from airi.text import Tokenizer
from airi.text._messages import Needs, normalize_messages

from .calling import start_calling
from .conftest import ANSWER, Gateway, StartGateway

ASK: dict[str, Any] = {"model": "tiny", "input": "What is it?"}
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "What is it?"}]
NEEDS = Needs(parts=False, strings=True, none=False, developer=False)
TOOLS: list[Any] = [
    {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": None},
    {"type": "function", "name": "other", "description": "Another."},
]


def length(tokenizer: Tokenizer, text: str = ANSWER) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def ask(gateway: Gateway, **fields: Any) -> httpx.Response:
    return gateway.http.post("/v1/responses", json={**ASK, **fields})


def stream(gateway: Gateway, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each checked for its name and number."""
    response = ask(gateway, **{"stream": True, **fields})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = []
    for number, block in enumerate(response.text.removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert (name, number) == (f"event: {event['type']}", event["sequence_number"])
        found.append(event)
    return found


def same(response: dict[str, Any]) -> dict[str, Any]:
    """What two answers to the same question have in common."""
    text = json.dumps({**response, "id": "", "created_at": 0})
    for item in response["output"]:
        for key in ("id", "call_id"):
            text = text.replace(item.get(key, "none"), "")
    found: dict[str, Any] = json.loads(text)
    found["usage"]["input_tokens_details"]["cached_tokens"] = 0
    return found


def test_an_answer_has_the_text_the_usage_and_what_was_asked_for(
    gateway: Gateway, tokenizer: Tokenizer
) -> None:
    count = length(tokenizer)
    done = ask(gateway, max_output_tokens=count, temperature=0.5, metadata={"a": "b"}).json()
    prompt = len(tokenizer.encode_chat(MESSAGES))
    [message] = done.pop("output")
    assert done.pop("id").startswith("resp_")
    assert done.pop("created_at") > 1.7e9
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "status": "incomplete",
        "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
    }
    assert done == {
        "object": "response",
        "status": "incomplete",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
        "instructions": None,
        "max_output_tokens": count,
        "metadata": {"a": "b"},
        "model": "tiny",
        "parallel_tool_calls": True,
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": count,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + count,
        },
    }


def test_a_stream_tells_the_same_step_by_step(gateway: Gateway, tokenizer: Tokenizer) -> None:
    count = length(tokenizer)
    events = stream(gateway, max_output_tokens=count)
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    begin = ["created", "in_progress", "output_item.added", "content_part.added"]
    end = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert kinds == [*begin, *["output_text.delta"] * len(deltas), *end]
    assert len(deltas) > 5
    assert "".join(deltas) == ANSWER
    assert events[0]["response"] == events[1]["response"]
    assert (events[0]["response"]["status"], events[0]["response"]["output"]) == ("in_progress", [])
    assert "usage" not in events[0]["response"]
    assert (events[2]["item"]["status"], events[2]["item"]["content"]) == ("in_progress", [])
    assert events[3]["part"] == {"type": "output_text", "text": "", "annotations": []}
    last = events[-1]["response"]
    assert events[-4]["text"] == ANSWER
    assert events[-3]["part"] == last["output"][0]["content"][0]
    assert events[-2]["item"] == last["output"][0]
    assert {event["item_id"] for event in events if "item_id" in event} == {last["output"][0]["id"]}
    assert last["id"] == events[0]["response"]["id"]
    assert same(last) == same(ask(gateway, max_output_tokens=count).json())


@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_that_ends_by_itself_is_complete(start_gateway: StartGateway, whole: bool) -> None:  # noqa: FBT001
    gateway = start_gateway(stop_after=4)
    response = ask(gateway).json() if whole else stream(gateway)[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("completed", None)
    assert response["output"][0]["status"] == "completed"
    assert "max_output_tokens" not in response


@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_of_nothing_is_an_empty_message(start_gateway: StartGateway, whole: bool) -> None:  # noqa: FBT001
    gateway = start_gateway(stop_after=1)
    events = [] if whole else stream(gateway)
    response = ask(gateway).json() if whole else events[-1]["response"]
    [message] = response["output"]
    assert message["content"] == [{"type": "output_text", "text": "", "annotations": []}]
    if not whole:
        assert [event["item"]["id"] for event in events if "item" in event] == [message["id"]] * 2


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"input": "Hi"}, [{"role": "user", "content": "Hi"}]),
        (
            {"input": "Hi", "instructions": "Be brief."},
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        ),
        (
            {
                "input": [
                    {"role": "developer", "content": "Be brief."},
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                    {
                        "type": "message",
                        "id": "msg_1",
                        "status": "completed",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "Yes?", "annotations": []}],
                    },
                    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a": 1}'},
                    {"type": "function_call", "call_id": "c2", "name": "other", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c2", "output": "Two."},
                    {
                        "type": "function_call_output",
                        "call_id": "c1",
                        "output": [{"type": "input_text", "text": "One."}],
                    },
                ]
            },
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": "Yes?",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"a": 1}}},
                        {"id": "c2", "type": "function", "function": {"name": "other", "arguments": {}}},
                    ],
                },
                {"role": "tool", "tool_call_id": "c2", "content": "Two."},
                {"role": "tool", "tool_call_id": "c1", "content": "One."},
            ],
        ),
        (
            {
                "input": [
                    {"role": "user", "content": "Hi"},
                    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
                    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                ]
            },
            [
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {}}}
                    ],
                },
                {"role": "assistant", "content": "No."},
            ],
        ),
    ],
)
def test_input_becomes_the_messages_of_a_chat(fields: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    chat = read_response_request(json.dumps({**ASK, **fields}).encode())
    assert normalize_messages(chat.messages, NEEDS) == messages


def test_the_prompt_is_that_of_the_chat(gateway: Gateway) -> None:
    told = ask(gateway, instructions="Be brief.", max_output_tokens=1).json()["usage"]["input_tokens"]
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    body = {"model": "tiny", "messages": messages, "max_tokens": 1}
    assert told == gateway.http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]


@pytest.fixture
def calling(
    start_gateway: StartGateway, model_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> Callable[..., Gateway]:
    """Starts a gateway whose model writes two calls behind a text."""
    return partial(start_calling, start_gateway, model_folder, tokenizer, tmp_path)


def test_calls_are_items_whole_and_streamed(calling: Callable[..., Gateway]) -> None:
    gateway = calling()
    whole = ask(gateway, tools=TOOLS).json()
    text, *calls = whole["output"]
    assert text["content"][0]["text"] == "Let me see."
    assert [(call["type"], call["name"], call["status"]) for call in calls] == [
        ("function_call", "look", "completed"),
        ("function_call", "other", "completed"),
    ]
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Köln 🙂"}, {}]
    assert len({call["id"] for call in calls} | {call["call_id"] for call in calls}) == 4
    assert (whole["status"], whole["tool_choice"]) == ("completed", "auto")
    assert whole["tools"] == [
        {**TOOLS[0], "description": None, "strict": False},
        {**TOOLS[1], "parameters": None, "strict": False},
    ]

    events = stream(gateway, tools=TOOLS)
    last = events[-1]["response"]
    assert same(last) == same(whole)
    for index, item in enumerate(last["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert (own[-1]["type"], own[-1]["item"]) == ("response.output_item.done", item)
        assert {event["item_id"] for event in own[1:-1]} == {item["id"]}
        if item["type"] == "function_call":
            assert own[0]["item"] == {**item, "arguments": "", "status": "in_progress"}
            assert "".join(event["delta"] for event in own[1:-2]) == item["arguments"]
            assert own[-2]["type"] == "response.function_call_arguments.done"
            assert own[-2]["arguments"] == item["arguments"]


def test_the_answer_to_a_call_goes_on(calling: Callable[..., Gateway]) -> None:
    gateway = calling()
    first = gateway.openai.responses.create(model="tiny", input="How is it?", tools=TOOLS)
    outputs: list[Any] = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "Fine."}
        for item in first.output
        if item.type == "function_call"
    ]
    assert len(outputs) == 2
    talk: list[Any] = [{"role": "user", "content": "How is it?"}, *first.output, *outputs]
    second = gateway.openai.responses.create(model="tiny", input=talk, tools=TOOLS, tool_choice="none")
    assert second.status == "completed"
    assert second.output_text.startswith("Let me see.\n<tool_call>")


@pytest.mark.parametrize("whole", [True, False])
def test_a_call_that_is_cut_is_incomplete(calling: Callable[..., Gateway], whole: bool) -> None:  # noqa: FBT001
    gateway = calling()
    fields = {"tools": TOOLS, "max_output_tokens": 65}
    response = ask(gateway, **fields).json() if whole else stream(gateway, **fields)[-1]["response"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["output"][1]["arguments"].startswith('{"city')


def test_logprobs_come_where_they_are_asked_for(gateway: Gateway) -> None:
    fields = {"include": [LOGPROBS], "top_logprobs": 2, "max_output_tokens": 6}
    text = ask(gateway, **fields).json()["output"][0]["content"][0]
    assert "".join(entry["token"] for entry in text["logprobs"]) == text["text"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in text["logprobs"])
    events = stream(gateway, **fields)
    streamed = [entry for event in events if "delta" in event for entry in event["logprobs"]]
    assert streamed == text["logprobs"]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == text["logprobs"]


def test_what_fails_in_a_stream_ends_it_with_the_reason(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Generation.take

    async def broken(self: Generation, *, per_token: bool) -> Any:
        if self.choices[0].completion_tokens:
            raise EngineDeadError("the engine gave the request up")
        return await take(self, per_token=per_token)

    monkeypatch.setattr(Generation, "take", broken)
    events = stream(gateway, max_output_tokens=300)
    response = events[-1]["response"]
    assert (events[-1]["type"], response["status"]) == ("response.failed", "failed")
    assert response["error"] == {"code": "server_error", "message": "the engine gave the request up"}
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"]
    assert "usage" not in response


def test_nothing_is_stored(gateway: Gateway) -> None:
    done = gateway.openai.responses.create(model="tiny", input="Hi", max_output_tokens=1)
    with pytest.raises(openai.NotFoundError, match="no response is stored here"):
        gateway.openai.responses.retrieve(done.id)


async def test_the_official_client_streams_and_asks(gateway: Gateway) -> None:
    with gateway.openai.responses.stream(model="tiny", input="Hi", max_output_tokens=9) as events:
        kinds = {event.type for event in events}
    assert {"response.created", "response.output_text.delta", "response.incomplete"} <= kinds
    async with gateway.async_openai as client:
        done = await client.responses.create(model="tiny", input="Hi", max_output_tokens=9)
        text = ""
        async for event in await client.responses.create(
            model="tiny", input="Hi", max_output_tokens=9, stream=True
        ):
            text += event.delta if event.type == "response.output_text.delta" else ""
    assert done.output_text == text != ""
