"""Graphs find nearly what comparing all rows finds, and the planner never loses what a filter leaves."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.errors import ConfigError
from airi.retrieval import Collection, IndexOptions, Row
from airi.retrieval.search import graph as graphs
from airi.retrieval.search.graph import Costs
from tests.retrieval.components import needs
from tests.retrieval.hashing import space

SPACE = space("one", 32)
FREE = Costs(exact_row_us=1e3, gather_us=1e6, gather_row_us=1e3, graph_us=1e-3, graph_ef_us=1e-6)
"""Where the graph is always the cheapest way."""


@pytest.fixture
def faiss() -> Any:
    return needs("faiss", "faiss-cpu")


def clustered(count: int, seed: int = 0) -> Any:
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, 32))
    found = centres[draw.integers(0, 40, count)] + 0.4 * draw.standard_normal((count, 32))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def filled(folder: Path, vectors: Any, **options: Any) -> Collection:
    collection = Collection.open(folder, "kb", options=IndexOptions(**options))
    collection.add_space(SPACE)
    add(collection, vectors, 0)
    return collection


def add(collection: Collection, vectors: Any, first: int) -> None:
    rows = [
        Row(id=f"{i:06}", text=f"row {i}", metadata={"n": i, "group": i % 100})
        for i in range(first, first + len(vectors))
    ]
    collection.upsert(rows, {SPACE: vectors})


def with_graph(folder: Path, vectors: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Collection:
    """Builds a graph whatever comparing all rows takes here, and has it used whatever it takes."""
    monkeypatch.setattr("airi.retrieval.search.indexer._WORTH_US", 0.0)
    monkeypatch.setattr("airi.retrieval.search.planner._costs", lambda *_: FREE)
    collection = filled(folder, vectors, **options)
    assert collection.wait_for_graphs(120)
    assert graph_of(collection) is not None
    return collection


def graph_of(collection: Collection) -> Any:
    (figures,) = collection.stats()["spaces"].values()
    return figures["graph"]


def recall(collection: Collection, vectors: Any, queries: Any, allowed: Any = None, **asked: Any) -> float:
    """recall@10 against all allowed rows."""
    hits = 0
    for query in queries:
        scores = vectors @ query
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        wanted = set(np.argsort(-scores)[:10].tolist())
        hits += len(wanted & {int(hit.id) for hit in collection.search(query, space=SPACE, **asked)})
    return hits / (10 * len(queries))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_graphs_reach_the_recall_that_is_measured(
    faiss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    vectors = clustered(3000)
    with with_graph(tmp_path, vectors, monkeypatch, graph=precision) as collection:
        figures = graph_of(collection)
        assert figures["is_used"]
        assert figures["recall_at_10"] >= 0.97
        assert recall(collection, vectors, clustered(50, seed=1)) >= 0.95
        exact = collection.search(vectors[7], space=SPACE, k=1)[0]
        assert (exact.id, round(exact.score, 5)) == ("000007", 1.0)


def test_no_filter_loses_recall(faiss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(3000)
    queries = clustered(30, seed=1)
    groups = np.arange(3000) % 100
    with with_graph(tmp_path, vectors, monkeypatch) as collection:
        for share in (1, 5, 20, 50, 90):
            wanted = {"group": {"$lt": share}}
            assert recall(collection, vectors, queries, groups < share, filter=wanted) >= 0.95
        # What it leaves lies far from the query: the nearest rows of the graph do not pass.
        for query in queries:
            far = np.argsort(vectors @ query)[:600]
            wanted = {"n": {"$in": far.tolist()}}
            allowed = np.isin(np.arange(3000), far)
            assert recall(collection, vectors, query[None], allowed, filter=wanted) >= 0.9


def test_new_rows_that_pass_a_filter_do_not_stand_for_those_that_the_graph_has_not_found(
    faiss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(3000)
    (query,) = clustered(1, seed=1)
    # The new rows are the farthest from the query, those of the graph that pass lie between them and all others.
    far = np.argsort(vectors @ query)[:600]
    late = np.repeat(-query[None], 100, axis=0)
    with with_graph(tmp_path, vectors, monkeypatch) as collection:
        add(collection, late, 3000)
        assert graph_of(collection)["tail"] == 100
        passes = [*far.tolist(), *range(3000, 3100)]
        allowed = np.isin(np.arange(3100), passes)
        both = np.concatenate([vectors, late])
        assert recall(collection, both, query[None], allowed, filter={"n": {"$in": passes}}) >= 0.9


def test_a_narrow_filter_is_exact(faiss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(3000)
    monkeypatch.setattr("airi.retrieval.search.indexer._WORTH_US", 0.0)
    with filled(tmp_path, vectors) as collection:
        assert collection.wait_for_graphs(120)
        assert graph_of(collection)["is_used"]
        allowed = np.arange(3000) % 100 == 3
        assert recall(collection, vectors, clustered(30, seed=2), allowed, filter={"group": 3}) == 1.0


def test_rows_that_come_and_go_are_found_at_once(
    faiss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(4200)
    queries = clustered(30, seed=3)
    with with_graph(tmp_path, vectors[:3000], monkeypatch) as collection:
        moment = collection.snapshot()
        add(collection, vectors[3000:3100], 3000)
        assert collection.search(vectors[3050], space=SPACE, k=1)[0].id == "003050"
        assert graph_of(collection)["tail"] == 100
        removed = [f"{i:06}" for i in range(0, 3100, 7)]
        collection.delete(removed)
        allowed = np.arange(3100) % 7 != 0
        assert recall(collection, vectors[:3100], queries, allowed) >= 0.95
        add(collection, vectors[3100:], 3100)
        assert collection.wait_for_graphs(120)
        assert graph_of(collection)["tail"] == 0
        allowed = (np.arange(4200) % 7 != 0) | (np.arange(4200) >= 3100)
        assert recall(collection, vectors, queries, allowed) >= 0.95
        assert recall(collection, vectors[:3000], queries, at=moment) == 1.0


def test_removed_rows_are_let_go_of(faiss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(4000)
    with with_graph(tmp_path, vectors, monkeypatch) as collection:
        before = collection.snapshot()
        collection.delete(f"{i:06}" for i in range(2000))
        assert collection.wait_for_graphs(120)
        assert collection._view.count == 2000
        assert graph_of(collection)["rows"] == 2000
        queries = clustered(20, seed=4)
        assert recall(collection, vectors, queries, np.arange(4000) >= 2000) >= 0.95
        assert recall(collection, vectors, queries, at=before) == 1.0


def test_data_that_no_graph_finds_well_stay_exact(
    faiss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.retrieval.search.planner._few", lambda *_: set())
    vectors = clustered(1200)
    with with_graph(tmp_path, vectors, monkeypatch) as collection:
        assert not graph_of(collection)["is_used"]
        assert recall(collection, vectors, clustered(20, seed=5)) == 1.0


def test_without_faiss_search_is_exact_and_the_log_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("airi.retrieval.search.indexer._WORTH_US", 0.0)
    monkeypatch.setattr(graphs, "_missing_is_said", threading.Event())
    vectors = clustered(1500)
    with filled(tmp_path, vectors) as collection:
        assert collection.wait_for_graphs(60)
        add(collection, clustered(1600, seed=6), 1500)
        assert collection.wait_for_graphs(60)
        assert graph_of(collection) is None
        assert len([r for r in caplog.records if "airi[vectors]" in r.message]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"graph": "int4"}, "graph is 'int4'; it must be one of"), ({"recall": 0}, "recall is 0")],
)
def test_options_that_are_none_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IndexOptions(**options)


def test_searches_see_one_moment_while_rows_change(tmp_path: Path) -> None:
    """Each batch replaces all rows, so hits of two batches in one answer would be of two moments."""
    where = space("one", 4)
    with Collection.open(tmp_path, "kb") as collection:
        collection.add_space(where)
        vectors = np.random.default_rng(0).standard_normal((20, 4))

        def write(batch: int) -> None:
            rows = [Row(id=str(i), text=f"batch {batch}", metadata={"batch": batch}) for i in range(20)]
            collection.upsert(rows, {where: vectors})

        write(0)
        mixed: list[Any] = []
        is_over = threading.Event()

        def ask() -> None:
            while not is_over.wait(0.0005):  # readers that never rest would hold the interpreter
                hits = collection.search([1, 1, 1, 1], space=where, k=20, filter={"batch": {"$gte": 0}})
                batches = {(hit.metadata["batch"], hit.text) for hit in hits}
                if len(hits) != 20 or len(batches) != 1 or len({hit.id for hit in hits}) != 20:
                    mixed.append(hits)

        readers = [threading.Thread(target=ask) for _ in range(3)]
        for reader in readers:
            reader.start()
        for batch in range(1, 150):
            write(batch)
        is_over.set()
        for reader in readers:
            reader.join()
        assert mixed == []
