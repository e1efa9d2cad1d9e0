"""Request and response of `/v1/responses`, as far as it is served: what the API has beyond that is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airi.gateway.certificates import Certificate
from airi.gateway.findings import PromptResults, RuleResult
from airi.gateway.openai.schemas_chat import ChatLogprob, JsonObjectFormat, TextFormat
from airi.gateway.openai.schemas_common import CacheSalt, Priority, Tokens

LOGPROBS = "message.output_text.logprobs"

ToolName = Annotated[str, Meta(min_length=1, max_length=256)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
Status = Literal["in_progress", "completed", "incomplete"]


class InputText(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text of a message."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class EarlierText(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text of an earlier answer, as it came."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class EarlierRefusal(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A refusal of an earlier answer, as it came."""

    type: Literal["refusal"]
    refusal: str


class InputMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn; `type` may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: (
        str
        | Annotated[
            list[dict[str, Any]], Meta(description="Each an InputText, an EarlierText or an EarlierRefusal.")
        ]
    )
    type: Literal["message"] | None = None
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class EarlierCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call that the model made in an earlier turn, as it came."""

    type: Literal["function_call"]
    call_id: str
    name: ToolName
    arguments: str
    id: str | None = None
    status: Status | None = None


class CallOutput(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a call that the model made has come to."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[dict[str, Any]], Meta(description="Each an InputText.")]
    id: str | None = None
    name: str | None = None
    status: Status | None = None


class FunctionTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function the model may ask to call. Left out, `strict` is false, and an answer says so."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The one function to call."""

    type: Literal["function"]
    name: ToolName


class SchemaFormat(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"
):
    """JSON that a schema accepts. It is enforced exactly whether `strict` or not, or refused."""

    name: ToolName
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the text."""

    format: TextFormat | JsonObjectFormat | SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """There is none."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class ResponseStreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Options of a stream."""

    include_obfuscation: Literal[False] | None = None


class ResponseRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A conversation to continue; all of it, as nothing of an earlier response is kept."""

    model: Annotated[str, Meta(description="Name or alias of a served model.", max_length=512)]
    input: Annotated[
        str | Annotated[list[dict[str, Any]], Meta(min_length=1)],
        Meta(description="A text, or items: each an InputMessage, an EarlierCall or a CallOutput."),
    ]
    instructions: Annotated[str, Meta(description="Comes before all, as a system message.")] | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: Annotated[list[dict[str, Any]], Meta(description="Each a FunctionTool.")] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    metadata: Metadata | None = None
    priority: Priority | None = None
    cache_salt: CacheSalt | None = None
    store: Annotated[Literal[False], Meta(description="Left out, it is false, too.")] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    background: Literal[False] | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    max_tool_calls: (
        Annotated[int, Meta(ge=1, description="Of tools that run here: there are none.")] | None
    ) = None
    user: Annotated[str, Meta(max_length=1024)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=1024)] | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=1024)] | None = None


class InputTokensDetails(msgspec.Struct, kw_only=True):
    """Of the input's tokens, those whose KV entries were reused, and those that were kept at a price: none."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, kw_only=True):
    """Of the output's tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Token counts of one response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class OutputText(msgspec.Struct, kw_only=True, tag_field="type", tag="output_text"):
    """The text of an answer."""

    text: str
    annotations: list[Any]
    logprobs: list[ChatLogprob] | UnsetType = UNSET


class OutputMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """What the model said."""

    id: str
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[OutputText]


class OutputCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call that the model asks for; its arguments are JSON text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class IncompleteDetails(msgspec.Struct, kw_only=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseError(msgspec.Struct, kw_only=True):
    """Why a response failed after its stream had begun."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class ShownTool(msgspec.Struct, kw_only=True):
    """A function of the request."""

    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool


class ShownText(msgspec.Struct, kw_only=True):
    """The form of the text that was asked for."""

    format: TextFormat | JsonObjectFormat | SchemaFormat


class Response(msgspec.Struct, kw_only=True):
    """The answer, and what was asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | UnsetType = UNSET
    metadata: dict[str, str] | None
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    store: Literal[False] = False
    temperature: float
    text: ShownText
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice
    tools: list[ShownTool]
    top_logprobs: int | UnsetType = UNSET
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | UnsetType = UNSET
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    content_filter_results: dict[str, RuleResult] | UnsetType = UNSET
    certificate: Certificate | UnsetType = UNSET


class ResponseEvent(msgspec.Struct, kw_only=True):
    """One server-sent event of a streamed response, with the fields that its type has; the event's name is its type."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int
    response: Response | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    item: OutputMessage | OutputCall | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    part: OutputText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[ChatLogprob] | UnsetType = UNSET
