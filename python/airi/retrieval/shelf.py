"""A collection as the shelf that ingestion brings up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airi.retrieval.collection import Collection
from airi.retrieval.ingest.chunker import Chunk
from airi.retrieval.ingest.plans import Plan
from airi.retrieval.records import Row

__all__ = ["CollectionShelf"]


class CollectionShelf:
    """Chunks as rows of a collection, embedded by the embedders that are attached to it."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def sources(self) -> Sequence[str]:
        """Those that the collection has rows of."""
        return self._collection.sources()

    def stored(self, source: str) -> Mapping[str, Mapping[str, Any]]:
        """The metadata of a source's rows, by their ids."""
        return self._collection.metadata_of_source(source)

    def apply(self, plans: Sequence[Plan]) -> None:
        """Does all of the plans in one transaction; RequestError, and nothing is done, where a row cannot be kept."""
        rows = [_row(chunk) for plan in plans for chunk in (*plan.add, *plan.move)]
        self._collection.upsert(rows, remove=[name for plan in plans for name in plan.remove])


def _row(chunk: Chunk) -> Row:
    return Row(id=chunk.id, text=chunk.text, metadata=chunk.metadata, source=chunk.source)
