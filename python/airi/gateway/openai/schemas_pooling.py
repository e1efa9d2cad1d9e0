"""Requests and responses of endpoints that read texts whole: vectors, scores and labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airi.gateway.findings import PromptResults
from airi.gateway.openai.schemas_common import Priority, TokenId

MAX_INPUTS = 2048

Input = Annotated[
    str | list[str | TokenId | list[TokenId]],
    Meta(description=f"A text, token ids, or a list of either, of {MAX_INPUTS} at most."),
]
Texts = Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]


class PoolingFields(msgspec.Struct, kw_only=True):
    """What all of them have."""

    model: Annotated[str, Meta(description="Name or alias of a served model.", max_length=512)]
    truncate_prompt_tokens: (
        Annotated[
            int,
            Meta(
                ge=-1,
                le=2**31 - 1,
                description="Tokens that a longer text is cut to, special ones included; -1: those that the model "
                "takes. Left out: nothing is cut.",
            ),
        ]
        | None
    ) = None
    priority: Priority | None = None
    user: Annotated[str, Meta(max_length=1024)] | None = None
    metadata: dict[str, Any] | None = None

    # What a route's conditions read of any request.
    @property
    def stream(self) -> bool:
        """An answer is whole."""
        return False

    @property
    def stream_options(self) -> None:
        """As there is no stream."""
        return None

    @property
    def n(self) -> int:
        """One answer."""
        return 1

    @property
    def max_tokens(self) -> None:
        """Nothing is generated."""
        return None

    @property
    def prompt(self) -> Any:
        """All that is read."""
        raise NotImplementedError


class InputFields(PoolingFields, kw_only=True):
    """Of those that read texts each by itself."""

    input: Input

    @property
    def prompt(self) -> Any:
        """As `PoolingFields.prompt`."""
        return self.input


class PoolingUsage(msgspec.Struct, kw_only=True):
    """Tokens that were read, special ones included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingRequest(InputFields, kw_only=True):
    """Texts that are to become vectors."""

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: (
        Annotated[
            int, Meta(ge=1, le=2**31 - 1, description="For models whose vectors may be cut (Matryoshka).")
        ]
        | None
    ) = None


class Embedding(msgspec.Struct, kw_only=True):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Annotated[
        list[float] | str, Meta(description="Numbers, or in base64 their little-endian float32.")
    ]


class EmbeddingResponse(msgspec.Struct, kw_only=True):
    """The vectors, in the inputs' order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Embedding]
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    usage: PoolingUsage


class RerankDocument(msgspec.Struct, kw_only=True):
    """A document as an object."""

    text: str


class RerankRequest(PoolingFields, kw_only=True):
    """Documents that are to be sorted by what they say to a query."""

    query: str
    documents: Annotated[list[str | RerankDocument], Meta(min_length=1, max_length=MAX_INPUTS)]
    top_n: Annotated[int, Meta(ge=1, le=2**31 - 1, description="Results at most.")] | None = None
    return_documents: (
        Annotated[bool, Meta(description="Whether results have their text; left out: yes.")] | None
    ) = None
    rank_fields: None = None
    max_chunks_per_doc: None = None
    max_tokens_per_doc: None = None

    @property
    def texts(self) -> list[str]:
        """The documents' own."""
        return [each if isinstance(each, str) else each.text for each in self.documents]

    @property
    def prompt(self) -> list[str]:
        """As `PoolingFields.prompt`."""
        return [self.query, *self.texts]


class RerankResult(msgspec.Struct, kw_only=True):
    """A document's place."""

    index: Annotated[int, Meta(description="Of the document in the request.")]
    relevance_score: Annotated[
        float,
        Meta(
            description="Of a reranker the sigmoid of its logit, 0 to 1; of a model of vectors their cosine, -1 to 1."
        ),
    ]
    document: RerankDocument | UnsetType = UNSET


class RerankResponse(msgspec.Struct, kw_only=True):
    """The best documents, best first."""

    id: str
    model: str
    results: list[RerankResult]
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    usage: PoolingUsage


class ScoreRequest(PoolingFields, kw_only=True):
    """Pairs of texts: one with each of several, or as many with as many."""

    text_1: str | Texts
    text_2: str | Texts

    @property
    def prompt(self) -> list[str | list[str]]:
        """As `PoolingFields.prompt`."""
        return [self.text_1, self.text_2]


class Score(msgspec.Struct, kw_only=True):
    """Of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: Annotated[float, Meta(description="As `relevance_score` of /v1/rerank.")]


class ScoreResponse(msgspec.Struct, kw_only=True):
    """The scores, in the order of the longer list."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    usage: PoolingUsage


class ClassifyRequest(InputFields, kw_only=True):
    """Texts whose label is asked for."""


class Classification(msgspec.Struct, kw_only=True):
    """What a text is."""

    index: int
    label: Annotated[str, Meta(description="The likeliest.")]
    probs: Annotated[list[float], Meta(description="Of each label, in the model's order.")]
    num_classes: int


class ClassifyResponse(msgspec.Struct, kw_only=True):
    """The labels, in the inputs' order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    prompt_filter_results: list[PromptResults] | UnsetType = UNSET
    usage: PoolingUsage
