"""Request and response of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airi.gateway.certificates import Certificate
from airi.gateway.findings import PromptResults, RuleResult
from airi.gateway.openai.schemas_common import SamplingFields, Tokens, Usage
from airi.gateway.retrieval.schemas import Retrieval, RetrieveOptions

Reason = Literal["stop", "length", "tool_calls", "content_filter"]


class ContentPart(msgspec.Struct, kw_only=True):
    """A piece of a message's content; models here read text."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    """The name and the arguments, as JSON text, of a call the model made."""

    name: str
    arguments: str | dict[str, Any]


class ToolCall(msgspec.Struct, kw_only=True):
    """A call the model made in an earlier turn."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(msgspec.Struct, kw_only=True):
    """One turn of the chat. Fields not named here are handed to the model's template as they are."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(msgspec.Struct, kw_only=True):
    """A function the model may ask to call."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Whether arguments are held to the schema also where the model is free to call or not."""


class ToolDefinition(msgspec.Struct, kw_only=True):
    """A tool the model's template may show to the model."""

    type: Literal["function"]
    function: FunctionDefinition


class TextFormat(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    """Text of any form."""


class JsonObjectFormat(msgspec.Struct, kw_only=True, tag_field="type", tag="json_object"):
    """A JSON object."""


class JsonSchema(msgspec.Struct, kw_only=True):
    """A schema by name. It is enforced exactly whether `strict` or not, or refused."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that a schema accepts, its keys in the schema's order."""

    json_schema: JsonSchema


class FunctionName(msgspec.Struct, kw_only=True):
    """A function by its name."""

    name: str


class NamedToolChoice(msgspec.Struct, kw_only=True):
    """The one function to call."""

    type: Literal["function"]
    function: FunctionName


class ChatCompletionRequest(SamplingFields, kw_only=True):
    """A chat to continue."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, description="Each a ChatMessage.")]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(description="Each a ToolDefinition.")] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: Annotated[bool, Meta(description="Goes on writing the last message.")] | None = (
        None
    )
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: Annotated[list[Literal["text"]], Meta(max_length=1)] | None = None
    airi: (
        Annotated[RetrieveOptions, Meta(description="Documents for the question, put into its prompt.")]
        | None
    ) = None
    functions: None = None
    function_call: None = None
    audio: None = None
    chat_template: None = None


class TopLogprob(msgspec.Struct, kw_only=True):
    """One of the likeliest tokens of a position."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob, kw_only=True):
    """A sampled token and the likeliest ones of its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """One entry per sampled token."""

    content: list[ChatLogprob] | None
    refusal: list[ChatLogprob] | None = None


class CalledFunction(msgspec.Struct, kw_only=True):
    """The name, and the arguments as JSON text."""

    name: str
    arguments: str


class MessageToolCall(msgspec.Struct, kw_only=True):
    """A call of a function."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(msgspec.Struct, kw_only=True):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One of the `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason
    content_filter_results: dict[str, RuleResult] | UnsetType = UNSET
    certificate: Certificate | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The answer to a chat request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    airi: Retrieval | UnsetType = UNSET
    usage: Usage
    system_fingerprint: str


class FunctionDelta(msgspec.Struct, kw_only=True):
    """What a chunk adds to a call; the name is whole."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(msgspec.Struct, kw_only=True):
    """A call that begins, with its id, or goes on."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChatDelta(msgspec.Struct, kw_only=True):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """The choice a chunk belongs to."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | UnsetType = UNSET
    finish_reason: Reason | None
    content_filter_results: dict[str, RuleResult] | UnsetType = UNSET
    certificate: Certificate | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    """One server-sent event of a streamed chat.

    Where usage is asked for, the last one has it, and no choice; the first, where content rules found something in
    prompts, has that, and no choice.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    airi: Retrieval | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET
    system_fingerprint: str
