"""Request and response of `/v1/messages`, as far as it is served: what the API has beyond that is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airi.gateway.certificates import Certificate
from airi.gateway.findings import PromptResults, RuleResult
from airi.gateway.openai.schemas_common import CacheSalt, Priority, StopString, Tokens

ToolName = Annotated[str, Meta(min_length=1, max_length=256)]
CacheControl = Annotated[dict[str, Any], Meta(description="A hint: prefixes are cached wherever they end.")]


class TextBlockParam(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text of a message."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Meta(max_length=0)] | None = None


class ToolUseBlockParam(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call that the model made in an earlier turn."""

    type: Literal["tool_use"]
    id: Annotated[str, Meta(min_length=1)]
    name: ToolName
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlockParam(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a call that the model made has come to; `is_error` is told to the model's template."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Annotated[list[dict[str, Any]], Meta(description="Each a TextBlockParam.")] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class MessageParam(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn. The last one may be the assistant's: the answer goes on from there."""

    role: Literal["user", "assistant", "system"]
    content: (
        str
        | Annotated[
            list[dict[str, Any]],
            Meta(
                description="Each a TextBlockParam; of a user also a ToolResultBlockParam, "
                "of the assistant also a ToolUseBlockParam."
            ),
        ]
    )


class ToolParam(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function the model may ask to call."""

    name: ToolName
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None


class ToolChoiceAuto(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="auto"):
    """The model is free to call or not."""

    disable_parallel_tool_use: bool | None = None


class ToolChoiceAny(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="any"):
    """The model calls something."""

    disable_parallel_tool_use: bool | None = None


class ToolChoiceTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="tool"):
    """The model calls this one."""

    name: ToolName
    disable_parallel_tool_use: bool | None = None


class ToolChoiceNone(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="none"):
    """The model calls nothing."""


class ThinkingDisabled(msgspec.Struct, kw_only=True, tag_field="type", tag="disabled"):
    """Models here answer without thinking apart."""


class ThinkingAdaptive(msgspec.Struct, kw_only=True, tag_field="type", tag="adaptive"):
    """The model decides, and decides not to."""


class JsonOutputFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """JSON that a schema accepts: exactly, or it is refused."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the text."""

    format: JsonOutputFormat | None = None
    effort: None = None


class RequestMetadata(msgspec.Struct, kw_only=True):
    """What the caller notes; it changes nothing."""

    user_id: Annotated[str, Meta(max_length=1024)] | None = None


class CountTokensRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A conversation whose tokens are to be counted."""

    model: Annotated[str, Meta(description="Name or alias of a served model.", max_length=512)]
    messages: Annotated[list[MessageParam], Meta(min_length=1)]
    system: str | Annotated[list[dict[str, Any]], Meta(description="Each a TextBlockParam.")] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(description="Each a ToolParam.")] | None = None
    tool_choice: ToolChoiceAuto | ToolChoiceAny | ToolChoiceTool | ToolChoiceNone | None = None
    thinking: ThinkingDisabled | ThinkingAdaptive | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Literal["standard"] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True, forbid_unknown_fields=True):
    """A conversation to continue."""

    max_tokens: Tokens
    stop_sequences: Annotated[list[StopString], Meta(max_length=64)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1, description="0: all tokens.")] | None = None
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: None = None
    inference_geo: None = None
    diagnostics: None = None
    priority: Priority | None = None
    cache_salt: CacheSalt | None = None


class CountTokensResponse(msgspec.Struct, kw_only=True):
    """How many tokens the prompt has."""

    input_tokens: int


class TextBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    """A text of the answer."""

    text: str


class ToolUseBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use"):
    """A call that the model asks for. Of one that was cut the input is empty."""

    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(msgspec.Struct, kw_only=True):
    """Token counts; those of the prompt that were in the cache are counted apart."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "model_context_window_exceeded"
]


class Message(msgspec.Struct, kw_only=True):
    """The answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock | ToolUseBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    content_filter_results: dict[str, RuleResult] | UnsetType = UNSET
    certificate: Certificate | UnsetType = UNSET


class MessageDelta(msgspec.Struct, kw_only=True):
    """More of a text, more of a call's input as JSON text, or, without a type, how the message has ended."""

    type: Literal["text_delta", "input_json_delta"] | UnsetType = UNSET
    text: str | UnsetType = UNSET
    partial_json: str | UnsetType = UNSET
    stop_reason: StopReason | UnsetType = UNSET
    stop_sequence: str | UnsetType | None = UNSET


class MessageEvent(msgspec.Struct, kw_only=True):
    """One server-sent event of a streamed message, with the fields that its type has; the event's name is its type."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message: Message | UnsetType = UNSET
    index: int | UnsetType = UNSET
    content_block: TextBlock | ToolUseBlock | UnsetType = UNSET
    delta: MessageDelta | UnsetType = UNSET
    usage: MessageUsage | UnsetType = UNSET
    content_filter_results: dict[str, RuleResult] | UnsetType = UNSET
    certificate: Certificate | UnsetType = UNSET


class ErrorObject(msgspec.Struct, kw_only=True):
    """What went wrong."""

    type: str
    message: str


class MessagesError(msgspec.Struct, kw_only=True):
    """The body of every answer that is not a success."""

    type: Literal["error"] = "error"
    error: ErrorObject
    request_id: str
