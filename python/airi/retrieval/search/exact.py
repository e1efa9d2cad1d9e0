"""Exact search: every row that is asked for is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airi.retrieval.columns import Mask
from airi.retrieval.search.matrix import Matrix
from airi.retrieval.spaces import Vectors

__all__ = ["Ranked", "best", "nearest", "nearest_of", "rank"]

Ranked = list[tuple[int, float]]
"""Slots with their scores, best first; rows of the same score by their ids."""
_SLACK = 2e-6
"""Part of |query| |longest row| by which two ways to round the same dot product may differ."""


def _dots(rows: Vectors, query: Vectors) -> Vectors:
    """[rows] each worked out alone. numpy 2 has an operation for it, which takes a third of the time."""
    found: Vectors = np.vecdot(rows, query) if hasattr(np, "vecdot") else np.einsum("ij,j->i", rows, query)
    return found


def nearest(
    matrix: Matrix, query: Vectors, k: int, ids: Sequence[str], count: int, live: Mask | None
) -> Ranked:
    """The k best of the first rows, of those that `live` says, if it says any."""
    scores = matrix.scores(query, count)
    if live is not None:
        scores[~live] = -np.inf
    slots = best(scores, k, slack(matrix, query))
    if live is not None:
        slots = slots[live[slots]]
    return rank(matrix.rows(slots), slots, query, k, ids)


def nearest_of(
    rows: Vectors, slots: NDArray[np.int64], matrix: Matrix, query: Vectors, k: int, ids: Sequence[str]
) -> Ranked:
    """The k best of some rows, whose vectors are given."""
    places = best(rows @ query, k, slack(matrix, query))
    return rank(rows[places], slots[places], query, k, ids)


def slack(matrix: Matrix, query: Vectors) -> float:
    """By how much a score may be off."""
    return _SLACK * matrix.longest * math.sqrt(query @ query)


def best(scores: Vectors, k: int, margin: float) -> NDArray[np.int64]:
    """Places of all scores that may be among the k best, in no order."""
    if len(scores) <= k:
        return np.arange(len(scores), dtype=np.int64)
    ordered = scores.copy()
    ordered.partition(len(scores) - k)
    found: NDArray[np.int64] = (scores >= ordered[len(scores) - k] - margin).nonzero()[0]
    return found


def rank(rows: Vectors, slots: NDArray[np.int64], query: Vectors, k: int, ids: Sequence[str]) -> Ranked:
    """The k best of candidates.

    Scores are worked out by the same operations in the same order whatever other rows there are, which BLAS does not
    promise: equal vectors have equal scores, by all ways of searching, and the order is that of ids.
    """
    negatives = (-_dots(rows, query)).tolist()
    found = sorted(zip(negatives, slots.tolist(), strict=True))
    # Ids lie all over the memory, and are rarely needed.
    if len(set(negatives)) < len(negatives):
        found.sort(key=lambda item: (item[0], ids[item[1]]))
    return [(slot, -negative) for negative, slot in found[:k]]
