"""Graphs are built, appended to and rebuilt behind the searches, on one thread of a collection."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from airi.errors import AiriError, ConfigError
from airi.retrieval.memory import Memory, SpaceView, View
from airi.retrieval.search.exact import nearest
from airi.retrieval.search.graph import Graph, appended, built, faiss_or_none
from airi.retrieval.search.matrix import PRECISIONS, Precision
from airi.retrieval.search.planner import measure

__all__ = ["IndexOptions", "Indexer"]

_LOG = logging.getLogger("airi.retrieval")
_NOT_BUILT = "graphs of a collection were not built, its search stays exact"
_WORTH_ROWS = 1000
_WORTH_US = 100.0
"""Where comparing all rows takes less, no graph is faster."""
_TAIL_ROWS = 512
_TAIL_SHARE = 0.02
_DOUBLE = 2
"""A collection that has grown so is measured anew."""
_MOST_DEAD = 0.3
"""Share of removed rows in memory above which all is made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """How a collection keeps its vectors in memory; in its file they are float32. ConfigError for what is none."""

    matrix: Precision = "float32"
    """Of exact search, and of what graphs find."""
    graph: Precision = "int8"
    recall: float = 0.97
    """recall@10 that a graph must reach on rows of the collection to be used."""

    def __post_init__(self) -> None:
        for name in ("matrix", "graph"):
            if getattr(self, name) not in PRECISIONS:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(PRECISIONS)}",
                    field=name,
                )
        if not 0 < self.recall <= 1:
            raise ConfigError(f"recall is {self.recall}; it must be above 0 and at most 1", field="recall")


class Indexer:
    """Looks at each new view and makes graphs of it where they are worth it.

    Thread safety: `look` and `close` from any thread.
    """

    def __init__(
        self,
        view: Callable[[], View],
        compact: Callable[[Callable[[Memory], None]], None],
        options: IndexOptions,
    ) -> None:
        self._view = view
        self._compact = compact
        """Loads the rows anew, lets this one prepare them, and puts them in place."""
        self._options = options
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._is_idle = True
        self._thread: threading.Thread | None = None
        self._tried: dict[int, int] = {}
        """By number of space, at how many rows it was last asked whether a graph is worth it."""

    def look(self) -> None:
        """There are new rows, or spaces. Costs nothing where no thread is needed."""
        if not self._has_work(self._view()):
            return
        with self._news:
            self._is_idle = False
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="airi-graphs", daemon=True)
                self._thread.start()
                # An interpreter that ends while faiss works is aborted.
                atexit.register(self.close)
            self._news.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Until there is nothing to build; False where that takes longer."""
        with self._news:
            return self._news.wait_for(lambda: self._is_idle, timeout_s)

    def close(self) -> None:
        """Stops within one batch of rows."""
        atexit.unregister(self.close)
        self._stop.set()
        with self._news:
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join()

    # -- on the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            is_well = True
            try:
                self._work()
            except AiriError as error:
                is_well = False
                _LOG.warning("%s: %s", _NOT_BUILT, error)
            except Exception:
                is_well = False
                _LOG.exception(_NOT_BUILT)
            with self._news:
                # What failed is tried again when there is news, and not before.
                if not is_well or not self._has_work(self._view()):
                    self._is_idle = True
                    self._news.notify_all()
                    self._news.wait_for(lambda: not self._is_idle or self._stop.is_set())
        with self._news:
            self._is_idle = True
            self._news.notify_all()

    def _work(self) -> None:
        view = self._view()
        if _has_too_many_dead(view):
            self._tried.clear()
            self._compact(lambda memory: self._make_graphs(memory.view()))
        else:
            self._make_graphs(view)

    def _make_graphs(self, view: View) -> None:
        graphs = view.memory.graphs
        for space in view.spaces.values():
            if not self._is_due(view, space):
                continue
            before = graphs.get(space.number)
            if before is None and not self._is_worth_it(view, space):
                continue
            graph = self._made(view, space, before)
            if graph is None:
                return
            graphs[space.number] = graph
        for number in set(graphs) - {space.number for space in view.spaces.values()}:
            graphs.pop(number, None)

    def _made(self, view: View, space: SpaceView, before: Graph | None) -> Graph | None:
        slots = np.flatnonzero(space.has).astype(np.int64)
        if before is not None and view.count < _DOUBLE * before.covered:
            new = slots[slots >= before.covered]
            return appended(before, space.matrix, new, view.count, view.seq, self._stop)
        began = time.monotonic()
        graph = built(space.matrix, slots, view.count, view.seq, self._options.graph, self._stop)
        if graph is None:
            return None
        graph = measure(graph, space.matrix, view.memory.ids, view.count, self._options.recall)
        _LOG.info(
            "a graph of %d rows was built in %.1f s: recall@10 is %.3f at ef %d",
            len(slots), time.monotonic() - began, graph.recall, graph.ef,
        )  # fmt: skip
        return graph if graph.recall >= self._options.recall else replace(graph, costs=None)

    def _is_worth_it(self, view: View, space: SpaceView) -> bool:
        """Measures what comparing all rows takes."""
        draw = np.random.default_rng(0)
        slots = draw.choice(np.flatnonzero(space.has), 5)
        taken = []
        for query in space.matrix.rows(slots):
            began = time.perf_counter()
            nearest(space.matrix, query, 10, view.memory.ids, view.count, view.live)
            taken.append((time.perf_counter() - began) * 1e6)
        self._tried[space.number] = view.num_live
        return median(taken) > _WORTH_US and faiss_or_none() is not None

    def _has_work(self, view: View) -> bool:
        return _has_too_many_dead(view) or any(self._is_due(view, space) for space in view.spaces.values())

    def _is_due(self, view: View, space: SpaceView) -> bool:
        if space.pending or view.num_live < _WORTH_ROWS:
            return False
        graph = view.memory.graphs.get(space.number)
        if graph is None:
            return view.num_live >= _DOUBLE * self._tried.get(space.number, 0)
        tail = view.count - graph.covered
        if graph.costs is None:
            return view.count >= _DOUBLE * graph.covered
        return tail > max(_TAIL_ROWS, int(_TAIL_SHARE * view.count))


def _has_too_many_dead(view: View) -> bool:
    return view.count >= _WORTH_ROWS and view.count - view.num_live > _MOST_DEAD * view.count
