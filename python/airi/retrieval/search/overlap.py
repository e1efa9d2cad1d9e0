"""Do two spaces find the same rows?"""

from __future__ import annotations

import numpy as np

from airi.retrieval.memory import SpaceView, View
from airi.retrieval.search.exact import nearest

__all__ = ["overlap_of_rows"]


def overlap_of_rows(view: View, first: SpaceView, second: SpaceView, k: int, queries: int) -> float:
    """Mean share of the k nearest rows that both find, of rows as queries, which are not looked for themselves.

    Only rows with vectors in both are asked for, and found; it is 1 where there are none.
    """
    both = first.has & second.has
    slots = np.flatnonzero(both).astype(np.int64)
    if len(slots) < 2:
        return 1.0
    probes = np.random.default_rng(0).choice(slots, min(queries, len(slots)), replace=False)
    k = min(k, len(slots) - 1)
    shared = 0
    for probe in probes.tolist():
        found = []
        for space in (first, second):
            query = space.matrix.rows(np.array([probe]))[0]
            allowed = both.copy()
            allowed[probe] = False
            ranked = nearest(space.matrix, query, k, view.memory.ids, view.count, allowed)
            found.append({slot for slot, _ in ranked})
        shared += len(found[0] & found[1])
    return shared / (k * len(probes))
