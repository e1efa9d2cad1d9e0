"""Texts of a given form over HTTP, from the built-in model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pytest

from airi import builtin
from airi.text import Tokenizer

from .conftest import serve_process

SERVE = ("--threads", "1", "--kv-memory", "64MiB", "--log-level", "info")
MESSAGES: Any = [{"role": "user", "content": "What does a transfer cost?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "maxLength": 8},
        "cents": {"type": "integer", "minimum": 0, "maximum": 999},
        "days": {"type": "array", "items": {"enum": ["mon", "tue"]}, "maxItems": 2},
    },
    "required": ["word", "cents", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "cost", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "hours"}},
]
BAD: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}

COSTLY = "start: A\nA: " + " & ".join(f"/.*{c}.{{{i + 7}}}.*/" for i, c in enumerate("abcdefghijklmnop"))
"""Of more states than are made."""


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with serve_process(*SERVE) as (process, url, _):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            yield client
        process.terminate()
        assert process.wait(60) == 0


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "airi-demo", "messages": MESSAGES, "max_tokens": 150, "temperature": 1.0, **fields}
    )


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "cost", "schema": schema, "strict": True}}


def test_a_json_schema_holds_whole_and_streamed(client: openai.OpenAI) -> None:
    for choice in chat(client, response_format=schema_format(SCHEMA), n=4).choices:
        assert choice.finish_reason == "stop"
        jsonschema_rs.validate(SCHEMA, json.loads(choice.message.content))
    stream = chat(client, response_format=schema_format(SCHEMA), stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    jsonschema_rs.validate(SCHEMA, json.loads(text))


def test_a_json_object_is_one_or_is_cut(client: openai.OpenAI) -> None:
    choice = chat(client, response_format={"type": "json_object"}).choices[0]
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_regex": "[a-c]{3}-[0-9]"}, "[a-c]{3}-[0-9]"),
        ({"guided_grammar": 'start: "x" ("," "x")?'}, "x(,x)?"),
        ({"guided_json": '{"enum": [1, "a"]}'}, '1|"a"'),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"regex": "[a-c]{3}"}}, "[a-c]{3}"),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "a|b"),
        ({"structured_outputs": {"json": {"type": "boolean"}}}, "true|false"),
    ],
)
def test_the_names_of_other_servers_are_known_in_both_endpoints(
    client: openai.OpenAI, fields: dict[str, Any], pattern: str
) -> None:
    assert re.fullmatch(pattern, chat(client, extra_body=fields).choices[0].message.content)
    done = client.completions.create(model="airi-demo", prompt="It is", max_tokens=20, extra_body=fields)
    assert re.fullmatch(pattern, done.choices[0].text)


@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_have_arguments_of_their_schemas(client: openai.OpenAI, parallel: bool) -> None:  # noqa: FBT001
    for seed in range(4):
        choice = chat(
            client,
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=parallel,
            seed=seed,
            max_tokens=400,
        ).choices[0]
        calls = choice.message.tool_calls
        assert choice.message.content is None
        if choice.finish_reason == "length":
            continue
        assert choice.finish_reason == "tool_calls"
        assert parallel or len(calls) == 1
        for call in calls:
            schema = SCHEMA if call.function.name == "cost" else {"const": {}}
            jsonschema_rs.validate(schema, json.loads(call.function.arguments))


def test_a_named_function_is_called_once(client: openai.OpenAI) -> None:
    choice = chat(
        client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "hours"}}
    ).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("hours", "{}")


def test_strict_functions_hold_calls_to_their_schema_where_the_model_is_free(client: openai.OpenAI) -> None:
    strict = {"type": "function", "function": {"name": "b", "parameters": BAD, "strict": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        chat(client, tools=[*TOOLS, strict])
    assert caught.value.param == "tools[2].function.parameters"
    loose = {"type": "function", "function": {"name": "b", "parameters": BAD}}
    tools = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, loose]
    free, wanted = (chat(client, tools=each, temperature=0) for each in (tools, [TOOLS[0], loose]))
    assert free.choices[0].message.content == wanted.choices[0].message.content
    [begin] = Tokenizer.load(builtin.path()).encode("[")
    for choice in chat(client, tools=tools, n=4, logit_bias={begin: 50}).choices:
        assert choice.finish_reason in ("tool_calls", "length")
        for call in choice.message.tool_calls:
            if call.function.name == "cost" and choice.finish_reason == "tool_calls":
                jsonschema_rs.validate(SCHEMA, json.loads(call.function.arguments))


def test_with_tools_an_answer_has_its_form_or_is_calls(client: openai.OpenAI) -> None:
    for seed in range(4):
        choice = chat(
            client,
            tools=TOOLS,
            response_format=schema_format({"enum": ["a", "b"]}),
            seed=seed,
            max_tokens=400,
        ).choices[0]
        assert choice.finish_reason in ("stop", "tool_calls", "length")
        if choice.finish_reason == "stop":
            assert choice.message.content in ('"a"', '"b"')


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": schema_format(BAD)}, "response_format.json_schema.schema", "/properties/a/uniqueItems"),
        ({"extra_body": {"guided_json": BAD}}, "guided_json", "/properties/a/uniqueItems"),
        ({"extra_body": {"structured_outputs": {"json": "{"}}}, "structured_outputs.json", "not JSON"),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex", "unclosed"),
        ({"extra_body": {"guided_grammar": "start: what"}}, "guided_grammar", "what"),
        (
            {"extra_body": {"structured_outputs": {"grammar": COSTLY}}},
            "structured_outputs.grammar",
            "the grammar is not accepted: it is too complex",
        ),
        (
            {"tools": [*TOOLS, {"type": "function", "function": {"name": "b", "parameters": BAD}}],
             "tool_choice": "required"},
            "tools[2].function.parameters",
            "/properties/a/uniqueItems",
        ),
        (
            {"tools": TOOLS, "response_format": schema_format(BAD)},
            "response_format.json_schema.schema",
            "/properties/a/uniqueItems",
        ),
        ({"response_format": schema_format(SCHEMA), "extra_body": {"ignore_eos": True}}, "ignore_eos", "end the text"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_exact_is_a_400_by_field_and_place(
    client: openai.OpenAI, fields: dict[str, Any], param: str, words: str, stream: bool  # noqa: FBT001
) -> None:  # fmt: skip
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, stream=stream, **fields)
    assert raised.value.param == param
    assert words in str(raised.value)
    assert "structured:" not in str(raised.value)
