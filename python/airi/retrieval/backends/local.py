"""The backend that needs no other server: a `Collection`, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airi.retrieval.collection import Collection
from airi.retrieval.records import Hit, Row, Written
from airi.retrieval.spaces import EmbeddingSpace

__all__ = ["LocalBackend"]


class LocalBackend:
    """A collection whose calls never stop the event loop. It closes the collection."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    async def add_space(self, space: EmbeddingSpace) -> None:
        await asyncio.to_thread(self.collection.add_space, space)

    async def upsert(
        self, rows: Sequence[Row], vectors: Mapping[EmbeddingSpace, Any], *, remove: Iterable[str] = ()
    ) -> Written:
        return await asyncio.to_thread(self.collection.upsert, rows, vectors, remove=remove)

    async def delete(self, ids: Iterable[str]) -> Written:
        return await asyncio.to_thread(self.collection.delete, ids)

    async def search(
        self, vector: Any, *, space: EmbeddingSpace, k: int = 10, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        return await asyncio.to_thread(self.collection.search, vector, space=space, k=k, filter=filter)

    async def count(self) -> int:
        return int(self.collection.stats()["rows"])

    async def close(self) -> None:
        await asyncio.to_thread(self.collection.close)
