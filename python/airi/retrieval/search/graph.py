"""HNSW graphs by faiss, which is an extra: where it is not installed, search stays exact."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airi.retrieval.search.matrix import Matrix, Precision
from airi.retrieval.spaces import Vectors

__all__ = ["Costs", "Graph", "appended", "built", "faiss_or_none"]

_LOG = logging.getLogger("airi.retrieval")
_NEIGHBOURS = 32
_BUILD_EF = 80
_KINDS = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8"}
_PART = 1024
"""Rows that are added at a time: one that is closed meanwhile waits for no more."""
_MOST_BUFFERS = 64
_missing_is_said = threading.Event()


class _Buffers(threading.local):
    """Of one thread, by k."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Vectors, NDArray[np.int64], Any, Any]] = {}


_buffers = _Buffers()


def faiss_or_none() -> Any:
    """The module; None where it is not installed, which the log says once."""
    try:
        import faiss
    except ImportError:
        if not _missing_is_said.is_set():
            _missing_is_said.set()
            _LOG.warning(
                "faiss is not installed, so search stays exact: pip install 'airi[vectors]' brings it"
            )
        return None
    return faiss


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What searches of one collection took on this machine, microseconds."""

    exact_row_us: float
    """Of each row, where all are compared."""
    gather_us: float
    """Of exact search of selected rows, whatever their number."""
    gather_row_us: float
    """Of each selected row."""
    graph_us: float
    """Of a search of the graph, whatever its breadth."""
    graph_ef_us: float
    """Of each candidate that it keeps."""

    def exact(self, rows: int) -> float:
        return self.exact_row_us * rows

    def gathered(self, rows: int) -> float:
        return self.gather_us + self.gather_row_us * rows

    def graph(self, ef: int) -> float:
        return self.graph_us + self.graph_ef_us * ef


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph of the rows that there were when it was built or appended to.

    It does not change; rows that came later are its tail, which is compared exactly.

    Thread safety: any thread may search.
    """

    index: Any
    slots: NDArray[np.int64]
    """[nodes] the row of each, ascending."""
    covered: int
    """Rows of the collection that it knows: those behind are its tail."""
    seq: int
    """The moment of those rows: what was removed before is not in it, so earlier moments cannot use it."""
    precision: Precision
    ef: int = 64
    """Breadth of a search, found by measuring."""
    recall: float = 0.0
    """recall@10 at that breadth, on rows of the collection."""
    costs: Costs | None = None

    def candidates(self, query: Vectors, k: int, ef: int) -> NDArray[np.int64]:
        """[<= k] rows that are likely the nearest, best first."""
        _, nodes, to_scores, to_nodes = _buffers_of(k)
        # The checks of faiss's own `search` take as long as a tenth of the search itself.
        to_query = sys.modules["faiss"].swig_ptr(query)
        self.index.search_c(1, to_query, k, to_scores, to_nodes, _broad(max(ef, k)))
        return self.slots[nodes] if nodes[-1] >= 0 else self.slots[nodes[nodes >= 0]]

    def measured(self, *, ef: int, recall: float, costs: Costs) -> Graph:
        """The same graph with what was measured of it."""
        return replace(self, ef=ef, recall=recall, costs=costs)


def _buffers_of(k: int) -> tuple[Vectors, NDArray[np.int64], Any, Any]:
    """Where faiss writes k scores and nodes, and pointers to them: the same for all searches of a thread."""
    kept = _buffers.kept
    if k not in kept:
        swig_ptr = sys.modules["faiss"].swig_ptr
        scores, nodes = np.empty(k, np.float32), np.empty(k, np.int64)
        if len(kept) >= _MOST_BUFFERS:
            kept.clear()
        kept[k] = (scores, nodes, swig_ptr(scores), swig_ptr(nodes))
    return kept[k]


@functools.lru_cache(maxsize=256)
def _broad(ef: int) -> Any:
    """Options of a search; to make them takes a tenth of one."""
    return faiss_or_none().SearchParametersHNSW(efSearch=ef)


def built(
    matrix: Matrix,
    slots: NDArray[np.int64],
    covered: int,
    seq: int,
    precision: Precision,
    stop: threading.Event,
) -> Graph | None:
    """A graph of some rows; None where it was stopped, or faiss is not there."""
    faiss = faiss_or_none()
    if faiss is None:
        return None
    faiss.omp_set_num_threads(1)  # of this thread: searches keep the other cores
    kind = f"HNSW{_NEIGHBOURS},{_KINDS[precision]}"
    index = faiss.index_factory(matrix.dimension, kind, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD_EF
    if not index.is_trained:
        index.train(matrix.rows(slots[:: max(1, len(slots) // 20_000)]))
    if not _add(index, matrix, slots, stop):
        return None
    return Graph(index, slots, covered, seq, precision)


def appended(
    graph: Graph, matrix: Matrix, slots: NDArray[np.int64], covered: int, seq: int, stop: threading.Event
) -> Graph | None:
    """A copy of a graph with further rows; None where it was stopped. Searches of the first one go on meanwhile."""
    faiss = faiss_or_none()
    faiss.omp_set_num_threads(1)
    index = faiss.clone_index(graph.index)
    if not _add(index, matrix, slots, stop):
        return None
    return replace(graph, index=index, slots=np.concatenate([graph.slots, slots]), covered=covered, seq=seq)


def _add(index: Any, matrix: Matrix, slots: NDArray[np.int64], stop: threading.Event) -> bool:
    for first in range(0, len(slots), _PART):
        if stop.is_set():
            return False
        index.add(matrix.rows(slots[first : first + _PART]))
    return True
