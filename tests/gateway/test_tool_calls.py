"""Answers with calls, asked with the official client; the stub writes what a model of each form writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airi.text import Tokenizer

from .calling import ANSWERS, HERMES, start_calling
from .conftest import Gateway, StartGateway

MESSAGES: Any = [{"role": "user", "content": "How is it there?"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "other"}},
]


@pytest.fixture
def start(start_gateway: StartGateway, model_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> Any:
    """Starts a gateway whose model writes calls in a form, and stops behind them."""

    def begin(form: str, **stub: Any) -> Gateway:
        return start_calling(start_gateway, model_folder, tokenizer, tmp_path, form, **stub)

    return begin


def ask(gateway: Gateway, **fields: Any) -> Any:
    return gateway.openai.chat.completions.create(
        **{"model": "tiny", "messages": MESSAGES, "tools": TOOLS, **fields}
    )


@pytest.mark.parametrize("form", ANSWERS)
def test_calls_come_whole_and_as_deltas(start: Any, form: str) -> None:
    gateway = start(form)
    choice = ask(gateway).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == ("Let me see." if form in ("hermes", "mistral") else None)
    calls = choice.message.tool_calls
    assert [(each.type, each.function.name) for each in calls] == [
        ("function", "look"),
        ("function", "other"),
    ]
    assert [json.loads(each.function.arguments) for each in calls] == [{"city": "Köln 🙂"}, {}]
    assert len({each.id for each in calls}) == 2
    assert all(len(each.id) == 9 for each in calls) == (form == "mistral")

    chunks = [chunk.choices[0] for chunk in ask(gateway, stream=True)]
    first = chunks[0].delta
    assert first.role == "assistant"
    assert first.content == ("L" if form in ("hermes", "mistral") else None)
    assert chunks[-1].finish_reason == "tool_calls"
    assert chunks[-1].delta.model_dump(exclude_unset=True) == {}
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    text = "".join(chunk.delta.content or "" for chunk in chunks)
    assert text == (choice.message.content or "")
    streamed: list[dict[str, Any]] = []
    for delta in (call for chunk in chunks for call in chunk.delta.tool_calls or ()):
        if delta.id is not None:
            assert delta.index == len(streamed)
            assert (delta.type, delta.function.arguments) == ("function", "")
            streamed.append({"name": delta.function.name, "arguments": ""})
        else:
            assert delta.index == len(streamed) - 1
            assert delta.function.name is None
            streamed[-1]["arguments"] += delta.function.arguments
    assert streamed == [each.function.model_dump() for each in calls]


def test_one_call_at_most_where_calls_may_not_be_parallel(start: Any) -> None:
    gateway = start("hermes")
    whole = ask(gateway, parallel_tool_calls=False).choices[0].message
    assert [each.function.name for each in whole.tool_calls] == ["look"]
    deltas = [
        call
        for chunk in ask(gateway, parallel_tool_calls=False, stream=True)
        for call in chunk.choices[0].delta.tool_calls or ()
    ]
    assert {call.index for call in deltas} == {0}


def test_calls_stay_text_where_none_are_wanted(start: Any) -> None:
    message = ask(start("hermes"), tool_choice="none").choices[0].message
    assert message.tool_calls is None
    assert message.content == HERMES


def test_what_is_cut_says_so_and_keeps_what_there_is(start: Any) -> None:
    choice = ask(start("hermes"), max_tokens=75).choices[0]
    assert choice.finish_reason == "length"
    assert [each.function.name for each in choice.message.tool_calls] == ["look"]
    assert choice.message.tool_calls[0].function.arguments.startswith('{"city')


def test_an_answer_without_calls_is_an_answer(start: Any) -> None:
    gateway = start("json", answer="It is fine. ", stop_after=4)
    choice = ask(gateway).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
    chunks = [chunk.choices[0] for chunk in ask(gateway, stream=True)]
    assert chunks[0].delta.role == "assistant"
    assert "".join(chunk.delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].finish_reason == "stop"


def test_logprobs_are_of_every_token_also_of_calls(start: Any) -> None:
    gateway = start("hermes")
    whole = ask(gateway, logprobs=True).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in ask(gateway, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or ()
    ]
    assert len(streamed) == len(whole)
    assert "".join(entry.token for entry in whole).startswith("Let me see.")


def test_several_choices_have_calls_of_their_own(start: Any) -> None:
    choices = ask(start("hermes"), n=3).choices
    ids = [call.id for choice in choices for call in choice.message.tool_calls]
    assert len(set(ids)) == 6
