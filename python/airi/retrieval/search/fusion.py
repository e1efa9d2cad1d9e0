"""One ranking of several, and one whose rows differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from airi.retrieval.search.exact import Ranked
from airi.retrieval.spaces import Vectors

__all__ = ["diverse", "reciprocal_ranks", "weighted"]

_RANK_CONSTANT = 60
"""As in Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion", SIGIR 2009."""


def reciprocal_ranks(rankings: Sequence[Ranked], k: int, ids: Sequence[str]) -> Ranked:
    """The k rows with the largest sums of 1 / (60 + rank)."""
    sums: dict[int, float] = {}
    for ranking in rankings:
        for place, (slot, _) in enumerate(ranking, 1):
            sums[slot] = sums.get(slot, 0.0) + 1 / (_RANK_CONSTANT + place)
    return _top(sums, k, ids)


def weighted(rankings: Sequence[Ranked], weights: Sequence[float], k: int, ids: Sequence[str]) -> Ranked:
    """The k rows with the largest weighted sums of scores, those of each ranking brought to 0..1."""
    sums: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        scores = [score for _, score in ranking]
        low, high = min(scores, default=0.0), max(scores, default=0.0)
        for slot, score in ranking:
            part = (score - low) / (high - low) if high > low else 1.0
            sums[slot] = sums.get(slot, 0.0) + weight * part
    return _top(sums, k, ids)


def _top(sums: dict[int, float], k: int, ids: Sequence[str]) -> Ranked:
    return sorted(sums.items(), key=lambda item: (-item[1], ids[item[0]]))[:k]


def diverse(ranking: Ranked, rows: Vectors, k: int, relevance: float) -> Ranked:
    """k rows by maximal marginal relevance: each next one is good, and unlike those before it.

    `rows` are the vectors of the ranking, [rows, dimension]; relevance 1 is the ranking itself, 0 asks for unlike rows
    alone. Scores stay those of the ranking. Carbonell and Goldstein, SIGIR 1998.
    """
    if not ranking:
        return []
    scores = np.array([score for _, score in ranking])
    spread = scores.max() - scores.min()
    good = (scores - scores.min()) / spread if spread else np.ones_like(scores)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths == 0, 1, lengths)
    likeness = np.full(len(ranking), 0.0)
    left = np.ones(len(ranking), np.bool_)
    chosen: Ranked = []
    for _ in range(min(k, len(ranking))):
        worth = np.where(left, relevance * good - (1 - relevance) * likeness, -np.inf)
        place = int(worth.argmax())
        left[place] = False
        chosen.append(ranking[place])
        likeness = np.maximum(likeness, unit @ unit[place])
    return chosen
