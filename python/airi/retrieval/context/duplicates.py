"""Hits that say nothing new."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from airi.retrieval.context.hits import ContextHit

__all__ = ["Better", "Duplicates"]

_WORDS = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)
"""Of languages that do not part words, each character is one."""
_Shingle = tuple[str, ...]
_SHINGLE = 5
_SAME_DIRECTION = 0.98
_SHARED_WORDS = 0.5
"""Texts of one direction that share less than that differ in what they say: as lists of prices do."""


class Better(NamedTuple):
    """The hit that a duplicate is one of."""

    id: str
    share: float
    """Of the duplicate's runs of words that it has."""
    same: bool
    """Whether both have the same words."""


class Duplicates:
    """Looks at hits, the best one first, and says which of them were there already.

    A hit is a near duplicate where most of its runs of five words stand in a better one: not where it has a better one
    in it, and more.
    """

    def __init__(self, threshold: float) -> None:
        """`threshold`: the share of a hit's runs of words that a better one must have."""
        self._threshold = threshold
        self._ids: set[str] = set()
        self._texts: dict[str, str] = {}
        self._holders: dict[_Shingle, list[int]] = {}
        self._kept: list[ContextHit] = []

    def find(self, hit: ContextHit) -> Better | None:
        """The better hit that says what this one says, or None: then this one is kept."""
        words = _WORDS.findall(hit.body.casefold())
        normal = " ".join(words) or hit.body.strip()
        if hit.id in self._ids:
            return Better(hit.id, 1.0, same=True)
        if normal in self._texts:
            return Better(self._texts[normal], 1.0, same=True)
        shingles = set(_shingles(words))
        found = self._nearest(hit, shingles)
        if found is not None:
            return found
        self._ids.add(hit.id)
        self._texts[normal] = hit.id
        for shingle in shingles:
            self._holders.setdefault(shingle, []).append(len(self._kept))
        self._kept.append(hit)
        return None

    def _nearest(self, hit: ContextHit, shingles: set[_Shingle]) -> Better | None:
        shared = Counter(holder for each in shingles for holder in self._holders.get(each, ()))
        for number, count in sorted(shared.items(), key=lambda each: (-each[1], each[0])):
            share = count / len(shingles)
            better = self._kept[number]
            close = share >= _SHARED_WORDS and _cosine(hit, better) >= _SAME_DIRECTION
            if share >= self._threshold or close:
                return Better(better.id, share, same=False)
        return None


def _shingles(words: list[str]) -> Iterator[_Shingle]:
    """Runs of five words; of shorter texts there is none, they are the same or they are not."""
    return (tuple(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1))


def _cosine(one: ContextHit, other: ContextHit) -> float:
    if one.vector is None or other.vector is None or one.vector.shape != other.vector.shape:
        return 0.0
    length = float(np.linalg.norm(one.vector) * np.linalg.norm(other.vector))
    return float(np.dot(one.vector, other.vector)) / length if length > 0 else 0.0
