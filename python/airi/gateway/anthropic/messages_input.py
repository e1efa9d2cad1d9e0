"""A request of `/v1/messages` as a chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from airi.gateway.anthropic.schemas import (
    CountTokensRequest,
    MessageParam,
    MessagesRequest,
    TextBlockParam,
    ToolChoiceAny,
    ToolChoiceAuto,
    ToolChoiceNone,
    ToolChoiceTool,
    ToolParam,
    ToolResultBlockParam,
    ToolUseBlockParam,
)
from airi.gateway.errors import bad_field, decode_body
from airi.gateway.openai.schemas_chat import FunctionName, JsonSchema, JsonSchemaFormat, NamedToolChoice
from airi.gateway.openai.translated import Places, TranslatedChat, converted

__all__ = ["read_count_request", "read_messages_request"]

_MESSAGES = msgspec.json.Decoder(MessagesRequest)
_COUNT = msgspec.json.Decoder(CountTokensRequest)

_REFUSED = {
    "thinking": "models here answer without thinking apart; accepted: type 'disabled' or 'adaptive'",
    "service_tier": "there is one tier; accepted: 'auto', 'standard_only'; `priority` says what is served first",
    "output_config.effort": "models here have one effort; accepted: null",
    "speed": "there is one speed; accepted: 'standard'",
    "container": "nothing runs in containers here; accepted: null",
    "inference_geo": "the models that are served run where they run; accepted: null",
    "diagnostics": "nothing is kept of an earlier message; accepted: null",
}
"""What those who ask for it would not get."""

_FIELDS = {
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
}

_TEXTS: dict[str, type[TextBlockParam]] = {"text": TextBlockParam}
_BLOCKS: Mapping[str, dict[str, type[TextBlockParam | ToolUseBlockParam | ToolResultBlockParam]]] = {
    "user": {"text": TextBlockParam, "tool_result": ToolResultBlockParam},
    "assistant": {"text": TextBlockParam, "tool_use": ToolUseBlockParam},
    "system": {"text": TextBlockParam},
}
_TOOLS = {"custom": ToolParam}


def read_messages_request(body: bytes) -> TranslatedChat:
    """The chat that a body asks to continue; raises a 400 for what is wrong or not served."""
    given = decode_body(_MESSAGES, body, refused=_REFUSED)
    chat = _chat(given)
    chat.max_tokens = given.max_tokens
    chat.stop = given.stop_sequences
    chat.stream = given.stream
    chat.temperature = given.temperature
    chat.top_p = given.top_p
    chat.top_k = given.top_k
    chat.priority = given.priority
    chat.cache_salt = given.cache_salt
    return chat


def read_count_request(body: bytes) -> TranslatedChat:
    """The chat whose tokens a body asks to count; raises as `read_messages_request`."""
    return _chat(decode_body(_COUNT, body, refused=_REFUSED))


def _chat(given: CountTokensRequest) -> TranslatedChat:
    places = Places(_FIELDS)
    tools = [
        _tool(converted(tool, _TOOLS, f"tools[{i}]", default="custom"))
        for i, tool in enumerate(given.tools or ())
    ]
    for i in range(len(tools)):
        places.put(f"tools[{i}].function", f"tools[{i}]")
        places.put(f"tools[{i}].function.parameters", f"tools[{i}].input_schema")
    choice = given.tool_choice
    config = given.output_config
    wanted = None if config is None else config.format
    messages = _Messages(given, places).made
    continues = messages[-1]["role"] == "assistant"
    return TranslatedChat(
        places=places,
        model=given.model,
        messages=messages,
        tools=tools or None,
        tool_choice=_choice(choice),
        parallel_tool_calls=(
            False
            if isinstance(choice, ToolChoiceAuto | ToolChoiceAny | ToolChoiceTool)
            and choice.disable_parallel_tool_use
            else None
        ),
        response_format=(
            None
            if wanted is None
            else JsonSchemaFormat(json_schema=JsonSchema(name="output", schema=wanted.schema))
        ),
        continue_final_message=True if continues else None,
    )


def _tool(tool: ToolParam) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: ToolChoiceAuto | ToolChoiceAny | ToolChoiceTool | ToolChoiceNone | None) -> Any:
    match choice:
        case ToolChoiceAny():
            return "required"
        case ToolChoiceTool(name=name):
            return NamedToolChoice(type="function", function=FunctionName(name=name))
        case ToolChoiceNone():
            return "none"
        case _:
            return None


class _Messages:
    """Makes the messages of a chat: results of tools are messages of their own there, before what else a turn says."""

    def __init__(self, given: CountTokensRequest, places: Places) -> None:
        self.made: list[dict[str, Any]] = []
        self._places = places
        self._called: dict[str, str] = {}
        """Calls without a result, and where they are."""
        if given.system is not None:
            self._add_texts("system", given.system, "system", "system")
        for i, message in enumerate(given.messages):
            self._add_message(message, f"messages[{i}]")
        if self._called:
            raise self._without_result()

    def _add(self, message: dict[str, Any], place: str, content: str) -> str:
        field = f"messages[{len(self.made)}]"
        self._places.put(field, place)
        self._places.put(f"{field}.content", content)
        self.made.append(message)
        return field

    def _add_texts(self, role: str, content: str | list[dict[str, Any]], place: str, inner: str) -> None:
        if not isinstance(content, str):
            texts = [converted(part, _TEXTS, f"{inner}[{i}]") for i, part in enumerate(content)]
            self._add({"role": role, "content": [_part(text) for text in texts]}, place, inner)
        else:
            self._add({"role": role, "content": content}, place, inner)

    def _add_message(self, message: MessageParam, place: str) -> None:
        content, inner = message.content, f"{place}.content"
        if isinstance(content, str):
            if self._called:
                raise self._without_result()
            self._add_texts(message.role, content, place, inner)
            return
        kinds = _BLOCKS[message.role]
        blocks = [converted(block, kinds, f"{inner}[{i}]") for i, block in enumerate(content)]
        for i, block in enumerate(blocks):
            if isinstance(block, ToolResultBlockParam):
                self._add_result(block, f"{inner}[{i}]")
        if self._called:
            raise self._without_result()
        if not blocks or not all(isinstance(block, ToolResultBlockParam) for block in blocks):
            self._add_blocks(message.role, blocks, place, inner)

    def _add_result(self, block: ToolResultBlockParam, place: str) -> None:
        if self._called.pop(block.tool_use_id, None) is None:
            raise bad_field(
                f"{place}.tool_use_id", "names no call; accepted: the id of a tool_use of the message before"
            )
        content: Any = "" if block.content is None else block.content
        if not isinstance(content, str):
            texts = [converted(part, _TEXTS, f"{place}.content[{i}]") for i, part in enumerate(content)]
            content = [_part(text) for text in texts]
        message = {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
        if block.is_error:
            message["is_error"] = True
        self._add(message, place, f"{place}.content")

    def _add_blocks(
        self,
        role: str,
        blocks: list[TextBlockParam | ToolUseBlockParam | ToolResultBlockParam],
        place: str,
        inner: str,
    ) -> None:
        parts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        field = self._add({"role": role, "content": parts}, place, inner)
        for i, block in enumerate(blocks):
            match block:
                case TextBlockParam():
                    self._places.put(f"{field}.content[{len(parts)}]", f"{inner}[{i}]")
                    parts.append(_part(block))
                case ToolUseBlockParam():
                    call = f"{field}.tool_calls[{len(calls)}]"
                    self._places.put(call, f"{inner}[{i}]")
                    self._places.put(f"{call}.function", f"{inner}[{i}]")
                    self._places.put(f"{call}.function.arguments", f"{inner}[{i}].input")
                    function = {"name": block.name, "arguments": block.input}
                    calls.append({"id": block.id, "type": "function", "function": function})
                    self._called[block.id] = f"{inner}[{i}]"
        if calls:
            self.made[-1]["tool_calls"] = calls
            self.made[-1]["content"] = parts or None

    def _without_result(self) -> Exception:
        return bad_field(
            next(iter(self._called.values())), "has no result; accepted: a tool_result in the next message"
        )


def _part(text: TextBlockParam) -> dict[str, Any]:
    return {"type": "text", "text": text.text}
