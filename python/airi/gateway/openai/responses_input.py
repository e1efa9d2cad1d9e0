"""A request of `/v1/responses` as a chat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from airi.gateway.errors import bad_field, decode_body
from airi.gateway.openai.schemas_chat import FunctionName, JsonSchema, JsonSchemaFormat, NamedToolChoice
from airi.gateway.openai.schemas_responses import (
    LOGPROBS,
    CallOutput,
    EarlierCall,
    EarlierRefusal,
    EarlierText,
    FunctionChoice,
    FunctionTool,
    InputMessage,
    InputText,
    ResponseRequest,
    SchemaFormat,
)
from airi.gateway.openai.translated import Places, TranslatedChat, converted

__all__ = ["ResponseChat", "read_response_request"]

_DECODER = msgspec.json.Decoder(ResponseRequest)

_REFUSED = {
    "store": "no response is stored here; accepted: false, which is what leaving it out means",
    "previous_response_id": "no response is stored here; send the whole conversation as `input`",
    "conversation": "no conversation is stored here; send the whole of it as `input`",
    "prompt": "no prompt is stored here; send its text as `instructions` or `input`",
    "background": "responses are made while the client waits; accepted: false",
    "truncation": "nothing is cut off an input that is too long; accepted: 'disabled'",
    "reasoning": "models here answer without reasoning apart; accepted: an effort of 'none'",
    "text.verbosity": "models here have one; accepted: 'medium'",
    "include": f"accepted: {LOGPROBS!r}, and 'reasoning.encrypted_content', of which there is none",
    "stream_options": "events are not padded; accepted: `include_obfuscation: false`",
    "service_tier": "there is one tier; accepted: 'auto', 'default'; `priority` says what is served first",
}
"""What those who ask for it would not get."""

_FIELDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}

_PARTS: dict[str, type[InputText | EarlierText | EarlierRefusal]] = {
    "input_text": InputText,
    "output_text": EarlierText,
    "refusal": EarlierRefusal,
}
_OUTPUT_PARTS: dict[str, type[InputText]] = {"input_text": InputText}
_ITEMS: dict[str, type[InputMessage | EarlierCall | CallOutput]] = {
    "message": InputMessage,
    "function_call": EarlierCall,
    "function_call_output": CallOutput,
}
_TOOLS = {"function": FunctionTool}


class ResponseChat(TranslatedChat, kw_only=True):
    """The chat, and what came."""

    given: ResponseRequest
    functions_given: list[FunctionTool]


def read_response_request(body: bytes) -> ResponseChat:
    """The chat that a body asks to continue; raises a 400 for what is wrong or not served."""
    given = decode_body(_DECODER, body, refused=_REFUSED)
    places = Places(_FIELDS)
    wants_logprobs = LOGPROBS in (given.include or ())
    if given.top_logprobs and not wants_logprobs:
        raise bad_field("top_logprobs", f"needs {LOGPROBS!r} in `include`")
    functions = [converted(tool, _TOOLS, f"tools[{i}]") for i, tool in enumerate(given.tools or ())]
    for i in range(len(functions)):
        places.put(f"tools[{i}].function", f"tools[{i}]")
    choice: Any = given.tool_choice
    if isinstance(choice, FunctionChoice):
        choice = NamedToolChoice(type="function", function=FunctionName(name=choice.name))
    return ResponseChat(
        given=given,
        functions_given=functions,
        places=places,
        model=given.model,
        messages=_Messages(given, places).made,
        max_tokens=given.max_output_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        logprobs=wants_logprobs,
        top_logprobs=given.top_logprobs if wants_logprobs else None,
        stream=given.stream,
        tools=[_tool(function) for function in functions] or None,
        tool_choice=choice,
        parallel_tool_calls=given.parallel_tool_calls,
        response_format=_format(given),
        priority=given.priority,
        cache_salt=given.cache_salt,
    )


def _tool(function: FunctionTool) -> dict[str, Any]:
    described: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        described["description"] = function.description
    if function.parameters is not None:
        described["parameters"] = function.parameters
    if function.strict is not None:
        described["strict"] = function.strict
    return {"type": "function", "function": described}


def _format(given: ResponseRequest) -> Any:
    wanted = None if given.text is None else given.text.format
    if not isinstance(wanted, SchemaFormat):
        return wanted
    return JsonSchemaFormat(json_schema=JsonSchema(name=wanted.name, schema=wanted.schema))


class _Messages:
    """Makes the messages of a chat of the items of an input.

    The calls that follow a message of the assistant's, or each other, are one message with it, as templates want them.
    """

    def __init__(self, given: ResponseRequest, places: Places) -> None:
        self.made: list[dict[str, Any]] = []
        self._places = places
        self._called: set[str] = set()
        if given.instructions is not None:
            self._add({"role": "system", "content": given.instructions}, "instructions", "instructions")
        if isinstance(given.input, str):
            self._add({"role": "user", "content": given.input}, "input", "input")
        else:
            self._add_items(given.input)

    def _add(self, message: dict[str, Any], place: str, content: str) -> None:
        field = f"messages[{len(self.made)}]"
        self._places.put(field, place)
        self._places.put(f"{field}.content", content)
        self.made.append(message)

    def _add_items(self, items: Iterable[dict[str, Any]]) -> None:
        for i, value in enumerate(items):
            place = f"input[{i}]"
            item = converted(value, _ITEMS, place, default="message")
            match item:
                case InputMessage():
                    content = item.content
                    if not isinstance(content, str):
                        content = _parts(content, _PARTS, f"{place}.content")
                    self._add({"role": item.role, "content": content}, place, f"{place}.content")
                case EarlierCall():
                    self._add_call(item, place)
                case CallOutput():
                    self._add_output(item, place)

    def _add_call(self, item: EarlierCall, place: str) -> None:
        if not self.made or self.made[-1]["role"] != "assistant":
            self._add({"role": "assistant", "content": None}, place, place)
        calls = self.made[-1].setdefault("tool_calls", [])
        field = f"messages[{len(self.made) - 1}].tool_calls[{len(calls)}]"
        self._places.put(field, place)
        self._places.put(f"{field}.function", place)
        function = {"name": item.name, "arguments": item.arguments}
        calls.append({"id": item.call_id, "type": "function", "function": function})
        self._called.add(item.call_id)

    def _add_output(self, item: CallOutput, place: str) -> None:
        if item.call_id not in self._called:
            raise bad_field(
                f"{place}.call_id",
                "names no call; accepted: the call_id of a function_call that stands before it in `input`",
            )
        output: Any = item.output
        if not isinstance(output, str):
            output = _parts(output, _OUTPUT_PARTS, f"{place}.output")
        message = {"role": "tool", "tool_call_id": item.call_id, "content": output}
        self._add(message, place, f"{place}.output")


def _parts(parts: list[dict[str, Any]], kinds: dict[str, Any], place: str) -> list[dict[str, Any]]:
    found = [converted(part, kinds, f"{place}[{i}]") for i, part in enumerate(parts)]
    return [
        {"type": "refusal", "refusal": part.refusal}
        if isinstance(part, EarlierRefusal)
        else {"type": "text", "text": part.text}
        for part in found
    ]
