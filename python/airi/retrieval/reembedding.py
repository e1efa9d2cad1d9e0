"""A new embedder's space is filled behind the searches, and takes over at once when it is whole."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import msgspec

from airi.errors import AiriError, RequestError, StateError
from airi.retrieval.collection import Collection
from airi.retrieval.spaces import Embedder

__all__ = ["Progress", "Reembedding"]


class Progress(msgspec.Struct, frozen=True):
    """How far a space is."""

    rows: int
    """Rows that are there now."""
    pending: int
    """Those of them that have no vector in it."""


class Reembedding:
    """Fills an embedder's space with vectors of all rows, on a thread of its own, in batches of one transaction each.

    The file knows how far it came, so that it goes on there after a crash, in any process. Meanwhile searches stay in
    the active space, and what is upserted through this collection gets vectors of both. Nothing is activated:
    `Collection.cut_over` does that, and refuses while rows are pending.
    """

    def __init__(self, collection: Collection, embedder: Embedder, *, batch: int = 32) -> None:
        if batch < 1:
            raise RequestError(f"batch is {batch}; it must be at least 1", field="batch")
        self._collection = collection
        self._embedder = embedder
        self._batch = batch
        self._stop = threading.Event()
        self._error: Exception | None = None
        collection.attach(embedder)
        self._thread = threading.Thread(target=self._run, name="airi-reembedding", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begins, or goes on where an earlier one stopped."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the batch that it is at, which is kept."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until every row has a vector: True. False where it was stopped, or takes longer; raises what made it fail."""
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive() and self.progress().pending == 0

    def progress(self) -> Progress:
        """Rows that are done, and that are not."""
        figures = self._collection.stats()
        space = figures["spaces"].get(self._embedder.space.key)
        rows = figures["rows"]
        return Progress(rows=rows, pending=rows if space is None else space["pending"])

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and self._collection.fill(self._embedder, self._batch):
                pass
        except AiriError as error:
            self._error = error
        except Exception as error:
            self._error = StateError(f"collection {self._collection.name}: re-embedding failed: {error!r}")
