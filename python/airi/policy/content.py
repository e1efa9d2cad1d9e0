"""Content rules: what must not pass in prompts and completions, found across the pieces of a stream.

A rule looks for built-in detectors, words and regular expressions, and says what happens to a match:

    block     the stream ends before it
    redact    a replacement stands in its place
    annotate  the text passes; the client is told
    audit     the text passes; only the audit record tells

Only rules that block or redact hold text back, from the start of the first match that is still open and no further:
what a match is and when it is decided is told in csrc/guard/scanner.h. Rules see characters as they are written: not
what they mean, and not another spelling of the same.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from airi._core import guard
from airi.errors import ConfigError
from airi.policy._detectors import DETECTOR_GROUPS, DETECTORS
from airi.policy._words import word_regex

__all__ = ["ContentAction", "ContentEvent", "ContentFilter", "ContentRule", "ContentRules", "Filtered"]

DEFAULT_REPLACEMENT: Final = "[REDACTED]"


class ContentAction(StrEnum):
    """What happens to a match."""

    BLOCK = "block"
    REDACT = "redact"
    ANNOTATE = "annotate"
    AUDIT = "audit"

    @property
    def holds(self) -> bool:
        """Whether text must be held back for it."""
        return self in (ContentAction.BLOCK, ContentAction.REDACT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRule:
    """One rule; ConfigError names what is not accepted.

    detectors: names of DETECTORS or DETECTOR_GROUPS. words: found whole, case ignored, any space between their parts.
    regexes: of the subset in csrc/guard/regex_parser.h.
    """

    name: str
    action: ContentAction
    detectors: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    regexes: tuple[str, ...] = ()
    ignore_case: bool = False
    """Of regexes, for ASCII letters."""
    replacement: str = DEFAULT_REPLACEMENT

    def __post_init__(self) -> None:
        if not (self.detectors or self.words or self.regexes):
            raise ConfigError(
                f"content rule {self.name!r}: one of detectors, words and regexes must be given"
            )
        known = {*DETECTORS, *DETECTOR_GROUPS}
        for name in self.detectors:
            if name not in known:
                raise ConfigError(
                    f"content rule {self.name!r}: no detector {name!r}; known are {', '.join(sorted(known))}",
                    field="detectors",
                )
        for index, word in enumerate(self.words):
            if not word.strip():
                raise ConfigError(f"content rule {self.name!r}: words[{index}] is empty", field="words")

    def patterns(self) -> Iterator[tuple[str, guard.Pattern]]:
        """What it looks for, each with the name that events give it."""
        holds = self.action.holds
        for name in _single_detectors(self.detectors):
            detector = DETECTORS[name]
            validator = guard.Validator[detector.validator]
            yield name, self._pattern(detector.regex, name, validator=validator, holds=holds)
        for index, word in enumerate(self.words):
            name = f"words[{index}]"
            yield name, self._pattern(word_regex(word), name, word_boundary=True, holds=holds)
        for index, regex in enumerate(self.regexes):
            name = f"regexes[{index}]"
            yield name, self._pattern(regex, name, ignore_case=self.ignore_case, holds=holds)

    def _pattern(
        self,
        regex: str,
        name: str,
        *,
        validator: guard.Validator = guard.Validator.NONE,
        ignore_case: bool = False,
        word_boundary: bool = False,
        holds: bool,
    ) -> guard.Pattern:
        return guard.Pattern(
            regex,
            name=f"{self.name}.{name}",
            ignore_case=ignore_case,
            word_boundary=word_boundary,
            validator=validator,
            holds=holds,
        )


def _single_detectors(names: Iterable[str]) -> list[str]:
    """Groups as what they hold; each detector once."""
    single = [one for name in names for one in DETECTOR_GROUPS.get(name, (name,))]
    return list(dict.fromkeys(single))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentEvent:
    """A match: bytes [start, end) of the text in UTF-8, counted in what came in. Never the text itself."""

    rule: str
    pattern: str
    """email, words[3], regexes[0]: what of the rule matched."""
    action: ContentAction
    start: int
    end: int
    replacement: str = field(default="", compare=False)
    """What stands in its place, or in that of all that it overlaps."""


class Filtered(NamedTuple):
    """What may go on, and what was found on the way."""

    text: str
    events: tuple[ContentEvent, ...]


class _Target(NamedTuple):
    """What a pattern of the automaton stands for."""

    rule: ContentRule
    pattern: str


class ContentRules:
    """Some rules as one automaton. Immutable; one serves any number of streams."""

    def __init__(self, rules: Iterable[ContentRule], *, max_states: int = 1 << 15) -> None:
        """ConfigError names the rule that is not accepted and why."""
        self.rules = tuple(rules)
        patterns: list[guard.Pattern] = []
        targets: list[_Target] = []
        for rule in self.rules:
            for name, pattern in rule.patterns():
                patterns.append(pattern)
                targets.append(_Target(rule, name))
        try:
            self.automaton = guard.Automaton(patterns, max_states=max_states)
        except ValueError as error:
            raise ConfigError(f"content rules: {error}", field="content_rules") from None
        self.targets = tuple(targets)
        described = [(t.rule.name, t.pattern, str(t.rule.action), t.rule.replacement) for t in targets]
        digest = hashlib.sha256(self.automaton.canonical())
        digest.update(repr(described).encode())
        self.digest = digest.hexdigest()
        """Names the rules: the same for the same rules on every machine."""

    def filter(self) -> ContentFilter:
        """For one text that comes in pieces."""
        return ContentFilter(self)

    def check(self, text: str) -> tuple[Filtered, ContentEvent | None]:
        """A whole text at once: what is left of it, and the match that blocks it."""
        stream = self.filter()
        first = stream.push(text)
        last = stream.finish()
        return Filtered(first.text + last.text, first.events + last.events), stream.blocked


class ContentFilter:
    """Applies rules to one text that comes in pieces. What it gives out, taken together, does not depend on them.

    Where redacted matches overlap, one replacement, that of the first, stands for all of them. Events of rules that
    hold text come in the order of their starts, those of others when they are decided; of others behind a match that
    blocks, only those come that were in its piece.

    Thread safety: none.
    """

    def __init__(self, rules: ContentRules) -> None:
        self._targets = rules.targets
        self._scanner = guard.Scanner(rules.automaton)
        self._held = bytearray()
        self._given = 0  # where _held begins in the text
        self._covered = 0  # where the last replaced match ends
        self._waiting: list[
            tuple[int, int, int]
        ] = []  # a heap of (start, -end, pattern): decided, not passed yet
        self.blocked: ContentEvent | None = None
        """The match that ended the stream; nothing is given out from there on."""

    def reset(self) -> None:
        """Begins another text."""
        self._scanner.reset()
        self._held.clear()
        self._waiting.clear()
        self._given = self._covered = 0
        self.blocked = None

    @property
    def held_bytes(self) -> int:
        """Bytes of UTF-8 that are held back."""
        return len(self._held)

    @property
    def passed_bytes(self) -> int:
        """Bytes of what came in that are decided: given out or replaced."""
        return self._given

    def push(self, text: str) -> Filtered:
        """The next piece: the text that may go on, and what was found."""
        if self.blocked is not None:
            return _NOTHING
        data = text.encode("utf-8", "surrogatepass")
        scanner = self._scanner
        matches = scanner.feed(data)
        limit = scanner.open_start
        if limit is None and not matches and not self._held:
            self._given += len(data)
            return Filtered(text, ())
        self._held += data
        return self._pass(matches, scanner.position if limit is None else limit)

    def finish(self) -> Filtered:
        """The end of the text: what was still held."""
        if self.blocked is not None:
            return _NOTHING
        return self._pass(self._scanner.finish(), self._scanner.position)

    def _pass(self, matches: list[tuple[int, int, int]], limit: int) -> Filtered:
        """Gives out what stands before `limit`; every match that begins before it is known by now."""
        events: list[ContentEvent] = []
        for pattern, start, end in matches:
            if self._targets[pattern].rule.action.holds:
                heapq.heappush(self._waiting, (start, -end, pattern))
            else:
                events.append(self._event(pattern, start, end))
        parts: list[bytes] = []
        while self._waiting and self._waiting[0][0] < limit:
            start, negative_end, pattern = heapq.heappop(self._waiting)
            event = self._event(pattern, start, -negative_end)
            events.append(event)
            parts.append(self._take(start))
            if event.action is ContentAction.BLOCK:
                self.blocked = event
                self._held.clear()
                break
            if start >= self._covered:
                parts.append(event.replacement.encode("utf-8", "surrogatepass"))
            self._take(event.end)
            self._covered = max(self._covered, event.end)
        else:
            parts.append(self._take(limit))
        return Filtered(b"".join(parts).decode("utf-8", "surrogatepass"), tuple(events))

    def _take(self, until: int) -> bytes:
        """The held text up to an offset, which is held no longer."""
        count = until - self._given
        if count <= 0:
            return b""
        taken = bytes(self._held[:count])
        del self._held[:count]
        self._given = until
        return taken

    def _event(self, pattern: int, start: int, end: int) -> ContentEvent:
        rule, name = self._targets[pattern]
        return ContentEvent(
            rule=rule.name,
            pattern=name,
            action=rule.action,
            start=start,
            end=end,
            replacement=rule.replacement if rule.action is ContentAction.REDACT else "",
        )


_NOTHING: Final = Filtered("", ())
