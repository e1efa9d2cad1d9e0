"""One search: what was asked for, and the ranking of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from airi.errors import RequestError
from airi.retrieval.memory import SpaceView, View, space_of
from airi.retrieval.search.exact import Ranked
from airi.retrieval.search.fusion import diverse, reciprocal_ranks, weighted
from airi.retrieval.search.planner import find
from airi.retrieval.search.selection import Selected
from airi.retrieval.search.texts import find_text
from airi.retrieval.spaces import EmbeddingSpace, key_of, query_vector
from airi.retrieval.store import Store

__all__ = ["MAX_K", "Query"]

MAX_K = 10_000
_DEPTH = 4
"""Rows of each ranking, for each row that is asked for, where rankings are joined."""
_LEAST_DEPTH = 50


@dataclass(slots=True, kw_only=True)
class Query:
    """What `Collection.search` is asked for. RequestError, which names the field, for what cannot be."""

    vector: Any
    space: EmbeddingSpace | str | None
    text: str | None
    k: int
    filter: Mapping[str, Any] | None
    fusion: Literal["rrf", "weighted"]
    weight: float
    mmr: float | None

    def __post_init__(self) -> None:
        if self.vector is None and self.text is None:
            raise RequestError("a search needs a vector, a text, or both", field="vector")
        if self.vector is not None and self.space is None:
            raise RequestError("space is missing: the one that the vector is of", field="space")
        if self.text is not None and not isinstance(self.text, str):
            raise RequestError(f"text is a {type(self.text).__name__}; it must be a text", field="text")
        if isinstance(self.k, bool) or not isinstance(self.k, int) or not 1 <= self.k <= MAX_K:
            raise RequestError(f"k is {self.k}; it must be 1 to {MAX_K}", field="k")
        if self.fusion not in ("rrf", "weighted"):
            raise RequestError(f"fusion is {self.fusion!r}; it must be 'rrf' or 'weighted'", field="fusion")
        if not 0 <= self.weight <= 1:
            raise RequestError(f"weight is {self.weight}; it must be 0 to 1", field="weight")
        if self.mmr is not None and not 0 <= self.mmr <= 1:
            raise RequestError(f"mmr is {self.mmr}; it must be 0 to 1", field="mmr")
        if self.mmr is not None and self.vector is None:
            raise RequestError("mmr needs a vector: likeness of rows is that of their vectors", field="mmr")

    def ranking(self, store: Store, view: View) -> Ranked:
        """The rows of a view that it finds, best first."""
        selected = view.selections.of(self.filter) if self.filter else None
        if self.mmr is None and self.text is None:
            return self._nearest(view, self._space(view), self.k, selected)
        is_joined = self.vector is not None
        deep = min(MAX_K, max(_DEPTH * self.k, _LEAST_DEPTH)) if is_joined else self.k
        rankings: list[Ranked] = []
        if self.vector is not None:
            rankings.append(self._nearest(view, self._space(view), deep, selected))
        if self.text is not None:
            rankings.append(find_text(store, view, self.text, deep, selected))
        ranking = rankings[0]
        if len(rankings) == 2:
            ids = view.memory.ids
            weights = (self.weight, 1 - self.weight)
            is_rrf = self.fusion == "rrf"
            ranking = (
                reciprocal_ranks(rankings, deep, ids) if is_rrf else weighted(rankings, weights, deep, ids)
            )
        if self.mmr is not None:
            slots = np.array([slot for slot, _ in ranking], np.int64)
            return diverse(ranking, self._space(view).matrix.rows(slots), self.k, self.mmr)
        return ranking[: self.k]

    def _space(self, view: View) -> SpaceView:
        return space_of(view, key_of(self.space or ""))

    def _nearest(self, view: View, space: SpaceView, k: int, selected: Selected | None) -> Ranked:
        graph = view.memory.graphs.get(space.number)
        return find(view, space, graph, query_vector(space.space, self.vector), k, selected)
