"""What collections know of themselves is scraped: rows, those that wait, and recall that was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from airi.gateway.metrics import Metrics
from airi.gateway.retrieval.figures import CollectionFigures
from airi.gateway.retrieval.served import Collections, ServedCollection
from airi.retrieval import Collection
from tests.retrieval.components import needs
from tests.retrieval.hashing import space
from tests.retrieval.test_graphs import SPACE, clustered, filled, with_graph


def page(*rows: Collection) -> str:
    metrics = Metrics("0")
    served = [
        ServedCollection(name=each.name, embedder="e", data_class="public", chunker="", rows=each)
        for each in rows
    ]
    metrics.watch(CollectionFigures(Collections(served)))
    return metrics.render().decode()


def test_recall_is_told_of_graphs_that_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("faiss", "faiss-cpu")
    with with_graph(tmp_path, clustered(3000), monkeypatch) as collection:
        text = page(collection)
        labels = f'{{collection="kb",space="{SPACE.key[:12]}"}}'
        recall = float(text.partition(f"airi_collection_recall_at_10{labels} ")[2].partition("\n")[0])
        assert 0.97 <= recall <= 1
        assert f"airi_collection_pending_rows{labels} 0.0" in text
        assert 'airi_collection_rows{collection="kb"} 3000.0' in text


def test_rows_that_wait_are_told_and_no_recall_without_a_graph(tmp_path: Path) -> None:
    with filled(tmp_path, clustered(20)) as collection:
        collection.add_space(space("two", 8))
        text = page(collection)
        assert (
            f'airi_collection_pending_rows{{collection="kb",space="{space("two", 8).key[:12]}"}} 20.0' in text
        )
        assert "airi_collection_recall_at_10{" not in text
