"""Random documents, cut at random bytes, searched by content rules and by matchers that share nothing with them.

What matches is by Python's `re` and loops over all spans; whether a match is open, by the partial matches of `regex`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import regex

from airi._core import guard
from airi.policy._detectors import DETECTOR_GROUPS, DETECTORS
from airi.policy.content import ContentAction, ContentRule, ContentRules
from tests.guard.naive import NaivePattern
from tests.policy.samples import make_document, make_words, naive_detector, naive_word

__all__ = ["Counts", "Searched"]


@dataclass(slots=True)
class Counts:
    """What became of the documents."""

    documents: int = 0
    cuts: int = 0
    matches: int = 0
    missed: int = 0
    invented: int = 0
    leaked: int = 0
    """Matches of which something would have been given out before they were decided."""
    held_at_cuts: int = 0
    """Cuts at which text was held back, where they end between characters."""
    held_in_vain: int = 0
    """Of those, where the text held back does not begin a match that is open."""
    most_held_bytes: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether all is found, nothing else is, and no byte goes out too early or too late."""
        return not (self.missed or self.invented or self.leaked or self.held_in_vain)


class Searched:
    """All built-in detectors and a block list, as an automaton and as independent patterns."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._words = make_words(self._rng, 20)
        rules = ContentRules(
            [
                ContentRule(name="d", action=ContentAction.REDACT, detectors=tuple(DETECTOR_GROUPS)),
                ContentRule(name="w", action=ContentAction.BLOCK, words=tuple(self._words)),
            ]
        )
        self._scanner = guard.Scanner(rules.automaton)
        self._naive = [naive_detector(t.pattern) for t in rules.targets if t.pattern in DETECTORS]
        self._naive += [naive_word(word) for word in self._words]
        self._open = [_compiled(pattern) for pattern in self._naive]

    def document(self, counts: Counts) -> None:
        """Makes one document, searches it in pieces and counts."""
        text = make_document(self._rng, self._words)
        data = text.encode()
        at = [len(text[:i].encode()) for i in range(len(text) + 1)]
        expected = {(i, at[s], at[e]) for i, one in enumerate(self._naive) for s, e in one.matches(text)}
        found: set[tuple[int, int, int]] = set()
        too_early: set[tuple[int, int, int]] = set()
        cuts = sorted(self._rng.choices(range(len(data) + 1), k=self._rng.randrange(12)))
        self._scanner.reset()
        for start, end in pairwise([0, *cuts, len(data)]):
            found.update(self._scanner.feed(data[start:end]))
            first_open = self._scanner.open_start
            limit = end if first_open is None else first_open
            too_early |= {match for match in expected - found if match[1] < limit}
            counts.cuts += 1
            if first_open is not None:
                counts.most_held_bytes = max(counts.most_held_bytes, end - limit)
                self._count_held(data[:end], limit, counts)
        found.update(self._scanner.finish())
        counts.documents += 1
        counts.matches += len(expected)
        counts.missed += len(expected - found)
        counts.invented += len(found - expected)
        counts.leaked += len(too_early)

    def _count_held(self, data: bytes, limit: int, counts: Counts) -> None:
        try:
            text, first = data.decode(), len(data[:limit].decode())
        except UnicodeDecodeError:  # a cut in the middle of a character: no text that the matcher could read
            return
        counts.held_at_cuts += 1
        is_open = any(one.fullmatch(text, pos=first, partial=True) for one in self._open)
        counts.held_in_vain += not is_open


def _compiled(pattern: NaivePattern) -> regex.Pattern[str]:
    return regex.compile(pattern.regex, pattern.flags | regex.ASCII)
