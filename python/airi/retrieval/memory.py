"""A collection's rows in memory, as they were at any moment since it was loaded.

Rows only come at the end, and are removed by a number that is written beside them, so that a view of an earlier moment
stays right while later ones are made: it looks at its first rows, and at those not removed by its time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airi.errors import RequestError
from airi.retrieval.columns import Columns, Grown, Mask, value_at
from airi.retrieval.filters import FieldTypes
from airi.retrieval.records import StoredRow
from airi.retrieval.search.graph import Graph
from airi.retrieval.search.matrix import Matrix, MatrixBuffer, Precision
from airi.retrieval.search.selection import Selections
from airi.retrieval.spaces import EmbeddingSpace, Vectors
from airi.retrieval.store import Store

__all__ = ["Memory", "SpaceMemory", "SpaceView", "View", "space_of"]

_NEVER = np.iinfo(np.int64).max
_ROWS = "SELECT number, id, metadata, source, time, added, removed FROM rows r WHERE"
_MOST_CHARS = 64 << 20
"""Of texts that were found lately and are kept."""
_PART = 4096
"""Vectors that are read at a time."""


@dataclass(frozen=True, slots=True)
class SpaceView:
    """A space at one moment."""

    number: int
    space: EmbeddingSpace
    matrix: Matrix
    has: Mask
    """[rows] which are there and have a vector."""
    pending: int
    """Rows that are there and have none."""


@dataclass(frozen=True, slots=True)
class View:
    """A collection at one moment. Searches read it without locks."""

    memory: Memory
    seq: int
    count: int
    """Rows in memory, removed ones, too."""
    live: Mask | None
    """[count] which are there; None where all are."""
    num_live: int
    spaces: dict[str, SpaceView]
    """By key."""
    active: str | None
    previous: str | None
    selections: Selections = field(repr=False)


class SpaceMemory:
    """A space of rows in memory."""

    def __init__(self, number: int, space: EmbeddingSpace, precision: Precision) -> None:
        self.number = number
        self.space = space
        self.matrix = MatrixBuffer(space.dimension, precision)
        self.filled = np.empty(0, np.int64)
        """[room] the change that gave each row its vector."""

    def put(self, slots: NDArray[np.int64], seqs: NDArray[np.int64], vectors: Vectors) -> None:
        """Writes vectors, then by which change."""
        self.reserve(int(slots.max()) + 1)
        self.matrix.put(slots, vectors)
        self.filled[slots] = seqs

    def reserve(self, count: int) -> None:
        """Makes room for so many rows, all of them without a vector."""
        self.matrix.reserve(count)
        if count > len(self.filled):
            grown = np.full(max(count, len(self.filled) * 3 // 2, 16), _NEVER)
            grown[: len(self.filled)] = self.filled
            self.filled = grown


class Memory:
    """Rows of a collection from one moment on.

    Thread safety: one thread at a time changes it; views that it made may be read by any.
    """

    def __init__(
        self, store: Store, fields: FieldTypes | None, precision: Precision, *, at: int | None = None
    ) -> None:
        self._store = store
        self._fields = fields
        self._precision = precision
        self.ids: list[str] = []
        self.metadata: list[bytes] = []
        self.sources: list[str] = []
        self.times = Grown(np.float64)
        self.numbers = Grown(np.int64)
        self._added = Grown(np.int64)
        self._removed = Grown(np.int64)
        self.stored: list[StoredRow | None] = []
        """Rows with their texts, those that were found lately."""
        self._stored_chars = 0
        self.num_removed = 0
        self.columns = Columns(self._values)
        self.spaces: dict[int, SpaceMemory] = {}
        self.graphs: dict[int, Graph] = {}
        """By number of space, the newest one of each."""
        self._activations: list[tuple[int, int | None, int | None]] = []
        self._rows_seq = 0
        self._view: View | None = None
        self.base = self.seq = -1
        """The first and the last moment that it knows."""
        self._load(at)

    # -- reading the file ----------------------------------------------------------------------

    def _load(self, at: int | None) -> None:
        with self._store.database.reading() as connection:
            ((latest,),) = connection.execute("SELECT MAX(seq) FROM commits").fetchall()
            self.base = self.seq = latest if at is None else at
            there = "r.added <= :at AND (r.removed IS NULL OR r.removed > :at)"
            rows = connection.execute(f"{_ROWS} {there} ORDER BY number", {"at": self.seq})
            self._add_rows(rows, keep_removed=False)
            self._read_spaces(connection)
            self._add_vectors(
                connection.execute(
                    "SELECT v.space, v.row, v.added, v.vector FROM rows r JOIN vectors v ON v.row = r.number "
                    f"WHERE {there} AND v.added <= :at ORDER BY r.number",
                    {"at": self.seq},
                )
            )

    def catch_up(self) -> bool:
        """Reads what any process has written since; False where there was nothing."""
        if self._store.latest() == self.seq:
            return False
        with self._store.database.reading() as connection:
            ((latest,),) = connection.execute("SELECT MAX(seq) FROM commits").fetchall()
            before, count = self.seq, self.numbers.count
            self._add_rows(
                connection.execute(f"{_ROWS} added > ? ORDER BY number", (before,)), keep_removed=True
            )
            gone = connection.execute(
                "SELECT number, removed FROM rows WHERE removed > ? AND added <= ?", (before, before)
            ).fetchall()
            for number, removed in gone:
                self._removed.data[np.searchsorted(self.numbers.first(count), number)] = removed
            self.num_removed += len(gone)
            self._read_spaces(connection)
            self._add_vectors(
                connection.execute(
                    "SELECT space, row, added, vector FROM vectors WHERE added > ? ORDER BY row", (before,)
                )
            )
        if gone or self.numbers.count > count:
            self._rows_seq = latest
        self.seq = latest
        return True

    def _add_rows(self, rows: Iterable[tuple[Any, ...]], *, keep_removed: bool) -> None:
        found = list(rows)
        if not found:
            return
        numbers, ids, metadata, sources, times, added, removed = zip(*found, strict=True)
        self.stored += [None] * len(ids)
        self.ids += ids
        self.metadata += metadata
        self.sources += sources
        self.times.append(times)
        self._added.append(added)
        gone = [_NEVER if seq is None or not keep_removed else seq for seq in removed]
        self._removed.append(gone)
        self.num_removed += sum(seq != _NEVER for seq in gone)
        self.numbers.append(numbers)

    def _read_spaces(self, connection: sqlite3.Connection) -> None:
        known = dict(self.spaces)
        self.spaces = {}
        for number, written in connection.execute("SELECT number, space FROM spaces").fetchall():
            self.spaces[number] = known.get(number) or SpaceMemory(
                number, EmbeddingSpace(**json.loads(written)), self._precision
            )
        self._activations = connection.execute(
            "SELECT seq, space, previous FROM activations ORDER BY seq DESC"
        ).fetchall()

    def _add_vectors(self, cursor: sqlite3.Cursor) -> None:
        numbers = self.numbers.first(self.numbers.count)
        while part := cursor.fetchmany(_PART):
            for number, memory in self.spaces.items():
                own = [(row, added, vector) for space, row, added, vector in part if space == number]
                if not own:
                    continue
                rows, added, blobs = zip(*own, strict=True)
                vectors = np.frombuffer(b"".join(blobs), "<f4").reshape(len(own), -1)
                slots = np.searchsorted(numbers, np.array(rows))
                memory.put(slots.astype(np.int64), np.array(added), vectors.astype(np.float32, copy=False))
        for memory in self.spaces.values():
            memory.reserve(len(numbers))

    def _values(self, name: str, first: int, last: int) -> Iterable[Any]:
        if name == "id":
            return self.ids[first:last]
        if name == "source":
            return self.sources[first:last]
        if name == "time":
            times: list[float] = self.times.first(last)[first:].tolist()
            return times
        path = name.split(".")
        return (value_at(metadata, path, name) for metadata in self.metadata[first:last])

    def read(self, slots: list[int]) -> list[StoredRow]:
        """Rows with their texts, which are read where they were not found lately. Any thread may call it."""
        rows = self.stored
        known = [rows[slot] for slot in slots]  # another thread may let go of them meanwhile
        missing = [slot for slot, row in zip(slots, known, strict=True) if row is None]
        numbers: list[int] = self.numbers.data[missing].tolist()
        texts = self._store.texts(numbers)
        fresh = {
            slot: StoredRow(
                self.ids[slot],
                texts[number],
                self.metadata[slot],
                self.sources[slot],
                float(self.times.data[slot]),
            )
            for slot, number in zip(missing, numbers, strict=True)
        }
        self._stored_chars += sum(map(len, texts.values()))
        if self._stored_chars > _MOST_CHARS:
            self._stored_chars = 0
            for slot in range(len(rows)):
                rows[slot] = None
        for slot, row in fresh.items():
            rows[slot] = row
        return [fresh[slot] if row is None else row for slot, row in zip(slots, known, strict=True)]

    # -- moments -------------------------------------------------------------------------------

    def view(self, seq: int | None = None) -> View:
        """The collection at a moment from `base` on, which is the last one where none is named."""
        seq = self.seq if seq is None else seq
        last = self._view
        if last is not None and last.seq == seq:
            return last
        count = int(np.searchsorted(self._added.first(self._added.count), seq, "right"))
        live = None
        if self.num_removed:
            mask: Mask = self._removed.first(count) > seq
            live = None if mask.all() else mask
        # Vectors and pointers may change while rows do not: what filters selected of them stays right.
        keeps = (
            last is not None and last.count == count and last.seq >= self._rows_seq and seq >= self._rows_seq
        )
        selections = (
            last.selections
            if last is not None and keeps
            else Selections(self.columns, self._fields, count, live)
        )
        active, previous = self._pointers(seq)
        view = View(
            self,
            seq,
            count,
            live,
            count if live is None else int(live.sum()),
            {memory.space.key: self._space_view(memory, seq, count, live) for memory in self.spaces.values()},
            active,
            previous,
            selections,
        )
        if seq == self.seq:
            self._view = view
        return view

    def _pointers(self, seq: int) -> tuple[str | None, str | None]:
        for changed, *spaces in self._activations:
            if changed <= seq:
                found = [self.spaces.get(number or 0) for number in spaces]
                active, previous = (None if memory is None else memory.space.key for memory in found)
                return active, previous
        return None, None

    def _space_view(self, memory: SpaceMemory, seq: int, count: int, live: Mask | None) -> SpaceView:
        has: Mask = memory.filled[:count] <= seq
        pending = int((~has).sum() if live is None else (live & ~has).sum())
        return SpaceView(
            memory.number, memory.space, memory.matrix.taken(), has if live is None else has & live, pending
        )

    def memory_bytes(self) -> int:
        """Bytes of the matrices."""
        return sum(memory.matrix.nbytes for memory in self.spaces.values())


def space_of(view: View, key: str) -> SpaceView:
    """A space that can be searched at this moment. RequestError, naming those that there are, where it is none."""
    found = view.spaces.get(key)
    if found is None:
        known = ", ".join(k[:12] for k in view.spaces) or "none"
        raise RequestError(f"space {key[:12]} is not one of this collection ({known})", field="space")
    if found.pending:
        raise RequestError(
            f"space {key[:12]} has no vectors of {found.pending} of {view.num_live} rows at this moment: "
            "it is being filled",
            field="space",
        )
    return found
