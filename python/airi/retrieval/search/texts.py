"""Full text: BM25 of SQLite's FTS5 over the rows of a view."""

from __future__ import annotations

import itertools
import re
from contextlib import closing

import numpy as np

from airi.retrieval.memory import View
from airi.retrieval.search.exact import Ranked
from airi.retrieval.search.selection import Selected
from airi.retrieval.store import Store

__all__ = ["find_text", "words_of"]

_WORD = re.compile(r"\w+")
_MAX_WORDS = 64
_PART = 512


def words_of(query: str) -> str:
    """An FTS5 query for rows with any of its words. All of it is text: nothing that a user writes is an operator."""
    words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query)))
    return " OR ".join(f'"{word}"' for word in words[:_MAX_WORDS])


def find_text(store: Store, view: View, query: str, k: int, selected: Selected | None) -> Ranked:
    """The k rows of a view that fit a query's words best; how rare a word is, removed rows count for, too."""
    words = words_of(query)
    if not words:
        return []
    numbers = view.memory.numbers.first(view.count)
    allowed = view.live if selected is None else selected.mask
    found: Ranked = []
    with closing(store.matches(words)) as matches:
        while part := list(itertools.islice(matches, _PART)):
            rows, scores = (np.array(column) for column in zip(*part, strict=True))
            slots = np.searchsorted(numbers, rows)
            there = slots < view.count
            there[there] = numbers[slots[there]] == rows[there]
            if allowed is not None:
                there[there] = allowed[slots[there]]
            found += zip(slots[there].tolist(), scores[there].tolist(), strict=True)
            if len(found) >= k and scores[-1] < found[k - 1][1]:
                break
    ids = view.memory.ids
    return sorted(found, key=lambda item: (-item[1], ids[item[0]]))[:k]
