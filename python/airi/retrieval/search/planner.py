"""Which way a search takes: all rows, selected rows, or the graph; by what each costs on this collection.

A graph that is asked for the nearest rows and whose answer is then filtered finds what a filter leaves, so long as
enough of them pass: k' nearest rows of which k pass hold the k nearest that pass. Where too few do, the selected rows
are compared one by one, so a filter never loses recall beyond what the graph itself loses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from airi.retrieval.columns import Mask
from airi.retrieval.memory import SpaceView, View
from airi.retrieval.search.exact import Ranked, nearest, nearest_of, rank
from airi.retrieval.search.graph import Costs, Graph
from airi.retrieval.search.matrix import Matrix
from airi.retrieval.search.selection import Selected
from airi.retrieval.spaces import Vectors

__all__ = ["break_even", "find", "measure"]

_RESCORED = 1.5
"""Candidates of a graph of fewer bits, for each row that is asked for."""
_SPARE = 1.5
"""Candidates that are asked for beyond those that pass on average."""
_MOST_CANDIDATES = 2048
_BREADTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_PROBES = 64
_K = 10


def find(
    view: View, space: SpaceView, graph: Graph | None, query: Vectors, k: int, selected: Selected | None
) -> Ranked:
    """The k nearest rows of a view, of those that a filter selected, if there is one."""
    ids, matrix = view.memory.ids, space.matrix
    allowed = view.live if selected is None else selected.mask
    number = view.num_live if selected is None else len(selected.slots)
    if number == 0:
        return []
    if graph is not None and graph.costs is not None and graph.seq <= view.seq and number > k:
        asked, ef = _breadth(graph, k, number, view.count)
        if graph.costs.graph(ef) + _tail_us(graph, view.count) < _exact_us(graph.costs, view.count, number):
            found = _by_graph(graph, matrix, view.count, query, k, asked, ef, allowed)
            if found is not None:
                return rank(matrix.rows(found), found, query, k, ids)
    if selected is None or _whole_is_cheaper(graph, view.count, number):
        return nearest(matrix, query, k, ids, view.count, allowed)
    rows = view.selections.vectors(selected, space.number, matrix)
    return nearest_of(rows, selected.slots, matrix, query, k, ids)


def _breadth(graph: Graph, k: int, number: int, count: int) -> tuple[int, int]:
    """How many candidates are asked for so that k pass, and how broad the search is."""
    few = k if graph.precision == "float32" else math.ceil(_RESCORED * k)
    asked = few if number == count else int(_SPARE * few * count / number) + 1
    asked = min(asked, len(graph.slots))
    return asked, max(graph.ef, asked)


def _exact_us(costs: Costs, count: int, number: int) -> float:
    return min(costs.exact(count), costs.gathered(number))


def _tail_us(graph: Graph, count: int) -> float:
    tail = count - graph.covered
    return 0.0 if tail <= 0 or graph.costs is None else 10 + graph.costs.exact(tail)


def _whole_is_cheaper(graph: Graph | None, count: int, number: int) -> bool:
    """Whether to compare all rows where only some are asked for: these lie apart, and are copied first."""
    if graph is None or graph.costs is None:
        return number > count // 4
    return graph.costs.exact(count) < graph.costs.gathered(number)


def _by_graph(
    graph: Graph,
    matrix: Matrix,
    count: int,
    query: Vectors,
    k: int,
    asked: int,
    ef: int,
    allowed: Mask | None,
) -> NDArray[np.int64] | None:
    """Rows that hold the k nearest; None where the graph has not found k of its own that pass."""
    if asked > _MOST_CANDIDATES:
        return None
    found = graph.candidates(query, asked, ef)
    if allowed is not None:
        found = found[allowed[found]]
    if len(found) < k:  # rows of the tail are no substitute for those of the graph that were not found
        return None
    if graph.covered == count:
        return found
    tail = np.arange(graph.covered, count)
    if allowed is not None:
        tail = tail[allowed[graph.covered : count]]
    if len(tail) > asked:
        scores = matrix.scores(query, count, first=graph.covered)[tail - graph.covered]
        tail = tail[np.argpartition(-scores, asked - 1)[:asked]]
    both: NDArray[np.int64] = np.concatenate([found, tail])
    return both


def break_even(graph: Graph) -> int:
    """Rows of a collection like this one above which the graph is faster than comparing all."""
    if graph.costs is None:
        return 0
    return int(graph.costs.graph(graph.ef) / max(graph.costs.exact_row_us, 1e-9))


def measure(graph: Graph, matrix: Matrix, ids: Sequence[str], count: int, target: float) -> Graph:
    """The graph with the least breadth that reaches a recall on rows of the collection, and what searches take.

    The rows are queries whose own row does not count. Where no breadth reaches it, the graph has the recall of the
    broadest, and nobody should use it.
    """
    draw = np.random.default_rng(0)
    probes = draw.choice(graph.slots, min(_PROBES, len(graph.slots)), replace=False)
    queries = matrix.rows(probes)
    live = np.zeros(count, np.bool_)
    live[graph.slots] = True
    truth = [
        {slot for slot, _ in nearest(matrix, query, _K + 1, ids, count, live)} - {int(probe)}
        for query, probe in zip(queries, probes, strict=True)
    ]
    recall, ef = 0.0, _BREADTHS[0]
    for ef in _BREADTHS:
        found = [
            _few(graph, matrix, query, ef, ids) - {int(p)} for query, p in zip(queries, probes, strict=True)
        ]
        hits = sum(len(f & t) / max(1, min(_K, len(t))) for f, t in zip(found, truth, strict=True))
        recall = min(1.0, hits / len(probes))
        if recall >= target:
            break
    return graph.measured(ef=ef, recall=recall, costs=_costs(graph, matrix, queries, ids, count, ef))


def _few(graph: Graph, matrix: Matrix, query: Vectors, ef: int, ids: Sequence[str]) -> set[int]:
    asked = _K + 1 if graph.precision == "float32" else math.ceil(_RESCORED * (_K + 1))
    slots = graph.candidates(query, min(asked, len(graph.slots)), max(ef, asked))
    return {slot for slot, _ in rank(matrix.rows(slots), slots, query, _K + 1, ids)}


def _costs(graph: Graph, matrix: Matrix, queries: Vectors, ids: Sequence[str], count: int, ef: int) -> Costs:
    few, many = np.sort(graph.slots[:64]), np.sort(graph.slots[:: max(1, len(graph.slots) // 1024)])

    def gathered(slots: NDArray[np.int64]) -> Callable[[Vectors], object]:
        return lambda query: nearest_of(matrix.rows(slots), slots, matrix, query, _K, ids)

    whole = _median_us(lambda query: nearest(matrix, query, _K, ids, count, None), queries[:9])
    at_few, at_many = _median_us(gathered(few), queries[:9]), _median_us(gathered(many), queries[:9])
    row = max((at_many - at_few) / max(1, len(many) - len(few)), 1e-4)
    broad = 4 * ef
    narrow_us = _median_us(lambda query: graph.candidates(query, _K, ef), queries)
    broad_us = _median_us(lambda query: graph.candidates(query, _K, broad), queries)
    slope = max((broad_us - narrow_us) / (broad - ef), 1e-3)
    return Costs(
        exact_row_us=whole / max(1, count),
        gather_us=max(at_few - row * len(few), 1.0),
        gather_row_us=row,
        graph_us=max(narrow_us - slope * ef, 1.0),
        graph_ef_us=slope,
    )


def _median_us(call: Callable[[Vectors], object], queries: Vectors) -> float:
    call(queries[0])  # what is made once
    taken = []
    for query in queries:
        began = time.perf_counter_ns()
        call(query)
        taken.append((time.perf_counter_ns() - began) / 1e3)
    return median(taken)
