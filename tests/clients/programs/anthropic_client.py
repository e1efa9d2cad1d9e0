"""The official client of Anthropic's API: sync, async, streams, tools, errors as its own classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import anthropic
import pydantic
from anthropic import Anthropic, AsyncAnthropic

GREETING: Any = [{"role": "user", "content": "Hello!"}]
ASK: Any = {"model": "tiny", "messages": GREETING, "max_tokens": 60, "extra_body": {"temperature": 0}}
TOOL: Any = {
    "name": "cost",
    "input_schema": {
        "type": "object",
        "properties": {"cents": {"type": "integer", "minimum": 0, "maximum": 999}},
        "required": ["cents"],
        "additionalProperties": False,
    },
}


def client(url: str, key: str) -> Anthropic:
    return Anthropic(base_url=url.removesuffix("/v1"), api_key=key, max_retries=0, timeout=60)


def refused(expected: type[anthropic.APIStatusError], call: Callable[[], object]) -> anthropic.APIStatusError:
    """The error of a call that must be refused with exactly this class."""
    try:
        call()
    except anthropic.APIStatusError as raised:
        error = raised
    else:
        raise AssertionError(f"no {expected.__name__}")
    assert isinstance(error, expected), repr(error)
    assert error.request_id
    return error


def check_a_message_answers_and_ends_by_itself(url: str, key: str) -> None:
    done = client(url, key).messages.create(**ASK)
    [block] = done.content
    assert block.type == "text"
    assert block.text
    assert (done.role, done.stop_reason, done.stop_sequence) == ("assistant", "end_turn", None)
    assert done.usage.output_tokens > 1


def check_a_stream_is_the_same_text(url: str, key: str) -> None:
    api = client(url, key)
    whole: Any = api.messages.create(**ASK)
    with api.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == "end_turn"
    kinds = [event.type for event in api.messages.create(**ASK, stream=True)]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])


async def check_the_async_client(url: str, key: str) -> None:
    async with AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key=key, max_retries=0) as api:
        whole: Any = await api.messages.create(**ASK)
        async with api.messages.stream(**ASK) as stream:
            text = "".join([piece async for piece in stream.text_stream])
    assert text == whole.content[0].text


def check_a_key_as_a_bearer_token(url: str, key: str) -> None:
    api = Anthropic(base_url=url.removesuffix("/v1"), auth_token=key, api_key=None, max_retries=0)
    assert api.messages.create(**ASK).content


def check_a_tool_is_called_and_its_result_is_read(url: str, key: str) -> None:
    api = client(url, key)
    asked = {**ASK, "max_tokens": 200, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "cost"}}
    done: Any = api.messages.create(**asked)
    [call] = done.content
    assert (done.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "cost")
    assert 0 <= call.input["cents"] <= 999
    with api.messages.stream(**asked) as stream:
        streamed: Any = stream.get_final_message()
    assert streamed.content[0].input == call.input
    result: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "Thank you."}]
    turns: Any = [{"role": "assistant", "content": done.content}, {"role": "user", "content": result}]
    last = api.messages.create(**{**ASK, "messages": [*GREETING, *turns], "tools": [TOOL]})
    assert last.usage.input_tokens + (last.usage.cache_read_input_tokens or 0) > done.usage.input_tokens


class Price(pydantic.BaseModel):
    """What the model is held to."""

    unit: Literal["cents", "euros"]


def check_an_answer_has_the_form_asked_for(url: str, key: str) -> None:
    done = client(url, key).messages.parse(**ASK, output_format=Price)
    assert isinstance(done.parsed_output, Price)


def check_tokens_are_counted(url: str, key: str) -> None:
    api = client(url, key)
    counted = api.messages.count_tokens(model="tiny", messages=GREETING, system="Be brief.")
    usage = api.messages.create(**ASK, system="Be brief.").usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def check_errors_are_the_clients_own(url: str, key: str) -> None:
    api = client(url, key)
    missing = refused(anthropic.NotFoundError, lambda: api.messages.create(**{**ASK, "model": "nope"}))
    assert "airi-demo" in missing.message
    refused(anthropic.AuthenticationError, lambda: client(url, "no").messages.create(**ASK))
    refused(anthropic.BadRequestError, lambda: api.messages.create(**{**ASK, "max_tokens": 0}))
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]
    error = refused(anthropic.BadRequestError, lambda: api.messages.create(**{**ASK, "messages": image}))
    assert "messages[0].content[0].type" in error.message
