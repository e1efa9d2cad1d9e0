"""A collection: rows in one file, their vectors in one or more spaces, and searches over any moment of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import numpy as np

from airi.errors import RequestError, StateError
from airi.retrieval.filters import FieldTypes, check_declared, check_fields, parse
from airi.retrieval.memory import Memory, View
from airi.retrieval.records import Hit, Row, Snapshot, Written, check_rows, digest_of
from airi.retrieval.refresher import Refresher
from airi.retrieval.search.exact import Ranked
from airi.retrieval.search.figures import figures_of
from airi.retrieval.search.indexer import Indexer, IndexOptions
from airi.retrieval.search.matrix import check_fits
from airi.retrieval.search.overlap import overlap_of_rows
from airi.retrieval.search.query import Query
from airi.retrieval.spaces import Embedder, EmbeddingSpace, Vectors, key_of, space_vectors
from airi.retrieval.store import Store

__all__ = ["Collection"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_POLL_S = 0.05
"""So often a busy collection looks whether another process has written."""
_MOST_AGE_S = 1.0
"""A search whose view may be older than that looks itself, and waits for it."""
_PAST_VIEWS = 4
SpaceLike = EmbeddingSpace | str


class Collection:
    """Rows of texts with metadata and vectors.

    A write is done whole, and on the disk, when its method returns, or not at all. A search sees the collection as it
    was at one moment, also while others write. Vectors are only ever compared with vectors of the same space.

    Thread safety: any thread; of several processes with the same file each sees the others' writes within a second.
    """

    def __init__(self, store: Store, name: str, fields: FieldTypes | None, options: IndexOptions) -> None:
        self.name = name
        self._store = store
        self._fields = fields
        self._options = options
        self._lock = threading.Lock()
        """Of what is in memory: one thread at a time brings it up to date."""
        self._past_lock = threading.Lock()
        """Of reading what was; taken before `_lock`, never after it."""
        self._memory = Memory(store, fields, options.matrix)
        self._view = self._memory.view()
        self._polled = time.monotonic()
        self._past: dict[int, View] = {}
        self._embedders: dict[str, Embedder] = {}
        self._indexer = Indexer(lambda: self._view, self._compact, options)
        self._refresher = Refresher(self._refresh)
        self._indexer.look()

    @classmethod
    def open(
        cls,
        path: Path | str,
        name: str,
        *,
        fields: FieldTypes | None = None,
        options: IndexOptions | None = None,
    ) -> Collection:
        """Opens `path/name.db`, which is made if it is not there; the folder, too.

        `fields` declares those of metadata: rows and filters with others are refused from then on. RequestError for a
        name that is none, or where rows that are there have other fields; StateError where the file cannot be used.
        """
        if not _NAME.fullmatch(name):
            raise RequestError(
                f"collection name {name[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-', "
                "the first one a letter or digit",
                field="name",
            )
        file = Path(path) / f"{name}.db"
        shown = f"collection {name} ({file})"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"{shown}: {error.strerror or error}") from None
        store = Store(file, shown)
        try:
            return cls(store, name, _declared(store, fields), options or IndexOptions())
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Stops what runs behind it and closes the file."""
        self._refresher.close()
        self._indexer.close()
        with self._past_lock, self._lock:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- spaces --------------------------------------------------------------------------------

    @property
    def active(self) -> EmbeddingSpace | None:
        """The space that queries are to be embedded in now; None before there is one."""
        view = self._current()
        return None if view.active is None else view.spaces[view.active].space

    @property
    def spaces(self) -> tuple[EmbeddingSpace, ...]:
        """All of them, the first one first."""
        return tuple(view.space for view in self._current().spaces.values())

    def pending(self, space: SpaceLike) -> int:
        """Rows of this moment that have no vector in a space; all of them where it is none of this collection's."""
        view = self._current()
        found = view.spaces.get(key_of(space))
        return view.num_live if found is None else found.pending

    def add_space(self, space: EmbeddingSpace) -> None:
        """Makes it a space of this collection, unless it is one.

        It is the active one where it is the first, and no row is there yet; else it is filled first (`Reembedding`).
        """
        self._store.add_space(space)
        self._refresh()

    def attach(self, embedder: Embedder) -> None:
        """Adds its space, and from now on embeds what is upserted without vectors of that space."""
        self.add_space(embedder.space)
        self._embedders[embedder.space.key] = embedder

    def detach(self, space: SpaceLike) -> None:
        """Upserts do not embed in that space any more."""
        self._embedders.pop(key_of(space), None)

    def cut_over(self, space: SpaceLike) -> None:
        """Makes a space the active one, at once and for all; the one before is kept for `roll_back`.

        RequestError while any row has no vector in it.
        """
        self._store.activate(self._number(space))
        self._refresh()

    def roll_back(self) -> None:
        """Makes the space before the active one active again; RequestError where there is none, or vectors lack."""
        self._store.roll_back()
        self._refresh()

    def drop_space(self, space: SpaceLike) -> None:
        """Deletes a space that is not active, with its vectors. Snapshots in which it was active lose them, too."""
        self._store.drop_space(self._number(space))
        self.detach(space)
        with self._past_lock:
            self._past.clear()
        self._refresh()

    def fill(self, embedder: Embedder, limit: int) -> int:
        """Embeds the next rows that have no vector in its space, keeps these at once, and says how many they were."""
        number = self._number(embedder.space)
        pending = self._store.pending(number, limit)
        if pending:
            numbers = [row for row, _ in pending]
            made = embedder.encode([text for _, text in pending])
            vectors = space_vectors(embedder.space, made, [f"number {row}" for row in numbers])
            check_fits(vectors, self._options.matrix, [f"number {row}" for row in numbers])
            self._store.fill(number, numbers, vectors)
            self._refresh()
        return len(pending)

    def _number(self, space: SpaceLike) -> int:
        view = self._current()
        found = view.spaces.get(key_of(space))
        if found is None:
            known = ", ".join(key[:12] for key in view.spaces) or "none"
            raise RequestError(
                f"space {key_of(space)[:12]} is not one of this collection ({known})", field="space"
            )
        return found.number

    # -- writing -------------------------------------------------------------------------------

    def upsert(
        self,
        rows: Sequence[Row],
        vectors: Mapping[EmbeddingSpace, Any] | Mapping[str, Any] | None = None,
        *,
        remove: Iterable[str] = (),
    ) -> Written:
        """Writes rows, each in place of the one with its id, and removes others, in one transaction.

        `vectors`: by space, [rows, dimension]. What is not given is made by the embedders that are attached, of texts
        that are new; rows that are there with the same content and vectors are left alone. Spaces that are not active
        may get theirs later.
        Raises RequestError for what cannot be kept, before anything is written: it names the row; StateError where the
        disk is full, and then nothing was written either.
        """
        rows = list(rows)
        encoded = check_rows(rows)
        if self._fields is not None:
            check_fields(rows, self._fields)
        given = self._checked(
            {key_of(space): v for space, v in (vectors or {}).items()}, [row.id for row in rows]
        )
        unchanged = 0
        if not given and self._embedders:
            known = self._store.known(row.id for row in rows)
            digests = [digest_of(row, metadata) for row, metadata in zip(rows, encoded, strict=True)]
            changed = [i for i, row in enumerate(rows) if known.get(row.id, (0, b""))[1] != digests[i]]
            unchanged = len(rows) - len(changed)
            removed_too = set(remove) - {row.id for row in rows}
            rows, encoded, remove = [rows[i] for i in changed], [encoded[i] for i in changed], removed_too
        self._embed(rows, given)
        numbers = {self._number(key): found for key, found in given.items()}
        written = self._store.upsert(rows, encoded, numbers, remove)
        self._refresh()
        return msgspec.structs.replace(written, unchanged=written.unchanged + unchanged)

    def delete(self, ids: Iterable[str]) -> Written:
        """Removes rows; ids that are not there are no mistake."""
        return self.upsert((), remove=ids)

    def sources(self) -> list[str]:
        """Where its rows came from, in order; not those of rows that do not say."""
        return self._store.sources()

    def metadata_of_source(self, source: str) -> dict[str, dict[str, Any]]:
        """The metadata of the rows that came from there, by their ids, in order."""
        found = self._store.metadata_of_source(source)
        return {id_: msgspec.json.decode(metadata) for id_, metadata in found.items()}

    def _checked(self, vectors: Mapping[str, Any], ids: list[str]) -> dict[str, Vectors]:
        found = {}
        for key, given in vectors.items():
            self._number(key)
            found[key] = space_vectors(self._current().spaces[key].space, given, ids)
            check_fits(found[key], self._options.matrix, ids)
        return found

    def _embed(self, rows: list[Row], given: dict[str, Vectors]) -> None:
        """Adds vectors of the spaces that embedders are attached for; rows whose text stays keep theirs."""
        spaces = self._current().spaces
        for key, embedder in list(self._embedders.items()):
            if key not in spaces or key in given or not rows:
                continue
            kept = self._store.vectors_of_texts(spaces[key].number, rows)
            new = [row for row in rows if row.id not in kept]
            if new:
                made = self._checked(
                    {key: embedder.encode([row.text for row in new])}, [row.id for row in new]
                )
                kept.update(zip((row.id for row in new), made[key], strict=True))
            given[key] = np.stack([kept[row.id] for row in rows])

    # -- moments -------------------------------------------------------------------------------

    def check_filter(self, filter: Mapping[str, Any]) -> None:
        """Raises RequestError for a filter that `search` would refuse."""
        parse(filter, self._fields)

    def snapshot(self) -> Snapshot:
        """This moment: `search(..., at=snapshot)` will find what there is now."""
        return self._store.snapshot(self._store.latest())

    def snapshot_at(self, when: float) -> Snapshot:
        """The collection as it was at a time, in seconds since 1970; RequestError before it was made."""
        return self._store.snapshot_at(when)

    @property
    def moment(self) -> int:
        """The number of what is there now."""
        return self._current().seq

    def _current(self) -> View:
        age = time.monotonic() - self._polled
        if age > _MOST_AGE_S:
            with self._lock:
                self._catch_up()
        elif age > _POLL_S:
            self._refresher.ask()
        return self._view

    def _refresh(self) -> None:
        with self._lock:
            self._catch_up()
        self._indexer.look()

    def _catch_up(self) -> None:
        self._polled = time.monotonic()
        if self._memory.catch_up():
            self._view = self._memory.view()

    def _compact(self, prepare: Callable[[Memory], None]) -> None:
        """Puts rows without the removed ones in the place of those in memory; searches go on meanwhile."""
        fresh = Memory(self._store, self._fields, self._options.matrix)
        prepare(fresh)
        with self._lock:
            fresh.catch_up()
            self._memory = fresh
            self._view = fresh.view()

    def _view_at(self, at: Snapshot | int | None) -> View:
        if at is None:
            return self._current()
        seq = at.number if isinstance(at, Snapshot) else at
        self._store.snapshot(seq)
        with self._past_lock:
            with self._lock:
                self._catch_up()
                if seq == self._view.seq:
                    return self._view
                if seq not in self._past and seq >= self._memory.base:
                    self._keep_past(seq, self._memory.view(seq))
            # What is not in memory any more is read without the lock that searches of this moment wait for.
            if seq not in self._past:
                memory = Memory(self._store, self._fields, self._options.matrix, at=seq)
                self._keep_past(seq, memory.view(seq))
            return self._past[seq]

    def _keep_past(self, seq: int, view: View) -> None:
        while len(self._past) >= _PAST_VIEWS:
            del self._past[next(iter(self._past))]
        self._past[seq] = view

    # -- searching -----------------------------------------------------------------------------

    def search(
        self,
        vector: Any = None,
        *,
        space: SpaceLike | None = None,
        text: str | None = None,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,
        at: Snapshot | int | None = None,
        fusion: Literal["rrf", "weighted"] = "rrf",
        weight: float = 0.5,
        mmr: float | None = None,
    ) -> list[Hit]:
        """The k best rows, best first; rows of the same score by their ids.

        `vector` [dimension], with the `space` that it is of, finds by likeness; `text` by words (BM25); both by their
        reciprocal ranks, or by scores of which `weight` is the vector's part. `filter` as in `filters.py`. `mmr`, 0 to
        1, chooses rows that are unlike each other; 1 is relevance alone. Raises RequestError, which names the argument.
        """
        query = Query(
            vector=vector, space=space, text=text, k=k, filter=filter, fusion=fusion, weight=weight, mmr=mmr
        )
        view = self._view_at(at)
        return self._hits(view, query.ranking(self._store, view))

    def _hits(self, view: View, ranking: Ranked) -> list[Hit]:
        memory = view.memory
        kept = memory.stored
        rows = [row for slot, _ in ranking if (row := kept[slot]) is not None]
        if len(rows) < len(ranking):
            rows = memory.read([slot for slot, _ in ranking])
        return [Hit(score, row) for (_, score), row in zip(ranking, rows, strict=True)]

    # -- what is known of it -------------------------------------------------------------------

    def overlap(self, space: SpaceLike, other: SpaceLike, *, k: int = 10, queries: int = 100) -> float:
        """Share of the k nearest rows that two spaces agree on, 0..1: the mean over rows of the collection as queries.

        Rows without a vector in either do not count, so that it can be asked while one is filled.
        """
        view = self._current()
        self._number(space), self._number(other)
        return overlap_of_rows(view, view.spaces[key_of(space)], view.spaces[key_of(other)], k, queries)

    def wait_for_graphs(self, timeout_s: float) -> bool:
        """Until no graph is to be built; False where that takes longer."""
        self._indexer.look()
        return self._indexer.wait(timeout_s)

    def stats(self) -> dict[str, Any]:
        """Figures of this moment, as JSON has them: rows, bytes, and of each space its rows, graph and recall."""
        return {"name": self.name, **figures_of(self._current())}


def _declared(store: Store, fields: FieldTypes | None) -> FieldTypes | None:
    """The fields that a collection has: those given, which are kept from now on, or else those that were kept."""
    kept: FieldTypes | None = store.setting("fields")
    if fields is None or fields == kept:
        return kept
    check_declared(fields)
    with store.setting_to("fields", dict(fields)):
        store.check_all(lambda rows: check_fields(rows, fields))
    return fields
