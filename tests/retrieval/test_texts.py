"""Words, both kinds of search joined, and rows that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airi.retrieval import Collection, Row
from airi.retrieval.search.fusion import diverse, reciprocal_ranks, weighted
from tests.retrieval.hashing import HashingEmbedder

TEXTS = {
    "apple": "the apple is red and sweet",
    "fox": "the quick brown fox jumps over the lazy dog",
    "fox2": "a fox and a fox and another fox",
    "cafe": "Café über den Straßen",
    "code": 'error E-4711: C++ & naïve NEAR/2 (parser) "quoted"',
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Collection.open(tmp_path_factory.mktemp("texts"), "kb") as opened:
        opened.attach(HashingEmbedder())
        opened.upsert([Row(id=id_, text=text) for id_, text in TEXTS.items()])
        yield opened


def ids_of(hits: Any) -> list[str]:
    return [hit.id for hit in hits]


def test_words_find_rows_best_first(collection: Collection) -> None:
    assert ids_of(collection.search(text="fox")) == ["fox2", "fox"]
    assert ids_of(collection.search(text="FOX", k=1)) == ["fox2"]
    assert ids_of(collection.search(text="cafe")) == ["cafe"]
    assert ids_of(collection.search(text="strassen fox", k=9)) == ["fox2", "fox"]
    scores = [hit.score for hit in collection.search(text="the fox", k=9)]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0


@pytest.mark.parametrize(
    "query", ['"', "AND", "fox AND", "NOT", "fox*", "(", "text:fox", "^fox", "a - b", "E-4711:", "*"]
)
def test_nothing_that_a_user_writes_is_an_operator(collection: Collection, query: str) -> None:
    collection.search(text=query)
    assert "code" in ids_of(collection.search(text="E-4711: C++ NEAR/2"))


@given(st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_text_is_a_query(collection: Collection, query: str) -> None:
    for hit in collection.search(text=query):
        assert hit.text in TEXTS.values()


def test_both_kinds_are_joined(collection: Collection) -> None:
    embedder = HashingEmbedder()
    vector = embedder.encode(["red sweet apple"])[0]
    hits = collection.search(vector, space=embedder.space, text="fox", k=3)
    assert ids_of(hits)[0] in ("apple", "fox2")
    assert {"apple", "fox2"} <= set(ids_of(hits))
    by_vector = collection.search(
        vector, space=embedder.space, text="fox", k=1, fusion="weighted", weight=1.0
    )
    by_words = collection.search(vector, space=embedder.space, text="fox", k=1, fusion="weighted", weight=0.0)
    assert (ids_of(by_vector), ids_of(by_words)) == (["apple"], ["fox2"])


def test_reciprocal_ranks_are_summed_and_ties_are_by_id() -> None:
    ids = ["d", "c", "b", "a"]
    joined = reciprocal_ranks([[(0, 9.0), (1, 8.0)], [(2, 5.0), (1, 1.0)], []], 4, ids)
    assert joined == [(1, 2 / 62), (2, 1 / 61), (0, 1 / 61)]


def test_weighted_scores_are_brought_to_one_scale() -> None:
    ids = ["a", "b", "c"]
    joined = weighted([[(0, 100.0), (1, 50.0)], [(2, 0.3), (0, 0.1)]], (0.25, 0.75), 3, ids)
    assert joined == [(2, 0.75), (0, 0.25), (1, 0.0)]


def test_rows_that_repeat_each_other_come_later() -> None:
    rows = np.array([[1, 0], [1, 0.01], [0.3, 0.95]], np.float32)
    ranking = [(7, 1.0), (8, 0.99), (9, 0.3)]
    assert [slot for slot, _ in diverse(ranking, rows, 3, 0.3)] == [7, 9, 8]
    assert diverse(ranking, rows, 3, 1.0) == ranking
    assert diverse([], np.empty((0, 2), np.float32), 3, 0.5) == []


def test_removed_rows_are_not_found_by_words(tmp_path: Path) -> None:
    with Collection.open(tmp_path, "kb") as collection:
        collection.upsert([Row(id=str(i), text=f"word number {i}") for i in range(2000)])
        moment = collection.snapshot()
        collection.delete(map(str, range(1990)))
        assert ids_of(collection.search(text="word", k=20)) == [str(i) for i in range(1990, 2000)]
        assert len(collection.search(text="word", k=2000, at=moment)) == 2000
        assert ids_of(collection.search(text="word", k=3, at=moment)) == ["0", "1", "10"]
