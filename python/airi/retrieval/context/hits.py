"""What was found, as a context is built of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ContextHit", "Place"]


class Place(NamedTuple):
    """A chunk's span [start, end) of its source, in characters, and which chunk of it that is, from 0."""

    start: int
    end: int
    ordinal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextHit:
    """A text that was found for a question. A higher score is a better one."""

    id: str
    text: str
    score: float
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What a chunk says of its place is under `chunk`, as `airi.retrieval.ingest.Chunk.metadata` has it."""
    vector: NDArray[np.float32] | None = field(default=None, compare=False)
    """[dimension]; where hits have one, near duplicates are found by it, too."""

    @property
    def place(self) -> Place | None:
        """None where its metadata does not say, or says what cannot be."""
        start, end, ordinal = (self._number(name) for name in ("start", "end", "ordinal"))
        if start is None or end is None or ordinal is None or end - start != len(self.body):
            return None
        return Place(start, end, ordinal)

    @property
    def body(self) -> str:
        """The text without the headings that were put before it."""
        return self.text[self._number("prefix_chars") or 0 :]

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings it stands under."""
        found = self._chunk.get("headings")
        return (
            tuple(each for each in found if isinstance(each, str)) if isinstance(found, list | tuple) else ()
        )

    @property
    def pages(self) -> tuple[int, int] | None:
        """Its first and its last page."""
        first = self._number("page")
        return None if first is None else (first, self._number("last_page") or first)

    @property
    def _chunk(self) -> Mapping[str, Any]:
        found = self.metadata.get("chunk")
        return found if isinstance(found, Mapping) else {}

    def _number(self, name: str) -> int | None:
        found = self._chunk.get(name)
        return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None
