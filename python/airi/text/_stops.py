"""Finding stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StopChecker", "StopMatch"]


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string in a text: `text[start:end]` is `stop`."""

    stop: str
    start: int
    end: int


class StopChecker:
    """Holds back text that may begin a stop string and finds the first stop string that is completed.

    "First" is decided character by character (of several that end at the same character, the
    longest), so the outcome is the same however the text is cut into pieces.
    """

    __slots__ = ("_first", "_longest", "_stops", "held", "rest")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._longest = max(map(len, self._stops), default=0)
        self._first = frozenset(s[0] for s in self._stops)
        self.held = ""
        self.rest = ""
        """What followed a stop string in the text that completed it."""

    def push(self, text: str, *, match: bool = True) -> tuple[str, StopMatch | None]:
        """Text that can be handed out, and the match (offsets in it) where `text` completes a stop string.

        With a match the text ends with the stop string and what followed it is dropped.
        match=False looks for none that ends within `text`, but still holds back what may begin one.
        """
        buffer = self.held + text
        found = self._find(buffer) if match else None
        if found is not None:
            self.held, self.rest = "", buffer[found.end :]
            return buffer[: found.end], found
        keep = self._partial(buffer)
        self.held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], None

    def finish(self) -> str:
        """The text that was held back and turned out to begin no stop string."""
        held, self.held = self.held, ""
        return held

    def _find(self, buffer: str) -> StopMatch | None:
        """The match that ends first, among those that end in what is new in `buffer`."""
        best: StopMatch | None = None
        for stop in self._stops:
            start = buffer.find(stop, max(0, len(self.held) - len(stop) + 1))
            if start < 0:
                continue
            end = start + len(stop)
            if best is None or (end, start) < (best.end, best.start):
                best = StopMatch(stop, start, end)
        return best

    def _partial(self, buffer: str) -> int:
        """Length of the longest suffix of `buffer` that begins a stop string without completing it."""
        for start in range(max(0, len(buffer) - self._longest + 1), len(buffer)):
            if buffer[start] in self._first:
                suffix = buffer[start:]
                if any(len(s) > len(suffix) and s.startswith(suffix) for s in self._stops):
                    return len(suffix)
        return 0
