"""What is kept of a collection, and how it changes: each change is one transaction with a number of its own.

A row is never overwritten. It is `added` by one number and `removed` by a later one, so that what the collection was at
any number can be read for ever.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from airi.errors import RequestError, StateError
from airi.retrieval.database import Database
from airi.retrieval.records import Row, Snapshot, Written, digest_of
from airi.retrieval.spaces import EmbeddingSpace, Vectors

__all__ = ["Pending", "Store"]

_PART = 10_000
"""Ids of one query."""
_LIVE = "SELECT id, number, digest FROM rows WHERE removed IS NULL AND id IN (SELECT value FROM json_each(?))"
_LIVE_VECTORS = (
    "SELECT r.id, r.text, v.vector FROM rows r JOIN vectors v ON v.row = r.number AND v.space = ? "
    "WHERE r.removed IS NULL AND r.id IN (SELECT value FROM json_each(?))"
)
_ADD_ROW = "INSERT INTO rows (id, text, metadata, source, time, digest, added) VALUES (?, ?, ?, ?, ?, ?, ?)"
Pending = list[tuple[int, str]]
"""Numbers and texts of rows that have no vector in a space."""


class Store:
    """Reads and writes of one collection's file; knows nothing of searching.

    Thread safety: any thread. Every write is done whole or not at all; where the disk is full it raises StateError.
    """

    def __init__(self, path: Path, shown: str) -> None:
        self.database = Database(path, shown)
        self.close = self.database.close

    # -- rows ----------------------------------------------------------------------------------

    def known(self, ids: Iterable[str]) -> dict[str, tuple[int, bytes]]:
        """Number and digest of the rows that are there now, by id."""
        with self.database.reading() as connection:
            return self._known(connection, list(ids))

    def _known(self, connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        found = {}
        for first in range(0, len(ids), _PART):
            for id_, number, digest in connection.execute(_LIVE, (json.dumps(ids[first : first + _PART]),)):
                found[id_] = (number, digest)
        return found

    def sources(self) -> list[str]:
        """Where rows that are there came from, in order; not those of rows that do not say."""
        with self.database.reading() as connection:
            sql = "SELECT DISTINCT source FROM rows WHERE removed IS NULL AND source <> '' ORDER BY source"
            return [source for (source,) in connection.execute(sql)]

    def metadata_of_source(self, source: str) -> dict[str, bytes]:
        """Metadata of the rows that came from there, by their ids, in order."""
        with self.database.reading() as connection:
            sql = "SELECT id, metadata FROM rows WHERE removed IS NULL AND source = ? ORDER BY id"
            return dict(connection.execute(sql, (source,)).fetchall())

    def vectors_of_texts(self, space: int, rows: Sequence[Row]) -> dict[str, Vectors]:
        """By id, vectors [dimension] in a space of rows that are there with the same text already."""
        wanted = {row.id: row.text for row in rows}
        ids = list(wanted)
        found = {}
        with self.database.reading() as connection:
            for first in range(0, len(ids), _PART):
                part = json.dumps(ids[first : first + _PART])
                for id_, text, vector in connection.execute(_LIVE_VECTORS, (space, part)):
                    if text == wanted[id_]:
                        found[id_] = np.frombuffer(vector, "<f4")
        return found

    def upsert(
        self,
        rows: Sequence[Row],
        metadata: Sequence[bytes],
        vectors: Mapping[int, Vectors],
        remove: Iterable[str] = (),
    ) -> Written:
        """Writes checked rows with vectors by number of space, and removes ids; what is there already is left alone."""
        with self.database.writing() as connection:
            seq = self.database.commit_number()
            self._check_spaces(connection, set(vectors), needs_active=bool(rows))
            known = self._known(connection, [row.id for row in rows])
            change = _Change(connection, seq)
            for place, (row, encoded) in enumerate(zip(rows, metadata, strict=True)):
                own = {space: found[place] for space, found in vectors.items()}
                change.write(row, encoded, own, known.get(row.id))
            removed = change.remove(set(remove) - {row.id for row in rows})
            if change.is_empty:
                connection.execute("DELETE FROM commits WHERE seq = ?", (seq,))
                seq -= 1
        return Written(seq, change.added, change.replaced, change.unchanged, removed)

    def _check_spaces(self, connection: sqlite3.Connection, given: set[int], *, needs_active: bool) -> None:
        """No row is ever without a vector in the active space, whoever has changed which that is meanwhile."""
        known = dict(connection.execute("SELECT number, key FROM spaces"))
        if given - set(known):
            raise RequestError("vectors are of a space that was dropped", field="vectors")
        active, _ = self._active(connection)
        if needs_active and active is not None and active not in given:
            raise RequestError(
                f"vectors of space {known[active][:12]} are missing, which is the active one", field="vectors"
            )

    def texts(self, numbers: Sequence[int]) -> dict[int, str]:
        """Texts of rows, also of removed ones, by number."""
        marks = ",".join("?" * len(numbers))
        with self.database.reader() as connection:
            sql = f"SELECT number, text FROM rows WHERE number IN ({marks})"
            return dict(connection.execute(sql, tuple(numbers)).fetchall())

    def matches(self, query: str) -> Generator[tuple[int, float]]:
        """Numbers of rows that have words of an FTS5 query, and how well by BM25, best first; removed ones, too."""
        sql = "SELECT rowid, -bm25(texts) FROM texts WHERE texts MATCH ? ORDER BY bm25(texts)"
        with self.database.reader() as connection, closing(connection.execute(sql, (query,))) as cursor:
            yield from cursor

    # -- moments -------------------------------------------------------------------------------

    def latest(self) -> int:
        """The number of the last change, of any process."""
        with self.database.reader() as connection:
            ((seq,),) = connection.execute("SELECT MAX(seq) FROM commits").fetchall()
            return int(seq)

    def snapshot(self, number: int) -> Snapshot:
        """The moment with a number; RequestError where there is none."""
        return self._moment("seq = ?", number, f"snapshot {number} is not one of this collection")

    def snapshot_at(self, when: float) -> Snapshot:
        """The last moment at or before a time in seconds since 1970; RequestError before the first one."""
        return self._moment("time <= ?", when, f"the collection was made later than {when}")

    def _moment(self, condition: str, value: float, missing: str) -> Snapshot:
        with self.database.reading() as connection:
            sql = f"SELECT seq, time FROM commits WHERE {condition} ORDER BY seq DESC LIMIT 1"
            found = connection.execute(sql, (value,)).fetchone()
        if found is None:
            raise RequestError(missing, field="at")
        return Snapshot(*found)

    # -- spaces --------------------------------------------------------------------------------

    def add_space(self, space: EmbeddingSpace) -> None:
        """Makes it a space of this collection, unless it is one. The first one is active, if there are no rows."""
        with self.database.writing() as connection:
            if connection.execute("SELECT 1 FROM spaces WHERE key = ?", (space.key,)).fetchone():
                return
            seq = self.database.commit_number()
            number = connection.execute(
                "INSERT INTO spaces (key, space, added) VALUES (?, ?, ?)",
                (space.key, json.dumps(space.describe()), seq),
            ).lastrowid
            is_first = not connection.execute("SELECT 1 FROM activations").fetchone()
            if is_first and not connection.execute("SELECT 1 FROM rows WHERE removed IS NULL").fetchone():
                connection.execute("INSERT INTO activations VALUES (?, ?, NULL)", (seq, number))

    def drop_space(self, space: int) -> None:
        """Deletes a space that is not active, with its vectors, in all snapshots."""
        with self.database.writing() as connection:
            seq = self.database.commit_number()
            active, previous = self._active(connection)
            if space == active:
                raise RequestError("the active space cannot be dropped", field="space")
            connection.execute("DELETE FROM vectors WHERE space = ?", (space,))
            connection.execute("DELETE FROM spaces WHERE number = ?", (space,))
            if space == previous:
                connection.execute("INSERT INTO activations VALUES (?, ?, NULL)", (seq, active))

    def activate(self, space: int) -> None:
        """Makes a space the active one, in one transaction; the active one becomes the previous one.

        RequestError while rows have no vector in it.
        """
        with self.database.writing() as connection:
            self._activate(connection, space)

    def roll_back(self) -> None:
        """Makes the previous space active again; RequestError where there is none, or rows have no vector in it."""
        with self.database.writing() as connection:
            _, previous = self._active(connection)
            if previous is None:
                raise RequestError("there is no space to roll back to", field="space")
            self._activate(connection, previous)

    def _activate(self, connection: sqlite3.Connection, space: int) -> None:
        active, _ = self._active(connection)
        if space == active:
            return
        left = self._count_pending(connection, space)
        if left:
            raise RequestError(
                f"{left} rows have no vector in this space; it can be active once all have one", field="space"
            )
        seq = self.database.commit_number()
        connection.execute("INSERT INTO activations VALUES (?, ?, ?)", (seq, space, active))

    def _active(self, connection: sqlite3.Connection) -> tuple[int | None, int | None]:
        sql = "SELECT space, previous FROM activations ORDER BY seq DESC LIMIT 1"
        return connection.execute(sql).fetchone() or (None, None)

    # -- vectors that come later ---------------------------------------------------------------

    def count_pending(self, space: int) -> int:
        """Rows that are there now and have no vector in a space."""
        with self.database.reading() as connection:
            return self._count_pending(connection, space)

    def _count_pending(self, connection: sqlite3.Connection, space: int) -> int:
        ((count,),) = connection.execute(
            "SELECT COUNT(*) FROM rows r WHERE removed IS NULL "
            "AND NOT EXISTS (SELECT 1 FROM vectors v WHERE v.space = ? AND v.row = r.number)",
            (space,),
        ).fetchall()
        return int(count)

    def pending(self, space: int, limit: int) -> Pending:
        """The next rows, by number, that have no vector in a space: those behind its cursor."""
        with self.database.reading() as connection:
            return connection.execute(
                "SELECT number, text FROM rows r "
                "WHERE number > (SELECT cursor FROM spaces WHERE number = ?1) AND removed IS NULL "
                "AND NOT EXISTS (SELECT 1 FROM vectors v WHERE v.space = ?1 AND v.row = r.number) "
                "ORDER BY number LIMIT ?2",
                (space, limit),
            ).fetchall()

    def fill(self, space: int, numbers: Sequence[int], vectors: Vectors) -> None:
        """Keeps vectors of rows and moves the cursor behind them, in one transaction.

        Rows that were removed meanwhile need none.
        """
        with self.database.writing() as connection:
            if not connection.execute("SELECT 1 FROM spaces WHERE number = ?", (space,)).fetchone():
                raise StateError(f"{self.database.shown}: the space was dropped while it was filled")
            seq = self.database.commit_number()
            connection.executemany(
                "INSERT OR IGNORE INTO vectors (space, row, added, vector) "
                "SELECT ?1, number, ?3, ?4 FROM rows WHERE number = ?2 AND removed IS NULL",
                [(space, row, seq, _blob(v)) for row, v in zip(numbers, vectors, strict=True)],
            )
            connection.execute(
                "UPDATE spaces SET cursor = MAX(cursor, ?) WHERE number = ?", (max(numbers), space)
            )

    def check_all(self, check: Callable[[Iterable[Row]], None]) -> None:
        """Calls it with all rows that are there, without their texts."""
        with self.database.named():
            found = self.database.writer.execute(
                "SELECT id, metadata FROM rows WHERE removed IS NULL ORDER BY number"
            )
            check(Row(id=id_, text="", metadata=msgspec.json.decode(metadata)) for id_, metadata in found)

    # -- settings ------------------------------------------------------------------------------

    def setting(self, key: str) -> Any:
        """What was kept under a key; None where nothing was."""
        with self.database.reading() as connection:
            found = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    @contextmanager
    def setting_to(self, key: str, value: Any) -> Iterator[None]:
        """Keeps a value under a key, unless the block raises; nobody writes meanwhile."""
        with self.database.writing() as connection:
            yield
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))


def _blob(vector: Vectors) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


class _Change:
    """What one transaction does to rows."""

    def __init__(self, connection: sqlite3.Connection, seq: int) -> None:
        self._connection = connection
        self._seq = seq
        ((self._time,),) = connection.execute("SELECT time FROM commits WHERE seq = ?", (seq,)).fetchall()
        self.added = self.replaced = self.unchanged = 0
        self._has_filled = False
        self._has_removed = False

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.replaced or self._has_filled or self._has_removed)

    def write(
        self, row: Row, metadata: bytes, vectors: Mapping[int, Vectors], known: tuple[int, bytes] | None
    ) -> None:
        """Writes one row as a new version, or what it lacks of vectors, or nothing."""
        digest = digest_of(row, metadata)
        if known is not None:
            number, before = known
            if before == digest and self._has_same(number, vectors):
                self.unchanged += 1
                return
            self._connection.execute("UPDATE rows SET removed = ? WHERE number = ?", (self._seq, number))
            self.replaced += 1
        else:
            self.added += 1
        when = self._time if row.time is None else float(row.time)
        values = (row.id, row.text, metadata, row.source, when, digest, self._seq)
        new = self._connection.execute(_ADD_ROW, values).lastrowid
        self._connection.execute("INSERT INTO texts (rowid, text) VALUES (?, ?)", (new, row.text))
        for space, vector in vectors.items():
            self._add_vector(space, new, vector)

    def remove(self, ids: Iterable[str]) -> int:
        """Removes rows; ids that are not there are no mistake."""
        count = 0
        for id_ in ids:
            sql = "UPDATE rows SET removed = ? WHERE id = ? AND removed IS NULL"
            count += self._connection.execute(sql, (self._seq, id_)).rowcount
        self._has_removed = count > 0
        return count

    def _has_same(self, number: int, vectors: Mapping[int, Vectors]) -> bool:
        """Whether the row's vectors are these; ones that it lacks are added to it."""
        kept = dict(self._connection.execute("SELECT space, vector FROM vectors WHERE row = ?", (number,)))
        if any(space in kept and not _is_close(kept[space], v) for space, v in vectors.items()):
            return False
        for space, vector in vectors.items():
            if space not in kept:
                self._add_vector(space, number, vector)
                self._has_filled = True
        return True

    def _add_vector(self, space: int, row: int | None, vector: Vectors) -> None:
        sql = "INSERT INTO vectors (space, row, added, vector) VALUES (?, ?, ?, ?)"
        self._connection.execute(sql, (space, row, self._seq, _blob(vector)))


def _is_close(kept: bytes, vector: Vectors) -> bool:
    """Batches of another size round the same text's vector otherwise."""
    return bool(np.allclose(np.frombuffer(kept, "<f4"), vector, rtol=1e-3, atol=1e-5))
