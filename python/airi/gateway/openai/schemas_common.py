"""What several endpoints share: limits of the sampling fields, usage, errors, models, tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airi.outputs import Task
from airi.sampling_params import MAX_PRIORITY, MAX_REPETITION_PENALTY, MIN_REPETITION_PENALTY
from airi.structured_output import MAX_CHOICES, MAX_STRUCTURED_CHARACTERS

Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=4096)]
Priority = Annotated[
    int,
    Meta(
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="Added to the tenant's; higher is served first. At most its `max_priority` in all.",
    ),
]
CacheSalt = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=1024,
        description="The prompt's prefix is shared only with requests of the same salt.",
    ),
]
Schema = dict[str, Any]
Form = Annotated[str, Meta(min_length=1, max_length=MAX_STRUCTURED_CHARACTERS)]
Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=MAX_CHOICES)]


class StreamOptions(msgspec.Struct, kw_only=True):
    """Options of a stream."""

    include_usage: bool | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """A form of the text; exactly one of the fields that name one."""

    json: Annotated[Any, Meta(description="A JSON Schema, as an object or as JSON text.")] = None
    regex: Form | None = None
    choice: Choices | None = None
    grammar: Annotated[Form, Meta(description="In Lark's notation, or rules with `::=`.")] | None = None
    json_object: bool | None = None
    disable_fallback: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: Literal[False] | None = None
    whitespace_pattern: None = None
    structural_tag: None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """The part of a request that says how to sample; left out means the model's own default."""

    model: Annotated[str, Meta(description="Name or alias of a served model.", max_length=512)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: (
        Annotated[Tokens, Meta(description="Left out: as many as still fit into the window.")] | None
    ) = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1, description="0 or -1: all tokens.")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: (
        Annotated[float, Meta(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)] | None
    ) = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Meta(ge=-100, le=100)]],
            Meta(
                description="Token id to bias.",
                extra_json_schema={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},
            ),
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=64)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Priority | None = None
    cache_salt: CacheSalt | None = None
    user: Annotated[str, Meta(max_length=1024)] | None = None
    metadata: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Annotated[Any, Meta(description="As `structured_outputs.json`.")] = None
    guided_regex: Form | None = None
    guided_choice: Choices | None = None
    guided_grammar: Form | None = None


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """Of the prompt's tokens, those whose KV entries were reused."""

    cached_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """Token counts of one request, all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ErrorDetail(msgspec.Struct, kw_only=True):
    """What went wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, kw_only=True):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class Model(msgspec.Struct, kw_only=True):
    """A served model or one of its aliases."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "airi"
    root: str
    max_model_len: int
    task: Task = "generate"
    dimensions: Annotated[int, Meta(description="Of the vectors that it gives.")] | UnsetType = UNSET


class ModelList(msgspec.Struct, kw_only=True):
    """All that is served."""

    object: Literal["list"] = "list"
    data: list[Model]


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Either `prompt` or `messages`."""

    model: Annotated[str, Meta(max_length=512)] | None = None
    prompt: str | None = None
    messages: (
        Annotated[list[dict[str, Any]], Meta(min_length=1, description="Each a ChatMessage.")] | None
    ) = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class TokenizeResponse(msgspec.Struct, kw_only=True):
    """The tokens of a text or of a rendered chat."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Token ids to turn into text."""

    model: Annotated[str, Meta(max_length=512)] | None = None
    tokens: list[TokenId]
    skip_special_tokens: bool | None = None


class DetokenizeResponse(msgspec.Struct, kw_only=True):
    """The text of the tokens."""

    prompt: str


class HealthResponse(msgspec.Struct, kw_only=True):
    """`ok`, or what is missing."""

    status: str
    upstreams: (
        Annotated[
            dict[str, Literal["up", "down"]],
            Meta(description="By model, those that other servers run; told by /ready alone."),
        ]
        | UnsetType
    ) = UNSET


class VersionResponse(msgspec.Struct, kw_only=True):
    """The version of this server."""

    version: str
