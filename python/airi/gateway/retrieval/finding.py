"""A search within a call: what the caller may read of a collection, found by meaning, by words, or both."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from airi.errors import ConflictError
from airi.gateway.errors import bad_field
from airi.gateway.gate import Gate, call_context
from airi.gateway.http import CallRecord
from airi.gateway.retrieval.embedding import admit_embedder, embed, inner_call
from airi.gateway.retrieval.schemas import RetrieveFields
from airi.gateway.retrieval.search import Search, most_tokens
from airi.gateway.retrieval.served import Collections, ServedCollection, collection_not_found
from airi.policy.decisions import Action, Resource
from airi.policy.rows import all_of, any_of
from airi.retrieval import EmbeddingSpace, Hit
from airi.retrieval.context import ContextHit

__all__ = ["Finder", "Found", "context_hits"]

_MOST_NAME = 64
_WAIT_S = 10.0
_LOOK_S = 0.05


class Found(NamedTuple):
    """What a search came to."""

    collection: ServedCollection
    hits: list[Hit]
    snapshot: int
    space: EmbeddingSpace | None
    """None: by words alone."""
    tokens: int
    """That were embedded."""


class Finder:
    """Decides on searches, and makes them."""

    def __init__(self, gate: Gate, collections: Collections) -> None:
        self.gate = gate
        self.collections = collections

    def admit(
        self, record: CallRecord, name: str, action: Action, context: Mapping[str, Any]
    ) -> tuple[ServedCollection, Mapping[str, Any] | None]:
        """The collection, and the filter that policies put on its rows; raises a 404 or a 403."""
        found = self.collections.find(name)
        # Whoever is denied is not told what there is.
        resource = Resource("Collection", name[:_MOST_NAME]) if found is None else found.resource
        decision = self.gate.admit_to_collection(record, action, resource, context)
        if found is None:
            raise collection_not_found(name, [each.name for each in self.readable(record)])
        return found, any_of(decision.rows, record.principal)

    def readable(self, record: CallRecord) -> list[ServedCollection]:
        """The collections that this caller may search."""
        known = call_context(record, max_tokens=0)
        return [
            each for each in self.collections if self.gate.may(record, Action.RETRIEVE, each.resource, known)
        ]

    async def find(
        self,
        record: CallRecord,
        name: str,
        query: str,
        fields: RetrieveFields,
        *,
        field: str,
        priority: int | None,
    ) -> Found:
        """Rows for a query. `field` is the query's own; raises what is wrong with it, and what policies and limits say.

        Vectors are compared in the space of the embedder's version that the call is given, whatever is active.
        """
        if not query.strip():
            raise bad_field(field, "is empty", code="empty_prompt")
        known = call_context(record, max_tokens=0, n=fields.top_k, priority=priority)
        collection, own = self.admit(record, name, Action.RETRIEVE, known)
        if fields.filter is not None:
            collection.rows.check_filter(fields.filter)
        search = Search(collection, query, fields, all_of(own, fields.filter))
        space, vector, embedded = None, None, None
        if fields.mode != "text":
            asked = inner_call(record)
            model = admit_embedder(self.gate, asked, collection.embedder, 1, priority=priority)
            space = collection.searched(model)
            await _whole(collection, space)
            most = most_tokens(fields, model)
            embedded = await embed(self.gate, asked, model, [(field, query)], most=most, priority=priority)
            vector = embedded.vectors[0]
        hits, at = await search.made(vector, space)
        if embedded is not None and embedded.sight is not None:
            again = search._replace(query=embedded.texts[0])
            shared_with = partial(self.collections.overlaps.shared_with, search=again, stable=hits, at=at)
            embedded.sight.searched(len(hits), shared_with)
        if fields.min_score is not None:
            hits = [hit for hit in hits if hit.score >= fields.min_score]
        return Found(collection, hits, at, space, 0 if embedded is None else embedded.tokens)


async def _whole(collection: ServedCollection, space: EmbeddingSpace) -> None:
    """Until all rows have vectors in a space: some may have been written just as its version came.

    Raises ConflictError where that takes longer than a call waits.
    """
    for _ in range(round(_WAIT_S / _LOOK_S)):
        if not collection.rows.pending(space):
            return
        await asyncio.sleep(_LOOK_S)
    raise ConflictError(
        f"collection {collection.name}: {collection.rows.pending(space)} rows have no vectors yet of the "
        "embedder's version that this call is given"
    )


def context_hits(hits: list[Hit]) -> list[ContextHit]:
    """Hits as prompts are made of them."""
    return [
        ContextHit(id=hit.id, text=hit.text, score=hit.score, source=hit.source, metadata=hit.metadata)
        for hit in hits
    ]
