"""What does a search of a collection cost on one core, and what does it find?

    python -m benches.bench_vectors [--usearch-python PATH] [--lancedb-python PATH] [--json]

Rows: 20,000 vectors of 384 numbers around 200 centres; queries are drawn as they are. Then the same behind a filter
that leaves 1 % of them. Recall is recall@10 against all rows compared in float64, and is checked before any speed is
printed. `whole call` is `Collection.search` with its hits, texts and metadata; `index call` is the search of the graph
and the rescoring of what it found. Peers run in the same turns: faiss's own graph of 8 bits, at the least breadth that
reaches the recall, numpy over all rows, and for the filter faiss's graph with a selector and numpy over the rows that
it leaves; usearch and LanceDB have processes of their own.

What the numbers do not mean: no HTTP, no embedding of queries; rows are in memory; nobody writes meanwhile.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from airi.retrieval import Collection, EmbeddingSpace, Hit, Row
from airi.retrieval.search.planner import find
from airi.retrieval.spaces import Vectors, query_vector
from benches.common import plain_parser, print_rows, run_contestant, verdict

faiss: Any = typed_faiss  # its stubs lack half of it
DIMENSION = 384
CENTRES = 200
SHARE = 100
"""One row in so many passes the filter."""
RECALL = 0.95
TARGET_INDEX = 1.1
TARGET_WHOLE_US = 100.0
TARGET_FILTERED_QPS = 10_000.0
BREADTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
SPACE = EmbeddingSpace(model="bench", tokenizer="bench", pooling="mean", dimension=DIMENSION)
Found = Callable[[Vectors], Any]
"""What is timed."""


def as_rows(found: Any) -> list[int]:
    """The rows of an answer, whoever gave it: hits, slots with scores, or row numbers. Not timed."""
    if isinstance(found, np.ndarray):
        return [int(row) for row in found]
    return [int(item.id if isinstance(item, Hit) else item[0]) for item in found]


def unit(vectors: NDArray[Any]) -> Vectors:
    """Vectors of length 1."""
    found: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def drawn(rows: int, queries: int) -> tuple[Vectors, Vectors]:
    """Rows and queries around the same centres."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((CENTRES, DIMENSION))
    both = centres[draw.integers(0, CENTRES, rows + queries)]
    both += 0.5 * draw.standard_normal(both.shape)
    found = unit(both)
    return found[:rows], found[rows:]


