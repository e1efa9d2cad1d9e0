"""What collections know of themselves, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from airi.gateway.retrieval.served import Collections

__all__ = ["CollectionFigures"]

_SHOWN = 12


class CollectionFigures(Collector):
    """Rows, those that wait for vectors, and the recall that graphs have on the collection's own data."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections

    def collect(self) -> Iterator[Metric]:
        """As they are when Prometheus asks; a space is named by the first digits of its key."""
        rows = GaugeMetricFamily("airi_collection_rows", "Rows that are there.", labels=("collection",))
        of_space = ("collection", "space")
        pending = GaugeMetricFamily(
            "airi_collection_pending_rows", "Rows without a vector in a space.", labels=of_space
        )
        recall = GaugeMetricFamily(
            "airi_collection_recall_at_10",
            "Share of the 10 nearest rows that searches of a space's graph find, measured on its rows.",
            labels=of_space,
        )
        for collection in self._collections:
            figures = collection.rows.stats()
            rows.add_metric((collection.name,), figures["rows"])
            for key, space in figures["spaces"].items():
                name = collection.name, key[:_SHOWN]
                pending.add_metric(name, space["pending"])
                if space["graph"] is not None and space["graph"]["is_used"]:
                    recall.add_metric(name, space["graph"]["recall_at_10"])
        yield from (rows, pending, recall)
