"""`/v1/collections`: what there is, and the rows that are written and removed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import msgspec

from airi.gateway import sse
from airi.gateway.errors import bad_field, decode_body
from airi.gateway.gate import call_context
from airi.gateway.http import CallRecord, Receive, Scope, Send, read_body, record_of, respond
from airi.gateway.openai.schemas_pooling import PoolingUsage
from airi.gateway.retrieval.embedding import admit_embedder, embed, embed_for_nobody, inner_call
from airi.gateway.retrieval.finding import Finder
from airi.gateway.retrieval.schemas import (
    CollectionList,
    CollectionOf,
    RowList,
    RowPlace,
    SourceList,
    WriteRequest,
    WriteResponse,
)
from airi.gateway.retrieval.search import Overlaps
from airi.gateway.retrieval.served import ServedCollection
from airi.policy.decisions import Action
from airi.retrieval import EmbeddingSpace, Row
from airi.retrieval.records import check_rows
from airi.retrieval.spaces import Vectors

if TYPE_CHECKING:
    from airi.gateway.gate import Gate

__all__ = ["CollectionPage", "CollectionPages", "Rows", "Sources"]

_DECODER = msgspec.json.Decoder(WriteRequest)


class CollectionPages:
    """`GET /v1/collections`."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Those that the caller may search."""
        readable = self._finder.readable(record_of(scope))
        found = [await _page(each, self._finder.collections.overlaps) for each in readable]
        await respond(send, 200, sse.encode(CollectionList(data=found)))


class CollectionPage:
    """`GET /v1/collections/{name}`."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One that the caller may search."""
        record = record_of(scope)
        known = call_context(record, max_tokens=0)
        found, _ = self._finder.admit(record, scope["path_params"]["name"], Action.RETRIEVE, known)
        page = await _page(found, self._finder.collections.overlaps)
        await respond(send, 200, sse.encode(page))


async def _page(served: ServedCollection, overlaps: Overlaps) -> CollectionOf:
    figures = await asyncio.to_thread(served.rows.stats)
    active = served.rows.active
    for key, space in figures["spaces"].items():
        shadowed = overlaps.told(served.name, key)
        if shadowed is not None:
            space["shadow"] = shadowed
    return CollectionOf(
        id=served.name,
        embedder=served.embedder,
        data_class=served.data_class,
        rows=figures["rows"],
        space=None if active is None else active.key,
        spaces=figures["spaces"],
    )


def admitted_writer(finder: Finder, record: CallRecord, name: str) -> ServedCollection:
    """The collection, for who may write it; raises a 403, 404 or 400."""
    collection, own = finder.admit(record, name, Action.INGEST, {})
    if own is not None:
        raise bad_field("rows", "cannot be written under a policy with @rows, which is for what is read")
    return collection


class Sources:
    """`GET /v1/collections/{name}/sources`: for who may write."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What rows came from."""
        collection = admitted_writer(self._finder, record_of(scope), scope["path_params"]["name"])
        found = await asyncio.to_thread(collection.rows.sources)
        await respond(send, 200, sse.encode(SourceList(data=list(found))))


class Rows:
    """`/v1/collections/{name}/rows`, for who may write: a batch is written whole, or, with an error, not at all."""

    def __init__(self, gate: Gate, finder: Finder, *, body_limit: int) -> None:
        self._gate = gate
        self._finder = finder
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Writes rows, or tells those of a source."""
        if scope["method"] == "POST":
            await self._post(scope, receive, send)
        else:
            await self._get(scope, send)

    async def _get(self, scope: Scope, send: Send) -> None:
        collection = admitted_writer(self._finder, record_of(scope), scope["path_params"]["name"])
        given = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("source", [])
        if len(given) != 1:
            raise bad_field("source", "must stand in the query, once")
        found = await asyncio.to_thread(collection.rows.metadata_of_source, given[0])
        rows = [RowPlace(id=id, metadata=dict(metadata)) for id, metadata in found.items()]
        await respond(send, 200, sse.encode(RowList(data=rows)))

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Embeds the rows, in the version of the embedder that the call is given, and writes them."""
        request = decode_body(_DECODER, await read_body(scope, receive, self._body_limit))
        record = record_of(scope)
        collection = admitted_writer(self._finder, record, scope["path_params"]["name"])
        if not request.rows and not request.remove:
            raise bad_field("rows", "is empty, and so is `remove`")
        response = await self._write(request, collection, record)
        record.prompt_tokens = response.usage.prompt_tokens
        await respond(send, 200, sse.encode(response))

    async def _write(
        self, request: WriteRequest, collection: ServedCollection, record: CallRecord
    ) -> WriteResponse:
        rows = [Row(**msgspec.structs.asdict(each)) for each in request.rows]
        vectors: dict[EmbeddingSpace, Vectors] = {}
        tokens = 0
        if rows:
            check_rows(rows)
            asked, priority = inner_call(record), request.priority
            model = admit_embedder(self._gate, asked, collection.embedder, len(rows), priority=priority)
            texts = [(f"rows[{i}].text", row.text) for i, row in enumerate(rows)]
            found = await embed(self._gate, asked, model, texts, priority=priority)
            tokens = found.tokens
            rows = [
                msgspec.structs.replace(row, text=text) for row, text in zip(rows, found.texts, strict=True)
            ]
            # In every version that a call may be given: none of them is to lack a row.
            for version in (model, *(each for each in self._gate.versions_of(model) if each is not model)):
                space = collection.space_of(version)
                vectors[space] = (
                    found.vectors
                    if version is model
                    else await embed_for_nobody(version, found.texts, priority=priority)
                )
                await asyncio.to_thread(collection.rows.add_space, space)
        written = await asyncio.to_thread(collection.rows.upsert, rows, vectors, remove=request.remove)
        return WriteResponse(
            collection=collection.name,
            snapshot=written.snapshot,
            added=written.added,
            replaced=written.replaced,
            unchanged=written.unchanged,
            removed=written.removed,
            usage=PoolingUsage(prompt_tokens=tokens, total_tokens=tokens),
        )
