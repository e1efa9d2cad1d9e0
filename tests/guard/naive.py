"""What matches are, by Python's `re` and loops over all spans: slow, and nothing in common with the automaton."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

Span = tuple[int, int]


@lru_cache(maxsize=100_000)
def _ending_before(regex: str, flags: int, rest: int) -> re.Pattern[str]:
    """Matches of `regex` that end `rest` characters before the text does."""
    return re.compile(f"(?:{regex})(?=[\\s\\S]{{{rest}}}\\Z)", flags | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class NaivePattern:
    """A regular expression of the common subset; `passes` is its validator."""

    regex: str
    flags: int = 0
    passes: Callable[[str], bool] | None = None

    def is_candidate(self, text: str, start: int, end: int) -> bool:
        if not _ending_before(self.regex, self.flags, len(text) - end).match(text, start):
            return False
        return self.passes is None or self.passes(text[start:end])

    def matches(self, text: str) -> list[Span]:
        """Leftmost, of those the longest, then the same from its end on."""
        found: list[Span] = []
        somewhere = re.compile(self.regex, self.flags | re.ASCII)
        start = 0
        while first := somewhere.search(text, start):
            start = first.start()
            ends = (e for e in range(len(text), start, -1) if self.is_candidate(text, start, e))
            end = next(ends, None)
            if end is None:
                start += 1
            else:
                found.append((start, end))
                start = end
        return found


def continuations(alphabet: str, longest: int) -> Iterator[str]:
    """Every text of up to that many characters, the empty one first."""
    for length in range(longest + 1):
        for characters in product(alphabet, repeat=length):
            yield "".join(characters)


def decided_and_open(
    pattern: NaivePattern, text: str, following: Iterable[str]
) -> tuple[list[Span], int | None]:
    """The matches that `text` decides whatever of `following` comes next, and the smallest start of another one."""
    outcomes = [pattern.matches(text + more) for more in following]
    decided: list[Span] = []
    for span in outcomes[0]:
        if span[1] > len(text) or any(len(o) <= len(decided) or o[len(decided)] != span for o in outcomes):
            break
        decided.append(span)
    # What only begins in what follows is open nowhere yet.
    undecided = [o[len(decided)][0] for o in outcomes if len(o) > len(decided)]
    starts = [start for start in undecided if start < len(text)]
    return decided, min(starts, default=None)
