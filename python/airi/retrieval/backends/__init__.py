"""Where a collection's rows may live: in a file of its own, or in a database that others run.

All backends take the same rows, spaces and filters, refuse the same mistakes, and rank by the same scores. What only
the file has (snapshots, full text, graphs that are measured) is said by `Collection`. `qdrant` is an extra's, and
imported by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from airi.retrieval.backends.local import LocalBackend
from airi.retrieval.backends.pgvector import PgvectorBackend
from airi.retrieval.records import Hit, Row, Written
from airi.retrieval.spaces import EmbeddingSpace

__all__ = ["LocalBackend", "PgvectorBackend", "VectorBackend"]


class VectorBackend(Protocol):
    """Rows with vectors of one or more spaces. Every write is done whole or not at all.

    RequestError for what cannot be kept or asked for; StateError where the database does not answer.
    """

    async def add_space(self, space: EmbeddingSpace) -> None:
        """Makes it a space of the collection, unless it is one."""

    async def upsert(
        self, rows: Sequence[Row], vectors: Mapping[EmbeddingSpace, Any], *, remove: Iterable[str] = ()
    ) -> Written:
        """Writes rows, each in place of the one with its id, with [rows, dimension] of each space; removes others."""

    async def delete(self, ids: Iterable[str]) -> Written:
        """Removes rows; ids that are not there are no mistake."""

    async def search(
        self, vector: Any, *, space: EmbeddingSpace, k: int = 10, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The k best rows, best first; rows of the same score by their ids."""

    async def count(self) -> int:
        """Rows that are there."""

    async def close(self) -> None:
        """Gives back what it holds."""
