"""`/v1/responses` and `/v1/messages` from the built-in model: forms that are held, calls that are forced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import httpx
import jsonschema_rs
import openai
import pydantic
import pytest

from .conftest import serve_process

pytestmark = pytest.mark.slow  # about 20 s

SERVE = ("--threads", "1", "--kv-memory", "64MiB", "--log-level", "info")
ASK: dict[str, Any] = {"model": "airi-demo", "input": "What does a transfer cost?", "max_output_tokens": 200}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "maxLength": 8},
        "cents": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["word", "cents"],
    "additionalProperties": False,
}
BAD: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}


class Price(pydantic.BaseModel):
    """What answers are held to."""

    unit: Literal["cents", "euros"]
    amount: Annotated[int, pydantic.Field(ge=0, le=999)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_process(*SERVE) as (process, url, said):
        yield url
        process.terminate()
        assert process.wait(60) == 0
        assert "Traceback" not in "".join(said)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def tool(schema: dict[str, Any]) -> Any:
    return {"type": "function", "name": "cost", "parameters": schema, "strict": True}


def test_the_client_parses_an_answer_whole_and_streamed(client: openai.OpenAI) -> None:
    done = client.responses.parse(**ASK, text_format=Price)
    assert isinstance(done.output_parsed, Price)
    with client.responses.stream(**ASK, text_format=Price) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.output_text.delta", "response.output_text.done", "response.completed"} <= kinds
    assert isinstance(final.output_parsed, Price)


def test_a_call_that_is_forced_has_arguments_of_its_schema(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "name": "cost"}
    done = client.responses.create(**ASK, tools=[tool(SCHEMA)], tool_choice=choice)
    [call] = done.output
    assert call.type == "function_call"
    jsonschema_rs.validate(SCHEMA, json.loads(call.arguments))
    asked = {**ASK, "tools": [tool(SCHEMA)], "tool_choice": "required", "parallel_tool_calls": False}
    with client.responses.stream(**asked) as stream:
        [item] = stream.get_final_response().output
    assert item.type == "function_call"
    jsonschema_rs.validate(SCHEMA, json.loads(item.arguments))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "p", "schema": BAD}}}, "text.format.schema"),
        ({"tools": [tool(SCHEMA), {**tool(BAD), "name": "b"}]}, "tools[1].parameters"),
    ],
)
def test_what_cannot_be_exact_is_a_400_by_field_and_place(
    client: openai.OpenAI,
    fields: dict[str, Any],
    param: str,
    stream: bool,  # noqa: FBT001
) -> None:
    with pytest.raises(openai.BadRequestError, match="/properties/a/uniqueItems") as raised:
        client.responses.create(**ASK, **fields, stream=stream)
    assert raised.value.param == param
    assert str(raised.value.body["message"]).startswith(f"{param}: ")  # type: ignore[index]


def test_messages_hold_forms_and_force_calls_too(url: str) -> None:
    asked = {
        "model": "airi-demo",
        "messages": [{"role": "user", "content": "What does a transfer cost?"}],
        "max_tokens": 200,
    }
    tools = [{"name": "cost", "input_schema": SCHEMA}]

    def ask(**fields: Any) -> Any:
        return httpx.post(f"{url}/v1/messages", json={**asked, **fields}, timeout=60).json()

    text = ask(output_config={"format": {"type": "json_schema", "schema": SCHEMA}})["content"][0]["text"]
    jsonschema_rs.validate(SCHEMA, json.loads(text))
    done = ask(tools=tools, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    [call] = done["content"]
    assert done["stop_reason"] == "tool_use"
    jsonschema_rs.validate(SCHEMA, call["input"])
    for fields, place in (
        (
            {"output_config": {"format": {"type": "json_schema", "schema": BAD}}},
            "output_config.format.schema",
        ),
        (
            {"tools": [*tools, {"name": "b", "input_schema": BAD}], "tool_choice": {"type": "any"}},
            "tools[1].input_schema",
        ),
    ):
        error = ask(**fields)["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"].startswith(f"{place}: ")
        assert "/properties/a/uniqueItems" in error["message"]
