"""A collection in PostgreSQL with the extension pgvector, for several machines that share one."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from airi.errors import RequestError, StateError
from airi.retrieval.backends.sql_filters import Conditions
from airi.retrieval.filters import FieldTypes, check_fields, parse
from airi.retrieval.records import Hit, Row, StoredRow, Written, check_rows, digest_of
from airi.retrieval.search.query import MAX_K
from airi.retrieval.spaces import EmbeddingSpace, Vectors, query_vector, space_vectors

__all__ = ["PgvectorBackend"]

_INDEXED_DIMENSION = 2000
"""More than that pgvector does not index, and compares all rows."""
_TABLES = """
CREATE TABLE IF NOT EXISTS airi_collection_rows (
    collection text NOT NULL,
    id text NOT NULL,
    text text NOT NULL,
    metadata jsonb NOT NULL,
    source text NOT NULL,
    time float8 NOT NULL,
    digest bytea NOT NULL,
    PRIMARY KEY (collection, id)
);
CREATE TABLE IF NOT EXISTS airi_collection_spaces (
    collection text NOT NULL,
    key text NOT NULL,
    space text NOT NULL,
    PRIMARY KEY (collection, key)
)"""
_UPSERT = """
INSERT INTO airi_collection_rows AS r (collection, id, text, metadata, source, time, digest)
VALUES ($1, $2, $3, $4::jsonb, $5, $6, $7)
ON CONFLICT (collection, id) DO UPDATE SET text = excluded.text, metadata = excluded.metadata,
    source = excluded.source, time = excluded.time, digest = excluded.digest"""
_LOCK = 0x41495249


class PgvectorBackend:
    """Rows in one table, the vectors of each space in one of its own.

    A search without a filter uses pgvector's graph, while that finds enough; one with a filter compares all rows that
    pass, so that it never loses any. Several processes may write: each write is one transaction.
    """

    def __init__(self, pool: Any, name: str, shown: str, fields: FieldTypes | None) -> None:
        self._pool = pool
        self._name = name
        self._shown = shown
        self._fields = fields

    @classmethod
    async def open(cls, url: str, name: str, *, fields: FieldTypes | None = None) -> PgvectorBackend:
        """Connects to `postgresql://...`; tables are made where there are none.

        StateError where the database does not answer, or has no pgvector.
        """
        shown = f"collection {name} (PostgreSQL)"
        pool = None
        try:
            pool = await asyncpg.create_pool(url, min_size=1, max_size=8)
            backend = cls(pool, name, shown, fields)
            async with backend._transaction() as connection:
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
                await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                await connection.execute(_TABLES)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
            raise StateError(f"{shown}: {error}".splitlines()[0]) from None
        except BaseException:
            if pool is not None:
                await pool.close()
            raise
        return backend

    async def close(self) -> None:
        """Gives the connections back."""
        await self._pool.close()

    async def add_space(self, space: EmbeddingSpace) -> None:
        """Makes it a space of the collection, unless it is one; RequestError where rows are there already."""
        table = self._table(space)
        async with self._transaction() as connection:
            # Nobody writes rows meanwhile that it would have no vectors of.
            await connection.execute("LOCK TABLE airi_collection_spaces IN EXCLUSIVE MODE")
            sql = "SELECT 1 FROM airi_collection_spaces WHERE collection = $1 AND key = $2"
            if await connection.fetchval(sql, self._name, space.key):
                return
            sql = "SELECT COUNT(*) FROM airi_collection_rows WHERE collection = $1"
            count = await connection.fetchval(sql, self._name)
            if count:
                raise RequestError(
                    f"space {space.key[:12]} has no vectors of {count} of {count} rows: it must be added before them",
                    field="space",
                )
            await connection.execute(
                "INSERT INTO airi_collection_spaces VALUES ($1, $2, $3)",
                self._name,
                space.key,
                json.dumps(space.describe()),
            )
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (id text PRIMARY KEY, vector vector({space.dimension}) NOT NULL)"
            )
            if space.dimension <= _INDEXED_DIMENSION:
                await connection.execute(
                    f"CREATE INDEX IF NOT EXISTS {table}_graph ON {table} USING hnsw (vector vector_ip_ops)"
                )

    async def upsert(
        self, rows: Sequence[Row], vectors: Mapping[EmbeddingSpace, Any], *, remove: Iterable[str] = ()
    ) -> Written:
        """Writes rows with vectors of every space of the collection; rows that are there already are left alone."""
        rows = list(rows)
        ids = [row.id for row in rows]
        encoded = check_rows(rows)
        if self._fields is not None:
            check_fields(rows, self._fields)
        checked = {space: space_vectors(space, given, ids) for space, given in vectors.items()}
        gone = list(set(remove) - set(ids))
        digests = [digest_of(row, metadata) for row, metadata in zip(rows, encoded, strict=True)]
        now = time.time()
        async with self._transaction() as connection:
            await self._check_spaces(connection, checked, needs_all=bool(rows))
            sql = "SELECT id, digest FROM airi_collection_rows WHERE collection = $1 AND id = ANY($2) FOR UPDATE"
            known = {id_: bytes(digest) for id_, digest in await connection.fetch(sql, self._name, ids)}
            changed = [i for i, row in enumerate(rows) if known.get(row.id) != digests[i]]
            values = []
            for i in changed:
                row, when = rows[i], now if rows[i].time is None else rows[i].time
                values.append(
                    (self._name, row.id, row.text, encoded[i].decode(), row.source, when, digests[i])
                )
            await connection.executemany(_UPSERT, values)
            for space, found in checked.items():
                await self._put(connection, space, ids, found)
            removed = await self._remove(connection, gone)
        replaced = sum(rows[i].id in known for i in changed)
        return Written(0, len(changed) - replaced, replaced, len(rows) - len(changed), removed)

    async def delete(self, ids: Iterable[str]) -> Written:
        """Removes rows; ids that are not there are no mistake."""
        return await self.upsert((), {}, remove=ids)

    async def search(
        self, vector: Any, *, space: EmbeddingSpace, k: int = 10, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The k best rows, best first; rows of the same score by their ids."""
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
            raise RequestError(f"k is {k}; it must be 1 to {MAX_K}", field="k")
        arguments: list[Any] = [_text_of(query_vector(space, vector)), self._name, k]
        condition = Conditions(arguments).of(parse(filter, self._fields)) if filter else "true"
        order = "v.vector <#> $1::text::vector"
        sql = (
            f"SELECT r.id, r.text, r.metadata, r.source, r.time, -({order}) AS score FROM {self._table(space)} v "
            f"JOIN airi_collection_rows r ON r.collection = $2 AND r.id = v.id WHERE {condition} ORDER BY {order}"
        )
        async with self._transaction() as connection:
            await self._check_spaces(connection, {space: None}, needs_all=False)
            found = []
            if not filter:
                await connection.execute(f"SET LOCAL hnsw.ef_search = {min(1000, max(64, 2 * k))}")
                found = await connection.fetch(f"{sql} LIMIT $3", *arguments)
            if len(found) < k:
                # The graph finds its nearest rows first, and only then asks which of them pass, or are still there.
                await connection.execute("SET LOCAL enable_indexscan = off")
                found = await connection.fetch(f'{sql}, r.id COLLATE "C" LIMIT $3', *arguments)
        hits = [
            Hit(score, StoredRow(id_, text, metadata.encode(), source, when))
            for id_, text, metadata, source, when, score in found
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))

    async def count(self) -> int:
        """Rows that are there."""
        async with self._transaction() as connection:
            sql = "SELECT COUNT(*) FROM airi_collection_rows WHERE collection = $1"
            return int(await connection.fetchval(sql, self._name))

    def _table(self, space: EmbeddingSpace) -> str:
        owner = hashlib.sha256(f"{self._name}\n{space.key}".encode()).hexdigest()
        return f"airi_vectors_{owner[:32]}"

    async def _check_spaces(
        self, connection: Any, given: Mapping[EmbeddingSpace, Any], *, needs_all: bool
    ) -> None:
        """No row is ever without a vector in any space."""
        if needs_all:
            await connection.execute("LOCK TABLE airi_collection_spaces IN ROW SHARE MODE")
        sql = "SELECT key FROM airi_collection_spaces WHERE collection = $1"
        known = {key for (key,) in await connection.fetch(sql, self._name)}
        keys = {space.key for space in given}
        for key in sorted(keys - known):
            shown = ", ".join(sorted(k[:12] for k in known)) or "none"
            raise RequestError(f"space {key[:12]} is not one of this collection ({shown})", field="space")
        for key in sorted(known - keys) if needs_all else ():
            raise RequestError(f"vectors of space {key[:12]} are missing", field="vectors")

    async def _put(
        self, connection: Any, space: EmbeddingSpace, ids: Sequence[str], vectors: Vectors
    ) -> None:
        await connection.executemany(
            f"INSERT INTO {self._table(space)} VALUES ($1, $2::text::vector) "
            "ON CONFLICT (id) DO UPDATE SET vector = excluded.vector",
            [(id_, _text_of(vector)) for id_, vector in zip(ids, vectors, strict=True)],
        )

    async def _remove(self, connection: Any, ids: Sequence[str]) -> int:
        if not ids:
            return 0
        sql = "DELETE FROM airi_collection_rows WHERE collection = $1 AND id = ANY($2) RETURNING id"
        removed = await connection.fetch(sql, self._name, ids)
        sql = "SELECT space FROM airi_collection_spaces WHERE collection = $1"
        for (written,) in await connection.fetch(sql, self._name):
            table = self._table(EmbeddingSpace(**json.loads(written)))
            await connection.execute(f"DELETE FROM {table} WHERE id = ANY($1)", ids)
        return len(removed)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                yield connection
        except asyncpg.DataError as error:  # such as a text with a NUL, which PostgreSQL does not keep
            raise RequestError(f"{self._shown}: {error}".splitlines()[0], field="rows") from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise StateError(f"{self._shown}: {error}".splitlines()[0]) from None


def _text_of(vector: Vectors) -> str:
    """As pgvector reads it."""
    return f"[{','.join(map(str, vector.tolist()))}]"
