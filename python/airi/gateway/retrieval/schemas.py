"""Requests and responses about collections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airi.gateway.openai.schemas_common import Priority
from airi.gateway.openai.schemas_pooling import PoolingUsage

__all__ = [
    "CitationOf",
    "CollectionList",
    "CollectionOf",
    "ContextFields",
    "ContextOf",
    "DroppedHit",
    "FoundRow",
    "ReceiptOf",
    "Retrieval",
    "RetrieveFields",
    "RetrieveRequest",
    "RetrieveResponse",
    "RowFields",
    "RowList",
    "RowPlace",
    "SourceList",
    "WriteRequest",
    "WriteResponse",
]

MOST_ROWS = 2048
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]


class RetrieveFields(msgspec.Struct, kw_only=True):
    """How rows are found, and how many."""

    mode: Annotated[
        Literal["vector", "text", "hybrid"],
        Meta(description="By meaning, by words (BM25), or by both ranks joined."),
    ] = "vector"
    top_k: Annotated[int, Meta(ge=1, le=1000)] = 10
    filter: Annotated[
        dict[str, Any] | None,
        Meta(description='Rows whose metadata is so: {"lang": "de", "year": {"$gte": 2020}}.'),
    ] = None
    min_score: Annotated[float | None, Meta(description="Rows below are left out.")] = None
    mmr: Annotated[
        Share | None, Meta(description="Prefers rows that are unlike each other; 1 is relevance alone.")
    ] = None
    snapshot: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    truncate_prompt_tokens: (
        Annotated[
            int,
            Meta(
                ge=-1,
                le=2**31 - 1,
                description="Tokens that a longer query is cut to; -1: those that the embedder takes.",
            ),
        ]
        | None
    ) = None


class ContextFields(msgspec.Struct, kw_only=True):
    """The prompt that is to be made of what is found."""

    model: Annotated[str, Meta(max_length=512, description="That will read it.")]
    messages: Annotated[
        list[dict[str, Any]],
        Meta(min_length=1, description="The chat; its last message, of the user, is the question."),
    ]
    reserved_output: (
        Annotated[
            Count, Meta(description="Tokens that are left to the answer; left out: a quarter of the window.")
        ]
        | None
    ) = None


class RetrieveRequest(RetrieveFields, kw_only=True):
    """A search."""

    collection: Annotated[str, Meta(max_length=64)]
    query: Annotated[str, Meta(min_length=1)]
    context: ContextFields | None = None
    priority: Priority | None = None
    user: Annotated[str, Meta(max_length=1024)] | None = None


class FoundRow(msgspec.Struct, kw_only=True):
    """A row that was found."""

    id: str
    score: float
    text: str
    source: str
    metadata: dict[str, Any]
    time: Annotated[float, Meta(description="Seconds since 1970.")]
    object: Literal["row"] = "row"


class CitationOf(msgspec.Struct, kw_only=True):
    """What a number in the prompt, and in its answer, stands for."""

    number: int
    source: str
    ids: list[str]
    headings: list[str]
    start: Annotated[int | None, Meta(description="In characters of the source.")] = None
    end: int | None = None
    pages: list[int] | None = None


class DroppedHit(msgspec.Struct, kw_only=True):
    """A row that the prompt has not, and why."""

    id: str
    source: str
    score: float
    reason: str
    detail: str


class ReceiptOf(msgspec.Struct, kw_only=True):
    """Where the window went: window = prompt_tokens + reserved_output + left."""

    window: int
    prompt_tokens: int
    document_tokens: int
    reserved_output: int
    left: int
    used: list[str]
    dropped: list[DroppedHit]


class ContextOf(msgspec.Struct, kw_only=True):
    """A prompt with documents."""

    model: str
    messages: list[dict[str, Any]]
    citations: list[CitationOf]
    receipt: ReceiptOf


class RetrieveResponse(msgspec.Struct, kw_only=True):
    """Rows, the best one first."""

    id: str
    object: Literal["list"] = "list"
    collection: str
    snapshot: Annotated[int, Meta(description="The moment of the collection that was searched.")]
    space: Annotated[str | None, Meta(description="Of the vectors that were compared.")] = None
    data: list[FoundRow]
    context: ContextOf | UnsetType = UNSET
    usage: PoolingUsage


class RetrieveOptions(RetrieveFields, kw_only=True):
    """`airi` of a chat: what is found for its question is put into the prompt."""

    retrieve: Annotated[str, Meta(max_length=64, description="The collection.")]


class Retrieval(msgspec.Struct, kw_only=True):
    """What the answer to such a chat says of it."""

    collection: str
    citations: Annotated[list[CitationOf], Meta(description="The documents of the prompt.")]
    receipt: ReceiptOf
    cited: Annotated[list[int] | UnsetType, Meta(description="Those that the answer cites.")] = UNSET
    unknown: Annotated[list[int] | UnsetType, Meta(description="Numbers that no document has.")] = UNSET


class RowFields(msgspec.Struct, kw_only=True):
    """A row that is to be written."""

    id: Annotated[str, Meta(min_length=1, max_length=512)]
    text: Annotated[str, Meta(min_length=1)]
    metadata: dict[str, Any] = {}
    source: str = ""
    time: float | None = None


class WriteRequest(msgspec.Struct, kw_only=True):
    """Rows that are to be written, each in place of the one with its id, and ids that are to be removed."""

    rows: Annotated[list[RowFields], Meta(max_length=MOST_ROWS)] = []
    remove: Annotated[list[str], Meta(max_length=MOST_ROWS)] = []
    priority: Priority | None = None


class WriteResponse(msgspec.Struct, kw_only=True):
    """What became of it: all of it is there, or, with an error in place of this, nothing."""

    collection: str
    snapshot: int
    added: int
    replaced: int
    unchanged: int
    removed: int
    usage: PoolingUsage


class SourceList(msgspec.Struct, kw_only=True):
    """What rows came from, in order."""

    object: Literal["list"] = "list"
    data: list[str]


class RowPlace(msgspec.Struct, kw_only=True):
    """A row without its text."""

    id: str
    metadata: dict[str, Any]


class RowList(msgspec.Struct, kw_only=True):
    """The rows of a source."""

    object: Literal["list"] = "list"
    data: list[RowPlace]


class CollectionOf(msgspec.Struct, kw_only=True):
    """A collection as it is now."""

    id: str
    object: Literal["collection"] = "collection"
    embedder: str
    data_class: str
    rows: int
    space: str | None
    spaces: dict[str, Any]


class CollectionList(msgspec.Struct, kw_only=True):
    """Those that the caller may read."""

    object: Literal["list"] = "list"
    data: list[CollectionOf]
