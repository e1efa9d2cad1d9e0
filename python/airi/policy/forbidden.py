"""Forbidden texts as policies see them: a set that holds for some calls, and what can be told of a text by it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

from airi._core import guard
from airi.errors import ConfigError
from airi.forbidden import ForbiddenPattern, ForbiddenSet
from airi.policy._detectors import DETECTOR_GROUPS, DETECTORS
from airi.policy._words import word_regex

__all__ = ["ForbiddenPolicy", "checked_detectors", "forbidden_patterns"]


def checked_detectors(name: str) -> list[str]:
    """Those of a detector, or a group of them, whose matches have check digits: no mask of tokens can ask for these."""
    return [one for one in DETECTOR_GROUPS.get(name, (name,)) if DETECTORS[one].validator != "NONE"]


def forbidden_patterns(
    rule: str,
    *,
    detectors: Sequence[str] = (),
    words: Sequence[str] = (),
    regexes: Sequence[str] = (),
    ignore_case: bool = False,
) -> Iterator[ForbiddenPattern]:
    """What a rule forbids, in the notation and with the meaning of content rules; ConfigError for check digits."""
    for detector in dict.fromkeys(one for name in detectors for one in DETECTOR_GROUPS.get(name, (name,))):
        if checked_detectors(detector):
            raise ConfigError(f"{rule}: {detector} has check digits, which no mask of tokens can ask for")
        yield ForbiddenPattern(name=f"{rule}.{detector}", regex=DETECTORS[detector].regex)
    for i, word in enumerate(words):
        yield ForbiddenPattern(name=f"{rule}.words[{i}]", regex=word_regex(word), word_boundary=True)
    for i, regex in enumerate(regexes):
        yield ForbiddenPattern(name=f"{rule}.regexes[{i}]", regex=regex, ignore_case=ignore_case)


class ForbiddenPolicy:
    """A set of forbidden texts and its automaton. Immutable; never looks at tokens: that is the engine's."""

    def __init__(self, forbidden: ForbiddenSet) -> None:
        """Raises ConfigError."""
        self.forbidden = forbidden
        self.digest = forbidden.digest
        self.automaton = forbidden.automaton()
        self._walk = guard.TokenMasks(self.automaton, [], text=True)

    @cached_property
    def automaton_sha256(self) -> str:
        """Names the automaton: the same for the same patterns on every machine."""
        return hashlib.sha256(self.automaton.canonical()).hexdigest()

    def state_after(self, text: str) -> bytes:
        """Where a text stands in the automaton, as an engine says it of the tokens."""
        return bytes(self._walk.after(text.encode("utf-8", "surrogatepass")))

    def may_end(self, text: str) -> bool:
        """Whether a text, of which no prefix has a match that is decided, has none where it ends."""
        return not self._walk.ends_match(self._walk.after(text.encode("utf-8", "surrogatepass")))

    def first_match(self, text: str) -> str | None:
        """The pattern of which the text has a match; None where it has none."""
        for index, _, _ in self.automaton.scan(text.encode("utf-8", "surrogatepass")):
            return self.forbidden.patterns[index].name
        return None
