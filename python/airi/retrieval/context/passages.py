"""Hits as the documents of a prompt: neighbours joined, numbered, and marked off from the rest of the prompt."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from airi.retrieval.context.hits import ContextHit

__all__ = ["Passage", "Writer", "join_neighbours"]

_MARKS = re.compile(r"<(?=/?\s*documents?\b)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text of one source, made of one hit or of neighbours."""

    hits: tuple[ContextHit, ...]
    """In the order of the source."""
    text: str
    start: int | None
    end: int | None

    @property
    def source(self) -> str:
        """Of all its hits."""
        return self.hits[0].source

    @property
    def headings(self) -> tuple[str, ...]:
        """Those that all its hits stand under."""
        levels = zip(*(hit.headings for hit in self.hits), strict=False)
        return tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))

    @property
    def pages(self) -> tuple[int, int] | None:
        """The first and the last page."""
        found = [hit.pages for hit in self.hits if hit.pages is not None]
        return (min(first for first, _ in found), max(last for _, last in found)) if found else None

    @property
    def place(self) -> tuple[str, int, str]:
        """By which passages are in their canonical order: by source, and in it by place."""
        return self.source, self.start or 0, self.hits[0].id

    @cached_property
    def key(self) -> str:
        """The same for what is written the same way."""
        parts = (self.source, self.text, *self.headings, str(self.pages))
        return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def join_neighbours(hits: Iterable[ContextHit]) -> list[Passage]:
    """Passages of all hits in their canonical order; what several have of a source is there once.

    Hits are joined that overlap, where both have the same text there, and chunks that follow each other.
    """
    joined: list[Passage] = []
    for each in sorted((_alone(hit) for hit in hits), key=lambda passage: (*passage.place, passage.end or 0)):
        both = _joined(joined[-1], each) if joined else None
        if both is None:
            joined.append(each)
        else:
            joined[-1] = both
    return joined


def _alone(hit: ContextHit) -> Passage:
    place = hit.place
    if place is None:
        return Passage(hits=(hit,), text=hit.body.strip(), start=None, end=None)
    return Passage(hits=(hit,), text=hit.body, start=place.start, end=place.end)


def _joined(first: Passage, second: Passage) -> Passage | None:
    """Both as one, None where they do not touch."""
    before, after = first.hits[-1].place, second.hits[0].place
    if first.source != second.source or before is None or after is None:
        return None
    if first.start is None or first.end is None or second.end is None:
        return None
    hits = (*first.hits, *second.hits)
    gap = after.start - first.end
    if gap <= 0:
        shared = first.text[len(first.text) + gap :] if gap else ""
        if not second.text.startswith(shared[: len(second.text)]) or (gap and len(first.text) + gap < 0):
            return None  # of different versions of the source
        if gap == 0 and after.ordinal != before.ordinal + 1:
            return None
        text = first.text + second.text[-gap:]
        return Passage(hits=hits, text=text, start=first.start, end=max(first.end, second.end))
    if after.ordinal != before.ordinal + 1:
        return None
    # Between chunks there is white space alone.
    text = first.text + ("\n\n" if gap > 1 else "\n") + second.text
    return Passage(hits=hits, text=text, start=first.start, end=second.end)


class Writer:
    """Writes passages into a prompt, so that no text of them can pass for another part of it.

    What a text has of the marks around documents is written as text, and special tokens of the model are taken apart: a
    document cannot end the message that it stands in.
    """

    def __init__(self, special_tokens: Iterable[str]) -> None:
        """`special_tokens`: as they are written."""
        names = sorted(
            (each for each in special_tokens if len(each) > 1), key=lambda each: (-len(each), each)
        )
        self._special = re.compile("|".join(map(re.escape, names))) if names else None

    def write(self, instruction: str, passages: Sequence[Passage]) -> str:
        """The documents, numbered from 1, behind the instruction."""
        documents = "\n".join(self.passage(each, i) for i, each in enumerate(passages, 1))
        return f"{instruction}\n\n<documents>\n{documents}\n</documents>\n\n"

    def passage(self, passage: Passage, number: int) -> str:
        """One document."""
        names = f'index="{number}"'
        if passage.source:
            names += f' source="{self._name(passage.source)}"'
        if passage.headings:
            names += f' section="{self._name(" > ".join(passage.headings))}"'
        if passage.pages is not None:
            first, last = passage.pages
            names += f' page="{first}"' if first == last else f' pages="{first}-{last}"'
        return f"<document {names}>\n{self._plain(passage.text)}\n</document>"

    def _plain(self, text: str) -> str:
        text = _MARKS.sub("&lt;", text)
        if self._special is not None:
            text = self._special.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text)
        return text

    def _name(self, text: str) -> str:
        return self._plain(" ".join(text.split())).replace('"', "'").replace("<", "(")
