"""The bench of searches: what finds too little has no speed, and all that it prints is JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.retrieval.components import needs


@pytest.fixture
def bench() -> Any:
    needs("faiss", "faiss-cpu")
    from benches import bench_vectors

    return bench_vectors


def test_what_finds_too_little_has_no_speed(bench: Any) -> None:
    vectors, queries = bench.drawn(500, 5)
    everything = np.ones(len(vectors), np.bool_)
    contest = bench.Contest("small", queries, bench.truth_of(vectors, queries, everything))
    contest.add("all", lambda query: np.argsort(-(vectors @ query))[:10], least=1.0)
    with pytest.raises(SystemExit, match="nothing has a recall of"):
        contest.add("nothing", lambda query: np.arange(10), least=0.95)
    (row,) = contest.rows(2)
    assert (row["recall_at_10"], row["n"]) == (1.0, 10)
    names = ("airi, whole call", "airi, index call", "faiss HNSW-SQ8")
    judged = bench.judged([{**row, "variant": name} for name in names], [row])
    assert len(json.loads(json.dumps(judged))) == 3


def test_vectors_of_others_have_the_truth_of_float64(bench: Any) -> None:
    vectors, queries = bench.drawn(200, 3)
    allowed = np.arange(200) % 2 == 0
    for query, found in zip(queries, bench.truth_of(vectors, queries, allowed), strict=True):
        scores = vectors.astype(np.float64) @ query
        assert found.tolist() == sorted(np.flatnonzero(allowed), key=lambda i: -scores[i])[:10]