def truth_of(vectors: Vectors, queries: Vectors, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[queries, 10] the nearest allowed rows, in float64."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    scores[:, ~allowed] = -np.inf
    return np.argsort(-scores, axis=1)[:, :10]


def filled(folder: str, vectors: Vectors) -> Collection:
    """A collection of these rows, with its graph."""
    collection = Collection.open(folder, "bench")
    collection.add_space(SPACE)
    for first in range(0, len(vectors), 2000):
        part = vectors[first : first + 2000]
        rows = [
            Row(id=str(i), text=f"text of row {i}", metadata={"group": i % SHARE, "title": f"row {i}"})
            for i in range(first, first + len(part))
        ]
        collection.upsert(rows, {SPACE: part})
    if not collection.wait_for_graphs(1200):
        raise SystemExit("the graph was not built within 20 minutes")
    return collection


class Contest:
    """Contestants over the same queries, in turns."""

    def __init__(self, question: str, queries: Vectors, truth: NDArray[np.int64]) -> None:
        self.question = question
        self.queries = queries
        self._truth = [set(row) for row in truth.tolist()]
        self._contestants: dict[str, Found] = {}
        self._recalls: dict[str, float] = {}

    def recall(self, found: Found) -> float:
        """recall@10 over all queries."""
        hits = [len(set(as_rows(found(q))) & t) for q, t in zip(self.queries, self._truth, strict=True)]
        return sum(hits) / (10 * len(hits))

    def add(self, name: str, found: Found, *, least: float) -> None:
        """Checks what it finds. SystemExit where that is less than it must be."""
        recall = self.recall(found)
        if recall < least:
            raise SystemExit(f"{name} has a recall of {recall:.4f}, which must be {least}")
        self._contestants[name] = found
        self._recalls[name] = recall

    def rows(self, turns: int) -> list[dict[str, Any]]:
        """One row for each contestant."""
        taken: dict[str, list[float]] = {name: [] for name in self._contestants}
        for _ in range(turns):
            for name, found in self._contestants.items():
                began = time.perf_counter()
                for query in self.queries:
                    found(query)
                taken[name].append((time.perf_counter() - began) / len(self.queries) * 1e6)
        return [self.row(name, self._recalls[name], taken[name]) for name in self._contestants]

    def row(self, name: str, recall: float, us: list[float], **more: Any) -> dict[str, Any]:
        low, middle, high = np.quantile(us, [0.2, 0.5, 0.8]).tolist()
        return {
            "question": self.question,
            "variant": name,
            "recall_at_10": round(recall, 4),
            "us_p20": round(low, 1),
            "us_p50": round(middle, 1),
            "us_p80": round(high, 1),
            "qps": round(1e6 / middle),
            "n": len(us) * len(self.queries),
            **more,
        }


def faiss_at_recall(index: Any, contest: Contest, selector: Any = None) -> tuple[Found, float]:
    """faiss's own search at the least breadth that reaches the recall, or at the broadest."""
    for breadth in BREADTHS:
        options = faiss.SearchParametersHNSW(efSearch=breadth, sel=selector)

        def found(query: Vectors, options: Any = options) -> Any:
            return index.search(query[None], 10, params=options)[1][0]

        recall = contest.recall(found)
        if recall >= RECALL or (selector is not None and breadth >= 64):
            break
    return found, recall


def unfiltered(collection: Collection, index: Any, vectors: Vectors, contest: Contest) -> None:
    """Contestants over all rows."""
    view = collection._view
    if view.memory.ids != [str(row) for row in range(len(vectors))]:
        raise SystemExit("rows do not lie in the order in which they were written")
    space = view.spaces[SPACE.key]
    graph = view.memory.graphs[space.number]
    contest.add("airi, whole call", lambda query: collection.search(query, space=SPACE), least=RECALL)
    contest.add("airi, index call", lambda query: find(view, space, graph, query, 10, None), least=RECALL)
    contest.add("faiss HNSW-SQ8", faiss_at_recall(index, contest)[0], least=RECALL)
    contest.add("numpy, all rows", lambda query: np.argpartition(-(vectors @ query), 10)[:10], least=1.0)


def filtered(collection: Collection, index: Any, vectors: Vectors, contest: Contest, group: int) -> None:
    """Contestants behind the filter."""
    wanted = {"group": group}
    chosen = np.arange(group, len(vectors), SHARE)
    part = np.ascontiguousarray(vectors[chosen])
    selector = faiss.IDSelectorBatch(chosen)
    contest.add(
        "airi, whole call", lambda query: collection.search(query, space=SPACE, filter=wanted), least=1.0
    )
    contest.add("faiss HNSW-SQ8 with a selector", faiss_at_recall(index, contest, selector)[0], least=0.0)
    contest.add(
        "numpy, rows that pass",
        lambda query: chosen[np.argpartition(-(part @ query), 10)[:10]],
        least=1.0,
    )


def faiss_index(vectors: Vectors, neighbours: int = 32) -> Any:
    """The peer: HNSW over 8 bits, built as ours."""
    faiss.omp_set_num_threads(1)
    index = faiss.index_factory(DIMENSION, f"HNSW{neighbours},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.train(vectors)
    index.add(vectors)
    return index


def others(
    contest: Contest, pythons: dict[str, str | None], vectors: Vectors, truth: Any
) -> list[dict[str, Any]]:
    """Peers that have an environment of their own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, vectors=vectors, queries=contest.queries, truth=truth)
        for name, python in pythons.items():
            if python is not None:
                found = run_contestant(python, "vectors", [name, str(data), str(RECALL)])
                rows.append(contest.row(name, found["recall"], found["us"], breadth=found["breadth"]))
    return rows


def judged(rows: list[dict[str, Any]], narrow: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets."""
    us = {row["variant"]: row["us_p50"] for row in rows}
    whole = narrow[0]
    return [
        verdict(
            "index call against faiss", us["airi, index call"], us["faiss HNSW-SQ8"], TARGET_INDEX, unit="us",
            smaller_is_better=True,
        ),
        {
            "question": "whole call", "ours": us["airi, whole call"], "unit": "us",
            "target": f"<= {TARGET_WHOLE_US:g}", "reached": us["airi, whole call"] <= TARGET_WHOLE_US,
        },
        {
            "question": "1 % filter", "ours": whole["qps"], "unit": "queries per second",
            "recall_at_10": whole["recall_at_10"], "target": f">= {TARGET_FILTERED_QPS:g} at a recall of 1",
            "reached": whole["qps"] >= TARGET_FILTERED_QPS and whole["recall_at_10"] == 1.0,
        },
    ]  # fmt: skip


def run_on_one_core() -> None:
    """Starts this bench anew, so that numpy is told before it is imported."""
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if not one.items() <= os.environ.items():
        os.execve(
            sys.executable, [sys.executable, "-m", "benches.bench_vectors", *sys.argv[1:]], os.environ | one
        )


def main() -> None:
    run_on_one_core()
    parser = plain_parser(__doc__, "usearch", "lancedb")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    vectors, queries = drawn(options.rows, options.queries)
    queries = np.stack([query_vector(SPACE, query) for query in queries])
    everything = np.ones(len(vectors), np.bool_)
    truth = truth_of(vectors, queries, everything)
    index = faiss_index(vectors)
    with tempfile.TemporaryDirectory(prefix="airi-bench-") as folder, filled(folder, vectors) as collection:
        contest = Contest(f"{len(vectors)} x {DIMENSION} clustered", queries, truth)
        unfiltered(collection, index, vectors, contest)
        wide = contest.rows(options.turns)
        group = 7
        narrow_truth = truth_of(vectors, queries, np.arange(len(vectors)) % SHARE == group)
        narrow = Contest("1 % filter", queries, narrow_truth)
        filtered(collection, index, vectors, narrow, group)
        narrowed = narrow.rows(options.turns)
        (figures,) = collection.stats()["spaces"].values()
    measured = {"question": "measured by the collection itself", **figures["graph"]}
    pythons = {"usearch": options.usearch_python, "lancedb": options.lancedb_python}
    rows = wide + others(contest, pythons, vectors, truth)
    print_rows([*rows, *narrowed, measured, *judged(rows, narrowed)], as_json=options.json)


if __name__ == "__main__":
    main()
