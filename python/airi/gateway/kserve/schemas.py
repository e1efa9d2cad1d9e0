"""What goes over the wire. https://github.com/kserve/open-inference-protocol, and Triton's generate and repository
extensions; tensors are JSON arrays of texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airi.gateway.certificates import Certificate
from airi.gateway.findings import PromptResults, RuleResult

Parameters = Annotated[
    dict[str, Any],
    Meta(
        description="How to sample, by the names that `/v1/completions` has: max_tokens, temperature, top_p, stop, ..."
    ),
]
Reason = Literal["stop", "length", "content_filter"]


class InputTensor(msgspec.Struct, kw_only=True):
    """One input; the one that there is holds prompts."""

    name: str
    shape: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=2)]
    datatype: str
    data: Annotated[list[Any], Meta(description="Texts, as one list or as rows of one each.")]
    parameters: dict[str, Any] | None = None


class RequestedOutput(msgspec.Struct, kw_only=True):
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct, kw_only=True):
    """Prompts to continue, each by one text."""

    inputs: Annotated[list[InputTensor], Meta(min_length=1)]
    id: Annotated[str, Meta(max_length=512)] | None = None
    parameters: Parameters | None = None
    outputs: list[RequestedOutput] | None = None


class OutputTensor(msgspec.Struct, kw_only=True):
    """One output: a value for each prompt."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferResponse(msgspec.Struct, kw_only=True):
    """What the model made of the prompts."""

    model_name: str
    model_version: str
    id: str | UnsetType = UNSET
    outputs: list[OutputTensor]


class GenerateRequest(msgspec.Struct, kw_only=True):
    """One prompt to continue; parameters may also stand beside it."""

    text_input: str
    id: Annotated[str, Meta(max_length=512)] | None = None
    parameters: Parameters | None = None


class GenerateDetails(msgspec.Struct, kw_only=True):
    """How a text has ended, and what is to be told of it."""

    finish_reason: Reason
    prompt_tokens: int
    completion_tokens: int
    content_filter_results: dict[str, RuleResult] | UnsetType = UNSET
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    certificate: Certificate | UnsetType = UNSET


class GenerateResponse(msgspec.Struct, kw_only=True):
    """The text that follows the prompt, or the next piece of it; a stream's last one has details."""

    model_name: str
    model_version: str
    id: str | UnsetType = UNSET
    text_output: str
    details: GenerateDetails | UnsetType = UNSET


class TensorMetadata(msgspec.Struct, kw_only=True):
    """A tensor that a model takes or gives; -1: any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, kw_only=True):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: Annotated[
        str,
        Meta(description="airi_embed and airi_classify are models that the protocol's calls are not for."),
    ] = "airi"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct, kw_only=True):
    """Who answers, and with which extensions."""

    name: str = "airi"
    version: str
    extensions: list[str]


class ServerLive(msgspec.Struct, kw_only=True):
    """This process answers."""

    live: bool


class ServerReady(msgspec.Struct, kw_only=True):
    """Every engine serves."""

    ready: bool


class ModelReady(msgspec.Struct, kw_only=True):
    """Whether a model serves."""

    name: str
    ready: bool


class IndexRequest(msgspec.Struct, kw_only=True):
    """Which models are to be listed."""

    ready: bool = False


class RepositoryChange(msgspec.Struct, kw_only=True):
    """That a version is to be loaded, or let go."""

    parameters: dict[str, Any] | None = None


class IndexEntry(msgspec.Struct, kw_only=True):
    """A version of a model."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = ""


class KServeError(msgspec.Struct, kw_only=True):
    """The body of every answer that is not a success."""

    error: str
