"""Request and response of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airi.gateway.certificates import Certificate
from airi.gateway.findings import PromptResults, RuleResult
from airi.gateway.openai.schemas_common import SamplingFields, TokenId, Usage

Reason = Literal["stop", "length", "content_filter"]


class CompletionRequest(SamplingFields, kw_only=True):
    """A text, or several, to continue."""

    prompt: Annotated[
        str | list[str | TokenId | list[TokenId]], Meta(description="A text, token ids, or a list of either.")
    ]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    best_of: None = None
    suffix: None = None


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Parallel lists, one entry per token; the first of an echoed prompt has no logprob."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One of the answers: prompt `index // n`, choice `index % n`."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason
    content_filter_results: dict[str, RuleResult] | UnsetType = UNSET
    certificate: Certificate | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """The answer to a completion request that does not stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    usage: Usage
    system_fingerprint: str


class CompletionChunkChoice(msgspec.Struct, kw_only=True):
    """What one event adds to a choice's text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason | None
    content_filter_results: dict[str, RuleResult] | UnsetType = UNSET
    certificate: Certificate | UnsetType = UNSET


class CompletionChunk(msgspec.Struct, kw_only=True):
    """One server-sent event of a streamed completion.

    Where usage is asked for, the last one has it, and no choice; the first, where content rules found something in
    prompts, has that, and no choice.
    """

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET
    system_fingerprint: str
